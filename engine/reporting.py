"""What an evaluation found, told three ways: a table in the terminal, metrics.json, report.html. A helper of the doors, like assemble.py."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from hmsa.datasets import DatasetSpec, Files
from hmsa.utils.metrics.confusion import ConfusionMatrix, category_iou, iou_of, mean_of
from hmsa.utils.report.report import ComparedRow, EvaluationReport, Example, Picture, write_report
from hmsa.utils.training.checkpoint import write_atomically

from .build import Inference, Loaded
from .pictures import pictures_of

WORST, ATTENDED = 4, 4  # images shown as the worst, and with their attention


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
    """Instance-weighted IoU by class, where the split has instance maps; `category_iiou` by category."""
    category_iiou: dict[str, float] | None = None
    seconds: float = 0.0


def per_class(spec: DatasetSpec, matrix: ConfusionMatrix) -> dict[str, float | None]:
    """Class name -> IoU as a fraction, None where the class occurs neither in labels nor in predictions."""
    return _named(spec, matrix.iou())


def _named(spec: DatasetSpec, values: np.ndarray) -> dict[str, float | None]:
    return dict(zip(spec.names, _plain(values.tolist()), strict=True))


def _plain(value: Any) -> Any:
    """For JSON, which knows no nan: null."""
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def _categories(spec: DatasetSpec) -> list[str | None]:
    return [item.category for item in spec.classes]


def _mean(scores: Mapping[str, float] | None) -> float | None:
    return None if not scores else mean_of(np.array(list(scores.values())))


def print_results(
    spec: DatasetSpec,
    split: str,
    inferences: Sequence[Inference],
    results: Sequence[Evaluation],
    *,
    checkpoint: str,
) -> None:
    """The tables on standard output: scores per class of the first list of scales, then a line for each list."""
    print(table(spec, results[0]))
    for inference, result in zip(inferences, results, strict=True):
        print(
            f"{split} mIoU {100 * result.matrix.miou():.1f} % at {inference.describe()}, {result.images} images, checkpoint {checkpoint[:12]}"
        )


def table(spec: DatasetSpec, evaluation: Evaluation) -> str:
    """The result of a split as text: a line per class, then the means."""
    matrix = evaluation.matrix
    share = matrix.counts / max(int(matrix.counts.sum()), 1)
    columns = {
        "IoU %": matrix.iou(),
        "precision %": matrix.precision(),
        "recall %": matrix.recall(),
    }
    if evaluation.boundary_f is not None:
        columns["boundary F %"] = evaluation.boundary_f
    if evaluation.iiou:
        columns["iIoU %"] = np.array([evaluation.iiou.get(name, math.nan) for name in spec.names])
    means = [mean_of(values) for values in columns.values()]
    columns["pixels %"] = share
    widths = [max(8, len(name) + 2) for name in columns]

    def line(name: str, values: Sequence[float]) -> str:
        cells = ("-" if math.isnan(value) else f"{100 * value:.1f}" for value in values)
        return f"{name:<22}" + "".join(
            f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=False)
        )

    lines = [
        f"{'class':<22}"
        + "".join(f"{name:>{width}}" for name, width in zip(columns, widths, strict=True))
    ]
    lines += [
        line(name, [values[index] for values in columns.values()])
        for index, name in enumerate(spec.names)
    ]
    lines.append(line("mean", means))
    said = [f"pixel accuracy {100 * matrix.pixel_accuracy():.1f} %"]
    grouped = {
        "category IoU": category_iou(matrix.numpy(), _categories(spec)),
        "category iIoU": evaluation.category_iiou,
    }
    said += [
        f"{name} {100 * value:.1f} %"
        for name, scores in grouped.items()
        if (value := _mean(scores)) is not None
    ]
    lines.append(", ".join([*said, f"{evaluation.images} images"]))
    if matrix.absent():
        lines.append(
            "absent, not in the mean: " + ", ".join(spec.names[index] for index in matrix.absent())
        )
    return "\n".join(lines)


def metrics(
    loaded: Loaded,
    checkpoint: Path,
    split: str,
    inferences: Sequence[Inference],
    results: Sequence[Evaluation],
) -> dict[str, Any]:
    """What metrics.json holds; scores are fractions, null where there is nothing to score."""
    inference, evaluation, spec = inferences[0], results[0], loaded.spec
    matrix, categories = (
        evaluation.matrix,
        category_iou(evaluation.matrix.numpy(), _categories(spec)),
    )
    boundary_f = (
        np.full(spec.num_classes, math.nan)
        if evaluation.boundary_f is None
        else evaluation.boundary_f
    )
    columns = {
        "iou": matrix.iou(),
        "precision": matrix.precision(),
        "recall": matrix.recall(),
        "boundary_f": boundary_f,
        "iiou": np.array([(evaluation.iiou or {}).get(name, math.nan) for name in spec.names]),
    }
    classes = {
        name: {
            **{key: float(values[index]) for key, values in columns.items()},
            "pixels": int(matrix.counts[index]),
        }
        for index, name in enumerate(spec.names)
    }
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
        "attention_share": attention_share(spec, inference, evaluation),
        "images": evaluation.images,
        "loss": evaluation.loss,
        "seconds": round(evaluation.seconds, 3),
        **_way(inference),
        "tile": inference.tile,
        "precision": inference.precision,
        "multiscale": str(loaded.model.multiscale),
        "split": split,
        "dataset": spec.name,
        "checkpoint": str(checkpoint),
        "checkpoint_sha256": loaded.sha256,
        "compared": [
            compared_row(loaded, other, result)
            for other, result in zip(inferences, results, strict=True)
        ],
    }
    return _plain(content)


def _way(inference: Inference) -> dict[str, Any]:
    return {
        "scales": list(inference.scales),
        "flip": inference.flip,
        "combine": inference.combine,
        "over": inference.over,
    }


def compared_row(loaded: Loaded, inference: Inference, evaluation: Evaluation) -> dict[str, Any]:
    """One entry of metrics.json's "compared": a way to infer, and its scores."""
    return {
        "method": _method(loaded, inference),
        **_way(inference),
        "miou": evaluation.matrix.miou(),
        "pixel_accuracy": evaluation.matrix.pixel_accuracy(),
        "per_class": per_class(loaded.spec, evaluation.matrix),
        "loss": evaluation.loss,
        "seconds": round(evaluation.seconds, 3),
    }


def attention_share(
    spec: DatasetSpec, inference: Inference, evaluation: Evaluation
) -> dict[str, dict[str, float | None]]:
    """Scale -> class -> how much that scale counts, on average, for pixels labelled so; {} where there is no attention."""
    if evaluation.shares is None:
        return {}
    return {
        f"{scale:g}": _named(spec, row)
        for scale, row in zip(inference.scales, evaluation.shares, strict=True)
    }


def _method(loaded: Loaded, inference: Inference) -> str:
    """As the first column of the paper's Table 1 names it."""
    if str(loaded.model.multiscale) != "single":
        return str(loaded.model.multiscale)
    return (
        f"{inference.combine} of {inference.over}" if len(inference.scales) > 1 else "single scale"
    )


def worst_images(evaluation: Evaluation, *, of_class: int | None = None) -> list[int]:
    """Indices of the images with the lowest IoU, the worst first: mean over the classes in them, or of one class where it is in the label."""
    scores = {}
    for index, matrix in evaluation.per_image.items():
        there = matrix.sum(1) > 0
        if there.any() and (of_class is None or there[of_class]):
            scores[index] = _image_score(matrix, of_class)
    return sorted(scores, key=lambda index: (scores[index], index))


def _image_score(matrix: np.ndarray, of_class: int | None) -> float:
    return (
        mean_of(iou_of(matrix)[matrix.sum(1) > 0])
        if of_class is None
        else float(iou_of(matrix)[of_class])
    )


class _Examples:
    """Images of the split as panels of the page; each is inferred once, however often it is shown."""

    def __init__(
        self, loaded: Loaded, files: Files, inference: Inference, evaluation: Evaluation
    ) -> None:
        self.loaded, self.files, self.inference, self.evaluation = (
            loaded,
            files,
            inference,
            evaluation,
        )
        self.drawn: dict[int, dict[str, Picture]] = {}

    def compared(self, index: int, *, of_class: int | None = None) -> Example:
        """image | label | prediction | error, with the score of the image or of a class in it."""
        score = _image_score(self.evaluation.per_image[index], of_class)
        what = "mIoU" if of_class is None else f"{self.loaded.spec.names[of_class]} IoU"
        shown = self._pictures(index)
        return Example(
            self.files.name(index),
            [shown[caption] for caption in ("image", "label", "prediction", "error")],
            f"{what} {100 * score:.1f} %",
        )

    def attended(self, index: int) -> Example:
        """Two rows as in figure 3: the image and what each scale says alone; which scale is trusted, the attentions, and what comes of it."""
        shown = self._pictures(index)
        chosen = ["image", *(caption for caption in shown if caption.endswith("alone"))]
        columns = len(chosen)
        chosen += [
            "scale trusted",
            *(caption for caption in shown if caption.startswith("attention")),
            "prediction",
        ]
        score = _image_score(self.evaluation.per_image[index], None)
        return Example(
            self.files.name(index),
            [shown[caption] for caption in chosen],
            f"mIoU {100 * score:.1f} %",
            columns=columns,
        )

    def _pictures(self, index: int) -> dict[str, Picture]:
        if index not in self.drawn:
            long_edge = self.loaded.config.data.long_edge
            shown = pictures_of(
                self.loaded.model, self.files, self.inference, index, long_edge=long_edge
            )
            self.drawn[index] = {
                caption: _picture(caption, array) for caption, array in shown.items()
            }
        return self.drawn[index]


def _picture(caption: str, array: np.ndarray) -> Picture:
    return (
        Picture.photo(caption, array, width=480)
        if caption == "image"
        else Picture.drawing(caption, array, width=480)
    )


def report(
    loaded: Loaded,
    files: Files,
    content: dict[str, Any],
    inferences: Sequence[Inference],
    results: Sequence[Evaluation],
) -> EvaluationReport:
    """The page of an evaluation: numbers of the first list of scales, the others beside it, its worst images, what its scales attend to."""
    evaluation, inference, spec = results[0], inferences[0], loaded.spec
    examples = _Examples(loaded, files, inference, evaluation)
    ranking = worst_images(evaluation)
    worst_of = {
        number: worst_images(evaluation, of_class=number)[:1] for number in range(spec.num_classes)
    }
    evenly = (
        ranking[:: max(1, len(ranking) // ATTENDED)][:ATTENDED]
        if evaluation.shares is not None
        else []
    )
    facts = {} if evaluation.loss is None else {"validation loss": f"{evaluation.loss:.3f}"}
    if evaluation.seconds:
        facts["seconds per image"] = f"{evaluation.seconds / max(evaluation.images, 1):.2g}"
    return EvaluationReport(
        title=loaded.config.experiment.name,
        names=spec.names,
        colors=spec.palette,
        matrix=evaluation.matrix.numpy(),
        images=evaluation.images,
        split=content["split"],
        checkpoint=content["checkpoint"],
        checkpoint_sha256=loaded.sha256,
        settings={"inference": asdict(inference), "configuration": loaded.config.to_dict()},
        facts=facts,
        compared=[
            ComparedRow(
                _method(loaded, other),
                other.scales,
                other.flip,
                result.matrix.miou(),
                result.matrix.iou(),
            )
            for other, result in zip(inferences, results, strict=True)
        ],
        categories=category_iou(evaluation.matrix.numpy(), _categories(spec)),
        instance_iou=evaluation.iiou or {},
        category_instance_iou=evaluation.category_iiou or {},
        boundary_f=evaluation.boundary_f,
        worst=[examples.compared(index) for index in ranking[:WORST]],
        worst_per_class={
            spec.names[number]: [examples.compared(index, of_class=number) for index in worst]
            for number, worst in worst_of.items()
            if worst
        },
        attention=[examples.attended(index) for index in evenly],
        shares=evaluation.shares,
        share_scales=inference.scales,
    )


def write_results(
    output: Path,
    loaded: Loaded,
    checkpoint: Path,
    split: str,
    files: Files,
    inferences: Sequence[Inference],
    results: Sequence[Evaluation],
) -> None:
    """metrics.json and report.html in `output`."""
    content = metrics(loaded, checkpoint, split, inferences, results)
    write_atomically(
        output / "metrics.json", (json.dumps(content, indent=2, allow_nan=False) + "\n").encode()
    )
    write_report(output / "report.html", report(loaded, files, content, inferences, results))
