"""Boundary label relaxation: near a boundary, any class of the neighbourhood is right.

Source: Zhu et al., Improving Semantic Segmentation via Video Propagation and Label Relaxation, CVPR
2019, equation 3 (https://arxiv.org/abs/1812.01593).
"""

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


def relaxed_boundary_loss(
    logits: Tensor,
    label: Tensor,
    *,
    ignore_label: int = 255,
    window: int = 3,
    strict_classes: Sequence[int] = (),
    valid_pixels: Tensor | int | None = None,
    parts: int = 1,
) -> Tensor:
    """Mean over valid pixels of -log(sum of the probabilities of the classes in the window).

    Away from boundaries this is cross-entropy. A pixel whose own label is in `strict_classes` is
    not relaxed, and a pixel whose own label is ignored does not count.

    Args:
        logits: floating point [N, C, H, W].
        label: integer [N, H, W].
        ignore_label: pixels of this label do not count.
        window: side of the square window around a pixel, in pixels; odd.
        strict_classes: classes whose pixels have one right class, their own.
        valid_pixels: see `pixels.mean_over_pixels`.
        parts: see `pixels.mean_over_pixels`.

    Returns:
        A scalar, fp64 for fp64 logits and fp32 otherwise.

    Raises:
        LossError: `window` is not odd, or the shapes do not fit each other.
    """
    check_shapes(logits, label)
    if window < 1 or window % 2 == 0:
        raise LossError(f"window must be an odd number of pixels, not {window}.")

    # The classes of each window, each once. A strict pixel keeps its own alone, which comes first.
    num_classes = logits.shape[1]
    valid = valid_mask(label, num_classes=num_classes, ignore_label=ignore_label)
    marked = torch.where(valid, label.long(), num_classes)
    candidates, counted = _distinct_neighbours(marked, num_classes, window)
    for strict in strict_classes:
        counted[:, 1:] &= (label != strict)[:, None]

    with without_autocast(logits.device):
        scores = logits.to(computing_dtype(logits))
        chosen = scores.gather(1, candidates).masked_fill(~counted, -torch.inf)

        # An ignored pixel has no class of its own: it gets a finite score, or its gradient would
        # be 0 * nan.
        own = torch.where(valid[:, None], chosen[:, :1], 0.0)
        chosen = torch.cat((own, chosen[:, 1:]), dim=1)

        # -log(sum of softmax over the chosen classes)
        pixel_loss = torch.where(valid, scores.logsumexp(1) - chosen.logsumexp(1), 0.0)
        return mean_over_pixels(pixel_loss.sum(), valid, valid_pixels=valid_pixels, parts=parts)


def _distinct_neighbours(label: Tensor, num_classes: int, window: int) -> tuple[Tensor, Tensor]:
    """The labels in the window around each pixel, and which of them count.

    Nine maps of labels are gathered here in place of a map with one channel a class.

    Args:
        label: int64 [N, H, W], `num_classes` where ignored.
        num_classes: number of classes.
        window: side of the window in pixels.

    Returns:
        The labels, int64 [N, window^2, H, W], the pixel's own first; and, in the same shape, which
        of them are classes that have not occurred before in the window.
    """
    reach = window // 2
    height, width = label.shape[1:]
    padded = functional.pad(label, (reach, reach, reach, reach), value=num_classes)

    # All offsets within the window, the centre first.
    offsets = [(dy, dx) for dy in range(window) for dx in range(window)]
    offsets.remove((reach, reach))
    offsets.insert(0, (reach, reach))
    shifted = [padded[:, dy : dy + height, dx : dx + width] for dy, dx in offsets]
    neighbours = torch.stack(shifted, dim=1)

    counted = neighbours < num_classes
    for place in range(1, len(offsets)):
        earlier = neighbours[:, :place]
        counted[:, place] &= (earlier != neighbours[:, place : place + 1]).all(1)
    return neighbours.clamp_(max=num_classes - 1), counted
