"""Opening what is a file and nothing else.

A device has no end, and a pipe may have nobody who writes: reading either can wait for ever.
"""

from __future__ import annotations

import hashlib
import os
import stat
from io import BufferedReader
from pathlib import Path

from ..errors import DataError

_DIGITS = 32
_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}


def open_regular(path: str | Path, what: str) -> BufferedReader:
    """The file `path`, open for reading bytes; `what` is what a message calls it.

    Raises:
        DataError: it does not exist, is no regular file, or cannot be opened.
    """
    try:
        # Without waiting, in which opening a pipe would end only when somebody writes to it.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    except FileNotFoundError as error:
        raise DataError(f"{path}: {what} does not exist", kind="missing") from error
    except OSError as error:
        raise unreadable(path, what, error) from error
    except ValueError as error:  # a NUL character in the name
        raise DataError(
            f"{path!s}: {what} has an impossible name ({error})", kind="missing"
        ) from error

    file = os.fdopen(descriptor, "rb")
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode):
        return file
    file.close()
    kind = _KINDS.get(stat.S_IFMT(mode), "no regular file")
    raise DataError(f"{path}: {what} is {kind}, not a file", kind="unreadable")


def read_text(path: str | Path, what: str) -> str:
    """The text of a small file that people or programs write.

    Byte-order marks of UTF-8 and UTF-16 are obeyed and left out. Bytes that are not UTF-8 stay what
    they are in names of files (Python's "surrogateescape").

    Raises:
        DataError: it cannot be read, or is no text.
    """
    try:
        with open_regular(path, what) as file:
            data = file.read()
    except OSError as error:
        raise unreadable(path, what, error) from error

    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        try:
            return data.decode("utf-16")
        except UnicodeDecodeError as error:
            raise DataError(
                f"{path}: {what} cannot be read ({error}); save it as UTF-8", kind="unreadable"
            ) from error
    return data.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "surrogateescape")


def digest(data: bytes) -> str:
    """32 hex digits of a hash over bytes."""
    return hashlib.sha256(data).hexdigest()[:_DIGITS]


def file_digest(path: str | Path) -> str:
    """`digest` of all bytes of a file.

    Raises:
        DataError: the file cannot be read.
    """
    try:
        with open_regular(path, "file") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:_DIGITS]
    except OSError as error:
        raise unreadable(path, "file", error) from error


def unreadable(path: str | Path, what: str, error: OSError) -> DataError:
    """The error that names a file and the system's reason."""
    return DataError(f"{path}: {what} cannot be read ({error.strerror})", kind="unreadable")
