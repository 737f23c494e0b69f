"""Pictures of labels, predictions, errors and attention: uint8 RGB arrays [H, W, 3] on the host."""

from __future__ import annotations

from collections.abc import Mapping

import cv2
import numpy as np

from ..files.png import write_png
from .colours import heat_colours, scale_colours
from .panels import legend, panel, with_colour_bar

__all__ = [
    "attention_share",
    "colorize",
    "error_map",
    "heat",
    "legend",
    "overlay",
    "panel",
    "scale_map",
    "scale_shares",
    "with_colour_bar",
    "write_png",
]

_WRONG = (222, 45, 38)


def colorize(label: np.ndarray, palette: np.ndarray) -> np.ndarray:
    """Colours of class ids uint8 [H, W], by `palette` uint8 [256, 3]."""
    return np.asarray(palette, dtype=np.uint8)[label]


def overlay(
    image: np.ndarray,
    label: np.ndarray,
    palette: np.ndarray,
    alpha: float = 0.5,
    ignore_label: int | None = None,
) -> np.ndarray:
    """`image` uint8 [H, W, 3] tinted by the colours of `label` [H, W]; `alpha` is the share of the colour.

    Pixels of `ignore_label`, when given, keep the image.
    """
    mixed = cv2.addWeighted(image, 1 - alpha, colorize(label, palette), alpha, 0)
    if ignore_label is not None:
        ignored = label == ignore_label
        mixed[ignored] = image[ignored]
    return mixed


def heat(attention: np.ndarray, low: float = 0.0, high: float = 1.0) -> np.ndarray:
    """Heat map of values [H, W]: `low` and below are dark, `high` and above bright. See `with_colour_bar`."""
    assert low < high
    level = np.clip((np.asarray(attention, dtype=np.float32) - low) / (high - low), 0, 1)
    return heat_colours()[(level * 255).round().astype(np.uint8)]


def error_map(
    predicted: np.ndarray,
    label: np.ndarray,
    ignore_label: int = 255,
    image: np.ndarray | None = None,
) -> np.ndarray:
    """Wrong pixels red, ignored ones black, right ones light grey, or the pale grey `image` when it is given."""
    if image is None:
        picture = np.full((*label.shape, 3), 232, dtype=np.uint8)
    else:
        grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
        picture = np.repeat(cv2.convertScaleAbs(grey, alpha=0.45, beta=130)[..., None], 3, axis=2)
    picture[predicted != label] = _WRONG
    picture[label == ignore_label] = 0
    return picture


def scale_shares(
    attentions: Mapping[float, np.ndarray | None], size: tuple[int, int]
) -> dict[float, np.ndarray]:
    """The weight of every scale at every pixel, float32 [H, W] each; over the scales they sum to 1 (paper, figure 3).

    `attentions` maps every scale to its attention [h, w] of any size; that of the largest is not used and may be None.
    The chain (METHOD section 1, equation 1) begins with the largest scale, at weight 1; every next smaller scale s
    takes a_s for itself and leaves 1 - a_s to those before it.
    """
    order = sorted(attentions, reverse=True)
    shares = {order[0]: np.ones(size, dtype=np.float32)}
    for scale in order[1:]:
        attention = attentions[scale]
        assert attention is not None, (
            f"scale {scale:g} has no attention: only the largest scale may lack it"
        )
        values = np.asarray(attention, dtype=np.float32)
        own = np.asarray(
            cv2.resize(values, (size[1], size[0]), interpolation=cv2.INTER_LINEAR), dtype=np.float32
        )
        shares = {larger: share * (1 - own) for larger, share in shares.items()}
        shares[scale] = own
    return {scale: shares[scale] for scale in attentions}


def attention_share(
    shares: Mapping[float, np.ndarray], label: np.ndarray, num_classes: int
) -> tuple[np.ndarray, np.ndarray]:
    """Sums of the weights of `scale_shares` per scale and class, float64 [S, C], and pixels per class, int64 [C].

    Add both up over images and divide them: the mean share of every scale per class. Pixels whose label [H, W] is no
    class do not count.
    """
    flat = label.reshape(-1).astype(np.int64)
    scored = flat < num_classes
    classes = flat[scored]
    weights = [share.reshape(-1)[scored] for share in shares.values()]
    sums = [np.bincount(classes, weights=weight, minlength=num_classes) for weight in weights]
    return np.stack(sums), np.bincount(classes, minlength=num_classes)


def scale_map(shares: Mapping[float, np.ndarray]) -> np.ndarray:
    """Which scale each region trusts: the colours of `colours.scale_colours`, mixed by the weights of `scale_shares`."""
    order = sorted(shares)
    colours = scale_colours(len(order)).astype(np.float32)
    mixed = sum(
        shares[scale][..., None] * colour for scale, colour in zip(order, colours, strict=True)
    )
    return np.asarray(mixed).round().clip(0, 255).astype(np.uint8)
