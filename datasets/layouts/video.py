"""Frames of a video as images: any frame by its number, exactly, whatever order they are asked for in."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np

from ..errors import DataError

VIDEO_SUFFIXES = (".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg")
KEPT_FRAMES = 8  # a little disorder among threads must not begin the video anew


def is_video(path: str | Path) -> bool:
    """Whether a file's name says that it is a video."""
    return os.fspath(path).lower().endswith(VIDEO_SUFFIXES)


def count_frames(path: str | Path) -> int:
    """Frames that can be decoded, counted by decoding them: what the header claims is not always true. DataError when there is none."""
    capture = _opened(path)
    count = 0
    while capture.grab():
        count += 1
    capture.release()
    if not count:
        raise DataError(
            f"{path}: no frame of this video can be decoded; convert it, e.g. ffmpeg -i IN -c:v libx264 OUT.mp4",
            kind="unreadable",
        )
    return count


def read_frame(path: str | Path, number: int, *, max_pixels: int) -> np.ndarray:
    """Frame `number` (from 0) as uint8 RGB [H, W, 3].

    The video is decoded forwards and never sought in, since seeking lands beside the frame in many formats: asking in rising order is cheap.
    DataError: a frame that cannot be decoded, or has more than `max_pixels`.
    """
    with _LOCK:
        key = (
            os.getpid(),
            os.fspath(path),
        )  # a forked loader process must not share its parent's position
        reader = _READERS.get(key)
        if reader is None or not reader.can_reach(number):
            reader = _READERS[key] = _Reader(path)
        _READERS.move_to_end(key)
        while len(_READERS) > 2:
            _READERS.popitem(last=False)
        frame = reader.read(number)
    if frame.shape[0] * frame.shape[1] > max_pixels:
        size = f"{frame.shape[0]} x {frame.shape[1]} pixels (height x width)"
        raise DataError(
            f"{path}: frames have {size}, more than the limit of {max_pixels} (data.max_pixels)",
            kind="too large",
        )
    return cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)


@lru_cache(maxsize=64)
def frame_size(path: str) -> tuple[int, int]:
    """(height, width) of a video's frames, as decoded."""
    height, width = _Reader(path).read(0).shape[:2]
    return height, width


class _Reader:
    """A video that is being decoded, and the last few frames of it."""

    def __init__(self, path: str | Path) -> None:
        self.path = path
        self.capture = _opened(path)
        self.next = 0
        self.kept: OrderedDict[int, np.ndarray] = OrderedDict()

    def can_reach(self, number: int) -> bool:
        return number >= self.next or number in self.kept

    def read(self, number: int) -> np.ndarray:
        """The frame as BGR; it must be reachable."""
        while self.next <= number:
            if not self.capture.grab():
                raise DataError(
                    f"{self.path}: frame {self.next} cannot be decoded; the video is damaged or was changed",
                    kind="unreadable",
                )
            if self.next > number - KEPT_FRAMES:
                done, frame = self.capture.retrieve()
                if not done:
                    raise DataError(
                        f"{self.path}: frame {self.next} cannot be decoded; the video is damaged",
                        kind="unreadable",
                    )
                self.kept[self.next] = frame
            self.next += 1
        while len(self.kept) > KEPT_FRAMES:
            self.kept.popitem(last=False)
        return self.kept[number]


def _opened(path: str | Path) -> cv2.VideoCapture:
    capture = cv2.VideoCapture(os.fspath(path))
    if not capture.isOpened():
        raise DataError(
            f"{path}: opencv cannot open this video; convert it, e.g. ffmpeg -i IN -c:v libx264 OUT.mp4",
            kind="unreadable",
        )
    return capture


_READERS: OrderedDict[tuple[int, str], _Reader] = OrderedDict()
_LOCK = threading.Lock()
