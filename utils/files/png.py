"""PNG files, quickly encoded and written whole or not at all.

One small encoder serves label ids, palette ids, confidences and photographs. Measured on 1024 x 2048 street labels
against opencv 5 and Pillow 12 at their level 1 (which choose a filter for each row): ids 3 ms and 9 KiB against 9 ms
and 21 KiB (opencv), 6 ms and 21 KiB (Pillow); confidences 14 ms, 463 KiB against 28 ms, 580 KiB; photographs 47 ms
against 75 ms for 5 % more bytes. Subtracting the row above suits label maps, and run lengths are all that remains.
"""

from __future__ import annotations

import contextlib
import os
import struct
import threading
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_GREY, _RGB, _PALETTE = 0, 2, 3  # colour types of the PNG specification
_ROW_ABOVE = 2  # filter type "up"
_MACHINE = os.urandom(
    4
).hex()  # jobs in containers on several nodes share a folder, and often their process numbers too


class ImageWriteError(OSError):
    """A file cannot be written; the message names it and says what to do."""


def encode_png(array: np.ndarray, *, palette: np.ndarray | None = None, level: int = 1) -> bytes:
    """PNG bytes of uint8 or uint16 [H, W] (grey), uint8 RGB [H, W, 3], or uint8 ids [H, W] with `palette` [N, 3].

    `level` is zlib's, 1 (fast) to 9 (small). The bytes depend on the arguments alone.
    """
    assert array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 3), (
        f"{array.shape} is no picture"
    )
    assert array.size and array.dtype in (np.uint8, np.uint16), (
        f"{array.shape} {array.dtype} is no picture"
    )
    kind = _RGB if array.ndim == 3 else _GREY if palette is None else _PALETTE
    assert array.dtype == np.uint8 or kind == _GREY, "16 bits are for grey pictures"
    height, width = array.shape[:2]
    header = struct.pack(">IIBBBBB", width, height, 8 * array.itemsize, kind, 0, 0, 0)
    table = b""
    if palette is not None:
        colours = np.asarray(palette, dtype=np.uint8)
        assert (
            kind == _PALETTE
            and colours.ndim == 2
            and colours.shape[1] == 3
            and int(array.max()) < len(colours) <= 256
        )
        table = _chunk(b"PLTE", colours.tobytes())
    strategy = zlib.Z_DEFAULT_STRATEGY if kind == _RGB else zlib.Z_RLE
    packer = zlib.compressobj(level, zlib.DEFLATED, zlib.MAX_WBITS, 9, strategy)
    body = packer.compress(_filtered(array)) + packer.flush()
    return (
        _SIGNATURE + _chunk(b"IHDR", header) + table + _chunk(b"IDAT", body) + _chunk(b"IEND", b"")
    )


def _filtered(array: np.ndarray) -> bytes:
    """Every row less the one above it, byte by byte, with the filter's number before it."""
    big_endian = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder(">"))
    rows = big_endian.view(np.uint8).reshape(array.shape[0], -1)
    filtered = np.empty((rows.shape[0], rows.shape[1] + 1), dtype=np.uint8)
    filtered[:, 0] = _ROW_ABOVE
    filtered[0, 1:] = rows[0]
    np.subtract(rows[1:], rows[:-1], out=filtered[1:, 1:])
    return filtered.tobytes()


def _chunk(name: bytes, data: bytes) -> bytes:
    return (
        struct.pack(">I", len(data))
        + name
        + data
        + struct.pack(">I", zlib.crc32(data, zlib.crc32(name)))
    )


def is_temporary(path: Path) -> bool:
    """Whether the file is what a killed process left half written; see `write_file_with`."""
    return path.name.startswith(".hmsa-") and path.suffix == ".tmp"


def temporary_beside(path: Path) -> Path:
    """A name in the folder of `path` that no other thread uses, of whatever process on whatever machine."""
    return path.parent / f".hmsa-{_MACHINE}-{os.getpid()}-{threading.get_ident()}.tmp"


def write_file_with(path: Path | str, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file in the folder of `path` (made when missing), then rename it: all or nothing.

    The temporary file is `temporary_beside(path)`. Raises ImageWriteError, and then leaves no temporary file.
    """
    path = Path(path)
    temporary = temporary_beside(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        reason = error.strerror or str(error)
        raise ImageWriteError(
            f"{path}: cannot be written ({reason}); make room or choose another folder"
        ) from error


def write_file(path: Path | str, data: bytes) -> None:
    """Write `data` to `path`, whole or not at all; see `write_file_with`."""
    write_file_with(path, lambda temporary: temporary.write_bytes(data))


def write_png(
    path: Path | str, array: np.ndarray, *, palette: np.ndarray | None = None, level: int = 1
) -> None:
    """Write `array` (see `encode_png`) to `path`, whole or not at all. Raises ImageWriteError."""
    write_file(path, encode_png(array, palette=palette, level=level))
