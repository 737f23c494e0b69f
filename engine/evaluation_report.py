"""report.html of an evaluation: which images it shows, and which way to infer it advises."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from typing import Any

import numpy as np

from hmsa.datasets import Files
from hmsa.network import InferenceOptions
from hmsa.utils.config import iter_fields
from hmsa.utils.metrics.bootstrap import Interval
from hmsa.utils.metrics.confusion import category_iou, iou_of, mean_of
from hmsa.utils.report.report import ComparedRow, EvaluationReport, Example, Picture

from .build import Loaded, used_attention_bias
from .pictures import attends, pictures_of
from .reporting import Evaluation, categories_of

WORST_SHOWN = 4  # images shown as the worst
TYPICAL_SHOWN = 3  # images shown as typical
PICTURE_WIDTH = 480  # pixels, on the page


def image_score(matrix: np.ndarray, of_class: int | None = None) -> float:
    """The mean IoU of the classes that an image's label has, or the IoU of one class in it."""
    iou = iou_of(matrix)
    if of_class is not None:
        return float(iou[of_class])
    return mean_of(iou[matrix.sum(1) > 0])


def worst_images(evaluation: Evaluation, *, of_class: int | None = None) -> list[int]:
    """Indices of the images with the lowest score, the worst first.

    The score is that of `image_score`; images whose label has nothing to score are left out.
    """
    scores = {}
    for index, matrix in evaluation.per_image.items():
        is_labelled = matrix.sum(1) > 0
        if is_labelled.any() and (of_class is None or is_labelled[of_class]):
            scores[index] = image_score(matrix, of_class)
    return sorted(scores, key=lambda index: (scores[index], index))


def typical_images(ranking: Sequence[int], count: int) -> list[int]:
    """The `count` images around the middle of a ranking, but for the worst ones."""
    rest = ranking[WORST_SHOWN:]
    start = max(0, len(ranking) // 2 - count // 2 - WORST_SHOWN)
    start = min(start, max(0, len(rest) - count))
    return list(rest[start : start + count])


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
        score = image_score(self.evaluation.per_image[index], of_class)
        name = "mIoU"
        if of_class is not None:
            name = f"{self.loaded.spec.names[of_class]} IoU"
        shown = self._pictures(index)
        return Example(
            self.files.name(index),
            [shown[caption] for caption in ("image", "label", "prediction", "error")],
            f"{name} {100 * score:.1f} %",
            path=str(self.files.image_path(index)),
        )

    def attended(self, index: int) -> Example:
        """Three rows as in figure 3 of the paper.

        Image and what each scale says alone; label and how much each scale counts; prediction,
        error and the scale that counts most.
        """
        shown = self._pictures(index)
        alone = [caption for caption in shown if caption.endswith("alone")]
        attention = [caption for caption in shown if caption.startswith("attention")]
        rows = ["image", *alone, "label", *attention, "prediction", "error", "scale trusted"]

        score = image_score(self.evaluation.per_image[index])
        return Example(
            self.files.name(index),
            [shown[caption] for caption in rows],
            f"mIoU {100 * score:.1f} %",
            columns=1 + len(alone),
            path=str(self.files.image_path(index)),
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
    content: Mapping[str, Any],
    ways: Sequence[InferenceOptions],
    results: Sequence[Evaluation],
) -> EvaluationReport:
    """The page of an evaluation.

    It shows the numbers of the first way to infer, the others beside it, the worst and some typical
    images, and what the scales attend to. `content` is that of metrics.json.
    """
    evaluation, options, spec = results[0], ways[0], loaded.spec
    examples = _Examples(loaded, files, options, evaluation)

    # The worst images of all, and the worst one of each class.
    ranking = worst_images(evaluation)
    typical = typical_images(ranking, TYPICAL_SHOWN)
    worst_per_class = {}
    for number, name in enumerate(spec.names):
        worst = worst_images(evaluation, of_class=number)[:1]
        if worst:
            worst_per_class[name] = [examples.compared(worst[0], of_class=number)]

    # Attention is drawn at the longest list of scales, which shows all that was compared.
    attending = [way for way in ways if way.tile is None and attends(loaded.model, way)]
    attended, longest = [], options
    if attending:
        attended = [*typical, *ranking[:1]]
        longest = max(attending, key=lambda way: len(way.scales))
    attention = examples
    if longest != options:
        attention = _Examples(loaded, files, longest, results[ways.index(longest)])

    return EvaluationReport(
        title=_title(loaded, content["split"]),
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
        defaults=_defaults(),
        facts=_facts(evaluation, content),
        notes=_notes(loaded, evaluation),
        compared=_compared(content, results),
        cost_note=cost_note(content),
        intervals=[
            _interval(row["iou_interval"]) or Interval(float("nan"), float("nan"))
            for row in content["classes"].values()
            if "iou_interval" in row
        ],
        categories=category_iou(evaluation.matrix.numpy(), categories_of(spec)),
        instance_iou=evaluation.iiou or {},
        category_instance_iou=evaluation.category_iiou or {},
        boundary_f=evaluation.boundary_f,
        worst=[examples.compared(index) for index in ranking[:WORST_SHOWN]],
        typical=[examples.compared(index) for index in typical],
        worst_per_class=worst_per_class,
        attention=[attention.attended(index) for index in attended],
        attention_rule=f"Shown are the typical images of the section Images, and the worst one, at "
        f"{longest.describe()}.",
        attention_scales=longest.scales,
        shares=evaluation.shares,
        share_scales=options.scales,
    )


def _title(loaded: Loaded, split: str) -> str:
    """The run and the split, or the file of weights that belong to no run of ours."""
    name = loaded.config.experiment.name
    if name == _defaults()["configuration.experiment.name"]:
        name = loaded.path.stem
    return f"{name}: {split}"


def _facts(evaluation: Evaluation, content: Mapping[str, Any]) -> dict[str, str]:
    facts = {}
    if evaluation.loss is not None:
        facts["validation loss"] = f"{evaluation.loss:.3f}"
    seconds = content["compared"][0].get("seconds_per_image")
    if seconds:
        facts[f"seconds per image on {content['device']}"] = f"{seconds:.2g}"
    return facts


def _notes(loaded: Loaded, evaluation: Evaluation) -> list[str]:
    """What the network started from, and what a figure means that looks odd."""
    notes = []
    if loaded.trunk_origin:
        notes.append(f"Before training: {loaded.trunk_origin.rstrip('.')}.")
    if evaluation.loss is not None and loaded.config.loss.main == "rmi":
        notes.append(
            "The validation loss is that of RMI, which adds half the logarithm of a determinant to "
            "the cross-entropy: it falls below zero when predictions follow the labels closely, "
            "and lower is better."
        )
    return notes


def _compared(content: Mapping[str, Any], results: Sequence[Evaluation]) -> list[ComparedRow]:
    rows = []
    for way, result in zip(content["compared"], results, strict=True):
        refined = way.get("refined_share")
        rows.append(
            ComparedRow(
                way["method"],
                way["scales"],
                way["flip"],
                result.matrix.miou(),
                result.matrix.iou(),
                interval=_interval(way.get("miou_interval")),
                difference=_interval(way.get("difference_interval")),
                behind_best=_interval(way.get("behind_best_interval")),
                seconds=way.get("seconds_per_image"),
                flops=way.get("flops_relative"),
                memory_bytes=way.get("peak_bytes"),
                refined=None if refined in (None, 1) else refined,
                recommended=way.get("recommended", False),
            )
        )
    return rows


def _interval(ends: Sequence[float] | None) -> Interval | None:
    if ends is None or None in ends:
        return None
    return Interval(*ends)


def cost_note(content: Mapping[str, Any]) -> str:
    """How the costs of the ways were found."""
    sentences = []
    if any(way.get("seconds_per_image") for way in content["compared"]):
        sentences.append(f"Seconds are those of this run on {content['device']}.")
    if any(way.get("peak_bytes") for way in content["compared"]):
        height, width = content["counted_size"]
        sentences.append(
            f"FLOPs and memory are counted for an image of {height} x {width}: memory is the "
            "largest sum of the tensors that live at once, without the weights."
        )
    return " ".join(sentences)


def _settings(loaded: Loaded, options: InferenceOptions) -> dict[str, Any]:
    """The options of inference as plain values; the precision stands for its dtype."""
    settings = asdict(options)
    del settings["autocast_dtype"]
    bias = used_attention_bias(loaded.model, options)
    return {**settings, "attention_bias": bias, "precision": loaded.config.eval.precision}


def _defaults() -> dict[str, Any]:
    """Defaults of all settings by dotted key."""
    inference = {f"inference.{field.name}": field.default for field in fields(InferenceOptions)}
    configuration = {f"configuration.{field.name}": field.default for field in iter_fields()}
    return {
        **inference,
        "inference.attention_bias": [],
        "inference.precision": "fp32",
        **configuration,
    }
