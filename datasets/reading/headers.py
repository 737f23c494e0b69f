"""Sizes and completeness of PNG and JPEG files from their structure alone, without decoding a pixel.

Needed before decoding: a 400 KB file may declare 60000 x 60000 pixels, and opencv decodes a truncated JPEG silently into a picture with a grey rest.
Written from the PNG specification (RFC 2083), ITU-T T.81 annex B and the Exif orientation tag (0x0112).
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from typing import Literal

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
JPEG_SIGNATURE = b"\xff\xd8"
HEAD_BYTES = 262_144  # how much of a file to read for its size: camera data may fill several 64 KiB segments before a JPEG's frame header
_MARKER = re.compile(
    rb"\xff+([^\x00\xd0-\xd7\xff])", re.DOTALL
)  # in entropy-coded data only 00 and restart markers may follow FF
_FRAMES = frozenset({*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC})
_STANDALONE = frozenset({0x01, *range(0xD0, 0xD8)})


class HeaderError(Exception):
    """The structure of the file cannot be followed; the text says where it fails, the caller adds which file."""


@dataclass(frozen=True)
class Header:
    """What a file declares: size as displayed (Exif orientation applied), bits and channels per pixel, palette or not."""

    format: Literal["png", "jpeg"]
    height: int
    width: int
    bit_depth: int
    channels: int
    palette: bool = False
    turned: bool = False  # the Exif orientation exchanges height and width of the stored picture


def parse_header(data: bytes) -> Header | None:
    """Header of PNG or JPEG bytes (their beginning suffices); None for other formats; HeaderError where the structure breaks off."""
    if data.startswith(PNG_SIGNATURE):
        return _png_header(data)
    if data.startswith(JPEG_SIGNATURE):
        return _jpeg_header(data)
    return None


def require_complete(data: bytes) -> None:
    """HeaderError if PNG or JPEG bytes end before their end marker."""
    if data.startswith(PNG_SIGNATURE):
        _walk_png(data)
    elif data.startswith(JPEG_SIGNATURE):
        _walk_jpeg(data)


def _png_header(data: bytes) -> Header:
    if len(data) < 33 or data[12:16] != b"IHDR":
        raise HeaderError("it ends within its PNG header")
    width, height, depth, kind = struct.unpack(">IIBB", data[16:26])
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}.get(kind)
    if channels is None:
        raise HeaderError(f"its PNG header has the unknown colour type {kind}")
    turned = _png_orientation(data) >= 5
    height, width = (width, height) if turned else (height, width)
    return Header("png", height, width, depth, channels, palette=kind == 3, turned=turned)


def _png_orientation(data: bytes) -> int:
    """Orientation of the eXIf chunk before the picture, where opencv finds and obeys it too."""
    position = len(PNG_SIGNATURE)
    while position + 8 <= len(data) and data[position + 4 : position + 8] != b"IDAT":
        (length,) = struct.unpack_from(">I", data, position)
        if data[position + 4 : position + 8] == b"eXIf":
            return _orientation(data[position + 8 : position + 8 + length])
        position += 12 + length
    return 1


def _walk_png(data: bytes) -> None:
    position = len(PNG_SIGNATURE)
    while position + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, position)
        if data[position + 4 : position + 8] == b"IEND":
            return
        position += 12 + length
    raise HeaderError(f"it ends after {len(data)} bytes, before the PNG end marker")


def _jpeg_header(data: bytes) -> Header:
    turned = False
    for marker, start, end in _jpeg_segments(data):
        if marker == 0xE1 and data[start : start + 6] == b"Exif\0\0":
            turned = _orientation(data[start + 6 : end]) >= 5
        if marker in _FRAMES:
            if start + 6 > len(data):
                break
            depth, height, width, channels = struct.unpack_from(">BHHB", data, start)
            height, width = (width, height) if turned else (height, width)
            return Header("jpeg", height, width, depth, channels, turned=turned)
        if marker == 0xDA:
            break
    raise HeaderError("it ends before its JPEG frame header")


def _jpeg_segments(data: bytes) -> list[tuple[int, int, int]]:
    """(marker, first byte, end) of every segment up to and including the first start of scan."""
    found: list[tuple[int, int, int]] = []
    position = 2
    while position + 4 <= len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        if marker == 0xFF:  # fill byte
            position += 1
            continue
        if marker in _STANDALONE:
            position += 2
            continue
        (length,) = struct.unpack_from(">H", data, position + 2)
        found.append((marker, position + 4, position + 2 + length))
        if marker == 0xDA:
            break
        position += 2 + length
    return found


def _walk_jpeg(data: bytes) -> None:
    segments = _jpeg_segments(data)
    position = segments[-1][2] if segments and segments[-1][0] == 0xDA else len(data)
    while (match := _MARKER.search(data, position)) is not None:
        marker = match.group(1)[0]
        if marker == 0xD9:
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
    (count,) = struct.unpack_from(order + "H", tiff, offset)
    for entry in range(count):
        at = offset + 2 + 12 * entry
        if at + 12 > len(tiff):
            break
        tag, kind = struct.unpack_from(order + "HH", tiff, at)
        if tag == 0x0112 and kind == 3:
            (value,) = struct.unpack_from(order + "H", tiff, at + 8)
            return int(value) if 1 <= value <= 8 else 1
    return 1
