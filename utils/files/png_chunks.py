"""The chunks of a PNG file, found without decoding a pixel.

Format: PNG specification, section 5 (https://www.w3.org/TR/png-3/#5DataRep).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
CHECKSUM_BYTES = 4  # a CRC-32 of name and content follows the content of each chunk


def iterate_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """(name, start of its content, length of its content) of each chunk of PNG bytes, in order.

    `data` is the file, or its beginning. Nothing is checked but that name and length of a chunk
    are there, so that damaged and cut-off files can be walked over, too: a chunk is whole where
    `start + length + CHECKSUM_BYTES <= len(data)`. Nothing comes where `data` is no PNG file.
    """
    if not data.startswith(PNG_SIGNATURE):
        return

    position = len(PNG_SIGNATURE)
    while position + 8 <= len(data):
        length, name = struct.unpack_from(">I4s", data, position)
        yield name, position + 8, length
        position += 8 + length + CHECKSUM_BYTES
