"""What an evaluation found, in three forms: a table in the terminal, metrics.json, report.html."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from hmsa.datasets import DatasetSpec, Files
from hmsa.network import InferenceOptions
from hmsa.utils.files.outputs import OutputFolder
from hmsa.utils.metrics.confusion import ConfusionMatrix, category_iou, iou_of, mean_of
from hmsa.utils.report.report import ComparedRow, EvaluationReport, Example, Picture, report_text

from .build import Loaded, describe_inference, used_attention_bias
from .costs import CostTotal, relative_flops
from .pictures import pictures_of

WORST_SHOWN = 4  # images shown as the worst
ATTENTION_SHOWN = 4  # images shown with their attention
PICTURE_WIDTH = 480  # pixels, on the page


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


def _categories(spec: DatasetSpec) -> list[str | None]:
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
    by_category = category_iou(matrix.numpy(), _categories(spec))
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
) -> dict[str, Any]:
    """What metrics.json holds; scores are fractions, null where there is nothing to score."""
    options, evaluation, spec = ways[0], results[0], loaded.spec
    matrix = evaluation.matrix
    categories = category_iou(matrix.numpy(), _categories(spec))
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
        "compared": [
            compared_content(loaded, way, result) for way, result in zip(ways, results, strict=True)
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
        **cost_content(loaded, options, evaluation),
    }


def cost_content(
    loaded: Loaded, options: InferenceOptions, evaluation: Evaluation
) -> dict[str, float | None]:
    """What a way to infer costs.

    Seconds of inference an image; its operations over those of one pass at scale 1; the share of
    the images where scales above 1 count, None where they are computed everywhere.
    """
    area = evaluation.cost.area
    return {
        "seconds_per_image": evaluation.cost.seconds_per_image,
        "flops_relative": relative_flops(loaded.model, options, area),
        "refined_share": area.share,
    }


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


# --- report.html ---


def worst_images(evaluation: Evaluation, *, of_class: int | None = None) -> list[int]:
    """Indices of the images with the lowest IoU, the worst first.

    The IoU is the mean over the classes in an image, or that of `of_class` where its label has it.
    """
    scores = {}
    for index, matrix in evaluation.per_image.items():
        is_labelled = matrix.sum(1) > 0
        if is_labelled.any() and (of_class is None or is_labelled[of_class]):
            scores[index] = _image_score(matrix, of_class)
    return sorted(scores, key=lambda index: (scores[index], index))


def _image_score(matrix: np.ndarray, of_class: int | None) -> float:
    iou = iou_of(matrix)
    if of_class is not None:
        return float(iou[of_class])
    return mean_of(iou[matrix.sum(1) > 0])


class _Examples:
    """Images of the split as panels of the page; each is inferred once, however often shown."""

    def __init__(
        self, loaded: Loaded, files: Files, options: InferenceOptions, evaluation: Evaluation
    ) -> None:
        self.loaded = loaded
        self.files = files
        self.options = options
        self.evaluation = evaluation
        self.drawn: dict[int, dict[str, Picture]] = {}

    def compared(self, index: int, *, of_class: int | None = None) -> Example:
        """image | label | prediction | error, with the score of the image or of a class in it."""
        score = _image_score(self.evaluation.per_image[index], of_class)
        name = "mIoU" if of_class is None else f"{self.loaded.spec.names[of_class]} IoU"
        shown = self._pictures(index)
        return Example(
            self.files.name(index),
            [shown[caption] for caption in ("image", "label", "prediction", "error")],
            f"{name} {100 * score:.1f} %",
        )

    def attended(self, index: int) -> Example:
        """Two rows as in figure 3 of the paper.

        The first has the image and what each scale says alone; the second which scale is trusted,
        the attention maps, and the prediction that comes of them.
        """
        shown = self._pictures(index)
        above = ["image", *(caption for caption in shown if caption.endswith("alone"))]
        attention = [caption for caption in shown if caption.startswith("attention")]
        below = ["scale trusted", *attention, "prediction"]

        score = _image_score(self.evaluation.per_image[index], None)
        return Example(
            self.files.name(index),
            [shown[caption] for caption in above + below],
            f"mIoU {100 * score:.1f} %",
            columns=len(above),
        )

    def _pictures(self, index: int) -> dict[str, Picture]:
        if index not in self.drawn:
            shown = pictures_of(
                self.loaded.model,
                self.files,
                self.options,
                index,
                long_edge=self.loaded.config.data.long_edge,
            )
            self.drawn[index] = {
                caption: _as_picture(caption, array) for caption, array in shown.items()
            }
        return self.drawn[index]


def _as_picture(caption: str, array: np.ndarray) -> Picture:
    # A photograph is compressed with losses, a drawing of labels without.
    if caption == "image":
        return Picture.photo(caption, array, width=PICTURE_WIDTH)
    return Picture.drawing(caption, array, width=PICTURE_WIDTH)


def evaluation_report(
    loaded: Loaded,
    files: Files,
    content: dict[str, Any],
    ways: Sequence[InferenceOptions],
    results: Sequence[Evaluation],
) -> EvaluationReport:
    """The page of an evaluation.

    It shows the numbers of the first way to infer, the others beside it, the worst images, and
    what the scales attend to. `content` is that of metrics.json.
    """
    evaluation, options, spec = results[0], ways[0], loaded.spec
    examples = _Examples(loaded, files, options, evaluation)

    # The worst images of all, and the worst one of each class.
    ranking = worst_images(evaluation)
    worst_per_class = {}
    for number, name in enumerate(spec.names):
        worst = worst_images(evaluation, of_class=number)[:1]
        if worst:
            worst_per_class[name] = [examples.compared(worst[0], of_class=number)]

    # Attention on images evenly spread from the worst to the best.
    attended = []
    if evaluation.shares is not None:
        step = max(1, len(ranking) // ATTENTION_SHOWN)
        attended = ranking[::step][:ATTENTION_SHOWN]

    facts = {}
    if evaluation.loss is not None:
        facts["validation loss"] = f"{evaluation.loss:.3f}"
    if evaluation.seconds:
        facts["seconds per image"] = f"{evaluation.seconds / max(evaluation.images, 1):.2g}"

    compared = [
        ComparedRow(
            _method(loaded, way), way.scales, way.flip, result.matrix.miou(), result.matrix.iou()
        )
        for way, result in zip(ways, results, strict=True)
    ]
    return EvaluationReport(
        title=loaded.config.experiment.name,
        names=spec.names,
        colors=spec.palette,
        matrix=evaluation.matrix.numpy(),
        images=evaluation.images,
        split=content["split"],
        checkpoint=content["checkpoint"],
        checkpoint_sha256=loaded.sha256,
        settings={
            "inference": _settings(loaded, options),
            "configuration": loaded.config.to_dict(),
        },
        facts=facts,
        compared=compared,
        categories=category_iou(evaluation.matrix.numpy(), _categories(spec)),
        instance_iou=evaluation.iiou or {},
        category_instance_iou=evaluation.category_iiou or {},
        boundary_f=evaluation.boundary_f,
        worst=[examples.compared(index) for index in ranking[:WORST_SHOWN]],
        worst_per_class=worst_per_class,
        attention=[examples.attended(index) for index in attended],
        shares=evaluation.shares,
        share_scales=options.scales,
    )


def _settings(loaded: Loaded, options: InferenceOptions) -> dict[str, Any]:
    """The options of inference as plain values; the precision stands for its dtype."""
    settings = asdict(options)
    del settings["autocast_dtype"]
    bias = used_attention_bias(loaded.model, options)
    return {**settings, "attention_bias": bias, "precision": loaded.config.eval.precision}


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
    content = metrics_content(loaded, split=split, ways=ways, results=results)
    text = json.dumps(content, indent=2, allow_nan=False) + "\n"
    output.write("metrics.json", text, durable=True)
    page = evaluation_report(loaded, files, content, ways, results)
    output.write("report.html", report_text(page))
