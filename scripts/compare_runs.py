"""Put several evaluations side by side: a table in the terminal, and with --html a page.

    python scripts/compare_runs.py runs/a/metrics.json runs/b [--every-way] [--html compare.html]

Each argument is a metrics.json of eval.py or a folder that holds one (in itself or in eval/). The first is the
reference of all differences. Scores are printed in percent. With --every-way each list of scales that eval.py --compare
scored is a column of its own: the paper's Table 1 out of one metrics.json for each network.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from hmsa.utils.files.png import ImageWriteError, write_file
from hmsa.utils.report.page import Cell, Row, bar, number, page, section, table

PLACES = ("metrics.json", "eval/metrics.json")
OTHER_SCORES = {
    "mean class accuracy": "mean_class_accuracy",
    "category IoU": "category_iou",
    "iIoU": "iiou",
    "category iIoU": "category_iiou",
    "boundary F": "boundary_f",
}


class CompareError(ValueError):
    """A file cannot be compared; the message names it."""


@dataclass(frozen=True)
class Run:
    """One metrics.json, or one way to infer out of it: its short name, scores (fractions), IoU per class (None: absent), how it was made."""

    name: str
    path: Path
    miou: float
    pixel_accuracy: float
    per_class: dict[str, float | None]
    scales: tuple[float, ...]
    flip: bool
    split: str
    images: int
    sha256: str
    others: dict[str, float]
    """Further scores by name, those that the file has."""
    method: str = ""


def load_run(path: Path, *, every_way: bool = False) -> list[Run]:
    """Read one metrics.json, or the one in a folder; `every_way` gives a run for each of its ways to infer. Raises CompareError."""
    file = path
    if path.is_dir():
        found = [path / place for place in PLACES if (path / place).is_file()]
        if not found:
            raise CompareError(
                f"{path}: holds neither {' nor '.join(PLACES)}; run eval.py with --output first"
            )
        file = found[0]
    try:
        content = json.loads(file.read_text())
    except OSError as error:
        raise CompareError(f"{file}: cannot be read ({error.strerror or error})") from error
    except ValueError as error:
        raise CompareError(f"{file}: is no JSON file ({error})") from error
    first = _run(file, content)
    if not every_way or len(content.get("compared", ())) < 2:
        return [first]
    # The first way is the file's own; of the others only these scores are known.
    return [
        first,
        *(replace(_run(file, {**content, **way}), others={}) for way in content["compared"][1:]),
    ]


def _run(file: Path, content: Any) -> Run:
    if not isinstance(content, dict):
        raise CompareError(
            f"{file}: is no metrics.json of eval.py: it holds a {type(content).__name__}"
        )
    try:
        per_class = {
            str(name): None if iou is None else float(iou)
            for name, iou in content["per_class"].items()
        }
        return Run(
            name="",
            path=file,
            miou=_fraction(content["miou"]),
            pixel_accuracy=_fraction(content["pixel_accuracy"]),
            per_class=per_class,
            scales=tuple(float(scale) for scale in content["scales"]),
            flip=bool(content["flip"]),
            split=str(content["split"]),
            images=int(content["images"]),
            sha256=str(content["checkpoint_sha256"]),
            method=_method(content),
            others={
                name: float(content[key])
                for name, key in OTHER_SCORES.items()
                if content.get(key) is not None
            },
        )
    except KeyError as error:
        raise CompareError(
            f"{file}: is no metrics.json of eval.py: the key {error} is missing"
        ) from error
    except (TypeError, ValueError, AttributeError) as error:
        raise CompareError(f"{file}: is no metrics.json of eval.py ({error})") from error


def _method(content: dict[str, Any]) -> str:
    ways = content.get("compared") or [{}]
    return str(content.get("method", ways[0].get("method", "")))


def _fraction(value: float | None) -> float:
    return math.nan if value is None else float(value)


def load_runs(paths: Sequence[Path], *, every_way: bool = False) -> list[Run]:
    """All runs with short names that tell files apart. Raises CompareError, also where they score different classes."""
    runs = [run for path in paths for run in load_run(path, every_way=every_way)]
    classes = set(runs[0].per_class)
    for run in runs[1:]:
        other = sorted(classes ^ set(run.per_class))
        if other:
            raise CompareError(
                f"{run.path}: scores other classes than {runs[0].path} ('{other[0]}' is in one of them only)"
            )
    parts = [run.path.resolve().parts for run in runs]
    named = []
    for run, own in zip(runs, parts, strict=True):
        different = [
            part
            for depth, part in enumerate(own)
            if any(depth >= len(other) or other[depth] != part for other in parts)
        ]
        inside = [part for part in different if part not in ("metrics.json", "eval")]
        named.append(replace(run, name="/".join(inside or different) or own[-2]))
    return named


def differences(runs: Sequence[Run]) -> list[str]:
    """Sentences about what else differs, so that nobody compares what cannot be compared."""
    told = []
    for what, values in (
        ("splits", [run.split for run in runs]),
        ("numbers of images", [str(run.images) for run in runs]),
    ):
        if len(set(values)) > 1:
            told.append(
                f"Different {what}: {', '.join(dict.fromkeys(values))}. The figures cannot be compared directly."
            )
    return told


def rows(runs: Sequence[Run]) -> list[list[str]]:
    """Heading and lines of the table: all scores and every class in percent, with differences to the first run."""
    lines = [["", *(run.name for run in runs)]]
    if any(run.method for run in runs):
        lines.append(["method", *(run.method or "-" for run in runs)])
    lines.append(
        [
            "scales",
            *(
                ", ".join(f"{scale:g}" for scale in run.scales) + (" + flip" if run.flip else "")
                for run in runs
            ),
        ]
    )
    lines.append(["checkpoint", *(run.sha256[:12] for run in runs)])
    lines.append(["images", *(f"{run.images} ({run.split})" for run in runs)])
    return lines + [[name, *_compared(values)] for name, values in scores(runs).items()]


def scores(runs: Sequence[Run]) -> dict[str, list[float]]:
    """Name -> one fraction for each run, nan where it has none: the means that any run has, then the IoU of every class."""
    found = {
        "mIoU": [run.miou for run in runs],
        "pixel accuracy": [run.pixel_accuracy for run in runs],
    }
    found |= {
        name: [run.others.get(name, math.nan) for run in runs]
        for name in OTHER_SCORES
        if any(name in run.others for run in runs)
    }
    return found | {
        name: [_fraction(run.per_class[name]) for run in runs] for name in runs[0].per_class
    }


def _compared(values: Sequence[float]) -> list[str]:
    first = values[0]
    cells = ["-" if math.isnan(first) else f"{100 * first:.1f}"]
    for value in values[1:]:
        if math.isnan(value):
            cells.append("-")
        else:
            cells.append(
                f"{100 * value:.1f}"
                + ("" if math.isnan(first) else f" ({100 * (value - first):+.1f})")
            )
    return cells


def as_text(lines: Sequence[Sequence[str]]) -> str:
    """The lines as aligned columns."""
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    aligned = [
        [
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        for line in lines
    ]
    return "\n".join("  ".join(line).rstrip() for line in aligned)


def as_page(runs: Sequence[Run]) -> str:
    """A self-contained page: the table with a bar for each IoU, and where every figure comes from."""
    lines, found = rows(runs), scores(runs)

    def cell(name: str, text: str, column: int) -> Cell:
        shown = number(text)
        if name not in found:
            return shown
        value, first = found[name][column], found[name][0]
        change = round(1000 * (value - first)) if not math.isnan(value - first) else 0
        return Cell(
            shown.html + bar(value),
            "number " + ("good" if change > 0 else "bad" if change < 0 else ""),
        )

    body: list[Row] = [
        [line[0], *(cell(line[0], text, column) for column, text in enumerate(line[1:]))]
        for line in lines[1:]
    ]
    lead = " ".join(["IoU in percent; differences are to the first run.", *differences(runs)])
    sources: list[Row] = [[run.name, str(run.path), run.sha256] for run in runs]
    parts = [
        ("runs", "Runs", section("runs", "Runs", table(lines[0], body, kind="full"), lead=lead)),
        (
            "sources",
            "Sources",
            section("sources", "Sources", table(["run", "file", "checkpoint sha256"], sources)),
        ),
    ]
    return page("Runs side by side", ", ".join(run.name for run in runs), parts)


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
        if arguments.html is not None:
            write_file(arguments.html, as_page(runs).encode())
        print(as_text(rows(runs)))
        for sentence in differences(runs):
            print(sentence)
    except (CompareError, ImageWriteError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
