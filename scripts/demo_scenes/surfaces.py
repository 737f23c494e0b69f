"""Textures in metres: what a facade, the flank of a bus and the flank of a train have in common."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from scripts.demo_scenes.canvas import Colour, value_noise
from scripts.demo_scenes.stage import WindowStyle, scaled, shifted

MAX_TEXELS = 1600  # along the longer side of a texture: near facades are seen through a blurred one


def plain(
    width: float,
    height: float,
    texels: float,
    *,
    colour: Colour,
    grain: float,
    rng: np.random.Generator,
) -> tuple[NDArray[np.uint8], float]:
    """Noisy plaster [h, w, 3] of `width` x `height` metres and its texels per metre.

    Row 0 is the top. `grain` is the deviation in grey levels; at most `texels` are used.
    """
    texels = min(texels, MAX_TEXELS / max(width, height))
    rows, columns = max(2, round(height * texels)), max(2, round(width * texels))

    fine = value_noise(rows, columns, max(1.0, 0.12 * texels), rng)
    noise = fine + value_noise(rows, columns, texels, rng)
    field = grain * noise[:, :, None] + np.asarray(colour, np.float32)
    return np.clip(field, 0, 255).astype(np.uint8), texels


def windows(
    texture: NDArray[np.uint8],
    texels: float,
    style: WindowStyle,
    colour: Colour,
    rng: np.random.Generator,
    *,
    top: float,
    pitch: float,
    rows: int,
    margin: float = 0.5,
) -> None:
    """Draw `rows` rows of windows in place.

    The first is `top` metres below the top edge, the others `pitch` metres apart.
    """
    width = texture.shape[1] / texels
    step = style.width + style.gap
    count = int((width - 2 * margin + style.gap) / step)
    start = (width - count * step + style.gap) / 2
    frame = scaled(colour, style.frame)

    for row in range(rows):
        y = top + row * pitch
        for column in range(count):
            x = start + column * step
            glass = shifted(style.glass, float(rng.normal(0, 9)))
            size = (style.width, style.height)
            _box(texture, texels, (x - 0.08, y - 0.08), (size[0] + 0.16, size[1] + 0.16), frame)
            _box(texture, texels, (x, y), size, glass)

            # A blind that is half down.
            if rng.random() < 0.3:
                blind = (size[0], size[1] * rng.uniform(0.2, 0.6))
                _box(texture, texels, (x, y), blind, shifted(glass, 34))


def joints(
    texture: NDArray[np.uint8], texels: float, colour: Colour, *, every: float, rows: bool = False
) -> None:
    """Draw the seams between panels in place, one every `every` metres.

    Walls, trucks and facades without windows have them.
    """
    seam = scaled(colour, 0.82)
    height, width = texture.shape[0] / texels, texture.shape[1] / texels
    for x in np.arange(every, width, every):
        _box(texture, texels, (float(x), 0.0), (0.07, height), seam)
    if rows:
        for y in np.arange(every / 2, height, every / 2):
            _box(texture, texels, (0.0, float(y)), (width, 0.05), seam)


def courses(texture: NDArray[np.uint8], texels: float, colour: Colour, *, every: float) -> None:
    """Draw the mortar between courses of stone in place, one every `every` metres.

    Most walls are laid of stone, houses are rendered.
    """
    height, width = texture.shape[0] / texels, texture.shape[1] / texels
    mortar = scaled(colour, 0.76)
    for row, y in enumerate(np.arange(every, height, every)):
        _box(texture, texels, (0.0, float(y)), (width, 0.07), mortar)
        for x in np.arange(every * (1 + row % 2), width, 2 * every):
            _box(texture, texels, (float(x), float(y) - every), (0.07, every), mortar)


def stripe(
    texture: NDArray[np.uint8], texels: float, colour: Colour, *, top: float, height: float
) -> None:
    """Draw a band over the whole length in place."""
    _box(texture, texels, (0.0, top), (texture.shape[1] / texels, height), colour)


def door(
    texture: NDArray[np.uint8],
    texels: float,
    colour: Colour,
    *,
    left: float,
    width: float,
    height: float,
) -> None:
    """Draw a door that stands on the lower edge in place."""
    top = texture.shape[0] / texels - height
    _box(texture, texels, (left, top), (width, height), colour)


def _box(
    texture: NDArray[np.uint8],
    texels: float,
    corner: tuple[float, float],
    size: tuple[float, float],
    colour: Colour,
) -> None:
    """Fill a rectangle in place: its upper left corner (x, y) and (width, height) in metres."""
    (x, y), (width, height) = corner, size
    metres = np.array([[x, y], [x + width, y], [x + width, y + height], [x, y + height]])

    # Corners have four fractional bits, so that edges lie between pixels.
    fixed = np.round((metres * texels - 0.5) * 16).astype(np.int32)
    cv2.fillPoly(texture, [fixed], colour, lineType=cv2.LINE_AA, shift=4)
