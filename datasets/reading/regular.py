"""Reading files that a user names: regular ones only, with a sentence where one cannot be read."""

from __future__ import annotations

import hashlib
from io import BufferedReader
from pathlib import Path

from hmsa.utils.files import regular

from ..errors import DataError

_DIGITS = 32


def open_data_file(path: str | Path, what: str) -> BufferedReader:
    """The file `path`, open for reading bytes; `what` is what a message calls it.

    Raises:
        DataError: it does not exist, is no regular file, or cannot be opened.
    """
    try:
        return regular.open_regular(path)
    except FileNotFoundError as error:
        raise DataError(f"{path}: {what} does not exist", kind="missing") from error
    except regular.NotRegularError as error:
        raise DataError(f"{path}: {what} {error.strerror}", kind="unreadable") from error
    except OSError as error:
        raise unreadable(path, what, error) from error
    except ValueError as error:  # a NUL character in the name
        raise DataError(
            f"{path!s}: {what} has an impossible name ({error})", kind="missing"
        ) from error


def read_text(path: str | Path, what: str) -> str:
    """The text of a small file that people or programs write.

    Byte-order marks of UTF-8 and UTF-16 are obeyed and left out. Bytes that are not UTF-8 stay what
    they are in names of files (Python's "surrogateescape").

    Raises:
        DataError: it cannot be read, or is no text.
    """
    try:
        with open_data_file(path, what) as file:
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
        with open_data_file(path, "file") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:_DIGITS]
    except OSError as error:
        raise unreadable(path, "file", error) from error


def unreadable(path: str | Path, what: str, error: OSError) -> DataError:
    """The error that names a file and the system's reason."""
    return DataError(f"{path}: {what} cannot be read ({error.strerror})", kind="unreadable")
