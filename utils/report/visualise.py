"""Pictures of labels, predictions, errors and attention: uint8 RGB arrays [H, W, 3] on the host."""

from __future__ import annotations

from collections.abc import Mapping

import cv2
import numpy as np

from .colours import heat_colours, scale_colours
from .panels import panel

__all__ = [
    "attention_share",
    "colorize",
    "error_map",
    "heat",
    "overlay",
    "panel",
    "scale_map",
    "scale_shares",
]

# Colours of an error map.
_WRONG = (222, 45, 38)
_RIGHT = (232, 232, 232)


def colorize(label: np.ndarray, palette: np.ndarray) -> np.ndarray:
    """The colours of `label` uint8 [H, W] by `palette` uint8 [256, 3]."""
    return np.asarray(palette, dtype=np.uint8)[label]


def overlay(
    image: np.ndarray,
    label: np.ndarray,
    palette: np.ndarray,
    alpha: float = 0.5,
    ignore_label: int | None = None,
) -> np.ndarray:
    """`image` uint8 [H, W, 3] tinted by the colours of `label` [H, W].

    Args:
        palette: uint8 [256, 3].
        alpha: the share of the colour, from 0 to 1.
        ignore_label: pixels of this label, when it is given, keep the image.
    """
    # opencv rounds; numpy's arithmetic in uint8 would cut off.
    mixed = cv2.addWeighted(image, 1 - alpha, colorize(label, palette), alpha, 0)
    if ignore_label is not None:
        ignored = label == ignore_label
        mixed[ignored] = image[ignored]
    return mixed


def heat(attention: np.ndarray, low: float = 0.0, high: float = 1.0) -> np.ndarray:
    """Heat map of values [H, W]: `low` and below are dark, `high` and above are bright."""
    assert low < high
    level = np.clip((np.asarray(attention, dtype=np.float32) - low) / (high - low), 0, 1)
    return heat_colours()[(level * 255).round().astype(np.uint8)]


def error_map(
    predicted: np.ndarray,
    label: np.ndarray,
    ignore_label: int = 255,
    image: np.ndarray | None = None,
) -> np.ndarray:
    """Wrong pixels red, ignored ones black, right ones light grey.

    Where `image` uint8 [H, W, 3] is given, right pixels show it in pale grey.
    """
    if image is None:
        picture = np.full((*label.shape, 3), _RIGHT, dtype=np.uint8)
    else:
        # Pale enough that red and black stand out against any image.
        grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
        pale = cv2.convertScaleAbs(grey, alpha=0.45, beta=130)
        picture = np.repeat(pale[..., None], 3, axis=2)

    # Ignored pixels come last: whatever is predicted there is no mistake.
    picture[predicted != label] = _WRONG
    picture[label == ignore_label] = 0
    return picture


def scale_shares(
    attentions: Mapping[float, np.ndarray | None], size: tuple[int, int]
) -> dict[float, np.ndarray]:
    """The weight of every scale at every pixel, float32 [H, W] each (paper, figure 3).

    Over the scales the weights sum to 1. The chain of the paper (section 3.2, equation 1) begins
    with the largest scale, at weight 1; every next smaller scale s takes a_s for itself and leaves
    1 - a_s to those before it.

    Args:
        attentions: the attention [h, w] of every scale, of any size. That of the largest is not
            used and may be None.
        size: (H, W) of the weights.
    """
    order = sorted(attentions, reverse=True)
    shares = {order[0]: np.ones(size, dtype=np.float32)}
    for scale in order[1:]:
        attention = attentions[scale]
        assert attention is not None, (
            f"scale {scale:g} has no attention: only the largest scale may lack it"
        )
        # Bilinear, as the network resizes its attention.
        values = np.asarray(attention, dtype=np.float32)
        resized = cv2.resize(values, (size[1], size[0]), interpolation=cv2.INTER_LINEAR)
        own = np.asarray(resized, dtype=np.float32)

        shares = {larger: share * (1 - own) for larger, share in shares.items()}
        shares[scale] = own
    return {scale: shares[scale] for scale in attentions}


def attention_share(
    shares: Mapping[float, np.ndarray], label: np.ndarray, num_classes: int
) -> tuple[np.ndarray, np.ndarray]:
    """How much each scale counts for the pixels of each class.

    Add both results up over images and divide the first by the second: the mean share of every
    scale per class. Pixels whose label [H, W] is no class do not count.

    Returns:
        Sums of the weights of `scale_shares` per scale and class, float64 [S, C], and the pixels of
        each class, int64 [C].
    """
    flat = label.reshape(-1).astype(np.int64)
    # The ignore label is larger than every class.
    scored = flat < num_classes
    classes = flat[scored]
    weights = [share.reshape(-1)[scored] for share in shares.values()]
    sums = [np.bincount(classes, weights=weight, minlength=num_classes) for weight in weights]
    return np.stack(sums), np.bincount(classes, minlength=num_classes)


def scale_map(shares: Mapping[float, np.ndarray]) -> np.ndarray:
    """Which scale counts most at each pixel, in the colour of that scale.

    `shares` are those of `scale_shares`, the colours those of `colours.scale_colours`.
    """
    order = sorted(shares)
    strongest = np.argmax(np.stack([shares[scale] for scale in order]), axis=0)
    return scale_colours(len(order))[strongest]
