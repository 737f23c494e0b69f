"""Equation 1 of the paper and its chain over any list of scales."""
from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction

import torch
from torch import Tensor

from .layers import ModelError, resize
from .prediction import Prediction

Size = tuple[int, int]


def scaled_size(size: Sequence[int], scale: float) -> Size:
    """(height, width) of an image resized by `scale`: rounded down, at least one pixel."""
    return _scaled(size[0], scale), _scaled(size[1], scale)


def _scaled(length: int, scale: float) -> int:
    if isinstance(length, int):
        return max(1, math.floor(length * scale))
    exact = Fraction(scale).limit_denominator(1000)  # a symbolic length (torch.export) knows integers only
    return length if exact == 1 else length * exact.numerator // exact.denominator


def checked_scales(scales: Sequence[float]) -> tuple[float, ...]:
    """The scales as floats, or a ModelError when there are none, one is not positive, or one occurs twice."""
    values = tuple(float(scale) for scale in scales)
    if not values or any(not math.isfinite(scale) or scale <= 0 for scale in values):
        raise ModelError(f"scales {list(scales)} must be one or more positive numbers, such as 0.5 1.0 2.0.")
    if len(set(values)) < len(values):
        raise ModelError(f"scales {list(scales)} name a scale twice: give each scale once.")
    return values


def mix(weighted: Tensor, attention: Tensor, higher: Tensor) -> Tensor:
    """Equation 1 after resizing: U(a L) + (1 - U(a)) L', all three of one height and width."""
    return torch.addcmul(weighted + higher, attention, higher, value=-1)


def fuse(
    lower: Prediction, higher: Prediction, *, size: Sequence[int] | None = None, align_corners: bool = False
) -> Prediction:
    """Fuse two adjacent scales: L = U(L_low * a_low) + (1 - U(a_low)) * L_high (paper, equation 1).

    `lower` carries the attention `[N, 1, h, w]`, in (0, 1), at the size of its own logits; `size` is that of the result
    (default: of `higher`). The product comes before the resizing; whatever already has the size of the result is left
    alone. The auxiliary logits, where both have them, are fused by the same attention. Constant logits stay unchanged.
    """
    assert lower.attention is not None, "the lower scale of a pair carries the attention"
    size = tuple(size or higher.logits.shape[-2:])
    attention = resize(lower.attention, size, align_corners=align_corners)

    def fused(low: Tensor, high: Tensor) -> Tensor:
        weighted = resize(low * lower.attention, size, align_corners=align_corners)
        return mix(weighted, attention, resize(high, size, align_corners=align_corners))

    logits = fused(lower.logits, higher.logits)
    aux = None if lower.aux is None or higher.aux is None else fused(lower.aux, higher.aux)
    return Prediction(logits=logits, aux=aux, attention=attention)


def fuse_scales(
    predictions: Mapping[float, Prediction], *, size: Sequence[int], align_corners: bool = False
) -> Prediction:
    """Chain `fuse` from the highest scale to the lowest and return the result at `size` (height, width).

    Each prediction has the size of its own scaled image (or features). At scales of 1 and above the running result is
    resized down to the scale that joins it; below 1 the scale that joins is resized up to the running result. The list
    need not hold 1.0. The attention of the result is that of the lowest scale.
    """
    order = sorted(predictions, reverse=True)
    running = predictions[order[0]]._replace(attention=None)
    for scale in order[1:]:
        lower = predictions[scale]
        target = lower.logits.shape[-2:] if scale >= 1 else running.logits.shape[-2:]
        running = fuse(lower, running, size=target, align_corners=align_corners)
    return resized(running, size, align_corners=align_corners)


def resized(prediction: Prediction, size: Sequence[int], *, align_corners: bool) -> Prediction:
    """Every map of a prediction at `size` (height, width); the per-scale predictions are dropped."""
    maps = (prediction.logits, prediction.aux, prediction.attention)
    return Prediction(
        *(None if tensor is None else resize(tensor, size, align_corners=align_corners) for tensor in maps)
    )
