"""Pictures of labels, predictions and attention. All are uint8 RGB arrays [H, W, 3] on the host."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .png import write_png

__all__ = ["attention_share", "colorize", "error_map", "heat", "overlay", "panel", "scale_map", "scale_shares", "write_png"]


def colorize(label: np.ndarray, palette: np.ndarray) -> np.ndarray:
    """RGB picture of class ids uint8 [H, W] by `palette` uint8 [256, 3] (ids without a class: whatever the palette says, black by habit)."""
    return np.asarray(palette, dtype=np.uint8)[label]


def overlay(image: np.ndarray, label: np.ndarray, palette: np.ndarray, alpha: float = 0.5, ignore_label: int | None = None) -> np.ndarray:
    """`image` uint8 [H, W, 3] tinted by the colours of `label` [H, W]; `alpha` is the share of the colour. `ignore_label` stays untinted."""
    mixed = cv2.addWeighted(image, 1 - alpha, colorize(label, palette), alpha, 0)
    if ignore_label is not None:
        mixed[label == ignore_label] = image[label == ignore_label]
    return mixed


# Anchors of our own colour scale from dark blue over teal and ochre to near-white, of evenly rising lightness.
_ANCHORS = np.array([[10, 10, 46], [50, 28, 110], [20, 92, 132], [30, 140, 120], [130, 170, 70], [226, 190, 70], [255, 246, 220]], dtype=np.float64)


def heat_colours() -> np.ndarray:
    """The colour scale of `heat`, uint8 [256, 3]: lightness rises evenly from first to last."""
    position = np.linspace(0, 1, len(_ANCHORS))
    fine = np.linspace(0, 1, 256)
    return np.stack([np.interp(fine, position, channel) for channel in _ANCHORS.T], axis=1).round().astype(np.uint8)


def heat(attention: np.ndarray, low: float = 0.0, high: float = 1.0) -> np.ndarray:
    """RGB heat map of values [H, W]; `low` and below is dark, `high` and above is bright."""
    level = np.clip((np.asarray(attention, dtype=np.float32) - low) / (high - low), 0, 1)
    return heat_colours()[(level * 255).round().astype(np.uint8)]


def error_map(predicted: np.ndarray, label: np.ndarray, ignore_label: int = 255, image: np.ndarray | None = None) -> np.ndarray:
    """Wrong pixels red, ignored ones black, right ones light grey (a pale copy of `image` when given)."""
    if image is None:
        picture = np.full((*label.shape, 3), 232, dtype=np.uint8)
    else:
        grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
        picture = np.repeat((150 + grey[..., None].astype(np.float32) * 0.4).astype(np.uint8), 3, axis=2)
    picture[predicted != label] = (214, 39, 40)
    picture[label == ignore_label] = 0
    return picture


def scale_shares(attentions: Mapping[float, np.ndarray | None], size: tuple[int, int]) -> dict[float, np.ndarray]:
    """How much each scale counts at each pixel, float32 [H, W] per scale, summing to 1 over the scales (paper, figure 3).

    `attentions` maps each scale to its attention [h, w] at any size; that of the largest scale is not used and may be None. The chain
    (METHOD 1) starts with the largest scale at weight 1; each next smaller scale s takes a_s of every pixel and leaves 1 - a_s to the rest.
    """
    order = sorted(attentions, reverse=True)
    shares = {order[0]: np.ones(size, dtype=np.float32)}
    for scale in order[1:]:
        attention = attentions[scale]
        assert attention is not None, f"scale {scale:g} has no attention: only the largest scale may lack it"
        own = cv2.resize(np.asarray(attention, dtype=np.float32), (size[1], size[0]), interpolation=cv2.INTER_LINEAR)
        for larger in shares:
            shares[larger] = shares[larger] * (1 - own)
        shares[scale] = own
    return {scale: shares[scale] for scale in attentions}


def attention_share(shares: Mapping[float, np.ndarray], label: np.ndarray, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Sums of the weights of `scale_shares` per scale and class, float64 [S, C], and the pixels per class, int64 [C].

    Sum both over images and divide to get the mean share of every scale per class. Pixels whose label is no class do not count.
    """
    flat = label.reshape(-1).astype(np.int64)
    scored = flat < num_classes
    sums = np.stack([np.bincount(flat[scored], weights=share.reshape(-1)[scored], minlength=num_classes) for share in shares.values()])
    return sums, np.bincount(flat[scored], minlength=num_classes)


def scale_colours(count: int) -> np.ndarray:
    """A colour per scale, uint8 [count, 3], from the smallest scale (warm) to the largest (cool)."""
    anchors = np.array([[213, 94, 0], [240, 200, 70], [0, 158, 115], [0, 90, 181]], dtype=np.float64)
    at = np.linspace(0, len(anchors) - 1, max(count, 2))[:count]
    return np.stack([np.interp(at, range(len(anchors)), channel) for channel in anchors.T], axis=1).round().astype(np.uint8)


def scale_map(shares: Mapping[float, np.ndarray]) -> np.ndarray:
    """One picture of which scale each region trusts: colours of `scale_colours`, mixed by the weights of `scale_shares`."""
    order = sorted(shares)
    colours = scale_colours(len(order)).astype(np.float32)
    return sum(shares[scale][..., None] * colour for scale, colour in zip(order, colours, strict=True)).round().clip(0, 255).astype(np.uint8)


def panel(tiles: Sequence[tuple[str, np.ndarray]], *, columns: int | None = None, width: int | None = None, gap: int = 8) -> np.ndarray:
    """Pictures [h, w, 3] with captions, side by side in rows of `columns` (default: all in one row), on white.

    Each tile is scaled to `width` pixels (default: the widest tile's own width) keeping its proportions.
    """
    assert tiles
    columns = min(columns or len(tiles), len(tiles))
    width = width or max(picture.shape[1] for _, picture in tiles)
    scaled = [(caption, _to_width(picture, width)) for caption, picture in tiles]
    font = ImageFont.load_default(size=max(11, min(20, width // 22)))
    caption_height = int(font.size * 1.6)
    rows = [scaled[start : start + columns] for start in range(0, len(scaled), columns)]
    heights = [max(picture.shape[0] for _, picture in row) + caption_height for row in rows]
    canvas = np.full((sum(heights) + gap * (len(rows) + 1), columns * width + gap * (columns + 1), 3), 255, dtype=np.uint8)
    drawing = Image.fromarray(canvas)
    brush = ImageDraw.Draw(drawing)
    top = gap
    for row, height in zip(rows, heights, strict=True):
        for column, (caption, picture) in enumerate(row):
            left = gap + column * (width + gap)
            brush.text((left, top), caption, fill=(40, 40, 40), font=font)
            drawing.paste(Image.fromarray(picture), (left, top + caption_height))
        top += height + gap
    return np.asarray(drawing)


def _to_width(picture: np.ndarray, width: int) -> np.ndarray:
    if picture.shape[1] == width:
        return np.ascontiguousarray(picture)
    height = max(1, math.floor(picture.shape[0] * width / picture.shape[1] + 0.5))
    way = cv2.INTER_AREA if width < picture.shape[1] else cv2.INTER_NEAREST
    return cv2.resize(picture, (width, height), interpolation=way)
