"""A share of the images to validate on, the same every time."""

from __future__ import annotations

import hashlib
import os
import re
from collections import defaultdict
from collections.abc import Sequence

# Frames of one recording are nearly the same picture, so a recording goes to one side as a whole.
NUMBER = re.compile(r"^(.*?)[-_. ]*\d+$")
LEAST_GROUPS = 2


def recording_name(name: str) -> str:
    """What the names of frames of one recording share: folder and name without the last number."""
    folder, base = os.path.split(os.path.splitext(name)[0])
    match = NUMBER.match(base)
    return f"{folder}/{match.group(1) if match else base}"


def split_off(names: Sequence[str], share: float) -> tuple[list[int], bool]:
    """Indices, ascending, of about `share` of the images, and whether recordings stayed together.

    They follow from the names alone. Where names tell several recordings, whole ones are taken
    as far as they make about that share; else single images.
    """
    groups: dict[str, list[int]] = defaultdict(list)
    for index, name in enumerate(names):
        groups[recording_name(name)].append(index)

    wanted = max(1, round(share * len(names)))
    if LEAST_GROUPS <= len(groups) <= len(names) // 2:
        chosen = _whole_groups(groups, wanted)
        if 0.5 * wanted <= len(chosen) <= 1.5 * wanted:
            return sorted(chosen), True
    order = sorted(range(len(names)), key=lambda index: _drawn(names[index]))
    return sorted(order[:wanted]), False


def _whole_groups(groups: dict[str, list[int]], wanted: int) -> list[int]:
    """Groups in drawn order, each taken where it brings the number nearer to `wanted`."""
    chosen: list[int] = []
    for name in sorted(groups, key=_drawn):
        with_it = len(chosen) + len(groups[name])
        if abs(with_it - wanted) < abs(len(chosen) - wanted):
            chosen += groups[name]
    return chosen


def _drawn(name: str) -> str:
    """A number that only the name decides."""
    return hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()
