"""Pictures written in the background, while the network works on the next images."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from .png import ImageWriteError, write_png

__all__ = ["ImageWriteError", "ImageWriter"]


class ImageWriter:
    """Threads that encode and write pictures from a bounded queue; PNG encoding releases the interpreter lock.

    A full queue makes `submit` wait, so memory stays bounded. The first failure is raised by the next `submit` or by `close`; what was
    queued after it is dropped. Use as a context manager, or call `close`.
    """

    def __init__(self, workers: int = 2, queue_size: int = 16) -> None:
        assert workers >= 0 and queue_size > 0
        self._queue: queue.Queue[tuple[Callable[..., None], tuple[Any, ...], dict[str, Any]] | None] = queue.Queue(queue_size)
        self._failure: BaseException | None = None
        self._closed = False
        self._threads = [threading.Thread(target=self._work, name=f"image-writer-{number}", daemon=True) for number in range(workers)]
        for thread in self._threads:
            thread.start()

    def submit(self, path: Path | str, array: np.ndarray, palette: np.ndarray | None = None) -> None:
        """Write `array` (uint8 [H, W], RGB [H, W, 3], or ids with `palette`) as PNG to `path`; the array must not change any more."""
        self.call(write_png, path, array, palette=palette)

    def call(self, function: Callable[..., None], *arguments: Any, **keywords: Any) -> None:
        """Run any other writing job in its turn, such as drawing a picture before it is written."""
        assert not self._closed, "the writer is closed"
        self._raise_failure()
        if self._threads:
            self._queue.put((function, arguments, keywords))
        else:
            function(*arguments, **keywords)

    def close(self) -> None:
        """Wait until everything is written; raises the first failure."""
        if not self._closed:
            self._closed = True
            for _ in self._threads:
                self._queue.put(None)
            for thread in self._threads:
                thread.join()
        self._raise_failure()

    def _raise_failure(self) -> None:
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure

    def _work(self) -> None:
        failed = False
        while (job := self._queue.get()) is not None:
            if failed or self._failure is not None:
                failed = True
                continue
            function, arguments, keywords = job
            try:
                function(*arguments, **keywords)
            except BaseException as error:  # handed to the thread that submits
                self._failure = error
                failed = True

    def __enter__(self) -> ImageWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None:
            self.close()
            return
        try:
            self.close()
        except OSError:
            pass  # the error that is already on its way tells more
