"""How far does colour alone go? A per-pixel classifier of colours beside a network.

    python scripts/colour_classifier.py data/demo [--metrics runs/demo/eval/metrics.json]
                                                  [--json FILE]

The classifier is fitted on train and scored on val. It is the best there can be for one pixel at a
time: a table that gives each colour the class that it most often has in the training labels, with
classes weighted by a power of their rarity. Fineness of the table and the power are chosen on a
half of the training images that the other half has not seen. Training split and validation split
become one histogram each of (colour, class), from which all scores are exact.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from hmsa.datasets import DataError, build_files, read_image, read_label
from hmsa.datasets.files import Files
from hmsa.utils.files.writing import write_file
from hmsa.utils.metrics.scores import iou_of, mean_of
from hmsa.utils.words import UserError

FINEST_BITS = 5  # of each channel in the histograms
BITS, POWERS = (3, 4, 5), (0.0, 0.25, 0.5, 0.75, 1.0)

# Weight, in pixels, of what the class shares of the eight times coarser cell say about a cell.
NEIGHBOURS = 0.5


def colour_histogram(files: Files, indices: Sequence[int]) -> NDArray[np.int64]:
    """Pixels of each colour and class, int64 [32 ** 3, classes]; ignored pixels are not counted."""
    classes, levels = files.spec.num_classes, 1 << FINEST_BITS
    counts = np.zeros((levels**3, classes), np.int64)

    for index in indices:
        label_path = files.label_path(index)
        assert label_path is not None, "a colour classifier is fitted and scored on labels"
        image = read_image(files.image_path(index))
        label = read_label(label_path, spec=files.spec, image_size=(image.shape[0], image.shape[1]))

        # One number for each (colour, class), so that one bincount counts all pairs.
        shades = image.astype(np.int64) >> (8 - FINEST_BITS)
        cells = (shades[..., 0] * levels + shades[..., 1]) * levels + shades[..., 2]
        counted = label != files.spec.ignore_label
        pairs = cells[counted] * classes + label[counted]
        counts += np.bincount(pairs, minlength=counts.size).reshape(counts.shape)
    return counts


def coarser(counts: NDArray[np.int64], bits: int) -> NDArray[np.int64]:
    """A histogram [n ** 3, classes] summed to `bits` bits a channel [(2 ** bits) ** 3, classes]."""
    levels = round(len(counts) ** (1 / 3))
    step, small = levels >> bits, 1 << bits
    cubes = counts.reshape(small, step, small, step, small, step, -1)
    return cubes.sum(axis=(1, 3, 5)).reshape(small**3, -1)


@dataclass(frozen=True)
class ColourClassifier:
    """The class of each colour, [(2 ** bits) ** 3], and how it was chosen."""

    table: NDArray[np.int64]
    bits: int
    power: float

    def confusion(self, counts: NDArray[np.int64]) -> NDArray[np.int64]:
        """Rows labels, columns predictions, int64 [classes, classes], for a histogram's pixels."""
        cells = coarser(counts, self.bits)
        matrix = np.zeros((cells.shape[1], cells.shape[1]), np.int64)
        for predicted in range(cells.shape[1]):
            matrix[:, predicted] = cells[self.table == predicted].sum(axis=0)
        return matrix


def fit_table(counts: NDArray[np.int64], *, bits: int, power: float) -> ColourClassifier:
    """The likeliest class of each colour, with class frequencies over frequency ** power."""
    cells = coarser(counts, bits).astype(np.float64)
    parents = coarser(counts, bits - 1).astype(np.float64)

    # Class shares of the coarser cells, which stand in where a cell holds few pixels.
    small = 1 << (bits - 1)
    frequencies = counts.sum(axis=0)
    shares = (parents + frequencies / counts.sum()) / (parents.sum(axis=1, keepdims=True) + 1)
    spread = shares.reshape(small, 1, small, 1, small, 1, -1)
    for axis in (1, 3, 5):
        spread = spread.repeat(2, axis=axis)

    # A class that training lacks is never predicted.
    weight = np.where(frequencies > 0, np.maximum(frequencies, 1) ** -power, 0.0)
    table = ((cells + NEIGHBOURS * spread.reshape(cells.shape)) * weight).argmax(axis=1)
    return ColourClassifier(table=table, bits=bits, power=power)


def fit(halves: tuple[NDArray[np.int64], NDArray[np.int64]]) -> ColourClassifier:
    """Choose fineness and power on the second half of the training images, then fit on both."""
    tried = [fit_table(halves[0], bits=bits, power=power) for bits in BITS for power in POWERS]
    best = max(tried, key=lambda classifier: mean_of(iou_of(classifier.confusion(halves[1]))))
    return fit_table(halves[0] + halves[1], bits=best.bits, power=best.power)


def evaluate_classifier(train: Files, val: Files) -> dict[str, object]:
    """Fit on one split, score on another.

    Returns `miou`, `pixel_accuracy`, `per_class` (None where absent), `bits` and `power`.

    Raises:
        DataError: When the training split holds a single image.
    """
    if len(train) < 2:
        raise DataError(
            f"split {train.split} holds a single image: "
            "the classifier is fitted on one half and tuned on the other"
        )
    even = colour_histogram(train, range(0, len(train), 2))
    odd = colour_histogram(train, range(1, len(train), 2))
    classifier = fit((even, odd))

    matrix = classifier.confusion(colour_histogram(val, range(len(val))))
    iou = iou_of(matrix)
    per_class: dict[str, float | None] = {}
    for name, value in zip(val.spec.names, iou, strict=True):
        per_class[name] = float(value)
        if math.isnan(value):
            per_class[name] = None
    return {
        "miou": mean_of(iou),
        "pixel_accuracy": float(np.trace(matrix) / max(matrix.sum(), 1)),
        "per_class": per_class,
        "bits": classifier.bits,
        "power": classifier.power,
    }


def read_metrics(path: Path, names: Sequence[str]) -> tuple[float, dict[str, float | None]]:
    """Mean and per-class IoU of a network out of the metrics.json of eval.py.

    Raises:
        DataError: When the file is none, or is that of other classes than `names`.
    """
    try:
        metrics = json.loads(path.read_text(encoding="utf-8"))
        miou, per_class = float(metrics["miou"]), dict(metrics["per_class"])
        values = [value for value in per_class.values() if value is not None]
        if not all(isinstance(value, (int, float)) for value in values):
            raise ValueError("an IoU is no number")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(f"{path}: is no metrics.json of eval.py ({error!r})") from error

    unknown = set(per_class) - set(names)
    if unknown:
        raise DataError(
            f"{path}: holds the class {min(unknown)!r}, which this data set has not; "
            "give metrics of its own network"
        )
    return miou, per_class


def table(colour: dict[str, object], network: tuple[float, dict[str, float | None]] | None) -> str:
    """IoU in percent per class, of colour alone and of the network, and how far they are apart."""
    per_class = colour["per_class"]
    assert isinstance(per_class, dict) and isinstance(colour["miou"], float)
    rows = [*per_class.items(), ("mean", colour["miou"])]
    if network is None:
        lines = [f"{'class':<16}{'colour':>8}"]
        lines += [f"{name:<16}{_percent(value):>8}" for name, value in rows]
        return "\n".join(lines)

    lines = [f"{'class':<16}{'colour':>8}{'network':>9}{'gap':>7}"]
    others = [*(network[1].get(name) for name in per_class), network[0]]
    for (name, value), other in zip(rows, others, strict=True):
        gap = None
        if value is not None and other is not None:
            gap = other - value
        lines.append(f"{name:<16}{_percent(value):>8}{_percent(other):>9}{_percent(gap):>7}")
    return "\n".join(lines)


def _percent(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{100 * value:.1f}"


def main(command_line: Sequence[str] | None = None) -> int:
    """Fit, score, print; exit status 2 for what cannot be read or written."""
    parser = argparse.ArgumentParser(
        description="Score a per-pixel classifier of colours, fitted on the training split."
    )
    parser.add_argument("root", type=Path, help="data set, such as make_demo_data.py draws it")
    parser.add_argument(
        "--dataset", default="cityscapes", help="kind of data set (default cityscapes)"
    )
    parser.add_argument("--classes", type=Path, help="class list of a folder data set")
    parser.add_argument("--train-split", default="train", help="split to fit on (default train)")
    parser.add_argument("--val-split", default="val", help="split to score (default val)")
    parser.add_argument("--metrics", type=Path, help="metrics.json of eval.py, to stand beside")
    parser.add_argument("--json", type=Path, help="write the scores to this file")
    options = parser.parse_args(command_line)

    try:
        train, val = (
            build_files(
                dataset=options.dataset, root=options.root, split=split, classes=options.classes
            )
            for split in (options.train_split, options.val_split)
        )
        network = None
        if options.metrics is not None:
            network = read_metrics(options.metrics, val.spec.names)
        colour = evaluate_classifier(train, val)

        # The scores are kept before they are printed: a terminal may go away.
        if options.json is not None:
            write_file(options.json, json.dumps(colour, indent=2) + "\n")
    except (UserError, DataError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(table(colour, network))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
