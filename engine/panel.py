"""What a network sees in one image of a split, as one picture: `hmsa panel`."""

from __future__ import annotations

import argparse
import os

import torch

from hmsa.datasets import DataError
from hmsa.utils.files.png import encode_png
from hmsa.utils.files.writing import write_file
from hmsa.utils.report.colours import scale_colours
from hmsa.utils.report.page import Picture
from hmsa.utils.report.panels import panel

from .build import inference_options, load_model, split_files
from .pictures import pictures_of


def main(options: argparse.Namespace) -> int:
    """Predict one image and write the picture; returns the exit status."""
    loaded = load_model(
        options.checkpoint,
        config_file=None,
        overrides=options.overrides,
        device=torch.device("cpu"),
    )
    split = options.split or loaded.config.data.val_split
    files = split_files(loaded.config, split, expected=loaded.spec)

    if options.index >= len(files):
        raise DataError(
            f"--index: {options.index} is none of the {len(files)} images; "
            f"choose one from 0 to {len(files) - 1}"
        )

    # Not even with --overwrite may the picture replace a file that it is drawn from.
    output = os.path.realpath(options.output)
    read = [options.checkpoint, files.image_path(options.index), files.label_path(options.index)]
    if output in [os.path.realpath(path) for path in read if path is not None]:
        raise DataError(f"--output: {options.output} is a file to read; name another file")

    inference = inference_options(loaded.config.eval, scales=options.scales)
    pictures = pictures_of(loaded.model, files, inference, options.index)

    # What the colours mean: a palette may have more of them than there are classes.
    legends = [list(zip(loaded.spec.names, loaded.spec.palette, strict=False))]
    if "scale trusted" in pictures:
        scales = sorted(inference.scales)
        names = [f"scale trusted: {scale:g}x" for scale in scales]
        legends.append(list(zip(names, scale_colours(len(scales)), strict=True)))
    picture = panel(list(pictures.items()), columns=4, width=options.width, legends=legends)

    data = encode_png(picture)
    if options.output.suffix.lower() != ".png":
        data = Picture.photo("", picture, width=picture.shape[1]).data
    write_file(options.output, data)
    print(f"wrote {options.output}")
    return 0
