"""Names under which results of images are written, below a folder of somebody's choice.

Names of images come from outside: from list files, with `..` or absolute paths in them, and from
file systems that allow more than others.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence

from hmsa.utils.files.label_format import (
    CITYSCAPES_CONFIDENCE_SUFFIX,
    CITYSCAPES_SUFFIX,
    CONFIDENCE_SUFFIX,
    RAW_LABEL_SUFFIX,
    TRAIN_LABEL_SUFFIX,
)

# File systems allow 255 bytes for a name, of which what is written needs some for its own endings
# ("_gtAuto_labelTrainIds.png").
LONGEST_PART = 200
_DIGITS = 10

# Endings of outputs, each with the ending of the image's name in whose place it stands.
_ENDINGS = (
    (CONFIDENCE_SUFFIX, ""),
    (RAW_LABEL_SUFFIX, CITYSCAPES_SUFFIX),
    (TRAIN_LABEL_SUFFIX, CITYSCAPES_SUFFIX),
    (CITYSCAPES_CONFIDENCE_SUFFIX, CITYSCAPES_SUFFIX),
)


def inside_parts(name: str) -> list[str]:
    """The parts of a name that stay below the folder they are joined to.

    Empty parts, `.` and `..` are left out, so that no root and no folder above is left.
    """
    return [part for part in name.replace("\0", "").split("/") if part not in ("", ".", "..")]


def output_names(names: Sequence[str]) -> list[str]:
    """A safe name for each of `names`: relative, without `..`, short enough, none twice.

    Names that are safe already stay as they are. Two names never lead to one output, even where one
    output carries an ending of another ("a_confidence" beside "a"), or where a file system takes
    capitals for small letters.
    """
    safe = [_safe(name) for name in names]
    taken = {_compared(name) for name, own in zip(names, safe, strict=True) if name == own}

    # Safe names keep themselves, so that they do not depend on what else is in the list.
    result: list[str] = []
    used: set[str] = set()
    for name, own in zip(names, safe, strict=True):
        candidate, number = own, 0
        while (
            _compared(candidate) in used
            or (candidate != name and _compared(candidate) in taken)
            or _is_ending(candidate, taken)
        ):
            candidate = _with_digest(own, _digest(name, number))
            number += 1
        used.add(_compared(candidate))
        result.append(candidate)
    return result


def _is_ending(name: str, taken: set[str]) -> bool:
    """Whether what is written for another name carries this one."""
    for ending, base_ending in _ENDINGS:
        if name.endswith(ending) and _compared(name.removesuffix(ending) + base_ending) in taken:
            return True
    return False


def _safe(name: str) -> str:
    parts = []
    for part in inside_parts(name):
        # Hidden files are not looked for where labels are read.
        if part.startswith("."):
            part = f"_{part}"
        parts.append(_shortened(part))
    return "/".join(parts) or f"image-{_digest(name, 0)}"


def _shortened(part: str) -> str:
    """A part of a path within the limit of file systems."""
    if len(os.fsencode(part)) <= LONGEST_PART:
        return part
    return _with_digest(part, _digest(part, 0))


def _with_digest(name: str, digest: str) -> str:
    """A name with a digest at the end of its last part, which is cut where it is too long."""
    folder, slash, part = name.rpartition("/")
    # Cut between characters: half of one would be no text any more.
    while len(os.fsencode(part)) > LONGEST_PART - _DIGITS - 1:
        part = part[:-1]
    return f"{folder}{slash}{part}-{digest}"


def _digest(name: str, number: int) -> str:
    content = os.fsencode(name) + bytes([number])
    return hashlib.sha256(content).hexdigest()[:_DIGITS]


def _compared(name: str) -> str:
    """What two names must differ in; some file systems know no capitals."""
    return name.casefold()
