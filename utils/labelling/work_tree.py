"""A folder of labels that several jobs fill without talking to each other.

It is claimed once, for one set of settings; each job then holds the lock of its part, and what
killed jobs left is swept when nothing is left to do.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from math import gcd
from pathlib import Path
from typing import Any

from ..files.locking import locked
from ..files.writing import WriteError, is_temporary, temporary_beside
from .autolabels import AutolabelError

SETTINGS = "settings.json"
_LOCK = re.compile(r"\.lock-(\d+)-of-(\d+)$")


def write_once(path: Path, data: bytes) -> bytes:
    """Write `data` to `path` unless there is such a file, and return what the file holds.

    Of several writers one wins, and all see its bytes.

    Raises:
        WriteError: the file cannot be written.
    """
    if path.exists():
        return path.read_bytes()

    temporary = temporary_beside(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(data)
        # A link fails where another writer was first; a rename would replace its file.
        try:
            os.link(temporary, path)
        except FileExistsError:
            pass
        except OSError:  # a file system without hard links
            os.replace(temporary, path)
    except OSError as error:
        raise WriteError(
            f"{path}: cannot be written ({error.strerror or error}); make room or choose another "
            "folder"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
    return path.read_bytes()


def claim(folder: Path, settings: Mapping[str, Any], targets: Iterable[Path]) -> None:
    """Note in `folder` the settings with which it is filled.

    A folder that carries our note is ours: what lies there may be replaced. Without the note
    nothing that lies there is touched.

    Args:
        targets: the label files that are going to be written.

    Raises:
        AutolabelError: the folder was filled with other settings, or it was not made by us and
            holds a file in the place of a target.
    """
    path = folder / SETTINGS
    if not path.exists():
        stranger = next((target for target in targets if target.exists()), None)
        # A job beside this one may have claimed the folder meanwhile.
        if stranger is not None and not path.exists():
            raise AutolabelError(
                f"{stranger}: is there already and was not made by autolabel.py; choose another "
                "--output"
            )

    ours = (json.dumps(settings, indent=2, sort_keys=True) + "\n").encode()
    found = write_once(path, ours)
    if found != ours:
        raise AutolabelError(
            f"{folder}: holds labels made with other settings ({_differing(found, settings)}); "
            "choose another --output, or delete the folder"
        )


def _differing(found: bytes, settings: Mapping[str, Any]) -> str:
    try:
        other = json.loads(found)
        keys = sorted(settings.keys() | other.keys())
        return ", ".join(key for key in keys if settings.get(key) != other.get(key))
    except (ValueError, AttributeError):
        return f"{SETTINGS} cannot be read"


@contextmanager
def alone(folder: Path, part: int, parts: int) -> Iterator[None]:
    """Hold part `part` of `parts` of the folder: every parts-th file, from the part-th on.

    On file systems without locks nothing is held: files are written whole and are the same whoever
    writes them, so that two jobs would only do the same work twice.

    Raises:
        AutolabelError: another job holds a part that shares a file with this one.
        WriteError: the folder cannot be written to.
    """
    own = folder / f".lock-{part}-of-{parts}"
    _require_writable(own)
    message = (
        f"{folder}: another job is writing here right now; wait for it, or choose another --output"
    )

    with locked(own, wait=False) as held:
        if not held:
            raise AutolabelError(message)

        for path in folder.glob(".lock-*-of-*"):
            found = _LOCK.search(path.name)
            if path == own or found is None:
                continue
            other, others = int(found.group(1)), int(found.group(2))
            # Two series of every parts-th and every others-th file meet if and only if their
            # beginnings differ by a multiple of the greatest common divisor.
            if (part - other) % gcd(parts, others) == 0 and _is_held(path):
                raise AutolabelError(message)
        yield


@contextmanager
def one_at_a_time(folder: Path) -> Iterator[None]:
    """Wait until no other job is inside such a block for this folder.

    Of two jobs that finish together, the second sees all that the first has done.

    Raises:
        WriteError: the folder cannot be written to.
    """
    path = folder / ".lock-manifest"
    _require_writable(path)
    with locked(path):
        yield


def _require_writable(path: Path) -> None:
    try:
        open(path, "a").close()
    except OSError as error:
        raise WriteError(
            f"{path}: cannot be written ({error.strerror or error}); make room or choose another "
            "folder"
        ) from error


def _is_held(path: Path) -> bool:
    """Whether another job holds this lock now."""
    with locked(path, wait=False) as free:
        return not free


def sweep(folder: Path) -> None:
    """Delete what killed jobs left half written.

    Only for a folder into which nobody writes any more.
    """
    for path in folder.rglob(".hmsa-*"):
        if is_temporary(path):
            path.unlink(missing_ok=True)
