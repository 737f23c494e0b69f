"""The chunks of a PNG file, from its bytes alone (PNG specification, section 5).

https://www.w3.org/TR/png-3/#5DataRep
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
CHECKSUM_BYTES = 4  # a CRC-32 of name and content follows the content of each chunk


def iterate_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """The chunks of PNG bytes, in order.

    Nothing is checked but that name and length of a chunk are there, so damaged and cut-off files
    can be walked over, too. A chunk is whole where `start + length + CHECKSUM_BYTES <= len(data)`.

    Yields:
        The name of a chunk (4 bytes), where its content begins, and how many bytes that declares to
        have.
    """
    position = len(PNG_SIGNATURE)
    while position + 8 <= len(data):
        (length,) = struct.unpack_from(">I", data, position)
        yield data[position + 4 : position + 8], position + 8, length
        position += 8 + length + CHECKSUM_BYTES
