"""What is worked out once and kept: named by everything it depends on, written whole or not at all, by one process while the others wait."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import shutil
import signal
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import cv2
from tqdm import tqdm

from ..errors import DataError
from ..files import Files

Result = TypeVar("Result")

# Starting a process costs as much as this many images.
_FEW_IMAGES = 32


def cache_folder(chosen: str | Path | None, *, root: Path) -> Path:
    """`chosen`, made if missing; without it .hmsa in the data set's folder `root`, where every machine that sees the data finds it, or hmsa in the
    user's cache folder where that cannot be written. DataError if none can."""
    user = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hmsa"
    folders = [root / ".hmsa", user] if chosen is None else [Path(chosen)]
    for folder in folders:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError:
            continue
        if os.access(folder, os.W_OK | os.X_OK):
            return folder
    raise DataError(
        f"cache folder {folders[-1]} cannot be written; set data.cache_dir to a folder you can write",
        kind="cache",
    )


def identity(files: Files, *, images: bool, settings: dict[str, Any]) -> str:
    """A name for what is derived from the labels (and `images`) of `files`: 20 hex digits of a hash over `settings`, over what decides how labels are
    read, and over relative path, size and modification time of every file."""
    record = hashlib.sha256(
        json.dumps(
            {**settings, **files.label_settings(), "files": len(files)}, sort_keys=True
        ).encode()
    )
    for index in range(len(files)):
        sources = (*files.label_sources(index), *((files.image_path(index),) if images else ()))
        for path in sources:
            try:
                facts = path.stat()
            except OSError as error:
                raise DataError(
                    f"{path}: file cannot be read ({error.strerror})", kind="missing"
                ) from error
            record.update(
                f"{_relative(path, files.root)}\0{facts.st_size}\0{facts.st_mtime_ns}\n".encode(
                    "utf-8", "surrogateescape"
                )
            )
    return record.hexdigest()[:20]


def _relative(path: Path, root: Path) -> str:
    """Without the root, so that what was derived stays valid where the data is moved as a whole."""
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.as_posix()


@contextmanager
def sole_builder(path: Path) -> Iterator[None]:
    """Hold a file lock beside `path`: of several ranks that start together one builds and the others wait, without a collective.

    What a killed builder left half written is removed. Where the system has no such locks several may build; the last one's rename wins.
    """
    with open(path.with_name(path.name + ".lock"), "w") as lock:
        if _locked(lock.fileno()):
            for leftover in path.parent.glob(f"{path.name}.*.tmp"):
                remove(leftover)
        yield


def _locked(descriptor: int) -> bool:
    try:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX)
    except (ImportError, OSError):  # Windows; network file systems without locks
        return False
    return True


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` to write a file or folder to; it takes the name only when all has been written."""
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        yield temporary
        for item in [*temporary.iterdir(), temporary] if temporary.is_dir() else [temporary]:
            _flush(item)
        os.replace(temporary, path)
        _flush(path.parent)
    except OSError as error:
        raise DataError(
            f"{path} cannot be written ({error.strerror}); free some space or set data.cache_dir to another folder",
            kind="cache",
        ) from error
    finally:
        remove(temporary)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove(path: Path) -> None:
    """Remove a file or folder that is of no use any more, if it is there."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def spread(
    task: Callable[[int], Result], indices: Sequence[int], *, workers: int, title: str
) -> Iterable[Result]:
    """task(index) for each index in order, in `workers` processes, with a progress bar; an error in one of them arrives here.

    The processes are forked where the system can, so that `task` may be bound to large arrays without sending them.
    """
    bar = tqdm(total=len(indices), desc=title, unit="image", disable=None, leave=False)
    with bar:
        if workers <= 1 or len(indices) < _FEW_IMAGES:
            for index in indices:
                yield task(index)
                bar.update()
            return
        with multiprocessing.get_context().Pool(
            workers, initializer=_begin, initargs=(task,)
        ) as pool:
            for result in pool.imap(
                _run, indices, chunksize=max(1, min(16, len(indices) // (4 * workers)))
            ):
                yield result
                bar.update()


_task: Callable[[int], Any] | None = None


def _begin(task: Callable[[int], Any]) -> None:
    global _task
    _task = task
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process answers, and ends us
    cv2.setNumThreads(0)


def _run(index: int) -> Any:
    assert _task is not None
    return _task(index)
