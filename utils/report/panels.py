"""Pictures put together: captions, colour bars, legends."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .colours import heat_colours

_INK, _PAPER = (38, 38, 38), 255


def panel(
    tiles: Sequence[tuple[str, np.ndarray]],
    *,
    columns: int | None = None,
    width: int | None = None,
    gap: int = 8,
) -> np.ndarray:
    """Captioned pictures uint8 [h, w, 3] on white, in rows of `columns` (default: all in one row).

    Every picture is scaled to `width` pixels (default: that of the widest), keeping its proportions.
    """
    assert tiles, "a panel needs a picture"
    columns = min(columns or len(tiles), len(tiles))
    width = width or max(picture.shape[1] for _, picture in tiles)
    letters = max(11, min(22, width // 22))
    font, strip = ImageFont.load_default(size=letters), round(1.6 * letters)
    scaled = [(caption, to_width(picture, width)) for caption, picture in tiles]
    rows = [scaled[start : start + columns] for start in range(0, len(scaled), columns)]
    heights = [strip + max(picture.shape[0] for _, picture in row) for row in rows]
    size = (sum(heights) + gap * (len(rows) + 1), columns * (width + gap) + gap, 3)
    canvas = Image.fromarray(np.full(size, _PAPER, dtype=np.uint8))
    brush = ImageDraw.Draw(canvas)
    top = gap
    for row, height in zip(rows, heights, strict=True):
        for column, (caption, picture) in enumerate(row):
            left = gap + column * (width + gap)
            brush.text((left, top), _shortened(caption, font, width), fill=_INK, font=font)
            canvas.paste(Image.fromarray(picture), (left, top + strip))
        top += height + gap
    return np.array(canvas)


def _shortened(caption: str, font: ImageFont.ImageFont | ImageFont.FreeTypeFont, width: int) -> str:
    """The caption, or as much of its beginning as fits into `width` pixels."""
    if font.getlength(caption) <= width:
        return caption
    while caption and font.getlength(caption + "...") > width:
        caption = caption[:-1]
    return caption + "..."


def to_width(picture: np.ndarray, width: int) -> np.ndarray:
    """The picture `width` pixels wide: averaged when it shrinks, with hard pixels when it grows."""
    height = max(1, round(picture.shape[0] * width / picture.shape[1]))
    if picture.shape[:2] == (height, width):
        return np.ascontiguousarray(picture)
    way = cv2.INTER_AREA if width < picture.shape[1] else cv2.INTER_NEAREST
    return np.asarray(cv2.resize(picture, (width, height), interpolation=way), dtype=np.uint8)


def with_colour_bar(picture: np.ndarray, low: float = 0.0, high: float = 1.0) -> np.ndarray:
    """A heat map with the scale of its colours at its right: from `low` at the foot to `high` at the top."""
    height, width = picture.shape[:2]
    letters = max(10, min(20, height // 16))
    font = ImageFont.load_default(size=letters)
    gap, bar = letters // 2, max(8, letters)
    marks = [f"{value:.3g}" for value in np.linspace(high, low, 5)]
    margin = gap + bar + gap + int(max(font.getlength(mark) for mark in marks)) + gap
    canvas = np.full((height, width + margin, 3), _PAPER, dtype=np.uint8)
    canvas[:, :width] = picture
    steps = np.linspace(255, 0, height).round().astype(np.uint8)
    canvas[:, width + gap : width + gap + bar] = heat_colours()[steps][:, None]
    drawing = Image.fromarray(canvas)
    brush = ImageDraw.Draw(drawing)
    for mark, middle in zip(
        marks, np.linspace(letters / 2, height - 1 - letters / 2, 5), strict=True
    ):
        brush.text((width + 2 * gap + bar, middle), mark, fill=_INK, font=font, anchor="lm")
    return np.array(drawing)


def legend(
    entries: Sequence[tuple[str, Sequence[int]]], *, width: int, letters: int = 14
) -> np.ndarray:
    """Names beside squares of their colours, in as many columns as fit into `width` pixels."""
    font = ImageFont.load_default(size=letters)
    cell = letters * 2 + int(max(font.getlength(name) for name, _ in entries)) + letters
    columns = max(1, min(len(entries), width // cell))
    line = round(1.7 * letters)
    rows = -(-len(entries) // columns)
    drawing = Image.fromarray(np.full((rows * line + line // 2, width, 3), _PAPER, dtype=np.uint8))
    brush = ImageDraw.Draw(drawing)
    for number, (name, colour) in enumerate(entries):
        left, top = (number % columns) * (width // columns), line // 4 + (number // columns) * line
        red, green, blue = (int(value) for value in colour)
        brush.rectangle(
            (left, top, left + letters, top + letters),
            fill=(red, green, blue),
            outline=(150, 150, 150),
        )
        brush.text(
            (left + round(1.5 * letters), top + letters / 2),
            name,
            fill=_INK,
            font=font,
            anchor="lm",
        )
    return np.array(drawing)
