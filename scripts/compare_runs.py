"""Put several evaluations side by side: a table in the terminal, and with --html a page.

    python scripts/compare_runs.py runs/a/metrics.json runs/b [--every-way] [--html compare.html]

Each argument is a metrics.json of eval.py or a folder that holds one (in itself or in eval/). The
first is the reference of all differences. Scores are printed in percent. With --every-way each list
of scales that eval.py --compare scored is a column of its own: the paper's Table 1 out of one
metrics.json for each network. The page also has pictures of the same images by every run.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from hmsa.utils.files.outputs import printable
from hmsa.utils.files.regular import read_regular
from hmsa.utils.files.writing import WriteError, write_file
from hmsa.utils.report.page import Example, Picture, Section, page
from hmsa.utils.words import UserError

PLACES = ("metrics.json", "eval/metrics.json")
# Name in the table -> key in metrics.json.
OTHER_SCORES = {
    "mean class accuracy": "mean_class_accuracy",
    "category IoU": "category_iou",
    "iIoU": "iiou",
    "category iIoU": "category_iiou",
    "boundary F": "boundary_f",
}


# What an image takes: name in the table -> key in metrics.json, factor, format.
COSTS = {
    "seconds per image": ("seconds_per_image", 1.0, ".3g"),
    "FLOPs, times those of {1}": ("flops_relative", 1.0, ".2f"),
    "memory, MiB": ("peak_bytes", 1 / 2**20, ",.0f"),
}
IMAGE_TYPES = {".jpg": "image/jpeg", ".png": "image/png"}


class CompareError(UserError, ValueError):
    """A file cannot be compared; the message names it."""


@dataclass(frozen=True)
class ComparedRun:
    """One metrics.json, or one way to infer out of it. Scores are fractions."""

    name: str
    """Short, and different for each run."""
    path: Path
    miou: float
    pixel_accuracy: float
    per_class: dict[str, float | None]
    """IoU by class name, None where the class is absent."""
    scales: tuple[float, ...]
    flip: bool
    split: str
    images: int
    sha256: str
    others: dict[str, float]
    """Further scores by name, those that the file has."""
    method: str = ""
    costs: dict[str, str] = field(default_factory=dict)
    """What an image takes, ready to print, by the names of COSTS."""
    interval: tuple[float, float] | None = None
    """Of the mIoU."""
    examples: tuple[dict[str, str], ...] = ()
    """Files of pictures: the image's name, and what they show -> path beside metrics.json."""


def load_run(path: Path, *, every_way: bool = False) -> list[ComparedRun]:
    """Read one metrics.json, or the one in a folder.

    Args:
        every_way: return a run for each way to infer that the file holds, not only for the first.

    Raises:
        CompareError: there is no such file, or it was not made by eval.py.
    """
    file = path
    if path.is_dir():
        found = [path / place for place in PLACES if (path / place).is_file()]
        if not found:
            raise CompareError(
                f"{path}: holds neither {' nor '.join(PLACES)}; run eval.py with --output first"
            )
        file = found[0]

    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise CompareError(f"{file}: cannot be read ({error.strerror or error})") from error
    except (ValueError, RecursionError) as error:
        raise CompareError(f"{file}: is no JSON file ({error})") from error

    first = _run_of(file, content)
    if not every_way or len(content.get("compared", ())) < 2:
        return [first]

    # The first way is the file's own; of the others only these scores are known.
    others = [
        _run_of(file, {**content, **way, "compared": [way]}) for way in content["compared"][1:]
    ]
    return [first, *(replace(run, others={}, examples=()) for run in others)]


def _run_of(file: Path, content: Any) -> ComparedRun:
    if not isinstance(content, dict):
        raise CompareError(
            f"{file}: is no metrics.json of eval.py: it holds a {type(content).__name__}"
        )

    try:
        others = {
            name: float(content[key])
            for name, key in OTHER_SCORES.items()
            if content.get(key) is not None
        }
        # Older files name no method; then no line of the table shows one.
        per_class = {str(name): _score_or_none(iou) for name, iou in content["per_class"].items()}
        ways = content.get("compared") or [{}]
        return ComparedRun(
            name="",
            path=file,
            miou=_score(content["miou"]),
            pixel_accuracy=_score(content["pixel_accuracy"]),
            per_class=per_class,
            scales=tuple(float(scale) for scale in content["scales"]),
            flip=bool(content["flip"]),
            split=str(content["split"]),
            images=int(content["images"]),
            sha256=str(content["checkpoint_sha256"]),
            method=str(content.get("method", ways[0].get("method", ""))),
            others=others,
            costs=_costs_of(ways[0]),
            interval=_interval_of(ways[0]),
            examples=tuple(
                {str(key): str(value) for key, value in example.items()}
                for example in content.get("examples", ())
            ),
        )
    except KeyError as error:
        raise CompareError(
            f"{file}: is no metrics.json of eval.py: the key {error} is missing"
        ) from error
    except (TypeError, ValueError, AttributeError) as error:
        raise CompareError(f"{file}: is no metrics.json of eval.py ({error})") from error


def _costs_of(way: Any) -> dict[str, str]:
    """What an image takes, as far as the file says it."""
    costs = {}
    for name, (key, factor, form) in COSTS.items():
        if way.get(key) is not None:
            costs[name] = format(factor * float(way[key]), form)
    return costs


def _interval_of(way: Any) -> tuple[float, float] | None:
    ends = way.get("miou_interval")
    if ends is None or None in ends:
        return None
    return float(ends[0]), float(ends[1])


def _score_or_none(value: Any) -> float | None:
    if value is None:
        return None
    return float(value)


def _score(value: Any) -> float:
    """A fraction; nan where the file has none."""
    if value is None:
        return math.nan
    return float(value)


def load_runs(paths: Sequence[Path], *, every_way: bool = False) -> list[ComparedRun]:
    """All runs, with short names that tell files apart.

    Raises:
        CompareError: a file cannot be read, or scores other classes than the first.
    """
    runs = [run for path in paths for run in load_run(path, every_way=every_way)]
    # Means over different classes cannot be compared.
    classes = set(runs[0].per_class)
    for run in runs[1:]:
        other = sorted(classes ^ set(run.per_class))
        if other:
            raise CompareError(
                f"{run.path}: scores other classes than {runs[0].path} ('{other[0]}' is in one of "
                "them only)"
            )

    # A name is made of the parts of the path that another run has not at the same depth.
    paths_in_parts = [run.path.resolve().parts for run in runs]
    named = []
    for run, own in zip(runs, paths_in_parts, strict=True):
        different = [
            part
            for depth, part in enumerate(own)
            if any(other[depth : depth + 1] != (part,) for other in paths_in_parts)
        ]
        telling = [part for part in different if part not in ("metrics.json", "eval")]

        # A folder of results such as eval or eval_flip says nothing without that of its run.
        results = own[-2]
        holder = results
        if results.startswith("eval") and len(own) > 2:
            holder = own[-3]
        only_results = bool(telling) and all(part.startswith("eval") for part in telling)
        if not telling or only_results:
            telling = [holder, *telling]
        named.append(replace(run, name="/".join(telling)))
    return named


def differences(runs: Sequence[ComparedRun]) -> list[str]:
    """Sentences about what else differs, so that nobody compares what cannot be compared."""
    compared = {
        "splits": [run.split for run in runs],
        "numbers of images": [str(run.images) for run in runs],
    }
    return [
        f"Different {what}: {', '.join(dict.fromkeys(values))}. The figures cannot be compared "
        "directly."
        for what, values in compared.items()
        if len(set(values)) > 1
    ]


def rows(runs: Sequence[ComparedRun]) -> list[list[str]]:
    """Heading and lines of the table.

    All scores and every class are in percent, with differences to the first run.
    """
    # Where the numbers come from, then the numbers.
    lines = [["", *(run.name for run in runs)]]
    if any(run.method for run in runs):
        lines.append(["method", *(run.method or "-" for run in runs)])
    lines.append(["scales", *(_scales_and_flip(run) for run in runs)])
    lines.append(["checkpoint", *(run.sha256[:12] for run in runs)])
    lines.append(["images", *(f"{run.images} ({run.split})" for run in runs)])
    for name in COSTS:
        if any(name in run.costs for run in runs):
            lines.append([name, *(run.costs.get(name, "-") for run in runs)])
    if any(run.interval for run in runs):
        lines.append(["mIoU, 95 % interval", *(_interval_text(run) for run in runs)])
    return lines + [[name, *_score_texts(values)] for name, values in scores(runs).items()]


def _interval_text(run: ComparedRun) -> str:
    if run.interval is None:
        return "-"
    return f"{100 * run.interval[0]:.1f} to {100 * run.interval[1]:.1f}"


def _scales_and_flip(run: ComparedRun) -> str:
    scales = ", ".join(f"{scale:g}" for scale in run.scales)
    if run.flip:
        return f"{scales} + flip"
    return scales


def scores(runs: Sequence[ComparedRun]) -> dict[str, list[float]]:
    """Name -> one fraction for each run, nan where it has none.

    First the means that any run has, then the IoU of every class.
    """
    found = {
        "mIoU": [run.miou for run in runs],
        "pixel accuracy": [run.pixel_accuracy for run in runs],
    }
    for name in OTHER_SCORES:
        if any(name in run.others for run in runs):
            found[name] = [run.others.get(name, math.nan) for run in runs]
    for name in runs[0].per_class:
        found[name] = [_score(run.per_class[name]) for run in runs]
    return found


def _score_texts(values: Sequence[float]) -> list[str]:
    """Scores in percent; after the first with their difference to it."""
    first = values[0]
    texts = []
    for position, value in enumerate(values):
        text = f"{100 * value:.1f}"
        if math.isnan(value):
            text = "-"
        elif position > 0 and not math.isnan(first):
            text += f" ({100 * (value - first):+.1f})"
        texts.append(text)
    return texts


def as_text(lines: Sequence[Sequence[str]]) -> str:
    """The lines as aligned columns, the first to the left and the others to the right."""
    # Every column is as wide as its longest text.
    columns = range(len(lines[0]))
    widths = [max(len(line[column]) for line in lines) for column in columns]

    texts = []
    for line in lines:
        cells = [line[0].ljust(widths[0])]
        cells += [line[column].rjust(widths[column]) for column in columns[1:]]
        texts.append("  ".join(cells).rstrip())
    return "\n".join(texts)


def as_page(runs: Sequence[ComparedRun]) -> str:
    """A page of the table, with a bar for each score, and where every figure comes from."""
    _, *lines = rows(runs)
    found = scores(runs)
    shown = []
    for name, *texts in lines:
        # Lines that are no score, such as the scales, have no bar and no sign.
        values = found.get(name, [math.nan] * len(runs))
        cells = []
        for text, value in zip(texts, values, strict=True):
            sign = _sign(value, values[0])
            if name == "mIoU" and sign and _may_be_chance(value, runs[0]):
                sign = "soft"
            cells.append({"text": text, "score": value, "sign": sign})
        shown.append({"name": name, "cells": cells})

    lead = ["IoU in percent; differences are to the first run."]
    if runs[0].interval is not None:
        lead.append("An mIoU within the first run's interval is not coloured.")
    names = headings(runs)
    sections = [
        Section(
            "runs",
            "Runs",
            "comparison/runs.html",
            {"names": names, "rows": shown},
            " ".join([*lead, *differences(runs)]),
        ),
        Section("sources", "Sources", "comparison/sources.html", {"runs": runs}),
    ]
    examples = pictures_side_by_side(runs)
    if examples:
        section = Section(
            "pictures",
            "Pictures",
            "comparison/pictures.html",
            {"examples": examples},
            "The same images by every run: evenly spread over the split, so neither the best nor "
            "the worst.",
        )
        sections.insert(1, section)
    return page("Runs side by side", ", ".join(dict.fromkeys(run.name for run in runs)), sections)


def headings(runs: Sequence[ComparedRun]) -> list[str]:
    """A heading for each column: the run's name, with its scales where several share a name."""
    names = [run.name for run in runs]
    return [
        f"{run.name} {{{_scales_and_flip(run)}}}" if names.count(run.name) > 1 else run.name
        for run in runs
    ]


def _may_be_chance(value: float, reference: ComparedRun) -> bool:
    """Whether a score lies within what other images would have given the reference."""
    if reference.interval is None:
        return False
    return reference.interval[0] <= value <= reference.interval[1]


def pictures_side_by_side(runs: Sequence[ComparedRun]) -> list[Example]:
    """image | label | what each run predicts, of the images of which all runs have pictures."""
    files = {run.path: run for run in reversed(runs) if run.examples}
    drawn = [files[path] for path in dict.fromkeys(run.path for run in runs) if path in files]
    if not drawn:
        return []

    by_name = [{example.get("name", ""): example for example in run.examples} for run in drawn]
    shown = []
    for name, first in by_name[0].items():
        if not all(name in of_run for of_run in by_name):
            continue
        pictures = [
            _picture(drawn[0], first.get("image"), "image"),
            _picture(drawn[0], first.get("label"), "label"),
        ]
        for run, of_run in zip(drawn, by_name, strict=True):
            pictures.append(_picture(run, of_run[name].get("prediction"), run.name))
        there = [picture for picture in pictures if picture is not None]
        if there:
            shown.append(Example(name, there))
    return shown


def _picture(run: ComparedRun, file: str | None, caption: str) -> Picture | None:
    """A picture beside a metrics.json; None where it is gone, damaged or leads elsewhere."""
    if file is None or ".." in Path(file).parts or Path(file).is_absolute():
        return None
    path = run.path.parent / file
    mime = IMAGE_TYPES.get(path.suffix)
    if mime is None:
        return None
    try:
        data = read_regular(path)
    except OSError:
        return None
    array = cv2.imdecode(np.frombuffer(data, dtype=np.uint8), cv2.IMREAD_COLOR)
    if array is None:
        return None
    return Picture(caption, data, mime, array.shape[1], array.shape[0])


def _sign(value: float, reference: float) -> str:
    """The class of a cell, by a change that shows when it is printed."""
    change = value - reference
    if math.isnan(change) or round(1000 * change) == 0:
        return ""
    if change > 0:
        return "good"
    return "bad"


def main(command_line: Sequence[str] | None = None) -> int:
    """Print the table; 2 when a file cannot be compared."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "runs",
        nargs="+",
        type=Path,
        metavar="RUN",
        help="metrics.json files, or folders that hold one",
    )
    parser.add_argument(
        "--every-way",
        action="store_true",
        help="a column for each list of scales that eval.py --compare scored",
    )
    parser.add_argument(
        "--html", type=Path, metavar="FILE", help="also write the comparison as a page"
    )
    arguments = parser.parse_args(command_line)

    try:
        runs = load_runs(arguments.runs, every_way=arguments.every_way)
        # The page is written before anything is printed: a closed pipe must not lose it.
        if arguments.html is not None:
            write_file(arguments.html, as_page(runs))
        text = "\n".join([as_text(rows(runs)), *differences(runs)])
        print(printable(text, sys.stdout.encoding), flush=True)
    except BrokenPipeError:
        # Whoever read the table has enough of it. Python flushes once more when it ends, and would
        # complain again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (CompareError, WriteError) as error:
        print(printable(f"error: {error}", sys.stderr.encoding), file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
