"""Opening what is a file and nothing else.

A device has no end, and a pipe may have nobody who writes: reading either can wait for ever.
"""

from __future__ import annotations

import errno
import os
import stat
from io import BufferedReader
from pathlib import Path

_KINDS = {
    stat.S_IFDIR: "is a folder, not a file",
    stat.S_IFIFO: "is a pipe, not a file",
    stat.S_IFCHR: "is a device, not a file",
    stat.S_IFBLK: "is a device, not a file",
    stat.S_IFSOCK: "is a socket, not a file",
}


class NotRegularError(OSError):
    """The path names something else than a file; `strerror` says what."""


def open_regular(path: str | Path) -> BufferedReader:
    """The file `path`, open for reading bytes.

    Raises:
        NotRegularError: it is a folder, a pipe, a device or a socket.
        OSError: it does not exist or cannot be opened.
        ValueError: its name holds a NUL character.
    """
    # Without waiting, in which opening a pipe would end only when somebody writes to it.
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode):
        return os.fdopen(descriptor, "rb")
    os.close(descriptor)
    kind = _KINDS.get(stat.S_IFMT(mode), "is no regular file")
    raise NotRegularError(errno.EINVAL, kind, str(path))


def read_regular(path: str | Path) -> bytes:
    """All bytes of the file `path`; see `open_regular` for what is raised."""
    with open_regular(path) as file:
        return file.read()
