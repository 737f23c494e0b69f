"""Labels that show classes by their colours, as most tools for drawing them export."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from ..errors import DataError

if TYPE_CHECKING:
    from ..spec import DatasetSpec

_SHOWN_COLORS = 3
_FEW_PIXELS = 0.2  # share of pixels up to which odd colours are borders that were smoothed
_MANY_COLORS = 1000


def holds_colors(path: str | Path, picture: Image.Image, spec: DatasetSpec) -> bool:
    """Whether a decoded label is to be read by the colours of its pixels.

    Grey pictures hold ids. Palette pictures do, unless the class list says `labels: colors`.
    Pictures of three channels hold colours, unless it says `labels: ids`; where all three channels
    are equal they may hold either, and then what gives a meaning to every pixel is taken.

    Raises:
        DataError: both would, and differ: the class list must say which it is.
    """
    if picture.mode == "P":
        return spec.label_form == "colors"
    if picture.mode not in ("RGB", "RGBA") or spec.label_form == "ids":
        return False
    if spec.label_form == "colors":
        return True

    if not is_grey(picture):
        return True

    # Grey in three channels: ids that were saved as RGB, or classes whose colours are grey.
    values = np.asarray(picture)[..., 0]
    present = np.flatnonzero(np.bincount(values.reshape(-1), minlength=256))
    to_train, unknown = spec.tables("raw")
    as_colors, known_colors = _meaning(path, present * 0x010101, spec)
    ids_fit, colors_fit = not unknown[present].any(), bool(known_colors.all())
    if ids_fit and colors_fit and (as_colors != to_train[present]).any():
        raise DataError(
            f"{path}: label of three equal channels with the values "
            f"{', '.join(str(value) for value in present[:4])} can be read as ids and as colours; "
            "write 'labels: ids' or 'labels: colors' into the class list",
            kind="classes",
        )
    return colors_fit and not ids_fit


def is_grey(picture: Image.Image) -> bool:
    """Whether the first three channels of a picture are equal everywhere."""
    channels = np.asarray(picture)[..., :3]
    return bool((channels == channels[..., :1]).all())


def train_ids_of_colors(path: str | Path, picture: Image.Image, spec: DatasetSpec) -> np.ndarray:
    """A picture of colours as train ids, uint8 [H, W]; transparency is left out.

    Raises:
        DataError: a colour that is neither of a class nor ignored, with the likely cause.
    """
    rgb = np.asarray(picture.convert("RGB")).astype(np.int32)
    codes = (rgb[..., 0] << 16 | rgb[..., 1] << 8 | rgb[..., 2]).reshape(-1)

    # Neighbours mostly have one colour, so only the first of each run is looked up.
    begins = np.ones(len(codes), dtype=bool)
    np.not_equal(codes[1:], codes[:-1], out=begins[1:])
    first = np.flatnonzero(begins)
    lengths = np.diff(first, append=len(codes))

    train_ids, known = _meaning(path, codes[first], spec)
    if not known.all() and not spec.ignore_unknown:
        raise DataError(
            f"{path}: {_explain(codes[first][~known], lengths[~known], len(codes), spec)}",
            kind="colors",
        )
    return np.repeat(train_ids, lengths).reshape(rgb.shape[:2])


def _meaning(
    path: str | Path, codes: np.ndarray, spec: DatasetSpec
) -> tuple[np.ndarray, np.ndarray]:
    """Train id of each colour, uint8 [N], ignored where it has none; and which have one, bool."""
    try:
        table, train_ids = spec.color_table
    except DataError as error:
        raise DataError(f"{path}: {error}", kind=error.kind) from None
    place = np.searchsorted(table, codes).clip(max=len(table) - 1)
    known = table[place] == codes
    return np.where(known, train_ids[place], np.uint8(spec.ignore_label)), known


def _explain(codes: np.ndarray, lengths: np.ndarray, pixels: int, spec: DatasetSpec) -> str:
    """Sentence on colours without a meaning, `lengths` pixels of each of `codes`."""
    found, inverse = np.unique(codes, return_inverse=True)
    counts = np.bincount(inverse, weights=lengths).astype(np.int64)
    order = np.argsort(-counts, kind="stable")

    named = ", ".join(
        f"[{found[index] >> 16}, {found[index] >> 8 & 255}, {found[index] & 255}] "
        f"({counts[index]} of {pixels} pixels)"
        for index in order[:_SHOWN_COLORS]
    )
    if len(found) > _SHOWN_COLORS:
        named += f" and {len(found) - _SHOWN_COLORS} more colours"

    # From the most telling cause to the least.
    cause = "add it to its class in the class list, or to 'ignore'"
    if len(found) > _MANY_COLORS and counts.sum() > _FEW_PIXELS * pixels:
        cause = "a photograph? are images and labels swapped"
    elif len(found) > _SHOWN_COLORS and counts.sum() <= _FEW_PIXELS * pixels:
        cause = (
            "borders drawn smoothly, or a label that was once a JPEG? export it without "
            "anti-aliasing, or write 'unknown: ignore' into the class list to leave such pixels out"
        )
    noun = "label colour" if len(found) == 1 else "label colours"
    return f"{noun} {named} outside the classes of {spec.name}: {cause}"
