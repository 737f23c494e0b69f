"""A folder that several jobs fill without talking to each other: claimed once, one job to each part of it, swept when nothing is left to do."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from math import gcd
from pathlib import Path
from typing import IO, Any

from ..files.png import ImageWriteError, is_temporary, temporary_beside
from .autolabels import AutolabelError

SETTINGS = "settings.json"
_LOCK = re.compile(r"\.lock-(\d+)-of-(\d+)$")


def write_once(path: Path, data: bytes) -> bytes:
    """Write `data` to `path` unless there is such a file, and return what the file holds. Of several writers one wins, and all see its bytes."""

    if not path.exists():
        temporary = temporary_beside(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_bytes(data)
            try:
                os.link(temporary, path)
            except FileExistsError:
                pass
            except OSError:  # a file system without hard links
                os.replace(temporary, path)
        except OSError as error:
            raise ImageWriteError(
                f"{path}: cannot be written ({error.strerror or error}); make room or choose another folder"
            ) from error
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
    return path.read_bytes()


def claim(folder: Path, settings: Mapping[str, Any], targets: Iterable[Path]) -> None:
    """Note in `folder` with what it is filled. AutolabelError where it was filled with something else, or holds files in the place of `targets`.

    A folder that carries our note is ours: what lies there may be overwritten. Without the note nothing that lies there is touched.
    """
    path = folder / SETTINGS
    ours = (json.dumps(settings, indent=2, sort_keys=True) + "\n").encode()
    if not path.exists():
        stranger = next((target for target in targets if target.exists()), None)
        if (
            stranger is not None and not path.exists()
        ):  # a job beside this one may have claimed the folder meanwhile
            raise AutolabelError(
                f"{stranger}: is there already and was not made by autolabel.py; choose another --output"
            )
    theirs = write_once(path, ours)
    if theirs != ours:
        raise AutolabelError(
            f"{folder}: holds labels made with other settings ({_differing(theirs, settings)}); choose another --output, or delete "
            "the folder"
        )


def _differing(theirs: bytes, settings: Mapping[str, Any]) -> str:
    try:
        other = json.loads(theirs)
        return ", ".join(
            key
            for key in sorted(settings.keys() | other.keys())
            if settings.get(key) != other.get(key)
        )
    except (ValueError, AttributeError):
        return f"{SETTINGS} cannot be read"


@contextmanager
def alone(folder: Path, part: int, parts: int) -> Iterator[None]:
    """Hold part `part` of `parts` of the folder: every parts-th file, from the part-th on.

    AutolabelError while another job holds a part that shares a file with this one. On file systems without locks nothing is held: files are
    written whole and are the same whoever writes them, so that two jobs would only do the same work twice.
    """
    message = (
        f"{folder}: another job is writing here right now; wait for it, or choose another --output"
    )
    own = folder / f".lock-{part}-of-{parts}"
    with _opened(own) as file:
        if not _lock(file, fcntl.LOCK_EX | fcntl.LOCK_NB):
            raise AutolabelError(message)
        for path in folder.glob(".lock-*-of-*"):
            found = _LOCK.search(path.name)
            if path == own or found is None:
                continue
            other, others = int(found.group(1)), int(found.group(2))
            if (part - other) % gcd(parts, others) == 0 and _is_held(path):
                raise AutolabelError(message)
        yield


@contextmanager
def one_at_a_time(folder: Path) -> Iterator[None]:
    """Wait until no other job is inside such a block: of two jobs that finish together, the second sees all that the first has done."""
    with _opened(folder / ".lock-manifest") as file:
        _lock(file, fcntl.LOCK_EX)
        yield


def _opened(path: Path) -> IO[str]:
    try:
        return open(path, "a")
    except OSError as error:
        raise ImageWriteError(
            f"{path}: cannot be written ({error.strerror or error}); make room or choose another folder"
        ) from error


def _lock(file: IO[str], how: int) -> bool:
    """Whether the lock was taken, or cannot exist here."""
    try:
        fcntl.flock(file, how)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


def _is_held(path: Path) -> bool:
    try:
        with open(path) as file:
            return not _lock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False


def sweep(folder: Path) -> None:
    """Delete what killed jobs left half written. Only when nobody writes into the folder any more."""
    for path in folder.rglob(".hmsa-*"):
        if is_temporary(path):
            path.unlink(missing_ok=True)
