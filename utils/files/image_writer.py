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

from .png import write_png

_Call = tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]


class ImageWriter:
    """Threads that encode and write pictures; neither holds the lock of the interpreter.

    The queue is bounded: when it is full, `submit` waits, so that memory stays bounded. The first
    failure ends the writing and is raised by the next `submit` and by `close`. Use it in a `with`
    block, or call `close`.
    """

    def __init__(self, workers: int = 2, queue_size: int = 16) -> None:
        """Start `workers` threads.

        Args:
            workers: how many threads; with 0 everything is written at once, in the caller's thread.
            queue_size: how many pictures may wait.
        """
        assert workers >= 0 and queue_size > 0
        # A failure is kept for the caller's thread, where it can be told to the user.
        self._queue: queue.Queue[_Call | None] = queue.Queue(queue_size)
        self._failure: BaseException | None = None
        self._closed = False
        self._threads = [
            threading.Thread(target=self._work, name=f"image-writer-{number}", daemon=True)
            for number in range(workers)
        ]

        for thread in self._threads:
            thread.start()

    def submit(
        self, path: Path | str, array: np.ndarray, palette: np.ndarray | None = None
    ) -> None:
        """Write `array` as PNG (see `encode_png`) to `path`, whole or not at all.

        The caller must not change the array afterwards.

        Raises:
            WriteError: an earlier file could not be written.
        """
        self.call(write_png, path, array, palette=palette)

    def call(self, function: Callable[..., Any], *arguments: Any, **keywords: Any) -> None:
        """Call `function` in its turn, for example to draw a picture and write it.

        What it returns is dropped. Raises the first failure so far.
        """
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
        while (call := self._queue.get()) is not None:
            # After a failure the queue is still emptied, so that nobody waits for a free place.
            if self._failure is None:
                self._do(call)

    def _do(self, call: _Call) -> None:
        function, arguments, keywords = call
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

        # The error of the block says more than one of writing, which may have followed from it.
        with contextlib.suppress(Exception):
            self.close()
