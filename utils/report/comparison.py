"""Several evaluations side by side: what their metrics.json files say, as the lines of a table.

The first run is the reference of all differences. Free of torch.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..words import UserError

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
        CompareError: there is no such file, or it was not made by `hmsa eval`.
    """
    file = path
    if path.is_dir():
        found = [path / place for place in PLACES if (path / place).is_file()]
        if not found:
            raise CompareError(
                f"{path}: holds neither {' nor '.join(PLACES)}; run hmsa eval with --output first"
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
            f"{file}: is no metrics.json of hmsa eval: it holds a {type(content).__name__}"
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
            f"{file}: is no metrics.json of hmsa eval: the key {error} is missing"
        ) from error
    except (TypeError, ValueError, AttributeError) as error:
        raise CompareError(f"{file}: is no metrics.json of hmsa eval ({error})") from error


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
        # A folder is often called as the run in it is.
        once = [
            part for part, before in zip(telling, ["", *telling], strict=False) if part != before
        ]
        named.append(replace(run, name="/".join(once)))
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
    lines.append(["scales", *(inference_way(run) for run in runs)])
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


def inference_way(run: ComparedRun) -> str:
    """How a run was inferred, in a few characters."""
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
