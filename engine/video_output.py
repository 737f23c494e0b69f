"""Overlays of a video's frames as a video again, with its frame rate."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from types import TracebackType

import cv2
import numpy as np
from torch import Tensor

from hmsa.datasets import Files
from hmsa.utils.files.image_writer import ImageWriter
from hmsa.utils.files.outputs import OutputFolder
from hmsa.utils.report.visualise import overlay
from hmsa.utils.words import UserError

from .pictures import ImageResult

# Ending and codec: what players show without more comes first.
CODECS = ((".mp4", "mp4v"), (".avi", "MJPG"))
USUAL_RATE = 25.0  # frames per second, of a video that does not say its own


class VideoError(UserError, OSError):
    """A video cannot be written; the message says what to do instead."""


def video_suffix() -> str:
    """The ending of the videos that this machine can write.

    Raises:
        VideoError: there is no codec for any.
    """
    with tempfile.TemporaryDirectory() as folder:
        for suffix, codec in CODECS:
            path = Path(folder, f"try{suffix}")
            writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*codec), 25.0, (64, 64))
            is_open = writer.isOpened()
            if is_open:
                writer.write(np.zeros((64, 64, 3), dtype=np.uint8))
            writer.release()
            if is_open and path.is_file() and path.stat().st_size:
                return suffix

    tried = " and ".join(codec for _, codec in CODECS)
    raise VideoError(
        f"--save video: this opencv has no codec to write a video with (tried {tried}); install "
        "opencv-python-headless from PyPI, or join the frames of --save overlay, e.g. ffmpeg "
        "-framerate 25 -i overlay/NAME/%06d.png -pix_fmt yuv420p NAME.mp4"
    )


def video_names(files: Files) -> dict[str, str]:
    """Name of the result without its ending -> path of the video that it is made of."""
    names = {}
    for index in frames_of(files):
        names[_name_of(files, index)] = str(files.image_path(index))
    return names


def frames_of(files: Files) -> Iterator[int]:
    """Indices of the images that are frames of a video."""
    if files.frames is None:
        return
    yield from np.flatnonzero(files.frames >= 0).tolist()


def _name_of(files: Files, index: int) -> str:
    """The folder of a video's frames is the name of its result."""
    return f"video/{PurePosixPath(files.output_name(index)).parent}"


class VideoOutput:
    """Writes an overlay of every frame, which come in their order, in one thread of its own."""

    def __init__(self, output: OutputFolder, files: Files, *, suffix: str) -> None:
        self.output = output
        self.files = files
        self.suffix = suffix
        self.written: dict[str, str] = {}
        """Path of each video that was read -> name of the file that was written."""
        self._is_frame = set(frames_of(files))
        self._thread = ImageWriter(workers=1)
        self._open: _OpenVideo | None = None

    def add(self, index: int, image: Tensor, result: ImageResult) -> None:
        """Queue one frame, uint8 [3, h, w], and its result [1, H, W]; stills are passed over."""
        if index in self._is_frame:
            self._thread.call(self._add, index, image, result.label[0].cpu().numpy())

    def _add(self, index: int, image: Tensor, label: np.ndarray) -> None:
        name = _name_of(self.files, index)
        if self._open is not None and self._open.name != name:
            self._finish()
        if self._open is None:
            rate = self.files.frame_rate(index) or USUAL_RATE
            self._open = _OpenVideo(name, self.output.folder, self.suffix, rate=rate)

        photograph = image.permute(1, 2, 0).contiguous().numpy()
        spec = self.files.spec
        drawn = overlay(photograph, label, spec.palette, ignore_label=spec.ignore_label)
        self._open.add(drawn)
        self.written[str(self.files.image_path(index))] = f"{name}{self.suffix}"

    def _finish(self) -> None:
        assert self._open is not None
        path = self._open.close()
        with self.output.written(f"{self._open.name}{self.suffix}") as temporary:
            os.replace(path, temporary)
        self._open.discard()
        self._open = None

    def __enter__(self) -> VideoOutput:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # A video that was interrupted is no result.
        if kind is None:
            self._thread.call(self._finish_last)
            self._thread.close()
        elif self._open is not None:
            self._open.discard()

    def _finish_last(self) -> None:
        if self._open is not None:
            self._finish()


class _OpenVideo:
    """A video that is being written, in a folder of its own beside the results."""

    def __init__(self, name: str, folder: Path, suffix: str, *, rate: float) -> None:
        self.name = name
        self.rate = rate
        self.codec = dict(CODECS)[suffix]
        self.folder = tempfile.TemporaryDirectory(prefix=".hmsa-video-", dir=folder)
        self.path = Path(self.folder.name, f"video{suffix}")
        self.writer: cv2.VideoWriter | None = None

    def add(self, frame: np.ndarray) -> None:
        """Append a frame, uint8 RGB [H, W, 3]."""
        # Codecs halve the colours, and so want even sizes: the last row or column is doubled.
        height, width = frame.shape[:2]
        even = cv2.copyMakeBorder(frame, 0, height % 2, 0, width % 2, cv2.BORDER_REPLICATE)
        if self.writer is None:
            size = (even.shape[1], even.shape[0])
            code = cv2.VideoWriter.fourcc(*self.codec)
            self.writer = cv2.VideoWriter(str(self.path), code, self.rate, size)
            if not self.writer.isOpened():
                raise VideoError(
                    f"{self.name}: opencv cannot write a video of {size[0]} x {size[1]} pixels "
                    f"with its codec {self.codec}; use --save overlay and join the frames with "
                    "ffmpeg"
                )
        self.writer.write(even[..., ::-1])

    def close(self) -> Path:
        """Write what is left; returns the file."""
        if self.writer is not None:
            self.writer.release()
        return self.path

    def discard(self) -> None:
        """Remove the folder."""
        self.close()
        self.folder.cleanup()
