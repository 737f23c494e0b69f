"""Soft Dice loss: the overlap of each class's probabilities with its label."""

from __future__ import annotations

import torch
from torch import Tensor

from .pixels import (
    LossError,
    check_shapes,
    class_index,
    computing_dtype,
    mean_over_images,
    valid_mask,
    without_autocast,
)


def dice_loss(
    logits: Tensor,
    label: Tensor,
    *,
    ignore_label: int = 255,
    smooth: float = 0.0,
    valid_pixels: Tensor | int | None = None,
    parts: int = 1,
) -> Tensor:
    """One minus the Dice coefficient, the mean over the classes that an image's label shows.

    With p the soft-max probabilities and g the one-hot label, over the valid pixels i of an image
    the Dice coefficient of class c is

        D_c = (2 sum_i p_ic g_ic + smooth) / (sum_i p_ic + sum_i g_ic + smooth).

    Source: Milletari, Navab, Ahmadi 2016, section 3 (https://arxiv.org/abs/1606.04797), which
    squares p and g in the denominator; this is the more usual form without squares, as in Sudre et
    al. 2017 (https://arxiv.org/abs/1707.03237). An image counts by its valid pixels, so that the
    loss does not depend on how a batch is divided among processes.

    Args:
        logits: floating point [N, C, H, W].
        label: integer [N, H, W].
        ignore_label: pixels of this label do not count.
        smooth: added above and below the line.
        valid_pixels: see `pixels.mean_over_pixels`.
        parts: see `pixels.mean_over_pixels`.

    Returns:
        A scalar, fp64 for fp64 logits and fp32 otherwise; 0 with zero gradient when every pixel is
        ignored.

    Raises:
        LossError: `smooth` is negative, or the shapes do not fit each other.

    Example:
        >>> label = torch.tensor([[[0, 1, 1, 255]]])
        >>> logits = torch.zeros(1, 2, 1, 4)  # both classes are as likely everywhere
        >>> dice_loss(logits, label)  # 1 - (2 * 0.5 / 2.5 + 2 * 1 / 3.5) / 2
        tensor(0.5143)
    """
    if smooth < 0:
        raise LossError(f"smooth must not be negative, and is {smooth}.")
    check_shapes(logits, label)
    valid = valid_mask(label, num_classes=logits.shape[1], ignore_label=ignore_label)

    with without_autocast(logits.device):
        probability, target = probability_and_target(logits, label, valid)
        overlap = (probability * target).sum(2)
        total = probability.sum(2) + target.sum(2)

        # A class that the label does not show has no overlap to win, and no term.
        shown = target.sum(2) > 0
        divisor = torch.where(shown, total + smooth, 1)
        missing = torch.where(shown, 1 - (2 * overlap + smooth) / divisor, 0)
        image_loss = missing.sum(1) / shown.sum(1).clamp(min=1)
    return mean_over_images(image_loss, valid, valid_pixels=valid_pixels, parts=parts)


def probability_and_target(logits: Tensor, label: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Soft-max probabilities and the one-hot label, both [N, C, H * W], 0 where not `valid`."""
    probability = logits.to(computing_dtype(logits)).softmax(1).flatten(2)
    inside = valid.flatten(1)[:, None]
    index = class_index(label, valid).flatten(1)[:, None]

    # A pixel that is not valid stands at index 0 with nothing to enter.
    target = torch.zeros_like(probability).scatter_(1, index, inside.to(probability))
    return torch.where(inside, probability, 0), target
