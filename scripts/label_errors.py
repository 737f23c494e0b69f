"""How much coarse or automatic labels cover, and how much of it is wrong, class by class.

    python scripts/label_errors.py ROOT [--labels LABELS] [--json FILE]

ROOT is a data set of scripts/make_coarse_data.py, which keeps the fine labels of its coarse images,
or one of `scripts/make_demo_data.py --fine-extra`.
LABELS is a folder of `hmsa autolabel`; without it the coarse labels are judged. `covered` is the
share of a class's pixels that have any label, `wrong` the share of the pixels labelled as the class
that are of another one.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from hmsa.datasets import DataError, build_files
from hmsa.datasets.layouts.class_list import Layout
from hmsa.engine.command_line import run_command
from hmsa.utils.files.writing import write_file

SPLIT = "train_extra"


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("root", type=Path, metavar="ROOT", help="data set with coarse labels")
    parser.add_argument("--labels", type=Path, help="automatic labels (default: the coarse ones)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures there")
    return parser.parse_args(argv)


def judge(root: Path, labels: Path | None) -> dict[str, Any]:
    """Coverage and error of all pixels and of each class, fractions; None where there is no pixel.

    Raises:
        DataError: labels are missing or cannot be read.
    """
    place: dict[str, Any] = {"root": root, "split": SPLIT}
    if (root / "leftImg8bit").is_dir():
        place["dataset"] = "cityscapes"
        if not (root / "gtFine" / SPLIT).is_dir():
            raise DataError(
                f"{root}: its {SPLIT} has coarse labels only; draw fine ones beside them with "
                "scripts/make_demo_data.py --fine-extra"
            )
        true = build_files(**place, labels="fine")
    else:
        place["dataset"] = "folder"
        true = build_files(**place, layout=Layout(labels="truth/{split}"))

    if labels is None:
        given = build_files(**place, labels="coarse")
    else:
        given = build_files(**place, labels="auto", label_root=labels)
    places = {given.name(index): index for index in range(len(given))}

    # Pixels by true class and label; the last column holds those without a label. What is ignored
    # in the truth does not count.
    classes = true.spec.num_classes
    counts = np.zeros((classes, classes + 1), dtype=np.int64)
    for index in range(len(true)):
        truth = true.read_label(index)
        counted = truth < classes
        label = given.read_label(places[true.name(index)], image_size=truth.shape)
        pairs = truth[counted].astype(np.int64) * (classes + 1)
        pairs += np.minimum(label[counted], classes)
        counts += np.bincount(pairs, minlength=counts.size).reshape(counts.shape)

    labelled, right = counts[:, :classes], np.diagonal(counts)
    return {
        "covered": _ratio(labelled.sum(), counts.sum()),
        "wrong": _ratio(labelled.sum() - right.sum(), labelled.sum()),
        "classes": {
            name: {
                "covered": _ratio(labelled[number].sum(), counts[number].sum()),
                "wrong": _ratio(
                    labelled[:, number].sum() - right[number], labelled[:, number].sum()
                ),
            }
            for number, name in enumerate(true.spec.names)
        },
    }


def _ratio(part: np.int64, whole: np.int64) -> float | None:
    """A share; None of nothing."""
    if not whole:
        return None
    return float(part / whole)


def main(argv: Sequence[str] | None = None) -> int:
    """Judge labels and print the table; returns the exit status."""
    options = parse(argv)

    def run() -> int:
        found = judge(options.root, options.labels)
        if options.json is not None:
            write_file(options.json, json.dumps(found, indent=1) + "\n")

        print(f"{'class':<20} covered %  wrong %")
        for name, figures in {**found["classes"], "all": found}.items():
            shown = [
                "-" if figures[key] is None else f"{100 * figures[key]:.1f}"
                for key in ("covered", "wrong")
            ]
            print(f"{name:<20} {shown[0]:>9} {shown[1]:>8}")
        return 0

    return run_command(run)


if __name__ == "__main__":
    sys.exit(main())
