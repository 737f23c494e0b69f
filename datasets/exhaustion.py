"""When the system refuses what a program needs: one sentence instead of a traceback."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator

from .errors import DataError

try:
    import resource
except ImportError:  # Windows has no such limits
    resource = None  # type: ignore[assignment]

# What a process has open beside what is asked for here, where the system does not tell.
_USUALLY_OPEN = 32

_WHAT_TO_DO = {
    errno.EMFILE: "too many open files; raise the limit (ulimit -n 4096)",
    errno.ENFILE: "too many open files on this machine; close other programs",
    errno.EAGAIN: "no more processes or threads may be started; raise the limit (ulimit -u)",
    errno.ENOMEM: "no memory is left; free some",
}
# What RuntimeErrors of Python and torch say, which carry no number.
_TELLING = {
    "Too many open files": errno.EMFILE,
    "can't start new thread": errno.EAGAIN,
    "can't allocate memory": errno.ENOMEM,
}


def explain_exhaustion(error: BaseException) -> str | None:
    """What has run out and what to do, if that is what `error` says; else None."""
    if isinstance(error, MemoryError):
        return _WHAT_TO_DO[errno.ENOMEM]
    if isinstance(error, OSError):
        return _WHAT_TO_DO.get(error.errno or 0)
    if isinstance(error, RuntimeError):
        for words, number in _TELLING.items():
            if words in str(error):
                return _WHAT_TO_DO[number]
    return None


@contextlib.contextmanager
def exhaustion_explained(*, advice: str = "or lower data.workers") -> Iterator[None]:
    """Turn what `explain_exhaustion` knows into a DataError; also a decorator of functions.

    Raises:
        DataError: the system refused descriptors, threads, processes or memory.
    """
    try:
        yield
    except DataError:
        raise
    except (OSError, RuntimeError, MemoryError) as error:
        explanation = explain_exhaustion(error)
        if explanation is None:
            raise
        raise DataError(f"{explanation}, {advice}", kind="worker") from error


def require_descriptors(count: int, *, what: str) -> None:
    """See that this process may open `count` more files, raising its own limit where it may.

    A process that runs out of them in the middle of its work waits for ever for what cannot be
    handed over, or fails in a place that knows nothing of the cause.

    Raises:
        DataError: the limit is too low for `what`.
    """
    if resource is None:
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = _open_descriptors() + count
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return

    # The soft limit is often low for the sake of old programs, the hard one is what counts.
    wanted = needed
    if hard != resource.RLIM_INFINITY:
        wanted = min(needed, hard)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        soft = wanted
    if soft < needed:
        raise DataError(
            f"only {soft} files may be open at once, but {what} need {needed}; raise the limit "
            "(ulimit -n 4096), or lower data.workers",
            kind="worker",
        )


def _open_descriptors() -> int:
    """How many files this process has open."""
    try:
        return len(os.listdir("/proc/self/fd"))
    except OSError:
        return _USUALLY_OPEN
