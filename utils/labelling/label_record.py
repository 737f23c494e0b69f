"""Whether what a label file says of itself has the right form.

A record comes out of a file that may have been made elsewhere, by another version, or by hand.
Whatever is wrong with it, the file then has no record: its image is labelled anew, and a check
names it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..files.regular import open_regular


def is_record(found: Any) -> bool:
    """Whether `found`, as JSON was read, is a record of a label or of a confidence image.

    All numbers of classes are the same; the fields that are there have their right types.
    """
    if not isinstance(found, dict) or "made_with" not in found:
        return False
    if not all(_FIELDS[key](value) for key, value in found.items() if key in _FIELDS):
        return False

    per_class = [found.get(key) for key in ("predicted", "counts", "kept", "human")]
    lengths = {len(counts) for counts in per_class if counts is not None}
    classes = max(lengths, default=0)
    pairs = [pair[:2] for pair in found.get("agreement", ())]
    return len(lengths) <= 1 and all(max(pair) < classes for pair in pairs)


def is_label_record(found: Any, *, classes: int) -> bool:
    """Whether `found` is the record of a label of so many classes, with all that belongs to it."""
    needed = ("image", "mean_confidence", "predicted", "counts")
    return (
        is_record(found)
        and all(key in found for key in needed)
        and len(found["counts"]) == classes
        and sum(found["predicted"]) > 0
        and (found.get("human") is None or "agreement" in found)
    )


def is_label_of(
    record: Mapping[str, Any] | None, *, made_with: str, image: str, image_sha256: str
) -> bool:
    """Whether a finished label of this very image is there, made with these settings.

    Args:
        record: of the label file, None where it has none.
        made_with: the fingerprint of the settings.
        image: the name of the image.
        image_sha256: the hash of its file, see `file_sha256`.
    """
    if record is None:
        return False
    expected = {"made_with": made_with, "image": image, "image_sha256": image_sha256}
    return all(record.get(key) == value for key, value in expected.items())


def file_sha256(path: Path) -> str | None:
    """The hash of a file, by which an image that was replaced shows itself; None without a file.

    Neither size nor time would do: a corrected photograph has the size of the old one more often
    than not where pixels are not compressed, and a copy keeps the time of its origin.
    """
    try:
        with open_regular(path) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return None


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_count(value: Any) -> bool:
    # Python takes True for a number; a sum of counts must fit into 64 bits.
    return type(value) is int and 0 <= value < 1 << 53


def _are_counts(value: Any) -> bool:
    return isinstance(value, list) and all(_is_count(count) for count in value)


def _is_share(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value <= 1


def _are_pairs(value: Any) -> bool:
    return isinstance(value, list) and all(_are_counts(pair) and len(pair) == 3 for pair in value)


# `image_bytes` is -1 where the image could not be seen.
_FIELDS: dict[str, Callable[[Any], bool]] = {
    "made_with": _is_text,
    "image": _is_text,
    "image_bytes": lambda value: type(value) is int,
    "image_sha256": _is_text,
    "mean_confidence": _is_share,
    "predicted": _are_counts,
    "counts": _are_counts,
    "kept": _are_counts,
    "human": lambda value: value is None or _are_counts(value),
    "agreement": _are_pairs,
}
