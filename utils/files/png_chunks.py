"""The chunks of a PNG file, found without decoding a pixel.

Format: PNG specification, section 5 (https://www.w3.org/TR/png-3/#5DataRep).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

SIGNATURE = b"\x89PNG\r\n\x1a\n"


def iterate_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """(name, start of its data, length of its data) of each chunk of a PNG file, in order.

    `data` is the file, or its beginning. The last chunk may reach beyond the end of `data`, where a
    file is cut off: whoever reads the chunk compares `start + length` with `len(data)`. Nothing
    comes where `data` is no PNG file.
    """
    if not data.startswith(SIGNATURE):
        return

    position = len(SIGNATURE)
    while position + 8 <= len(data):
        length, name = struct.unpack_from(">I4s", data, position)
        yield name, position + 8, length
        # Length and name before the data, a checksum after it: 12 bytes in all.
        position += 12 + length
