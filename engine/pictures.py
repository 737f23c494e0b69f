"""What a network sees, as pictures: files for every image, and the panels of reports. A helper of the doors, like assemble.py."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from hmsa.datasets import DatasetSpec, Files, normalise, resize_long_edge
from hmsa.network import Prediction
from hmsa.network.inference.predict import label_and_confidence, predicted_label
from hmsa.network.model import MultiScale
from hmsa.utils.files.image_writer import ImageWriter
from hmsa.utils.files.png import write_file_with, write_png
from hmsa.utils.labelling.submission import Submission
from hmsa.utils.report.visualise import (
    colorize,
    error_map,
    heat,
    overlay,
    panel,
    scale_map,
    scale_shares,
)
from hmsa.utils.training.logbook import logger

from .build import Inference


class Wanted(NamedTuple):
    """What inference must bring beside labels: `logits` at full size, every scale's maps at the size of its image (`scales`) or as small as they
    are made (`attention`), the probability of each label."""

    logits: bool = False
    scales: bool = False
    confidence: bool = False
    attention: bool = False

    @classmethod
    def for_pictures(cls, kinds: Sequence[str]) -> Wanted:
        """What the pictures named by `kinds` are drawn from."""
        return cls(
            logits="probabilities" in kinds,
            scales=bool({"attention", "scales"} & set(kinds)),
            confidence="confidence" in kinds,
        )

    def __or__(self, other: tuple[bool, ...]) -> Wanted:  # type: ignore[override]
        return Wanted(*(one or another for one, another in zip(self, other, strict=True)))


LABELS = Wanted()  # and nothing else


class Found(NamedTuple):
    """What inference says about images of one size: label uint8 [N, H, W], and what else was wanted."""

    label: Tensor
    confidence: Tensor | None = None
    prediction: Prediction | None = None

    def at(self, position: int) -> Found:
        """The same for one image of the batch, still with a batch dimension of one."""
        confidence = None if self.confidence is None else self.confidence[position : position + 1]
        return Found(
            self.label[position : position + 1],
            confidence,
            None if self.prediction is None else _at(self.prediction, position),
        )


def _at(prediction: Prediction, position: int) -> Prediction:
    take = slice(position, position + 1)
    scales = (
        None
        if prediction.scales is None
        else {scale: _at(inner, position) for scale, inner in prediction.scales.items()}
    )
    attention = None if prediction.attention is None else prediction.attention[take]
    return Prediction(logits=prediction.logits[take], attention=attention, scales=scales)


def infer(
    model: MultiScale, image: Tensor, inference: Inference, wanted: Wanted, *, size: tuple[int, int]
) -> Found:
    """Labels of uint8 images [N, 3, h, w] at `size` (H, W), which is theirs unless they were resized for the network.

    Logits at full size are only held where something needs them, so that labels alone take the memory of a tile.
    """
    parameter = next(model.parameters())
    dtype = torch.float64 if parameter.dtype == torch.float64 else torch.float32
    tensor = normalise(image.to(parameter.device, non_blocking=True), dtype=dtype)
    if not (wanted.logits or wanted.scales or wanted.attention or tuple(image.shape[-2:]) != size):
        return Found(
            *inference.label(model, tensor, with_confidence=wanted.confidence, on_fallback=_warn)
        )
    prediction = inference.predict(
        model,
        tensor,
        keep_scales=wanted.scales or (wanted.attention and "features"),
        on_fallback=_warn,
    )
    return _labelled(prediction, size, with_confidence=wanted.confidence)


def _labelled(prediction: Prediction, size: tuple[int, int], *, with_confidence: bool) -> Found:
    """Logits resized to `size` (H, W) where they have another, and their labels."""
    if tuple(prediction.logits.shape[-2:]) != size:
        logits = nn.functional.interpolate(
            prediction.logits, size=size, mode="bilinear", align_corners=False
        )
        prediction = prediction._replace(logits=logits)
    if with_confidence:
        return Found(*label_and_confidence(prediction.logits), prediction)
    return Found(predicted_label(prediction.logits), None, prediction)


def fitted(found: Found, size: tuple[int, int]) -> Found:
    """What was found, at another size (H, W); needs its logits unless it has that size already."""
    if tuple(found.label.shape[-2:]) == size:
        return found
    assert found.prediction is not None, "labels are not resized, logits are"
    return _labelled(found.prediction, size, with_confidence=found.confidence is not None)


def _warn(sentence: str) -> None:
    logger.warning("%s", sentence)


def attends(model: MultiScale, inference: Inference) -> bool:
    """Whether the model weighs several scales against each other, so that each pixel has a share of each scale."""
    return str(model.multiscale) != "single" and len(inference.scales) > 1


def attention_maps(prediction: Prediction) -> dict[float, np.ndarray]:
    """The attention of every scale that has one, float [h, w]: at its own size, or for explicit models at the size of the image."""
    scales = prediction.scales or {}
    if (
        prediction.attention is not None and prediction.attention.shape[1] == len(scales) > 1
    ):  # explicit: a weight for each scale
        return dict(zip(sorted(scales), prediction.attention[0].float().cpu().numpy(), strict=True))
    return {
        scale: inner.attention[0, 0].float().cpu().numpy()
        for scale, inner in sorted(scales.items())
        if inner.attention is not None
    }


def share_maps(prediction: Prediction) -> dict[float, np.ndarray]:
    """How much each scale counts at each pixel, float [H, W]; over the scales these weights sum to one (paper, figure 3)."""
    assert prediction.scales is not None
    size = (prediction.logits.shape[-2], prediction.logits.shape[-1])
    maps = attention_maps(prediction)
    if (
        prediction.attention is not None
        and prediction.attention.shape[1] == len(prediction.scales) > 1
    ):
        return {scale: cv2.resize(weight, size[::-1]) for scale, weight in maps.items()}
    return scale_shares({scale: maps.get(scale) for scale in prediction.scales}, size)


class Pictures:
    """Draws and writes what --save names for every image, in the background: one file a kind, under the image's own name and at its own size."""

    def __init__(
        self, output: Path, kinds: Sequence[str], files: Files, writer: ImageWriter, *, native: bool
    ) -> None:
        """`native`: whether images come at their own size, or must be read again for an overlay."""
        self.output = output
        self.kinds = kinds
        self.files = files
        self.writer = writer
        self.native = native
        self.written = 0

    def add(self, batch: dict[str, Any], position: int, found: Found) -> None:
        """Queue the pictures of one image."""
        name, spec = batch["names"][position], self.files.spec
        label = found.label[0].cpu().numpy()
        image = (
            batch["image"][position].permute(1, 2, 0).contiguous().numpy() if self.native else None
        )
        index = int(batch["index"][position])
        draw: dict[str, Callable[[], np.ndarray]] = {
            "labels": lambda: spec.to_raw[label],
            "colour": lambda: colorize(label, spec.palette),
            "overlay": lambda: overlay(
                self.files.read_image(index) if image is None else image, label, spec.palette
            ),
        }
        if found.confidence is not None:
            confidence = (found.confidence[0] * 255).byte().cpu().numpy()
            draw["confidence"] = lambda: confidence
        for kind in draw:
            if kind in self.kinds:
                self.writer.call(self._write, kind, name, draw[kind])
        self._add_maps(name, found)
        self.written += 1

    def _add_maps(self, name: str, found: Found) -> None:
        if found.prediction is None:
            return
        palette = self.files.spec.palette
        if "probabilities" in self.kinds:
            probabilities = found.prediction.logits[0].float().softmax(0).half().cpu().numpy()
            self.writer.call(
                write_array, self.output / "probabilities" / f"{name}.npy", probabilities
            )
        for scale, inner in (found.prediction.scales or {}).items():
            if "scales" in self.kinds:
                own = predicted_label(inner.logits)[0].cpu().numpy()
                self.writer.call(
                    self._write,
                    "scales",
                    f"{name}_{scale:g}x",
                    lambda own=own: colorize(own, palette),
                )
        if "attention" in self.kinds:
            for scale, attention in attention_maps(found.prediction).items():
                self.writer.call(
                    self._write,
                    "attention",
                    f"{name}_{scale:g}x",
                    lambda one=attention: (one * 255).astype(np.uint8),
                )

    def _write(self, kind: str, name: str, draw: Callable[[], np.ndarray]) -> None:
        write_png(self.output / kind / f"{name}.png", draw())


_OFFICIAL_SPLITS = {"testing": "test", "validation": "val"}  # folders of Mapillary Vistas


@dataclass(frozen=True)
class HandIn:
    """--submit: the predictions of a split in a folder beside the zip file, then checked and packed."""

    archive: Path
    files: Files
    submission: Submission

    @classmethod
    def of(cls, archive: Path, files: Files, split: str) -> HandIn:
        """Raises SubmissionError, before anything is inferred, where a name cannot be made an official one."""
        spec = files.spec
        benchmark = "mapillary" if spec.name.startswith("mapillary") else spec.name
        submission = Submission(
            archive.with_name(f".{archive.stem}.parts"),
            benchmark,
            _OFFICIAL_SPLITS.get(split, split),
            to_raw=spec.to_raw,
            raw_ids=[item.raw_ids[0] for item in spec.classes],
        )
        for index in range(len(files)):
            submission.file_name(files.name(index))
        return cls(archive, files, submission)

    def clear(self) -> None:
        """Remove what a killed run has left."""
        shutil.rmtree(self.submission.folder, ignore_errors=True)

    def add(self, name: str, label: np.ndarray, writer: ImageWriter) -> None:
        """Queue the prediction of one image, train ids uint8 [H, W] at the image's own size."""
        writer.call(lambda: write_png(self.submission.path(name), self.submission.encode(label)))

    def finish(self) -> None:
        """Check and zip what all ranks have written, and say what the server will not like. SubmissionError."""
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


def write_array(path: Path, array: np.ndarray) -> None:
    """A .npy file, whole or not at all. Raises ImageWriteError."""

    def save(temporary: Path) -> None:
        with open(temporary, "wb") as file:
            np.save(file, array)

    write_file_with(path, save)


@torch.inference_mode()
def pictures_of(
    model: MultiScale,
    files: Files,
    inference: Inference,
    index: int,
    *,
    long_edge: int | None = None,
) -> dict[str, np.ndarray]:
    """Caption -> uint8 RGB picture of one image of a split: image, label, prediction, error; what each scale says alone, which counts where,
    and its attention.

    `long_edge` resizes image and label as evaluation does (data.long_edge).
    """
    was_training = model.training
    image = files.read_image(index)
    label = None if files.labels is None else files.read_label(index)
    if long_edge is not None:
        image, label = resize_long_edge(image, label, long_edge=long_edge)
    weighs = attends(model, inference) and inference.tile is None
    size = (image.shape[0], image.shape[1])
    found = infer(
        model.eval(),
        torch.from_numpy(image).permute(2, 0, 1)[None],
        inference,
        Wanted(scales=weighs),
        size=size,
    )
    model.train(was_training)
    predicted = found.label[0].cpu().numpy()
    shown = {"image": image}
    if label is not None:
        shown["label"] = colorize(label, files.spec.palette)
    shown["prediction"] = colorize(predicted, files.spec.palette)
    if label is not None:
        shown["error"] = error_map(predicted, label, files.spec.ignore_label, image)
    if weighs and found.prediction is not None:
        for scale, inner in sorted((found.prediction.scales or {}).items()):
            shown[f"{scale:g}x alone"] = colorize(
                predicted_label(inner.logits)[0].cpu().numpy(), files.spec.palette
            )
        shown["scale trusted"] = scale_map(share_maps(found.prediction))
        for scale, attention in attention_maps(found.prediction).items():
            shown[f"attention {scale:g}x"] = heat(attention)
    return shown


def example_panel(
    model: MultiScale, files: Files, inference: Inference, *, index: int = 0
) -> np.ndarray:
    """image | label | prediction | attention per scale of one image of a split, as one picture."""
    shown = pictures_of(model, files, inference, index)
    starts = ("image", "label", "prediction", "attention")
    chosen = {caption: picture for caption, picture in shown.items() if caption.startswith(starts)}
    return panel(list(chosen.items()), columns=3)


def legend_of(spec: DatasetSpec) -> list[dict[str, Any]]:
    """Which value and which colour is which class, as classes.json beside predictions says it."""
    return [
        {"name": item.name, "id": item.raw_ids[0], "train_id": number, "color": list(item.color)}
        for number, item in enumerate(spec.classes)
    ]
