"""Focal loss: cross-entropy in which pixels that are easy count little."""

from __future__ import annotations

import torch
from torch import Tensor

from .cross_entropy import pixel_cross_entropy
from .pixels import LossError, mean_over_pixels


def focal_loss(
    logits: Tensor,
    label: Tensor,
    *,
    ignore_label: int = 255,
    gamma: float = 2.0,
    valid_pixels: Tensor | int | None = None,
    parts: int = 1,
) -> Tensor:
    """Mean over valid pixels of -(1 - p)^gamma log p, with p the probability of the label.

    Source: Lin, Goyal, Girshick, He, Dollar 2017, equation 4 (https://arxiv.org/abs/1708.02002),
    with the soft-max over classes where they have one sigmoid a class. With gamma 0 it is
    cross-entropy.

    Args:
        logits: floating point [N, C, H, W].
        label: integer [N, H, W].
        ignore_label: pixels of this label do not count.
        gamma: how much less easy pixels count (2 in the paper).
        valid_pixels: see `pixels.mean_over_pixels`.
        parts: see `pixels.mean_over_pixels`.

    Returns:
        A scalar, fp64 for fp64 logits and fp32 otherwise; 0 with zero gradient when every pixel is
        ignored.

    Raises:
        LossError: `gamma` is negative, or the shapes do not fit each other.

    Example:
        >>> logits = torch.zeros(1, 2, 4, 4)  # p is 1/2 everywhere, so log 2 / 4
        >>> focal_loss(logits, torch.ones(1, 4, 4, dtype=torch.long))
        tensor(0.1733)
    """
    if gamma < 0:
        raise LossError(f"gamma must not be negative, and is {gamma}.")
    pixel_loss, valid = pixel_cross_entropy(logits, label, ignore_label=ignore_label)

    # 1 - p by expm1 keeps its digits where p is close to one. The slope of x^gamma is infinite at
    # 0 for gamma below 1, and a loss of 0 has no other gradient than 0.
    rest = -torch.expm1(-pixel_loss)
    hard = rest > 0
    weight = torch.where(hard, torch.where(hard, rest, 1) ** gamma, 0.0**gamma)
    total = (weight * pixel_loss).sum()
    return mean_over_pixels(total, valid, valid_pixels=valid_pixels, parts=parts)
