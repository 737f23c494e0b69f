"""Make of a finely labelled data set one with few fine and many coarse labels, as table 2 needs it.

    python scripts/make_coarse_data.py CONFIG OUT [--fine 0.25] [--seed 0]
                                       [--confused Sidewalk=Road ...] [section.key=value ...]

Of the training split of a configuration a share, drawn at random by the seed, keeps its fine labels
and is OUT's `train`. The others are `train_extra`: their labels are polygons of few corners away
from borders, drawn from the fine ones as in the drawn scenes (scripts/demo_scenes/coarse.py); the
fine ones are kept in `truth/train_extra`, where no training looks. The splits of --splits are taken
over. OUT is a folder data set whose images are links to those there are. The same arguments make
the same again.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import yaml
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from hmsa.datasets import DatasetSpec, Files
from hmsa.engine.build import split_files
from hmsa.engine.command_line import parse_with_overrides, positive_share, run_command
from hmsa.utils.config import load_config
from hmsa.utils.files.writing import write_file
from hmsa.utils.words import UserError, did_you_mean
from scripts.demo_scenes.coarse import coarsened
from scripts.tables.program import COARSE_MARKER

IGNORE = 255
# Part of the recipe of what is made; raised when the same arguments draw other labels.
DRAWING = 1


class CoarseDataError(UserError, ValueError):
    """The data set cannot be made as asked; the message says what to change."""


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", help="YAML configuration whose data section names the data set")
    parser.add_argument("output", type=Path, metavar="OUT", help="folder of the new data set")
    parser.add_argument(
        "--fine",
        type=positive_share(),
        default=0.25,
        help="share of the training images that keep fine labels (default: %(default)s)",
    )
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    parser.add_argument(
        "--splits",
        nargs="*",
        default=["val"],
        metavar="SPLIT",
        help="further splits to take over as they are (default: val)",
    )
    parser.add_argument(
        "--confused",
        nargs="*",
        default=[],
        metavar="CLASS=OTHER",
        help="what an annotator in a hurry takes for what, a tenth of the polygons of CLASS",
    )
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="section.key=value",
        help="change the configuration, e.g. data.root=/data/camvid",
    )

    return parse_with_overrides(parser, argv)


def make_coarse_data(options: argparse.Namespace) -> int:
    """Make what OUT lacks; returns the exit status."""
    config = load_config(options.config, options.overrides)
    train = split_files(config, config.data.train_split)
    train.require_labels()
    others = {name: split_files(config, name) for name in options.splits}
    confused = _confused(options.confused, train.spec)
    fine = _chosen(len(train), options.fine, options.seed)

    # A data set of other arguments is not mixed with this one.
    recipe = {
        "drawing": DRAWING,
        "seed": options.seed,
        "fine": options.fine,
        "confused": sorted(options.confused),
        "images": _digest_of_names(train),
    }
    _require_own(options.output, recipe)
    write_file(options.output / "classes.yaml", _class_list(train.spec))

    for index in range(len(train)):
        label = train.read_label(index)
        if index in fine:
            _add(options.output, "train", train, index, label)
            continue

        coarse = coarsened(
            label,
            np.random.default_rng((options.seed, index)),
            num_classes=train.spec.num_classes,
            ignore=IGNORE,
            confused=confused,
        )
        _add(options.output, "train_extra", train, index, coarse)
        _write_label(options.output / "truth" / "train_extra", train.output_name(index), label)

    for name, files in others.items():
        files.require_labels()
        for index in range(len(files)):
            _add(options.output, name, files, index, files.read_label(index))

    print(f"{options.output}: {len(fine)} fine and {len(train) - len(fine)} coarse training images")
    return 0


def _confused(words: Sequence[str], spec: DatasetSpec) -> dict[int, int]:
    """Class -> the one it is taken for, from words such as Sidewalk=Road."""
    found = {}
    for word in words:
        numbers = []
        for name in word.split("="):
            if name not in spec.names:
                raise CoarseDataError(
                    f"--confused: {word!r} names no class{did_you_mean(name, spec.names)}; write "
                    f"CLASS=OTHER with classes of {', '.join(spec.names)}"
                )
            numbers.append(spec.names.index(name))
        if len(numbers) != 2:
            raise CoarseDataError(f"--confused: {word!r} is not CLASS=OTHER")
        found[numbers[0]] = numbers[1]
    return found


def _chosen(count: int, share: float, seed: int) -> frozenset[int]:
    """Which of `count` images keep their fine labels: at least one, and not all."""
    if count < 2:
        raise CoarseDataError(f"the training split has {count} image; two are needed at least")
    wanted = min(max(1, round(share * count)), count - 1)
    return frozenset(np.random.default_rng(seed).permutation(count)[:wanted].tolist())


def _digest_of_names(files: Files) -> str:
    """Short digest of the names of all images, in their order."""
    names = "\n".join(files.name(index) for index in range(len(files)))
    return hashlib.sha256(names.encode()).hexdigest()[:12]


def _require_own(output: Path, recipe: Mapping[str, Any]) -> None:
    """Mark a new folder as one of this recipe; refuse a used one that is of no or another one."""
    marker = output / COARSE_MARKER
    if not output.is_dir() or not any(output.iterdir()):
        write_file(marker, json.dumps({"recipe": recipe}, indent=1) + "\n")
        return

    found = None
    with suppress(OSError, ValueError, KeyError, TypeError):
        found = json.loads(marker.read_text(encoding="utf-8"))["recipe"]
    if found != json.loads(json.dumps(recipe)):
        raise CoarseDataError(
            f"{output}: holds something else than this data set; name a new or empty folder"
        )


def _class_list(spec: DatasetSpec) -> str:
    """classes.yaml of the same classes, whose labels hold 0, 1, 2 and so on."""
    classes = [
        {"name": info.name, "color": list(info.color), "id": number}
        for number, info in enumerate(spec.classes)
    ]
    content = {"name": spec.name, "ignore": IGNORE, "classes": classes}
    return yaml.safe_dump(content, sort_keys=False)


def _add(output: Path, split: str, files: Files, index: int, label: NDArray[np.uint8]) -> None:
    """Enter an image and its label into a split."""
    path, name = files.image_path(index), files.output_name(index)
    link = output / "images" / split / f"{name}{path.suffix}"
    link.parent.mkdir(parents=True, exist_ok=True)
    if not link.is_symlink():
        os.symlink(path, link)
    _write_label(output / "labels" / split, name, label)


def _write_label(folder: Path, name: str, label: NDArray[np.uint8]) -> None:
    """Write a label of train ids."""
    encoded, data = cv2.imencode(".png", label)
    assert encoded, name
    write_file(folder / f"{name}.png", data.tobytes())


def main(argv: Sequence[str] | None = None) -> int:
    """Make the data set; returns the exit status."""
    options = parse(argv)
    return run_command(lambda: make_coarse_data(options))


if __name__ == "__main__":
    sys.exit(main())
