"""Cross-entropy of the hardest pixels alone: bootstrapping, and online hard example mining.

Pixels are chosen image by image, and the mean over an image's chosen pixels stands for all of its
valid pixels. So the loss does not depend on how a batch is divided among processes.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .cross_entropy import pixel_cross_entropy
from .pixels import LossError, mean_over_pixels


def bootstrapped_cross_entropy(
    logits: Tensor,
    label: Tensor,
    *,
    ignore_label: int = 255,
    fraction: float = 0.25,
    valid_pixels: Tensor | int | None = None,
    parts: int = 1,
) -> Tensor:
    """Cross-entropy of the hardest `fraction` of each image's valid pixels.

    Source: Wu et al. 2016 (https://arxiv.org/abs/1605.06885) and Pohlen et al. 2017
    (https://arxiv.org/abs/1611.08323). Pixels as hard as the last chosen one are chosen too.

    Args:
        logits: floating point [N, C, H, W].
        label: integer [N, H, W].
        ignore_label: pixels of this label do not count.
        fraction: share of an image's valid pixels that is chosen.
        valid_pixels: see `pixels.mean_over_pixels`.
        parts: see `pixels.mean_over_pixels`.

    Returns:
        A scalar, fp64 for fp64 logits and fp32 otherwise.

    Raises:
        LossError: `fraction` is no share, or the shapes do not fit each other.
    """
    if not 0 < fraction <= 1:
        raise LossError(f"fraction must lie in (0, 1], not {fraction}.")

    pixel_loss, valid = pixel_cross_entropy(logits, label, ignore_label=ignore_label)
    chosen = pixel_loss.detach() >= _hardest(pixel_loss, valid, fraction=fraction)
    total = _sum_of_chosen(pixel_loss, chosen & valid, valid)
    return mean_over_pixels(total, valid, valid_pixels=valid_pixels, parts=parts)


def ohem_cross_entropy(
    logits: Tensor,
    label: Tensor,
    *,
    ignore_label: int = 255,
    threshold: float = 0.7,
    min_kept: float = 0.1,
    valid_pixels: Tensor | int | None = None,
    parts: int = 1,
) -> Tensor:
    """Cross-entropy of the pixels whose true class has a probability below `threshold`.

    Online hard example mining, Shrivastava et al. 2016 (https://arxiv.org/abs/1604.03540). The
    remaining arguments, the result and the errors are those of `bootstrapped_cross_entropy`.

    Args:
        threshold: probability of the true class from which on a pixel is easy.
        min_kept: share of an image's valid pixels that is chosen in any case, the hardest ones.
    """
    if not 0 < threshold <= 1 or not 0 < min_kept <= 1:
        raise LossError(
            f"threshold and min_kept must lie in (0, 1], not {threshold} and {min_kept}."
        )

    pixel_loss, valid = pixel_cross_entropy(logits, label, ignore_label=ignore_label)
    hard = pixel_loss.detach() > -math.log(threshold)
    chosen = hard | (pixel_loss.detach() >= _hardest(pixel_loss, valid, fraction=min_kept))
    total = _sum_of_chosen(pixel_loss, chosen & valid, valid)
    return mean_over_pixels(total, valid, valid_pixels=valid_pixels, parts=parts)


def _hardest(pixel_loss: Tensor, valid: Tensor, *, fraction: float) -> Tensor:
    """The smallest loss among each image's hardest `fraction` of valid pixels, [N, 1, 1]."""
    masked = torch.where(valid, pixel_loss.detach(), -torch.inf)
    ordered = masked.flatten(1).sort(dim=1, descending=True).values

    # At least one pixel, so that an image without valid pixels has a place to read from.
    count = (valid.flatten(1).sum(1, keepdim=True) * fraction).ceil().long().clamp(min=1)
    return ordered.gather(1, count - 1)[:, :, None]


def _sum_of_chosen(pixel_loss: Tensor, chosen: Tensor, valid: Tensor) -> Tensor:
    """Sum over images of (mean over the chosen pixels) x (number of valid pixels)."""
    sums = torch.where(chosen, pixel_loss, 0.0).flatten(1).sum(1)
    scale = valid.flatten(1).sum(1) / chosen.flatten(1).sum(1).clamp(min=1)
    return (sums * scale).sum()
