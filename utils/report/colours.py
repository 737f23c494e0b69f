"""Colour scales made from OKLab, so that equal steps of a value look like equal steps."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

# OKLab (Ottosson 2020, https://bottosson.github.io/posts/oklab/): the cube roots of the cone
# responses from Lab, then linear sRGB from the cone responses.
_LAB_TO_CONES = np.array(
    [
        [1, 0.3963377774, 0.2158037573],
        [1, -0.1055613458, -0.0638541728],
        [1, -0.0894841775, -1.2914855480],
    ]
)
_CONES_TO_RGB = np.array(
    [
        [4.0767416621, -3.3077115913, 0.2309699292],
        [-1.2684380046, 2.6097574011, -0.3413193965],
        [-0.0041960863, -0.7034186147, 1.7076147010],
    ]
)


def oklch(lightness: np.ndarray, chroma: np.ndarray, hue: np.ndarray) -> np.ndarray:
    """sRGB uint8 [..., 3] of colours given by lightness, chroma and hue.

    Args:
        lightness: from 0 to 1.
        chroma: shrinks where sRGB has no such colour.
        hue: in degrees.
    """
    lightness, chroma, hue = np.broadcast_arrays(lightness, chroma, np.deg2rad(hue))
    rgb = np.zeros((*lightness.shape, 3))

    # Less and less chroma, until every colour is inside sRGB.
    todo = np.ones(lightness.shape, dtype=bool)
    for share in np.linspace(1, 0, 201):
        lab = np.stack(
            [lightness, share * chroma * np.cos(hue), share * chroma * np.sin(hue)], axis=-1
        )
        linear = (lab @ _LAB_TO_CONES.T) ** 3 @ _CONES_TO_RGB.T
        inside = ((linear >= -1e-4) & (linear <= 1 + 1e-4)).all(axis=-1)
        fits = todo & inside
        rgb[fits] = linear[fits].clip(0, 1)
        todo &= ~fits

    # The transfer function of sRGB (IEC 61966-2-1).
    bright = 1.055 * np.maximum(rgb, 1e-9) ** (1 / 2.4) - 0.055
    curved = np.where(rgb <= 0.0031308, 12.92 * rgb, bright)
    return (curved * 255).round().astype(np.uint8)


@lru_cache(maxsize=1)
def heat_colours() -> np.ndarray:
    """uint8 [256, 3] from near-black violet over magenta and orange to pale yellow.

    Their lightness rises evenly.
    """
    step = np.linspace(0, 1, 256)
    colours = oklch(0.14 + 0.83 * step, 0.03 + 0.2 * np.sin(np.pi * step**0.9), 285 + 185 * step)
    colours.setflags(write=False)  # shared by all callers
    return colours


def scale_colours(count: int) -> np.ndarray:
    """uint8 [count, 3]: one colour per scale, from the smallest (amber) to the largest (blue).

    The colour-blind can tell them apart too.
    """
    step = np.zeros(1)
    if count > 1:
        step = np.linspace(0, 1, count)
    return oklch(0.80 - 0.30 * step, 0.16 + 0 * step, 75 + 190 * step)
