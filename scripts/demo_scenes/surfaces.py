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
    colour: Colour,
    grain: float,
    rng: np.random.Generator,
) -> tuple[NDArray[np.uint8], float]:
    """Noisy plaster [h, w, 3] of ``width`` x ``height`` metres and its texels per metre (row 0 is the top)."""
    texels = min(texels, MAX_TEXELS / max(width, height))
    rows, columns = max(2, round(height * texels)), max(2, round(width * texels))
    noise = value_noise(rows, columns, max(1.0, 0.12 * texels), rng) + value_noise(
        rows, columns, texels, rng
    )
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
    """Draw ``rows`` rows of windows in place, the first ``top`` metres below the top edge, ``pitch`` metres apart."""
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
            _box(
                texture, texels, x - 0.08, y - 0.08, style.width + 0.16, style.height + 0.16, frame
            )
            _box(texture, texels, x, y, style.width, style.height, glass)
            if rng.random() < 0.3:
                _box(
                    texture,
                    texels,
                    x,
                    y,
                    style.width,
                    style.height * rng.uniform(0.2, 0.6),
                    shifted(glass, 34),
                )


def joints(
    texture: NDArray[np.uint8], texels: float, colour: Colour, *, every: float, rows: bool = False
) -> None:
    """Draw the seams between panels ``every`` so many metres in place: walls, trucks and blind facades have them."""
    seam = scaled(colour, 0.82)
    height, width = texture.shape[0] / texels, texture.shape[1] / texels
    for x in np.arange(every, width, every):
        _box(texture, texels, float(x), 0.0, 0.07, height, seam)
    if rows:
        for y in np.arange(every / 2, height, every / 2):
            _box(texture, texels, 0.0, float(y), width, 0.05, seam)


def courses(texture: NDArray[np.uint8], texels: float, colour: Colour, *, every: float) -> None:
    """Draw the mortar between courses of stone ``every`` so many metres in place: most walls are laid, houses are rendered."""
    height, width = texture.shape[0] / texels, texture.shape[1] / texels
    mortar = scaled(colour, 0.76)
    for row, y in enumerate(np.arange(every, height, every)):
        _box(texture, texels, 0.0, float(y), width, 0.07, mortar)
        for x in np.arange(every * (1 + row % 2), width, 2 * every):
            _box(texture, texels, float(x), float(y) - every, 0.07, every, mortar)


def stripe(
    texture: NDArray[np.uint8], texels: float, colour: Colour, *, top: float, height: float
) -> None:
    """Draw a band over the whole length in place."""
    _box(texture, texels, 0.0, top, texture.shape[1] / texels, height, colour)


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
    _box(texture, texels, left, texture.shape[0] / texels - height, width, height, colour)


def _box(
    texture: NDArray[np.uint8],
    texels: float,
    x: float,
    y: float,
    width: float,
    height: float,
    colour: Colour,
) -> None:
    corners = (
        np.array([[x, y], [x + width, y], [x + width, y + height], [x, y + height]]) * texels - 0.5
    )
    cv2.fillPoly(
        texture, [np.round(corners * 16).astype(np.int32)], colour, lineType=cv2.LINE_AA, shift=4
    )
