"""The files of a split, held so compactly that loader workers share them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from .errors import DataError
from .layouts.video import frame_size, read_frame
from .policy import LabelPolicy
from .reading.decoding import DEFAULT_MAX_PIXELS, image_size, read_image, read_label
from .spec import DatasetSpec, LabelIds

STILL = -1  # the frame number of what is no video


def pack(texts: Iterable[str]) -> np.ndarray:
    """Texts as one numpy array of bytes: no Python object per file, so forked workers never copy its pages (pytorch issue 13246)."""
    return np.array([os.fsencode(text) for text in texts], dtype=np.bytes_)


@dataclass
class Files:
    """Images of one split with their labels.

    Paths are bytes arrays [N] relative to `root` (absolute ones stand for themselves); `labels` is None where the split has none. `names` are
    unique, relative, without suffix, as the data set spells them. `human` are coarse labels drawn by people beside automatic ones, `confidence`
    8-bit images of 255 x the teacher's probability; an empty entry means none. `label_ids` says what the label files hold. `frames` int32 [N] are
    frame numbers where images are frames of videos, `STILL` for the others; None: no video is among them. Use the methods:
    `read_label` alone applies confidence, policy and mask, and `label_sources` with `label_settings` are all that its result depends on.
    """

    spec: DatasetSpec
    split: str
    root: Path
    images: np.ndarray
    labels: np.ndarray | None
    names: np.ndarray
    human: np.ndarray | None = None
    confidence: np.ndarray | None = None
    label_ids: LabelIds = "raw"
    policy: LabelPolicy | None = None
    max_pixels: int = DEFAULT_MAX_PIXELS
    frames: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.images)

    def image_path(self, index: int) -> Path:
        """Where image `index` lies."""
        return self.root / os.fsdecode(self.images[index])

    def label_path(self, index: int) -> Path | None:
        """Where label `index` lies, None if the split has no labels."""
        return None if self.labels is None else self.root / os.fsdecode(self.labels[index])

    def human_path(self, index: int) -> Path | None:
        """Where the label drawn by people for image `index` lies, beside an automatic one."""
        return self._optional(self.human, index)

    def confidence_path(self, index: int) -> Path | None:
        """Where the confidence image of automatic label `index` lies."""
        return self._optional(self.confidence, index)

    def _optional(self, paths: np.ndarray | None, index: int) -> Path | None:
        return None if paths is None or not paths[index] else self.root / os.fsdecode(paths[index])

    def name(self, index: int) -> str:
        """Name of image `index` as the data set spells it, with its folders, without suffix."""
        return os.fsdecode(self.names[index])

    def read_image(self, index: int) -> np.ndarray:
        """Image `index`, uint8 RGB [H, W, 3]."""
        if self._is_frame(index):
            assert self.frames is not None
            return read_frame(
                self.image_path(index), int(self.frames[index]), max_pixels=self.max_pixels
            )
        return read_image(self.image_path(index), max_pixels=self.max_pixels)

    def image_size(self, index: int) -> tuple[int, int]:
        """(height, width) of image `index` as `read_image` gives it, from the first bytes of its file."""
        path = self.image_path(index)
        return frame_size(str(path)) if self._is_frame(index) else image_size(path)

    def _is_frame(self, index: int) -> bool:
        return self.frames is not None and int(self.frames[index]) != STILL

    def read_label(self, index: int, *, image_size: tuple[int, int] | None = None) -> np.ndarray:
        """Label `index` in train ids, uint8 [H, W], with the split's confidence threshold, policy and mask applied.

        `image_size` (height, width) makes another size an error.
        """
        path = self.label_path(index)
        if path is None:
            self.require_labels()
        assert path is not None
        label = read_label(
            path,
            spec=self.spec,
            image_size=image_size,
            max_pixels=self.max_pixels,
            label_ids=self.label_ids,
        )
        if self.policy is None:
            return label
        return self.policy.apply(
            label,
            spec=self.spec,
            human=self.human_path(index),
            confidence=self.confidence_path(index),
            max_pixels=self.max_pixels,
            path=path,
        )

    def require_labels(self) -> None:
        """DataError if the split has no labels: for those that train or score on it."""
        if self.labels is None:
            hint = "it can be predicted, but neither trained on nor scored"
            raise DataError(
                f"split '{self.split}' in {self.root} has no labels: {hint}", kind="labels"
            )

    def label_sources(self, index: int) -> tuple[Path, ...]:
        """Every file that `read_label(index)` reads."""
        found = (self.label_path(index), self.human_path(index), self.confidence_path(index))
        return tuple(path for path in found if path is not None)

    def label_settings(self) -> dict[str, Any]:
        """Plain values that, with the sources, decide what `read_label` returns: part of any cache key."""
        return {
            "to_train": self.spec.tables(self.label_ids)[0].tolist(),
            "policy": None if self.policy is None else self.policy.to_dict(),
        }

    def subset(self, indices: Sequence[int] | np.ndarray) -> Files:
        """The chosen entries in the given order."""
        chosen = np.asarray(indices, dtype=np.int64)
        optional = (self.labels, self.human, self.confidence, self.frames)
        labels, human, confidence, frames = (
            None if values is None else values[chosen] for values in optional
        )
        return replace(
            self,
            images=self.images[chosen],
            names=self.names[chosen],
            labels=labels,
            human=human,
            confidence=confidence,
            frames=frames,
        )
