"""What is worked out once and kept in a cache folder.

It is named by everything it depends on, written whole or not at all, and made by one process while
the others wait.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hmsa.utils.files.locking import locked
from hmsa.utils.files.writing import WriteError, remove, written_whole

from ..errors import DataError
from ..files import Files


def cache_folder(chosen: str | Path | None, *, root: Path) -> Path:
    """The folder for what is kept, made if it is missing.

    That is `chosen`; without it `.hmsa` in the data set's folder `root`, where every machine that
    sees the data finds it, or `hmsa` in the user's cache folder where that cannot be written.

    Raises:
        DataError: none of them can be written.
    """
    user = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hmsa"
    folders = [root / ".hmsa", user]
    if chosen is not None:
        folders = [Path(chosen).expanduser()]

    for folder in folders:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError:
            continue
        if os.access(folder, os.W_OK | os.X_OK):
            return folder
    raise DataError(
        f"cache folder {folders[-1]} cannot be written; set data.cache_dir to a folder you can "
        "write",
        kind="cache",
    )


def identity(files: Files, *, images: bool, settings: dict[str, Any]) -> str:
    """A name for what is derived from the labels (and `images`) of `files`.

    Returns:
        20 hex digits of a hash over `settings`, over what decides how labels are read, and over
        relative path, size and modification time of every file.

    Raises:
        DataError: a file that cannot be read.
    """
    facts = {**settings, **files.label_settings(), "files": len(files)}
    record = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())

    # Size and time stand for the content, which would take as long to read as to derive.
    for index in range(len(files)):
        sources = list(files.label_sources(index))
        if images:
            sources.append(files.image_path(index))
        for path in sources:
            try:
                status = path.stat()
            except OSError as error:
                raise DataError(
                    f"{path}: file cannot be read ({error.strerror})", kind="missing"
                ) from error
            line = f"{_relative(path, files.root)}\0{status.st_size}\0{status.st_mtime_ns}\n"
            record.update(line.encode("utf-8", "surrogateescape"))
    return record.hexdigest()[:20]


def _relative(path: Path, root: Path) -> str:
    """Without the root, so that what was derived stays valid where the data is moved as a whole."""
    if path.is_relative_to(root):
        return path.relative_to(root).as_posix()
    return path.as_posix()


@contextmanager
def sole_builder(path: Path) -> Iterator[None]:
    """Hold a file lock beside `path` within the block, without a collective.

    Of several ranks that start together one builds and the others wait. What a killed builder left
    half written is removed.
    """
    with locked(path.with_name(f"{path.name}.lock")):
        remove(_workspace(path))
        yield


def _workspace(path: Path) -> Path:
    """Where `path` is written: a folder of its own, so that a leftover is known to be its own."""
    return path.with_name(f"{path.name}.tmp")


@contextmanager
def built_whole(path: Path) -> Iterator[Path]:
    """A temporary path to write a file or folder to, which becomes `path` when all is written.

    Raises:
        DataError: it cannot be written; nothing half written stays behind.
    """
    workspace = _workspace(path)
    try:
        with written_whole(workspace / path.name, durable=True) as temporary:
            yield temporary
        os.replace(workspace / path.name, path)
    except OSError as error:
        reason = error.strerror or error
        if isinstance(error, WriteError) and isinstance(error.__cause__, OSError):
            reason = error.__cause__.strerror or error.__cause__
        raise DataError(
            f"{path} cannot be written ({reason}); free some space or set data.cache_dir to "
            "another folder",
            kind="cache",
        ) from error
    finally:
        remove(workspace)
