"""Pictures put together, with captions."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

_INK, _PAPER = (38, 38, 38), 255


def panel(
    tiles: Sequence[tuple[str, np.ndarray]],
    *,
    columns: int | None = None,
    width: int | None = None,
    gap: int = 8,
    legends: Sequence[Sequence[tuple[str, Sequence[int]]]] = (),
) -> np.ndarray:
    """Captioned pictures on white, beside and below each other: uint8 RGB [H, W, 3].

    Args:
        tiles: captions and pictures uint8 [h, w, 3].
        columns: how many stand in a row (default: all of them).
        width: to which every picture is scaled, keeping its proportions (default: that of the
            widest).
        gap: pixels between two pictures.
        legends: names with their colours, a line below the pictures for each list of them.
    """
    assert tiles, "a panel needs a picture"
    columns = min(columns or len(tiles), len(tiles))
    width = width or max(picture.shape[1] for _, picture in tiles)

    # Captions grow with the pictures, within what can be read.
    letters = max(11, min(22, width // 22))
    font = ImageFont.load_default(size=letters)
    strip = round(1.6 * letters)

    # Each row is as high as its highest picture, with a strip above for the captions.
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
    drawn = np.array(canvas)
    for entries in legends:
        below = legend_strip(entries, width=size[1], letters=letters, gap=gap)
        drawn = np.concatenate([drawn, below])
    return drawn


def legend_strip(
    entries: Sequence[tuple[str, Sequence[int]]], *, width: int, letters: int, gap: int = 8
) -> np.ndarray:
    """Names beside squares of their colours on white, in as many lines as they need.

    Returns uint8 RGB [H, width, 3]. `letters` is the size of the text in pixels.
    """
    font = ImageFont.load_default(size=letters)
    line = round(1.6 * letters)

    # Where each square stands, line by line.
    places = []
    left, top = gap, gap // 2
    for name, colour in entries:
        taken = round(letters + 6 + font.getlength(name) + 1.2 * letters)
        if left > gap and left + taken > width:
            left, top = gap, top + line
        places.append((left, top, name, colour))
        left += taken

    canvas = Image.fromarray(np.full((top + line + gap // 2, width, 3), _PAPER, dtype=np.uint8))
    brush = ImageDraw.Draw(canvas)
    for left, top, name, colour in places:
        edge = (left, top + 2, left + letters - 1, top + letters + 1)
        fill = tuple(int(value) for value in colour)
        brush.rectangle(edge, fill=fill, outline=(128, 128, 128))
        brush.text((left + letters + 6, top), name, fill=_INK, font=font)
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

    interpolation = cv2.INTER_NEAREST
    if width < picture.shape[1]:
        interpolation = cv2.INTER_AREA
    resized = cv2.resize(picture, (width, height), interpolation=interpolation)
    return np.asarray(resized, dtype=np.uint8)
