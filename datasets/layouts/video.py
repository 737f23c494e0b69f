"""Frames of a video as images: any frame by its number, whatever order they are asked for in."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np

from ..errors import DataError
from ..notices import notice
from ..reading.regular import open_data_file
from .listing import VIDEO_SUFFIXES

KEPT_FRAMES = 8  # a little disorder among threads must not begin the video anew
_OPEN_VIDEOS = 2
_HOW_TO_CONVERT = "convert it, e.g. ffmpeg -i IN -c:v libx264 OUT.mp4"


def is_video(path: str | Path) -> bool:
    """Whether a file's name says that it is a video."""
    return os.fspath(path).lower().endswith(VIDEO_SUFFIXES)


def count_frames(path: str | Path) -> int:
    """Frames that can be decoded, counted by decoding: what the header claims is not always true.

    A video that ends before its header says so is used as far as it goes, and that is said.

    Raises:
        DataError: the video cannot be opened, or has no frame.
    """
    capture = _opened(path)
    claimed = capture.get(cv2.CAP_PROP_FRAME_COUNT)
    count = 0
    while capture.grab():
        count += 1
    capture.release()

    if not count:
        raise DataError(
            f"{path}: no frame of this video can be decoded; {_HOW_TO_CONVERT}", kind="unreadable"
        )
    # Even one frame less shows a cut; where a format tells its length in time alone, the number is
    # rounded, and a notice too many does no harm.
    if count < round(claimed):
        notice(
            f"{path}: this video ends early: {count} frames can be decoded of the "
            f"{claimed:.0f} that it declares; it is cut off or damaged, fetch or export it again"
        )
    return count


def read_frame(path: str | Path, number: int, *, max_pixels: int) -> np.ndarray:
    """Frame `number` (from 0) as uint8 RGB [H, W, 3].

    The video is decoded forwards and never sought in, since seeking lands beside the frame in many
    formats: asking in rising order is cheap.

    Raises:
        DataError: a frame that cannot be decoded, or has more than `max_pixels`.
    """
    with _LOCK:
        # A forked loader process must not share its parent's position in the file.
        key = (os.getpid(), os.fspath(path))
        reader = _READERS.get(key)
        if reader is None or not reader.can_reach(number):
            reader = _READERS[key] = _VideoReader(path)

        # Only the videos read last stay open.
        _READERS.move_to_end(key)
        while len(_READERS) > _OPEN_VIDEOS:
            _READERS.popitem(last=False)
        frame = reader.read(number)

    height, width = frame.shape[:2]
    if height * width > max_pixels:
        raise DataError(
            f"{path}: frames have {height} x {width} pixels (height x width), more than the limit "
            f"of {max_pixels} (data.max_pixels)",
            kind="too large",
        )
    return cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)


@lru_cache(maxsize=64)
def frame_size(path: str) -> tuple[int, int]:
    """(height, width) of a video's frames, as decoded."""
    height, width = _VideoReader(path).read(0).shape[:2]
    return height, width


@lru_cache(maxsize=64)
def frame_rate(path: str) -> float | None:
    """Frames per second as the video's header says; None where it says nothing of use."""
    capture = _opened(path)
    rate = capture.get(cv2.CAP_PROP_FPS)
    capture.release()
    if not 0 < rate <= 1000:
        return None
    return float(rate)


class _VideoReader:
    """A video that is being decoded, and the last few frames of it."""

    def __init__(self, path: str | Path) -> None:
        self.path = path
        self.capture = _opened(path)
        self.next = 0
        self.kept: OrderedDict[int, np.ndarray] = OrderedDict()

    def can_reach(self, number: int) -> bool:
        """Whether frame `number` is kept, or still to come."""
        return number >= self.next or number in self.kept

    def read(self, number: int) -> np.ndarray:
        """Frame `number`, which must be reachable, as BGR [H, W, 3]."""
        while self.next <= number:
            if not self.capture.grab():
                raise self._undecodable("the video is damaged or was changed")
            # Frames before the last few are passed over without being converted to a picture.
            if self.next > number - KEPT_FRAMES:
                done, frame = self.capture.retrieve()
                if not done:
                    raise self._undecodable("the video is damaged")
                self.kept[self.next] = frame
            self.next += 1

        while len(self.kept) > KEPT_FRAMES:
            self.kept.popitem(last=False)
        return self.kept[number]

    def _undecodable(self, why: str) -> DataError:
        return DataError(
            f"{self.path}: frame {self.next} cannot be decoded; {why}", kind="unreadable"
        )


def _opened(path: str | Path) -> cv2.VideoCapture:
    # opencv would wait for ever for what comes out of a pipe.
    open_data_file(path, "video").close()
    capture = cv2.VideoCapture(os.fspath(path))
    if not capture.isOpened():
        raise DataError(
            f"{path}: opencv cannot open this video; {_HOW_TO_CONVERT}", kind="unreadable"
        )
    return capture


_READERS: OrderedDict[tuple[int, str], _VideoReader] = OrderedDict()
_LOCK = threading.Lock()
