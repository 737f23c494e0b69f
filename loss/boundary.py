"""Boundary label relaxation (Zhu et al., Improving Semantic Segmentation via Video Propagation, CVPR 2019, eq. 3)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from .pixels import (
    LossError,
    check_shapes,
    computing_dtype,
    mean_over_pixels,
    valid_mask,
    without_autocast,
)
from .sources import Maps, whole


def relaxed_boundary_loss(
    logits: Maps,
    label: Tensor,
    *,
    ignore_label: int = 255,
    window: int = 3,
    strict_classes: Sequence[int] = (),
    valid_pixels: Tensor | int | None = None,
    parts: int = 1,
) -> Tensor:
    """Mean over valid pixels of -log of the probability of the union of the classes in the window around the pixel.

    Away from boundaries this is cross-entropy. A pixel whose own label is in `strict_classes` is not relaxed, and a
    pixel whose own label is ignored does not count. logits: floating [N, C, H, W]; label: integer [N, H, W].
    Returns a scalar, fp64 for fp64 logits and fp32 otherwise.
    """
    check_shapes(logits, label)
    if window < 1 or window % 2 == 0:
        raise LossError(f"window must be an odd number of pixels, not {window}.")
    num_classes = logits.shape[1]
    valid = valid_mask(label, num_classes=num_classes, ignore_label=ignore_label)
    candidates, counted = _distinct_neighbours(
        torch.where(valid, label.long(), num_classes), num_classes, window
    )
    for strict in strict_classes:
        counted[:, 1:] &= (label != strict)[:, None]
    with without_autocast(logits.device):
        scores = whole(logits).to(computing_dtype(logits))
        chosen = scores.gather(1, candidates).masked_fill(~counted, -torch.inf)
        # an ignored pixel has no candidate of its own: give it a finite one, or its gradient would be 0 * nan
        chosen = torch.cat((torch.where(valid[:, None], chosen[:, :1], 0.0), chosen[:, 1:]), dim=1)
        pixel_loss = torch.where(valid, scores.logsumexp(1) - chosen.logsumexp(1), 0.0)
        return mean_over_pixels(pixel_loss.sum(), valid, valid_pixels=valid_pixels, parts=parts)


def _distinct_neighbours(label: Tensor, num_classes: int, window: int) -> tuple[Tensor, Tensor]:
    """The labels in the window around each pixel, its own first, and which of them are valid and not seen before.

    label: int64 [N, H, W], `num_classes` where ignored. Returns int64 and bool [N, window^2, H, W]. Nine gathered maps
    do here what a multi-hot map over all classes would do.
    """
    reach = window // 2
    height, width = label.shape[1:]
    padded = functional.pad(label, (reach, reach, reach, reach), value=num_classes)
    offsets = sorted(
        ((dy, dx) for dy in range(window) for dx in range(window)),
        key=lambda offset: offset != (reach, reach),
    )
    neighbours = torch.stack(
        [padded[:, dy : dy + height, dx : dx + width] for dy, dx in offsets], dim=1
    )
    counted = neighbours < num_classes
    for place in range(1, len(offsets)):
        counted[:, place] &= (neighbours[:, :place] != neighbours[:, place : place + 1]).all(1)
    return neighbours.clamp_(max=num_classes - 1), counted
