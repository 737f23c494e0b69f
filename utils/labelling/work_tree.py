"""A folder of labels that several jobs fill without talking to each other.

It is claimed once, for one set of settings; each job then holds the lock of its part, and what
killed jobs left is swept when nothing is left to do.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import gcd
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..files.label_format import FORMAT, IMAGES, MANIFEST
from ..files.locking import locked
from ..files.png_chunks import iterate_chunks
from ..files.regular import read_regular
from ..files.writing import WriteError, flush, is_temporary, temporary_beside, write_file
from .autolabels import AutolabelError, fingerprint, read_record

SETTINGS, THRESHOLDS = "settings.json", "thresholds.json"
_LOCK = re.compile(r"\.lock-(\d+)-of-(\d+)$")


def write_once(path: Path, data: bytes) -> bytes:
    """Write `data` to `path` unless there is such a file, and return what the file holds.

    Of several writers one wins, and all see its bytes.

    Raises:
        WriteError: the file cannot be written.
    """
    if os.path.lexists(path):
        return _written_before(path)

    temporary = temporary_beside(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(data)
        # What is claimed or measured here decides over all labels: it must survive a power cut.
        flush(temporary)
        # A link fails where another writer was first; a rename would replace its file.
        try:
            os.link(temporary, path)
        except FileExistsError:
            pass
        except OSError:  # a file system without hard links
            os.replace(temporary, path)
        flush(path.parent)
    except OSError as error:
        raise WriteError(
            f"{path}: cannot be written ({error.strerror or error}); make room or choose another "
            "folder"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
    return _written_before(path)


def _written_before(path: Path) -> bytes:
    try:
        return read_regular(path)
    except OSError as error:
        raise WriteError(
            f"{path}: cannot be read ({error.strerror or error}); delete this one, and it is "
            "written anew"
        ) from error


def claim(
    folder: Path,
    settings: Mapping[str, Any],
    targets: Iterable[Path],
    *,
    may_change: Collection[str] = (),
) -> None:
    """Note in `folder` the settings with which it is filled.

    A folder that carries our note is ours: what lies there may be replaced. Without the note, which
    may have been damaged and deleted, labels that carry the fingerprint of these settings are ours,
    and nothing else that lies there is touched.

    Args:
        targets: the label files that are going to be written.
        may_change: settings that may be others than those the folder was filled with. Its labels
            are then made anew, and until they are it has no manifest.

    Raises:
        AutolabelError: the folder was filled with other settings, its note is damaged, or it was
            not made by us and holds a file in the place of a target.
    """
    path = folder / SETTINGS
    if not path.exists():
        made_with = fingerprint(settings)
        stranger = next((target for target in targets if not _is_ours(target, made_with)), None)
        # A job beside this one may have claimed the folder meanwhile.
        if stranger is not None and not path.exists():
            raise AutolabelError(
                f"{stranger}: is there already and was not made by autolabel.py with these "
                "settings; choose another --output"
            )

    ours = (json.dumps(settings, indent=2, sort_keys=True) + "\n").encode()
    found = write_once(path, ours)
    if found == ours:
        return

    other = _json_object(found)
    if other is None:
        raise AutolabelError(
            f"{path}: is damaged or cut off; delete this one file and start the same command "
            "again: labels that were made with its settings are kept"
        )
    keys = sorted(settings.keys() | other.keys())
    differing = [key for key in keys if settings.get(key) != other.get(key)]
    if set(differing) <= set(may_change):
        _change_settings(folder, ours, with_thresholds=settings.get("keep_share") is not None)
        return
    raise AutolabelError(
        f"{folder}: holds labels made with other settings ({', '.join(differing)}); choose another "
        "--output, or delete the folder"
    )


def _change_settings(folder: Path, settings: bytes, *, with_thresholds: bool) -> None:
    """Put other settings in the place of those that the folder was filled with.

    Raises:
        AutolabelError: another job is writing here.
        WriteError: the folder cannot be written to.
    """
    # Of several jobs that were started together the first one does it, and the others find it done.
    path, lock = folder / SETTINGS, folder / ".lock-settings"
    _require_writable(lock)
    with locked(lock):
        if read_regular(path) == settings:
            return
        with alone(folder, 0, 1):
            # Nobody must train on labels of which some are old and some new.
            outdated = [folder / MANIFEST, folder / IMAGES]
            if not with_thresholds:
                outdated.append(folder / THRESHOLDS)
            for file in outdated:
                file.unlink(missing_ok=True)
            write_file(path, settings, durable=True)


def _is_ours(target: Path, made_with: str) -> bool:
    """Whether nothing is lost when a file is replaced: it is missing, empty, or our label."""
    try:
        if target.stat().st_size == 0:
            return True
    except OSError:
        return True
    record = read_record(target)
    return record is not None and record["made_with"] == made_with


def require_not_drawn(target: Path) -> None:
    """Refuse to replace a whole picture that carries no record of ours.

    In a folder that was claimed such a file is a label that somebody corrected or drew by hand.
    What is damaged or cut off is no picture, and may be replaced.

    Raises:
        AutolabelError: the file is such a picture.
    """
    try:
        data = read_regular(target)
        # Damaged or not, what carries our keyword was written here.
        if any(data.startswith(FORMAT.encode(), start) for _, start, _ in iterate_chunks(data)):
            return
        with Image.open(target) as picture:
            picture.load()
    except (OSError, SyntaxError, ValueError):
        return
    raise AutolabelError(
        f"{target}: was not made by autolabel.py, or was changed since; move it away, or choose "
        "another --output"
    )


def write_thresholds(
    path: Path, thresholds: Mapping[str, float], *, made_with: str, images: int
) -> None:
    """Write measured thresholds by class, unless another job was first.

    Args:
        path: of the file, which all jobs of a folder read.
        thresholds: by the name of the class.
        made_with: a fingerprint of all that they depend on.
        images: on how many they were measured.

    Raises:
        WriteError: the file cannot be written.
    """
    content = {"made_with": made_with, "images": images, "thresholds": dict(thresholds)}
    write_once(path, (json.dumps(content, indent=2) + "\n").encode())


def forget_thresholds(path: Path, *, made_with: str) -> None:
    """Delete measured thresholds that were made with anything else than `made_with`."""
    try:
        content = _json_object(read_regular(path))
    except OSError:
        return
    if content is not None and content.get("made_with") != made_with:
        path.unlink(missing_ok=True)


def read_thresholds(path: Path, *, made_with: str, names: Sequence[str]) -> np.ndarray:
    """The thresholds that `write_thresholds` wrote, float64 [C] in the order of `names`.

    Raises:
        AutolabelError: the file is damaged, or was measured with other settings.
    """
    try:
        content = _json_object(read_regular(path))
    except OSError as error:
        raise AutolabelError(f"{path}: cannot be read ({error.strerror or error})") from error

    if content is not None and content.get("made_with") not in (None, made_with):
        raise AutolabelError(
            f"{path}: was measured with other settings; choose another --output, or delete the "
            "folder"
        )
    values: list[Any] = []
    if content is not None and isinstance(content.get("thresholds"), dict):
        values = [content["thresholds"].get(name) for name in names]
    if len(values) != len(names) or not all(
        type(value) in (int, float) and 0 <= value <= 1 for value in values
    ):
        raise AutolabelError(
            f"{path}: is damaged or cut off; delete this one file and start the same command "
            "again: the thresholds are measured anew, and come out the same"
        )
    return np.array(values, dtype=np.float64)


def _json_object(data: bytes) -> dict[str, Any] | None:
    """What JSON bytes hold; None where that is no object, or no JSON."""
    try:
        content = json.loads(data)
    except (ValueError, RecursionError):
        return None
    if not isinstance(content, dict):
        return None
    return content


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
