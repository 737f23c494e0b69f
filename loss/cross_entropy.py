"""Cross-entropy, with weights for rare classes.

The loss is a sum over valid pixels, divided by their number in the whole batch (see
`pixels.mean_over_pixels`). Weights are scaled so that a pixel weighs one on average, and the number
of pixels stays the right denominator.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from .fast.softmax import softmax_cross_entropy
from .pixels import (
    check_class_weights,
    check_shapes,
    class_index,
    exact_device,
    mean_over_pixels,
    valid_mask,
    without_autocast,
)

Weighting = Literal["linear", "inverse", "log"]


def cross_entropy(
    logits: Tensor,
    label: Tensor,
    *,
    ignore_label: int = 255,
    class_weights: Tensor | None = None,
    image_weights: Weighting | None = None,
    valid_pixels: Tensor | int | None = None,
    parts: int = 1,
) -> Tensor:
    """Mean over valid pixels of -log softmax(logits)[label], times a weight where one is asked for.

    Args:
        logits: floating point [N, C, H, W].
        label: integer [N, H, W].
        ignore_label: pixels of this label do not count, nor do those of a label that is no class.
        class_weights: [C], as `class_weights_from_counts` makes them.
        image_weights: weigh the classes of each image by that image's own label counts. (The
            authors' image-based weighting differs: docs/release_notes.md, losses.)
        valid_pixels: see `pixels.mean_over_pixels`.
        parts: see `pixels.mean_over_pixels`.

    Returns:
        A scalar, fp64 for fp64 logits and fp32 otherwise; 0 with zero gradient when every pixel is
        ignored.

    Raises:
        LossError: the shapes do not fit each other.
    """
    check_class_weights(class_weights, logits)
    pixel_loss, valid = pixel_cross_entropy(logits, label, ignore_label=ignore_label)

    if class_weights is not None:
        weights = class_weights.to(pixel_loss).expand(len(label), -1)
        pixel_loss = pixel_loss * _weight_of_pixels(weights, label, valid)

    if image_weights is not None:
        counts = _count_labels(label, valid, num_classes=logits.shape[1])
        weights = class_weights_from_counts(counts, weighting=image_weights)
        weights = weights.to(pixel_loss.dtype).to(pixel_loss.device)
        pixel_loss = pixel_loss * _weight_of_pixels(weights, label, valid)

    return mean_over_pixels(pixel_loss.sum(), valid, valid_pixels=valid_pixels, parts=parts)


def pixel_cross_entropy(
    logits: Tensor, label: Tensor, *, ignore_label: int = 255
) -> tuple[Tensor, Tensor]:
    """-log softmax(logits)[label] of every pixel, and which pixels are valid.

    Args:
        logits: floating point [N, C, H, W].
        label: integer [N, H, W].
        ignore_label: pixels of this label are not valid.

    Returns:
        The loss of each pixel [N, H, W], zero where it is not valid, fp64 for fp64 logits and fp32
        otherwise; and the mask of the valid pixels, bool [N, H, W].
    """
    check_shapes(logits, label)
    valid = valid_mask(label, num_classes=logits.shape[1], ignore_label=ignore_label)
    with without_autocast(logits.device):
        return softmax_cross_entropy(logits, label, valid), valid


def class_weights_from_counts(
    counts: Tensor, *, weighting: Weighting = "linear", strength: float = 1.0
) -> Tensor:
    """Weights of classes from how many pixels carry each label: rarer classes weigh more.

    With f the share of a class, "linear" is 1 + strength (1 - f) and "inverse" 1 + strength / f,
    as in the authors' code. "log" is 1 / ln(1.02 + f), as in ENet (Paszke et al. 2016, section 5.2,
    https://arxiv.org/abs/1606.02147): a weight of at most 50.5, for a class of hardly a pixel, and
    1.4 for one that is everywhere. All weights are then divided by their mean over the counted
    pixels, so that a pixel weighs one on average. A class without pixels weighs 1 before that.

    Args:
        counts: pixels of each class, [..., C].
        weighting: the formula.
        strength: how much rare classes gain; not of "log".

    Returns:
        fp64 [..., C].
    """
    counts = counts.to(exact_device(counts.device)).double()
    share = counts / counts.sum(-1, keepdim=True).clamp(min=1)

    if weighting == "linear":
        weights = 1 + strength * (1 - share)
    elif weighting == "inverse":
        weights = 1 + strength / share.clamp(min=torch.finfo(share.dtype).tiny)
    else:
        weights = 1 / torch.log(1.02 + share)
    weights = torch.where(counts > 0, weights, 1.0)

    mean = (share * weights).sum(-1, keepdim=True)
    return weights / torch.where(mean > 0, mean, 1.0)


def _weight_of_pixels(weights: Tensor, label: Tensor, valid: Tensor) -> Tensor:
    """The weight [N, H, W] of each pixel's class, from `weights` [N, C]."""
    # A pixel that is not valid gets the weight of class 0; its loss is zero.
    return weights.gather(1, class_index(label, valid).flatten(1)).view(label.shape)


def _count_labels(label: Tensor, valid: Tensor, *, num_classes: int) -> Tensor:
    """Valid pixels of each class in each image, int64 [N, C]."""
    # Unlike bincount, scatter_add does not make the host wait for a GPU.
    index = class_index(label, valid).flatten(1)
    counts = torch.zeros(len(label), num_classes, dtype=torch.int64, device=label.device)
    return counts.scatter_add_(1, index, valid.flatten(1).long())
