"""What a network finds in an image, and the pictures of it: files for every image, and panels."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from hmsa.datasets import DatasetSpec, Files, normalise, resize_long_edge
from hmsa.network import InferenceOptions, MultiScaleModel, Prediction
from hmsa.network.inference import RefinedArea, predict, predict_label
from hmsa.network.inference.labels import (
    NonFiniteError,
    label_and_confidence,
    predicted_label,
)
from hmsa.utils.files.image_writer import ImageWriter
from hmsa.utils.files.outputs import OutputFolder, inside
from hmsa.utils.files.png import encode_png, write_png
from hmsa.utils.files.writing import is_temporary
from hmsa.utils.labelling.submission import Submission, SubmissionError, require_replaceable
from hmsa.utils.report.visualise import (
    colorize,
    error_map,
    heat,
    overlay,
    panel,
    scale_map,
    scale_shares,
)
from hmsa.utils.runtime import kernel_search
from hmsa.utils.training.logbook import logger

# Folders of Mapillary Vistas, by the names of its benchmark.
OFFICIAL_SPLITS = {"testing": "test", "validation": "val"}


@dataclass(frozen=True)
class Needs:
    """What inference must bring beside labels.

    Labels alone take the memory of a tile; logits at full size and the maps of every scale are
    only held where something is drawn or computed from them.
    """

    logits: bool = False
    scales: bool = False
    attention: bool = False
    confidence: bool = False

    @classmethod
    def of_pictures(cls, kinds: Sequence[str]) -> Needs:
        """What the pictures named by `kinds` are drawn from."""
        return cls(
            logits="probabilities" in kinds,
            scales="scales" in kinds,
            attention="attention" in kinds,
            confidence="confidence" in kinds,
        )

    def __or__(self, other: Needs) -> Needs:
        return Needs(
            logits=self.logits or other.logits,
            scales=self.scales or other.scales,
            attention=self.attention or other.attention,
            confidence=self.confidence or other.confidence,
        )


LABELS_ONLY = Needs()


class ImageResult(NamedTuple):
    """What inference found in images of one size."""

    label: Tensor  # uint8 [N, H, W], train ids
    confidence: Tensor | None = None  # float [N, H, W], the probability of the label
    prediction: Prediction | None = None  # logits [N, C, H, W], and the scales where needed

    def at(self, position: int) -> ImageResult:
        """The same for one image of the batch, still with a batch dimension of one."""
        take = slice(position, position + 1)
        confidence, prediction = self.confidence, self.prediction
        return ImageResult(
            label=self.label[take],
            confidence=None if confidence is None else confidence[take],
            prediction=None if prediction is None else _prediction_at(prediction, take),
        )


def _prediction_at(prediction: Prediction, take: slice) -> Prediction:
    attention, scales = prediction.attention, prediction.scales
    if attention is not None:
        attention = attention[take]
    if scales is not None:
        scales = {scale: _prediction_at(inner, take) for scale, inner in scales.items()}
    return Prediction(logits=prediction.logits[take], attention=attention, scales=scales)


def infer(
    model: MultiScaleModel,
    image: Tensor,
    options: InferenceOptions,
    needs: Needs,
    *,
    size: tuple[int, int],
    area: RefinedArea | None = None,
) -> ImageResult:
    """Labels of images, and what else is needed.

    Args:
        image: uint8 [N, 3, h, w].
        size: (H, W) of the result; that of the images, unless they were resized for the network.
        area: counts how much is computed of scales above 1.
    """
    parameter = next(model.parameters())
    dtype = torch.float64 if parameter.dtype == torch.float64 else torch.float32
    tensor = normalise(image.to(parameter.device, non_blocking=True), dtype=dtype)

    is_resized = tuple(image.shape[-2:]) != size
    in_parts = bool(options.refined_scales)
    if not (needs.logits or needs.scales or needs.attention or is_resized):
        with kernel_search.for_size(image.shape, in_parts=in_parts):
            label, confidence = predict_label(
                model,
                tensor,
                options,
                with_confidence=needs.confidence,
                on_fallback=_warn,
                area=area,
            )
        return ImageResult(*_of_numbers(label, confidence))

    keep_scales: bool | Literal["attention"] = needs.scales
    if needs.attention and not needs.scales:
        keep_scales = "attention"
    with kernel_search.for_size(image.shape, in_parts=in_parts):
        prediction = predict(
            model, tensor, options, keep_scales=keep_scales, on_fallback=_warn, area=area
        )
    return _labelled(prediction, size, with_confidence=needs.confidence)


def _labelled(
    prediction: Prediction, size: tuple[int, int], *, with_confidence: bool
) -> ImageResult:
    """The labels of logits, which are resized to `size` (H, W) where they have another."""
    if tuple(prediction.logits.shape[-2:]) != size:
        logits = nn.functional.interpolate(
            prediction.logits, size=size, mode="bilinear", align_corners=False
        )
        prediction = prediction._replace(logits=logits)

    if with_confidence:
        label, confidence = _of_numbers(*label_and_confidence(prediction.logits))
        return ImageResult(label, confidence, prediction)
    return ImageResult(predicted_label(prediction.logits), None, prediction)


def _of_numbers(label: Tensor, confidence: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Both as they are, unless the confidence says that a label stands for no number.

    Raises:
        NonFiniteError: it does.
    """
    if confidence is not None:
        count = int(confidence.isnan().sum())
        if count:
            raise NonFiniteError(f"the network's answer is not a number at {count} pixels")
    return label, confidence


def result_at_size(result: ImageResult, size: tuple[int, int]) -> ImageResult:
    """The result at another size (H, W); needs its logits unless it has that size already."""
    if tuple(result.label.shape[-2:]) == size:
        return result
    assert result.prediction is not None, "labels are not resized, logits are"
    return _labelled(result.prediction, size, with_confidence=result.confidence is not None)


def _warn(sentence: str) -> None:
    logger.warning("%s", sentence)


# --- attention ---


def attends(model: MultiScaleModel, options: InferenceOptions) -> bool:
    """Whether the model weighs several scales against each other at every pixel."""
    return str(model.multiscale) != "single" and len(options.scales) > 1


def _is_explicit(prediction: Prediction) -> bool:
    """Whether the attention has a map for every scale, as that of Chen et al. (2016) does."""
    if prediction.attention is None or prediction.scales is None:
        return False
    return prediction.attention.shape[1] == len(prediction.scales) > 1


def attention_maps(prediction: Prediction) -> dict[float, np.ndarray]:
    """The attention of every scale that has one, float [h, w].

    It has the size of its scale, or for explicit attention that of the image.
    """
    scales = prediction.scales or {}
    if _is_explicit(prediction):
        assert prediction.attention is not None
        weights = prediction.attention[0].float().cpu().numpy()
        return dict(zip(sorted(scales), weights, strict=True))
    return {
        scale: inner.attention[0, 0].float().cpu().numpy()
        for scale, inner in sorted(scales.items())
        if inner.attention is not None
    }


def share_maps(prediction: Prediction) -> dict[float, np.ndarray]:
    """How much each scale counts at each pixel, float [H, W].

    Over the scales these weights sum to one (paper, figure 3).
    """
    assert prediction.scales is not None
    height, width = prediction.logits.shape[-2:]
    maps = attention_maps(prediction)
    if _is_explicit(prediction):
        return {scale: cv2.resize(weight, (width, height)) for scale, weight in maps.items()}
    return scale_shares({scale: maps.get(scale) for scale in prediction.scales}, (height, width))


# --- files for every image ---


class Pictures:
    """Draws and writes what --save names for every image, in the background.

    There is one file a kind, under the image's own name and at its own size.
    """

    def __init__(
        self,
        output: OutputFolder,
        kinds: Sequence[str],
        files: Files,
        writer: ImageWriter,
        *,
        own_size: bool,
    ) -> None:
        """Args:
        own_size: images come at their own size; otherwise an overlay reads them again.
        """
        self.output = output
        self.kinds = kinds
        self.files = files
        self.writer = writer
        self.own_size = own_size

    def add(self, name: str, index: int, image: Tensor, result: ImageResult) -> None:
        """Queue the pictures of one image, uint8 [3, h, w], and of its result [1, ...]."""
        spec = self.files.spec
        label = result.label[0].cpu().numpy()
        drawn: dict[str, Callable[[], np.ndarray]] = {
            "labels": lambda: spec.to_raw[label],
            "colour": lambda: colorize(label, spec.palette),
            "overlay": lambda: overlay(self._photograph(index, image), label, spec.palette),
        }
        if result.confidence is not None:
            confidence = (result.confidence[0] * 255).byte().cpu().numpy()
            drawn["confidence"] = lambda: confidence

        for kind, draw in drawn.items():
            if kind in self.kinds:
                self.writer.call(self._write, kind, name, draw)
        if result.prediction is not None:
            self._add_maps(name, result.prediction)

    def _photograph(self, index: int, image: Tensor) -> np.ndarray:
        """The image at its own size, uint8 [H, W, 3]."""
        if self.own_size:
            return image.permute(1, 2, 0).contiguous().numpy()
        return self.files.read_image(index)

    def _add_maps(self, name: str, prediction: Prediction) -> None:
        if "probabilities" in self.kinds:
            probabilities = prediction.logits[0].float().softmax(0).half().cpu().numpy()
            self.writer.call(self._write_array, f"probabilities/{name}.npy", probabilities)

        palette = self.files.spec.palette
        if "scales" in self.kinds:
            for scale, inner in (prediction.scales or {}).items():
                own = predicted_label(inner.logits)[0].cpu().numpy()
                draw = _later(colorize, own, palette)
                self.writer.call(self._write, "scales", f"{name}_{scale:g}x", draw)

        if "attention" in self.kinds:
            for scale, attention in attention_maps(prediction).items():
                draw = _later(_as_grey, attention)
                self.writer.call(self._write, "attention", f"{name}_{scale:g}x", draw)

    def _write(self, kind: str, name: str, draw: Callable[[], np.ndarray]) -> None:
        self.output.write(f"{kind}/{name}.png", encode_png(draw()))

    def _write_array(self, name: str, array: np.ndarray) -> None:
        with self.output.written(name) as temporary, open(temporary, "wb") as file:
            np.save(file, array)


def result_files(
    files: Files, kinds: Sequence[str], *, scales: Sequence[float]
) -> Iterator[tuple[str, str]]:
    """(file, image) for everything that an evaluation may write for an image, then the summaries.

    Args:
        scales: of the inference, which maps of single scales are named by.
    """
    for index in range(len(files)):
        name, image = files.output_name(index), str(files.image_path(index))
        if files.frames is not None:
            image = f"{image} ({name})"
        for kind in kinds:
            if kind == "video":
                continue
            if kind in ("scales", "attention"):
                for scale in scales:
                    yield f"{kind}/{name}_{scale:g}x.png", image
            elif kind == "probabilities":
                yield f"{kind}/{name}.npy", image
            else:
                yield f"{kind}/{name}.png", image
    for summary in ("metrics.json", "report.html", "classes.json", "index.html"):
        yield summary, f"the evaluation's {summary}"


def _later(draw: Callable[..., np.ndarray], *arguments: Any) -> Callable[[], np.ndarray]:
    """`draw(*arguments)` to be called later; a lambda in a loop would see the last values of it."""
    return lambda: draw(*arguments)


def _as_grey(weights: np.ndarray) -> np.ndarray:
    """Weights from 0 to 1 as uint8 grey values."""
    return (weights * 255).astype(np.uint8)


@dataclass(frozen=True)
class SubmissionWriter:
    """--submit: predictions of a split in a folder beside the zip file, then checked and packed."""

    archive: Path
    files: Files
    submission: Submission

    @classmethod
    def of(cls, archive: Path, files: Files, split: str) -> SubmissionWriter:
        """Choose the official name of every prediction.

        Raises:
            SubmissionError: an image has no official name, or a file is in the way that was not
                made here. Nothing has been predicted yet.
        """
        require_replaceable(archive)
        spec = files.spec
        benchmark = "mapillary" if spec.name.startswith("mapillary") else spec.name
        submission = Submission(
            archive.with_name(f".{archive.stem}.parts"),
            benchmark,
            OFFICIAL_SPLITS.get(split, split),
            to_raw=spec.to_raw,
            raw_ids=[item.raw_ids[0] for item in spec.classes],
        )
        for index in range(len(files)):
            inside(submission.folder, submission.file_name(files.name(index)))
        return cls(archive, files, submission)

    def clear(self) -> None:
        """Remove what a killed run has left.

        Raises:
            SubmissionError: a folder of that name holds something else.
        """
        folder = self.submission.folder
        for path in folder.rglob("*"):
            if path.is_file() and path.suffix != ".png" and not is_temporary(path):
                raise SubmissionError(
                    f"{path}: is in the folder for single predictions and was not made here; move "
                    "it away, or choose another name for --submit"
                )
        shutil.rmtree(folder, ignore_errors=True)

    def add(self, name: str, label: np.ndarray, writer: ImageWriter) -> None:
        """Queue the prediction of one image, train ids uint8 [H, W] at the image's own size."""
        writer.call(lambda: write_png(self.submission.path(name), self.submission.encode(label)))

    def finish(self) -> None:
        """Check and zip what all ranks have written, and say what the server will refuse.

        Raises:
            SubmissionError: a prediction is missing or not as the benchmark wants it.
        """
        sizes = {
            self.files.name(index): self.files.image_size(index) for index in range(len(self.files))
        }
        note = self.submission.zip(self.archive, sizes)
        self.clear()

        logger.info(
            "%s: %d predictions in raw ids, every one checked", self.archive, len(self.files)
        )
        if note is not None:
            logger.warning("%s: %s", self.archive, note)


def legend_of(spec: DatasetSpec) -> list[dict[str, Any]]:
    """Which value and which colour is which class, as classes.json beside predictions says it."""
    return [
        {"name": item.name, "id": item.raw_ids[0], "train_id": number, "color": list(item.color)}
        for number, item in enumerate(spec.classes)
    ]


# --- panels of reports ---


@torch.inference_mode()
def pictures_of(
    model: MultiScaleModel,
    files: Files,
    options: InferenceOptions,
    index: int,
    *,
    long_edge: int | None = None,
) -> dict[str, np.ndarray]:
    """Caption -> uint8 RGB picture [H, W, 3] of one image of a split.

    They are image, label, prediction and error; for a model with attention also what each scale
    says alone, which scale counts most where, and how much each counts, which sums to one.

    Args:
        long_edge: resize image and label as evaluation does (data.long_edge).
    """
    image = files.read_image(index)
    label = None
    if files.labels is not None:
        label = files.read_label(index, image_size=(image.shape[0], image.shape[1]))
    if long_edge is not None:
        image, label = resize_long_edge(image, label, long_edge=long_edge)

    # The model goes on training after a picture for TensorBoard.
    was_training = model.training
    with_scales = attends(model, options) and options.tile is None
    result = infer(
        model.eval(),
        torch.from_numpy(image).permute(2, 0, 1)[None],
        options,
        Needs(scales=with_scales),
        size=(image.shape[0], image.shape[1]),
    )
    model.train(was_training)

    palette = files.spec.palette
    predicted = result.label[0].cpu().numpy()
    shown = {"image": image}
    if label is not None:
        shown["label"] = colorize(label, palette)
    shown["prediction"] = colorize(predicted, palette)
    if label is not None:
        shown["error"] = error_map(predicted, label, files.spec.ignore_label, image)
    if not with_scales or result.prediction is None:
        return shown

    # Figure 3 of the paper: the scales apart, and how they are joined.
    for scale, inner in sorted((result.prediction.scales or {}).items()):
        own = predicted_label(inner.logits)[0].cpu().numpy()
        shown[f"{scale:g}x alone"] = colorize(own, palette)
    shares = share_maps(result.prediction)
    shown["scale trusted"] = scale_map(shares)
    for scale, share in sorted(shares.items()):
        shown[f"attention {scale:g}x"] = heat(share)
    return shown


def example_panel(
    model: MultiScaleModel, files: Files, options: InferenceOptions, *, index: int = 0
) -> np.ndarray:
    """image | label | prediction | attention per scale of one image, as one uint8 RGB picture."""
    shown = pictures_of(model, files, options, index)
    starts = ("image", "label", "prediction", "attention")
    chosen = {caption: picture for caption, picture in shown.items() if caption.startswith(starts)}
    return panel(list(chosen.items()), columns=3)
