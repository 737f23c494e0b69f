"""What an evaluation found, in three forms: a table in the terminal, metrics.json, report.html."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from hmsa.datasets import DatasetSpec, Files
from hmsa.network import InferenceOptions
from hmsa.network.model import Hierarchical, adjacent_pairs
from hmsa.utils.files.outputs import OutputFolder
from hmsa.utils.metrics.bootstrap import LEAST_IMAGES, Bootstrap, Interval, recommended
from hmsa.utils.metrics.confusion import ConfusionMatrix, category_iou, mean_of
from hmsa.utils.report.report import report_text
from hmsa.utils.training.logbook import logger

from .build import Loaded, describe_inference, used_attention_bias
from .costs import CostTotal, relative_flops
from .examples import example_indices, example_names
from .inference_cost import InferenceCost, inference_costs


@dataclass
class Evaluation:
    """What one pass over a split found, the same on every rank. Scores are fractions."""

    matrix: ConfusionMatrix
    images: int
    loss: float | None
    per_image: dict[int, np.ndarray] = field(default_factory=dict)
    """Confusion matrix int64 [C, C] by index of the image."""
    shares: np.ndarray | None = None
    """Mean weight of every scale per class, float64 [S, C], nan for a class that no label has."""
    boundary_f: np.ndarray | None = None
    """Boundary F per class, float64 [C], nan where there is none."""
    iiou: dict[str, float] | None = None
    """Instance-weighted IoU by class, where the split has instance maps."""
    category_iiou: dict[str, float] | None = None
    """The same by category."""
    seconds: float = 0.0
    cost: CostTotal = field(default_factory=CostTotal)
    """What inference took, and how much of scales above 1 was computed."""


def per_class(spec: DatasetSpec, matrix: ConfusionMatrix) -> dict[str, float | None]:
    """Class name -> IoU as a fraction, None where neither labels nor predictions have the class."""
    return _by_class(spec, matrix.iou())


def _by_class(spec: DatasetSpec, values: np.ndarray) -> dict[str, float | None]:
    return dict(zip(spec.names, _without_nan(values.tolist()), strict=True))


def _without_nan(value: Any) -> Any:
    """`value` with None for every nan, which JSON does not know."""
    if isinstance(value, Mapping):
        return {key: _without_nan(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(inner) for inner in value]
    if isinstance(value, float) and math.isnan(value):
        return None
    return value


def categories_of(spec: DatasetSpec) -> list[str | None]:
    """The category of each class."""
    return [item.category for item in spec.classes]


def _mean(scores: Mapping[str, float] | None) -> float | None:
    if not scores:
        return None
    return mean_of(np.array(list(scores.values())))


# --- the terminal ---


def print_results(
    loaded: Loaded,
    split: str,
    ways: Sequence[InferenceOptions],
    results: Sequence[Evaluation],
) -> None:
    """Print the scores per class of the first way to infer, then a line for each way."""
    print(score_table(loaded.spec, results[0]))
    for options, result in zip(ways, results, strict=True):
        way = describe_inference(loaded.model, options)
        print(
            f"{split} mIoU {100 * result.matrix.miou():.1f} % at {way}, "
            f"{result.images} images, checkpoint {loaded.sha256[:12]}"
        )


def suggest_calibration(
    loaded: Loaded, ways: Sequence[InferenceOptions], content: Mapping[str, Any]
) -> None:
    """Name the pairs of scales for which attention was neither trained nor calibrated.

    On such pairs it may trust the wrong scale nearly everywhere. What `hmsa calibrate` has looked
    at, which `content` of the checkpoint tells, is not suggested again, whatever it kept.
    """
    config, model = loaded.config, loaded.model
    if not isinstance(model, Hierarchical) or config.model.random_ratio is not None:
        return

    known = set(adjacent_pairs(config.model.train_scales)) | set(model.attention_bias)
    calibration = content.get("calibration")
    if isinstance(calibration, Mapping):
        known |= set(adjacent_pairs(calibration.get("scales", ())))
    pairs = sorted({pair for way in ways for pair in adjacent_pairs(way.scales)} - known)
    if not pairs or config.eval.calibration == "off":
        return

    scales = sorted({scale for way in ways for scale in way.scales})
    logger.info(
        "attention was not trained between %s; this may help: hmsa calibrate --checkpoint %s "
        "--scales %s",
        ", ".join(f"{lower:g}x and {higher:g}x" for lower, higher in pairs),
        loaded.path,
        " ".join(f"{scale:g}" for scale in scales),
    )


def score_table(spec: DatasetSpec, evaluation: Evaluation) -> str:
    """The result of a split as text: a line per class, then the means."""
    matrix = evaluation.matrix
    columns = {
        "IoU %": matrix.iou(),
        "precision %": matrix.precision(),
        "recall %": matrix.recall(),
    }
    if evaluation.boundary_f is not None:
        columns["boundary F %"] = evaluation.boundary_f
    if evaluation.iiou:
        columns["iIoU %"] = np.array([evaluation.iiou.get(name, math.nan) for name in spec.names])

    # The share of pixels has no mean.
    means = [mean_of(values) for values in columns.values()]
    columns["pixels %"] = matrix.counts / max(int(matrix.counts.sum()), 1)
    widths = [max(8, len(name) + 2) for name in columns]

    lines = [_table_line("class", list(columns), widths)]
    for index, name in enumerate(spec.names):
        values = [values[index] for values in columns.values()]
        lines.append(_table_line(name, _percentages(values), widths))
    lines.append(_table_line("mean", _percentages(means), widths))

    # Scores of the whole split in one line.
    parts = [f"pixel accuracy {100 * matrix.pixel_accuracy():.1f} %"]
    by_category = category_iou(matrix.numpy(), categories_of(spec))
    for name, value in (
        ("category IoU", _mean(by_category)),
        ("category iIoU", _mean(evaluation.category_iiou)),
    ):
        if value is not None:
            parts.append(f"{name} {100 * value:.1f} %")
    lines.append(", ".join([*parts, f"{evaluation.images} images"]))

    absent = [spec.names[index] for index in matrix.absent()]
    if absent:
        lines.append("absent, not in the mean: " + ", ".join(absent))
    return "\n".join(lines)


def _percentages(values: Sequence[float]) -> list[str]:
    """Fractions as percentages, a dash for nan."""
    return ["-" if math.isnan(value) else f"{100 * value:.1f}" for value in values]


def _table_line(name: str, cells: Sequence[str], widths: Sequence[int]) -> str:
    padded = [f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=False)]
    return f"{name:<22}" + "".join(padded)


# --- metrics.json ---


def metrics_content(
    loaded: Loaded,
    *,
    split: str,
    ways: Sequence[InferenceOptions],
    results: Sequence[Evaluation],
    files: Files,
) -> dict[str, Any]:
    """What metrics.json holds; scores are fractions, null where there is nothing to score."""
    options, evaluation, spec = ways[0], results[0], loaded.spec
    matrix = evaluation.matrix
    categories = category_iou(matrix.numpy(), categories_of(spec))
    boundary_f = evaluation.boundary_f
    if boundary_f is None:
        boundary_f = np.full(spec.num_classes, math.nan)

    # A row for each class.
    iiou = evaluation.iiou or {}
    columns = {
        "iou": matrix.iou(),
        "precision": matrix.precision(),
        "recall": matrix.recall(),
        "boundary_f": boundary_f,
        "iiou": np.array([iiou.get(name, math.nan) for name in spec.names]),
    }
    classes = {}
    for index, name in enumerate(spec.names):
        scores = {key: float(values[index]) for key, values in columns.items()}
        classes[name] = {**scores, "pixels": int(matrix.counts[index])}

    compared = [
        compared_content(loaded, way, result) for way, result in zip(ways, results, strict=True)
    ]
    size = counted_size(loaded, files)
    _add_costs(compared, loaded, ways, results, size=size)
    _add_intervals(compared, classes, results)

    content = {
        "miou": matrix.miou(),
        "pixel_accuracy": matrix.pixel_accuracy(),
        "mean_class_accuracy": mean_of(matrix.recall()),
        "category_iou": _mean(categories),
        "iiou": _mean(evaluation.iiou),
        "category_iiou": _mean(evaluation.category_iiou),
        "boundary_f": mean_of(boundary_f),
        "per_class": per_class(spec, matrix),
        "classes": classes,
        "categories": categories,
        "category_iious": evaluation.category_iiou or {},
        "classes_absent": [spec.names[index] for index in matrix.absent()],
        "attention_share": shares_by_scale(spec, options, evaluation),
        "images": evaluation.images,
        "loss": evaluation.loss,
        "seconds": round(evaluation.seconds, 3),
        **_way_content(loaded, options),
        "tile": options.tile,
        "precision": loaded.config.eval.precision,
        "multiscale": str(loaded.model.multiscale),
        "split": split,
        "dataset": spec.name,
        "checkpoint": str(loaded.path),
        "checkpoint_sha256": loaded.sha256,
        "device": timed_device(next(loaded.model.parameters()).device),
        "counted_size": list(size),
        "compared": compared,
        "examples": [
            {"name": files.name(index), **example_names(files, index)}
            for index in example_indices(files)
        ],
    }
    plain: dict[str, Any] = _without_nan(content)
    return plain


def _way_content(loaded: Loaded, options: InferenceOptions) -> dict[str, Any]:
    return {
        "scales": list(options.scales),
        "flip": options.flip,
        "combine": options.combine,
        "over": options.over,
        "refine": options.refine,
        "attention_bias": used_attention_bias(loaded.model, options),
    }


def compared_content(
    loaded: Loaded, options: InferenceOptions, evaluation: Evaluation
) -> dict[str, Any]:
    """One entry of "compared" in metrics.json: a way to infer, and its scores."""
    return {
        "method": _method(loaded, options),
        **_way_content(loaded, options),
        "miou": evaluation.matrix.miou(),
        "pixel_accuracy": evaluation.matrix.pixel_accuracy(),
        "per_class": per_class(loaded.spec, evaluation.matrix),
        "loss": evaluation.loss,
        "seconds": round(evaluation.seconds, 3),
        **measured_content(evaluation),
    }


def measured_content(evaluation: Evaluation) -> dict[str, float | None]:
    """What a way to infer took: seconds of inference an image, and what refining saved.

    "refined_share" is the share of the images where scales above 1 were computed, None where they
    are computed everywhere.
    """
    return {
        "seconds_per_image": evaluation.cost.seconds_per_image,
        "refined_share": evaluation.cost.area.share,
    }


ONE_THREAD = "the CPU with 1 thread"


def timed_device(device: torch.device) -> str:
    """What the seconds of a run belong to, such as "the CPU with 1 thread"."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type != "cpu":
        return device.type
    threads = torch.get_num_threads()
    if threads == 1:
        return ONE_THREAD
    return f"the CPU with {threads} threads"


def counted_size(loaded: Loaded, files: Files) -> tuple[int, int]:
    """(height, width) at which the network sees the first image, for which costs are counted."""
    height, width = files.image_size(0)
    long_edge = loaded.config.data.long_edge
    if long_edge is None:
        return height, width
    factor = long_edge / max(height, width)
    return round(factor * height), round(factor * width)


def _add_costs(
    compared: Sequence[dict[str, Any]],
    loaded: Loaded,
    ways: Sequence[InferenceOptions],
    results: Sequence[Evaluation],
    *,
    size: tuple[int, int],
) -> None:
    """Add what an image of `size` takes at each way to infer: FLOPs and memory.

    Where only a part of a scale was computed, the FLOPs are those of that part.
    """
    alone = replace(ways[0], scales=(1.0,), flip=False, refine=1.0)
    whole = [replace(way, refine=1.0) for way in ways]
    reference, *costs = inference_costs(loaded.model, [alone, *whole], size=size)
    for entry, way, result, cost in zip(compared, ways, results, costs, strict=True):
        entry |= _cost_content(cost, reference)
        if result.cost.area.share is not None:
            area = result.cost.area
            entry["flops_relative"] = relative_flops(loaded.model, way, area, size=size)


def _cost_content(cost: InferenceCost | None, reference: InferenceCost | None) -> dict[str, Any]:
    if cost is None or reference is None:
        return {"flops_relative": None, "peak_bytes": None}
    return {"flops_relative": cost.flops / reference.flops, "peak_bytes": cost.peak_bytes}


def _add_intervals(
    compared: Sequence[dict[str, Any]],
    classes: Mapping[str, dict[str, Any]],
    results: Sequence[Evaluation],
) -> None:
    """Add the 95 % intervals of scores, and which way to infer is advised."""
    if results[0].images < LEAST_IMAGES:
        return

    drawn = [
        Bootstrap([result.per_image[index] for index in sorted(result.per_image)])
        for result in results
    ]
    mious = [entry["miou"] for entry in compared]
    best = drawn[int(np.nanargmax(mious))] if not np.isnan(mious).all() else drawn[0]
    for entry, bootstrap in zip(compared, drawn, strict=True):
        entry["miou_interval"] = _ends(bootstrap.miou_interval())
        entry["difference_interval"] = _ends(bootstrap.difference_to(drawn[0]))
        entry["behind_best_interval"] = _ends(bootstrap.difference_to(best))
    for row, interval in zip(classes.values(), drawn[0].iou_intervals(), strict=True):
        row["iou_interval"] = _ends(interval)

    if len(results) > 1:
        costs = [entry["flops_relative"] or entry["seconds_per_image"] for entry in compared]
        compared[recommended(mious, drawn, costs)]["recommended"] = True


def _ends(interval: Interval) -> list[float]:
    return [interval.low, interval.high]


def shares_by_scale(
    spec: DatasetSpec, options: InferenceOptions, evaluation: Evaluation
) -> dict[str, dict[str, float | None]]:
    """Scale -> class -> how much that scale counts, on average, for pixels labelled so.

    It is empty where there is no attention.
    """
    if evaluation.shares is None:
        return {}
    return {
        f"{scale:g}": _by_class(spec, row)
        for scale, row in zip(options.scales, evaluation.shares, strict=True)
    }


def _method(loaded: Loaded, options: InferenceOptions) -> str:
    """As the first column of the paper's table 1 names it."""
    if str(loaded.model.multiscale) != "single":
        return str(loaded.model.multiscale)
    if len(options.scales) > 1:
        return f"{options.combine} of {options.over}"
    return "single scale"


# --- files ---


def write_results(
    output: OutputFolder,
    loaded: Loaded,
    *,
    files: Files,
    split: str,
    ways: Sequence[InferenceOptions],
    results: Sequence[Evaluation],
) -> None:
    """Write metrics.json and report.html to `output`.

    Raises:
        WriteError: a file cannot be written.
    """
    # The page builds on what stands here.
    from .evaluation_report import evaluation_report

    content = metrics_content(loaded, split=split, ways=ways, results=results, files=files)
    text = json.dumps(content, indent=2, allow_nan=False) + "\n"
    output.write("metrics.json", text, durable=True)
    page = evaluation_report(loaded, files, content, ways, results)
    output.write("report.html", report_text(page))
