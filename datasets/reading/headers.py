"""Sizes and completeness of PNG and JPEG files from their structure, without decoding a pixel.

This comes before decoding: a 400 KB file may declare 60000 x 60000 pixels, and opencv decodes a
truncated JPEG silently into a picture with a grey rest.

Written from the PNG specification (RFC 2083), ITU-T T.81 annex B, and the Exif orientation tag
(0x0112).
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from typing import Literal

from hmsa.utils.files.png_chunks import CHECKSUM_BYTES, PNG_SIGNATURE, iterate_chunks

JPEG_SIGNATURE = b"\xff\xd8"

# How much of a file to read for its size: camera data may fill several segments of 64 KiB before
# the frame header of a JPEG.
HEAD_BYTES = 262_144

# In entropy-coded data only 00 and restart markers may follow FF.
_MARKER = re.compile(rb"\xff+([^\x00\xd0-\xd7\xff])", re.DOTALL)
_FRAMES = frozenset({*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC})
_STANDALONE = frozenset({0x01, *range(0xD0, 0xD8)})
_FILL_BYTE = 0xFF
_APP1, _START_OF_SCAN, _END_OF_IMAGE = 0xE1, 0xDA, 0xD9

_ORIENTATION_TAG = 0x0112
_FIRST_TURNED = 5  # from here on height and width are exchanged
_SHORT = 3  # type of a 16-bit value in Exif


class HeaderError(Exception):
    """The structure of the file cannot be followed.

    The text says where it fails; the caller adds which file.
    """


@dataclass(frozen=True)
class Header:
    """What a file declares.

    Attributes:
        format: of the file.
        height: in pixels, as displayed (Exif orientation applied).
        width: in pixels, as displayed.
        bit_depth: bits per channel.
        channels: per pixel; 1 for a palette.
        palette: whether pixels are indices into a palette.
        orientation: how the stored picture is to be turned or mirrored for display (Exif, 1 to 8).
    """

    format: Literal["png", "jpeg"]
    height: int
    width: int
    bit_depth: int
    channels: int
    palette: bool = False
    orientation: int = 1


def parse_header(data: bytes) -> Header | None:
    """Header of PNG or JPEG bytes, of which the beginning suffices; None for other formats.

    Raises:
        HeaderError: the structure breaks off.
    """
    if data.startswith(PNG_SIGNATURE):
        return _png_header(data)
    if data.startswith(JPEG_SIGNATURE):
        return _jpeg_header(data)
    return None


def require_complete(data: bytes) -> None:
    """Refuse PNG or JPEG bytes that end before their end marker.

    Raises:
        HeaderError: they do.
    """
    if data.startswith(PNG_SIGNATURE):
        _require_png_end(data)
    elif data.startswith(JPEG_SIGNATURE):
        _require_jpeg_end(data)


def _png_header(data: bytes) -> Header:
    if len(data) < 33 or data[12:16] != b"IHDR":
        raise HeaderError("it ends within its PNG header")
    width, height, depth, kind = struct.unpack(">IIBB", data[16:26])
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}.get(kind)
    if channels is None:
        raise HeaderError(f"its PNG header has the unknown colour type {kind}")

    orientation = _png_orientation(data)
    if orientation >= _FIRST_TURNED:
        height, width = width, height
    return Header("png", height, width, depth, channels, palette=kind == 3, orientation=orientation)


def _png_orientation(data: bytes) -> int:
    """Orientation of the eXIf chunk before the picture, where opencv finds and obeys it, too."""
    for name, start, length in iterate_chunks(data):
        if name == b"eXIf":
            return _orientation(data[start : start + length])
        if name == b"IDAT":
            break
    return 1


def _require_png_end(data: bytes) -> None:
    for name, start, _ in iterate_chunks(data):
        if name == b"IEND" and start + CHECKSUM_BYTES <= len(data):
            return
    raise HeaderError(f"it ends after {len(data)} bytes, before the PNG end marker")


def _jpeg_header(data: bytes) -> Header:
    orientation = 1
    for marker, start, end in _jpeg_segments(data):
        if marker == _APP1 and data[start : start + 6] == b"Exif\0\0":
            orientation = _orientation(data[start + 6 : end])
        if marker in _FRAMES:
            if start + 6 > len(data):
                break
            depth, height, width, channels = struct.unpack_from(">BHHB", data, start)
            if orientation >= _FIRST_TURNED:
                height, width = width, height
            return Header("jpeg", height, width, depth, channels, orientation=orientation)
        if marker == _START_OF_SCAN:
            break
    raise HeaderError("it ends before its JPEG frame header")


def _jpeg_segments(data: bytes) -> list[tuple[int, int, int]]:
    """(marker, first byte, end) of every segment up to and including the first start of scan."""
    found: list[tuple[int, int, int]] = []
    position = len(JPEG_SIGNATURE)
    while position + 4 <= len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        if marker == _FILL_BYTE:
            position += 1
            continue
        if marker in _STANDALONE:
            position += 2
            continue

        (length,) = struct.unpack_from(">H", data, position + 2)
        found.append((marker, position + 4, position + 2 + length))
        if marker == _START_OF_SCAN:
            break
        position += 2 + length
    return found


def _require_jpeg_end(data: bytes) -> None:
    # Entropy-coded data begin after the first scan's header, with further segments among them.
    segments = _jpeg_segments(data)
    position = len(data)
    if segments and segments[-1][0] == _START_OF_SCAN:
        position = segments[-1][2]

    while (match := _MARKER.search(data, position)) is not None:
        marker = match.group(1)[0]
        if marker == _END_OF_IMAGE:
            return
        if match.end() + 2 > len(data):
            break
        (length,) = struct.unpack_from(">H", data, match.end())
        position = match.end() + length
    raise HeaderError(f"it ends after {len(data)} bytes, before the JPEG end marker")


def _orientation(tiff: bytes) -> int:
    """Exif orientation 1-8 of a TIFF block; 1 where it is absent or the block is damaged."""
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    if order is None or len(tiff) < 8:
        return 1
    (offset,) = struct.unpack_from(order + "I", tiff, 4)
    if offset + 2 > len(tiff):
        return 1

    # The first directory: a count, then entries of tag, type, number of values and value.
    (count,) = struct.unpack_from(order + "H", tiff, offset)
    for entry in range(count):
        at = offset + 2 + 12 * entry
        if at + 12 > len(tiff):
            break
        tag, kind = struct.unpack_from(order + "HH", tiff, at)
        if tag == _ORIENTATION_TAG and kind == _SHORT:
            (value,) = struct.unpack_from(order + "H", tiff, at + 8)
            if 1 <= value <= 8:
                return int(value)
            return 1
    return 1
