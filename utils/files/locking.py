"""Locks between processes, by file: released when their holder ends, however it ends."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, SoftFileLock, Timeout


@contextlib.contextmanager
def locked(path: Path, *, wait: bool = True) -> Iterator[bool]:
    """Hold the lock file `path` within the block; yields whether it is held.

    With `wait` the block begins when whoever holds it has let go. Without it the block begins at
    once, and the value says whether somebody else holds the lock (False).

    A lock of the system ends with its process, so nothing has to be tidied up after a crash. File
    systems without such locks hold nothing: what is written there is still written whole or not at
    all, and the last rename wins.
    """
    lock = FileLock(path, timeout=-1 if wait else 0)
    if isinstance(lock, SoftFileLock):  # this system has no locks that end with their process
        yield True
        return

    try:
        lock.acquire()
    except Timeout:
        yield False
        return
    except (NotImplementedError, OSError):
        yield True
        return

    try:
        yield True
    finally:
        lock.release()
