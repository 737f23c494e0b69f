"""What a network sees in one image of a split, as one picture.

    python scripts/panel.py --checkpoint best.pt --index 4 --output panel.png

Image, label, prediction, error, what each scale says alone, how much it counts, and which scale
counts most (figure 3 of the paper), with the colours of classes and scales below.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

# A script runs from any folder: the checkout it lies in comes before what may be installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from hmsa.engine.arguments import ScalesAction
from hmsa.engine.command_line import at_least, parse_with_overrides, run_command

SUFFIXES = (".png", ".jpg", ".jpeg")


def main(argv: Sequence[str] | None = None) -> int:
    """Draw the picture; returns the exit status."""
    parser = build_parser()
    options = parse_with_overrides(parser, argv)
    if options.output.exists() and not options.overwrite:
        parser.error(
            f"{options.output} is there already; name another --output, or use --overwrite"
        )
    return run_command(lambda: draw_panel(options))


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", type=Path, required=True, help="a checkpoint of train.py")
    parser.add_argument("--split", help="default: the validation split of its configuration")
    parser.add_argument(
        "--index",
        type=at_least(0),
        default=0,
        help="which image of the split, from 0 (default: %(default)s)",
    )

    # How it is inferred and drawn.
    parser.add_argument(
        "--scales", nargs="+", action=ScalesAction, metavar="S", help="default: eval.scales"
    )
    parser.add_argument(
        "--width",
        type=at_least(16),
        default=420,
        help="of each picture in pixels (default: %(default)s)",
    )
    parser.add_argument("--output", type=_output, required=True, help="file to write, .png or .jpg")
    parser.add_argument("--overwrite", action="store_true", help="replace it if it is there")
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="section.key=value",
        help="change the configuration, e.g. data.root=/data/cityscapes",
    )
    return parser


def _output(text: str) -> Path:
    """An argparse type: the name of a PNG or JPEG file."""
    path = Path(text)
    if path.suffix.lower() not in SUFFIXES:
        raise argparse.ArgumentTypeError(f"{text} must end in {' or '.join(SUFFIXES)}")
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"{text} is a folder; name a file")
    return path


def draw_panel(options: argparse.Namespace) -> int:
    """Predict one image and write the picture."""
    # Imported here, so that --help and a mistyped option are answered without loading torch.
    import torch

    from hmsa.datasets import DataError
    from hmsa.engine.build import inference_options, load_model, split_files
    from hmsa.engine.pictures import pictures_of
    from hmsa.utils.files.png import encode_png
    from hmsa.utils.files.writing import write_file
    from hmsa.utils.report.colours import scale_colours
    from hmsa.utils.report.page import Picture
    from hmsa.utils.report.panels import panel

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


if __name__ == "__main__":
    sys.exit(main())
