"""Pictures written in the background, while the network works on the next images."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from .png import ImageWriteError, write_png

__all__ = ["ImageWriteError", "ImageWriter"]

_Job = tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]


class ImageWriter:
    """Threads that encode and write pictures; compressing and writing release the interpreter's lock.

    The queue is bounded: when it is full, `submit` waits, so that memory stays bounded. The first failure ends the
    writing and is raised by the next `submit` and by `close`. Use it in a `with` block, or call `close`.
    """

    def __init__(self, workers: int = 2, queue_size: int = 16) -> None:
        """`workers` threads, 0 to write at once in the caller's; at most `queue_size` pictures wait."""
        assert workers >= 0 and queue_size > 0
        self._queue: queue.Queue[_Job | None] = queue.Queue(queue_size)
        self._failure: BaseException | None = None
        self._closed = False
        names = [f"image-writer-{number}" for number in range(workers)]
        self._threads = [
            threading.Thread(target=self._work, name=name, daemon=True) for name in names
        ]
        for thread in self._threads:
            thread.start()

    def submit(
        self, path: Path | str, array: np.ndarray, palette: np.ndarray | None = None
    ) -> None:
        """Write `array` as PNG (see `utils.png.encode_png`) to `path`, whole or not at all.

        The caller must not change the array afterwards. Raises the first failure so far: ImageWriteError.
        """
        self.call(write_png, path, array, palette=palette)

    def call(self, function: Callable[..., Any], *arguments: Any, **keywords: Any) -> None:
        """Do another job in its turn, such as drawing a picture before writing it. Its result is dropped."""
        assert not self._closed, "the writer is closed"
        self._raise_failure()
        if self._threads:
            self._queue.put((function, arguments, keywords))
        else:
            self._do((function, arguments, keywords))
            self._raise_failure()

    def close(self) -> None:
        """Wait until everything is written, then raise the first failure, if any."""
        if not self._closed:
            self._closed = True
            for _ in self._threads:
                self._queue.put(None)
            for thread in self._threads:
                thread.join()
        self._raise_failure()

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _work(self) -> None:
        while (job := self._queue.get()) is not None:
            if (
                self._failure is None
            ):  # after a failure the queue is only emptied, so that nobody waits for a place
                self._do(job)

    def _do(self, job: _Job) -> None:
        function, arguments, keywords = job
        try:
            function(*arguments, **keywords)
        except BaseException as error:  # raised in the thread that submits
            self._failure = self._failure or error

    def __enter__(self) -> ImageWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self.close()
            return
        with contextlib.suppress(Exception):  # the error that is already on its way tells more
            self.close()
