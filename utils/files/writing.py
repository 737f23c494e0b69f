"""Files that are written whole or not at all; every file of this project is written here."""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from ..words import UserError

# Jobs in containers on several nodes share a folder, and often their process numbers too.
_MACHINE = os.urandom(4).hex()


class WriteError(UserError, OSError):
    """A file cannot be written; the message names it and says what to do."""


def is_temporary(path: Path) -> bool:
    """Whether the file is what a killed process left half written."""
    return path.name.startswith(".hmsa-") and path.suffix == ".tmp"


def temporary_beside(path: Path) -> Path:
    """A name in the folder of `path` that no other thread uses, of whatever process and machine."""
    return path.parent / f".hmsa-{_MACHINE}-{os.getpid()}-{threading.get_ident()}.tmp"


@contextlib.contextmanager
def written_whole(
    path: Path | str, *, durable: bool = False, advice: str = "make room or choose another folder"
) -> Iterator[Path]:
    """A temporary path beside `path` to write a file or folder to, which is renamed at the end.

    Whoever reads `path` sees the old content or the new, never a half. The folder of `path` is made
    when it is missing. With `durable` the content is on the disk, not only in the system's memory,
    before it takes the name, so that it survives a power cut.

    Raises:
        WriteError: the file cannot be written; nothing that was there is lost, and nothing half
            written stays behind.
    """
    path = Path(path)
    if "\0" in str(path):
        raise WriteError(f"{str(path)!r}: no file can be called so; {advice}")

    temporary = temporary_beside(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        if durable:
            _flush_tree(temporary)
        os.replace(temporary, path)
        if durable:
            flush(path.parent)
    except OSError as error:
        reason = error.strerror or str(error)
        raise WriteError(f"{path}: cannot be written ({reason}); {advice}") from error
    finally:
        with contextlib.suppress(OSError):
            remove(temporary)


def write_file_with(
    path: Path | str, write: Callable[[Path], object], *, durable: bool = False
) -> None:
    """Let `write` fill a temporary file, then rename it to `path`; see `written_whole`."""
    with written_whole(path, durable=durable) as temporary:
        write(temporary)


def write_file(path: Path | str, data: bytes | str, *, durable: bool = False) -> None:
    """Write `data` to `path`, whole or not at all; see `written_whole`.

    Text is written as UTF-8. What UTF-8 cannot hold is escaped, as `outputs.printable` does: names
    of files may contain it, and no result may be lost because of a name.
    """
    content = data
    if isinstance(content, str):
        content = content.encode("utf-8", errors="backslashreplace")
    with written_whole(path, durable=durable) as temporary:
        temporary.write_bytes(content)


def remove(path: Path) -> None:
    """Remove a file or folder that is of no use any more, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _flush_tree(path: Path) -> None:
    """Bring a file, or a folder and the files in it, to the disk."""
    if path.is_dir():
        for item in path.iterdir():
            flush(item)
    flush(path)


def flush(path: Path) -> None:
    """Bring a file or folder to the disk, so that it survives a power cut."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError:
        # Some network file systems cannot flush a folder; the rename is all that can be had there.
        if not path.is_dir():
            raise
