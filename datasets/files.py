"""The files of a split, held so compactly that loader workers share them."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from .errors import DataError
from .layouts.video import frame_rate, frame_size, read_frame
from .output_names import output_names
from .policy import LabelPolicy
from .reading.decoding import (
    DEFAULT_MAX_PIXELS,
    decode_image,
    image_size,
    read_image,
    read_image_bytes,
    read_label,
)
from .reading.regular import digest, file_digest, unreadable
from .spec import DatasetSpec, LabelIds

STILL = -1  # the frame number of what is no video


def pack(texts: Iterable[str]) -> np.ndarray:
    """Texts as one numpy array of bytes [N].

    A list would hold a Python object for each file. Forked workers change the reference counts of
    such objects, which copies the memory page by page into every worker
    (https://github.com/pytorch/pytorch/issues/13246).
    """
    return np.array([os.fsencode(text) for text in texts], dtype=np.bytes_)


@lru_cache(maxsize=64)
def _video_digest(path: Path, size: int, modified: int) -> str:
    """Digest of a video; `size` and `modified` (ns) make another file another entry."""
    return file_digest(path)


@dataclass
class Files:
    """Images of one split with their labels; read them by the methods.

    `read_label` alone applies confidence, policy and mask. `label_sources` with `label_settings`
    are all that its result depends on.

    Attributes:
        spec: classes of the data set.
        split: name of the split.
        root: folder that relative paths start from.
        images: paths of the images, bytes [N]; absolute ones stand for themselves.
        labels: paths of the labels, bytes [N]; None where the split has none.
        names: unique relative names without suffix, as the data set spells them, bytes [N].
        human: paths of coarse labels drawn by people beside automatic ones, bytes [N]; an empty
            entry means none.
        confidence: paths of 8-bit images of 255 x the teacher's probability, bytes [N]; an empty
            entry means none.
        label_ids: whether label files hold raw or train ids.
        policy: how automatic labels are joined with others.
        max_pixels: limit on the size of an image or label, in pixels.
        frames: frame numbers where images are frames of videos, int32 [N], `STILL` for the others;
            None: no video is among them.
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
        return self._optional_path(self.labels, index)

    def human_path(self, index: int) -> Path | None:
        """Where the label drawn by people for image `index` lies, beside an automatic one."""
        return self._optional_path(self.human, index)

    def confidence_path(self, index: int) -> Path | None:
        """Where the confidence image of automatic label `index` lies."""
        return self._optional_path(self.confidence, index)

    def _optional_path(self, paths: np.ndarray | None, index: int) -> Path | None:
        if paths is None or not paths[index]:
            return None
        return self.root / os.fsdecode(paths[index])

    def name(self, index: int) -> str:
        """Name of image `index` as the data set spells it, with its folders, without suffix."""
        return os.fsdecode(self.names[index])

    def output_name(self, index: int) -> str:
        """Name under which results of image `index` are written, below a folder, without suffix.

        It is relative and never leaves the folder it is joined to; its parts leave room for endings
        within the 255 bytes of file systems, and no two images share one, whatever the case. Where
        `name` is all this already, it is `name`.
        """
        return self._output_names[index]

    @cached_property
    def _output_names(self) -> list[str]:
        return output_names([self.name(index) for index in range(len(self))])

    def fingerprint(self, index: int) -> str:
        """What is in the file of image `index`: 32 hex digits of a hash over its bytes.

        Another image under the same name, of the same size and time even, has another fingerprint.
        Frames of a video have that of the video with their number. The file is read for it, once in
        a process for each video.

        Raises:
            DataError: the file cannot be read.
        """
        path, frame = self.image_path(index), self._frame(index)
        if frame is None:
            return file_digest(path)
        try:
            status = path.stat()
        except OSError as error:
            raise unreadable(path, "video", error) from error
        return f"{_video_digest(path, status.st_size, status.st_mtime_ns)}-{frame}"

    def read_image_and_fingerprint(self, index: int) -> tuple[np.ndarray, str]:
        """`read_image` and `fingerprint` of the very same bytes, which are read once.

        Raises:
            DataError: as `read_image`.
        """
        if self._frame(index) is not None:
            return self.read_image(index), self.fingerprint(index)
        path = self.image_path(index)
        data = read_image_bytes(path, max_pixels=self.max_pixels)
        return decode_image(path, data, max_pixels=self.max_pixels), digest(data)

    def read_image(self, index: int) -> np.ndarray:
        """Image `index`, uint8 RGB [H, W, 3]."""
        path, frame = self.image_path(index), self._frame(index)
        if frame is None:
            return read_image(path, max_pixels=self.max_pixels)
        return read_frame(path, frame, max_pixels=self.max_pixels)

    def image_size(self, index: int) -> tuple[int, int]:
        """(height, width) of image `index` as `read_image` gives it, without decoding a still."""
        path = self.image_path(index)
        if self._frame(index) is None:
            return image_size(path)
        return frame_size(str(path))

    def frame_rate(self, index: int) -> float | None:
        """Frames per second of the video that image `index` is of; None for a still."""
        if self._frame(index) is None:
            return None
        return frame_rate(str(self.image_path(index)))

    def _frame(self, index: int) -> int | None:
        """Frame number of image `index` in its video, None for a still."""
        if self.frames is None or int(self.frames[index]) == STILL:
            return None
        return int(self.frames[index])

    def read_label(self, index: int, *, image_size: tuple[int, int] | None = None) -> np.ndarray:
        """Label `index` in train ids, uint8 [H, W], with confidence, policy and mask applied.

        Args:
            index: which label.
            image_size: (height, width) that the label must have.

        Raises:
            DataError: the split has no labels, or the label cannot be read, has another size, or
                holds values outside the classes.
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
        """Refuse a split without labels, where it is to be trained or scored on.

        Raises:
            DataError: the split has no labels.
        """
        if self.labels is None:
            raise DataError(
                f"split '{self.split}' in {self.root} has no labels: it can be predicted, but "
                "neither trained on nor scored",
                kind="labels",
            )

    def label_sources(self, index: int) -> tuple[Path, ...]:
        """Every file that `read_label(index)` reads."""
        found = (self.label_path(index), self.human_path(index), self.confidence_path(index))
        return tuple(path for path in found if path is not None)

    def label_settings(self) -> dict[str, Any]:
        """Plain values that, with the sources, decide what `read_label` returns."""
        policy = None
        if self.policy is not None:
            policy = self.policy.to_dict()
        to_train = self.spec.tables(self.label_ids)[0].tolist()
        return {"to_train": to_train, "policy": policy, "reading": self.spec.reading()}
