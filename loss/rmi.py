"""The RMI loss (Zhao et al., Region Mutual Information Loss, NeurIPS 2019), as the paper's runs use it.

loss = weight * bce + (1 - weight) * rmi. The second term may be negative, and so may the loss: a class without error
has rmi = 0.5 ln(5e-4) = -3.80.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional

from .binary import binary_cross_entropy, binary_terms, pooled_size
from .pixels import (
    LossError,
    check_shapes,
    class_index,
    computing_dtype,
    mean_over_pixels,
    row_blocks,
    valid_mask,
    without_autocast,
)
from .region import region_information
from .sources import Maps, whole

Pool = Literal["avg", "max", "interp"]


def rmi_loss(
    logits: Maps,
    label: Tensor,
    *,
    num_classes: int,
    ignore_label: int = 255,
    radius: int = 3,
    pool: Pool = "avg",
    pool_size: int = 4,
    probability_epsilon: float = 1e-6,
    covariance_epsilon: float = 5e-4,
    log_epsilon: float = 1e-8,
    valid_pixels: Tensor | int | None = None,
    parts: int = 1,
) -> dict[str, Tensor]:
    """The two terms of the loss, unweighted: {"bce": ..., "rmi": ...}, scalars.

    logits: floating [N, C, H, W]; label: integer [N, H, W]. "bce" is `binary_cross_entropy`. "rmi": one-hot labels and
    masked probabilities sigmoid(z) + `probability_epsilon` are pooled with size and stride `pool_size` and padding
    `pool_size // 2` ("avg" counts the padding; "interp" instead takes nearest labels and bilinear probabilities; size 1
    pools nothing); `region_information` of windows of `radius` x `radius` is averaged over images, divided by
    radius^2, and summed over classes. `covariance_epsilon` stands on the diagonals, `log_epsilon` in the logarithm.
    valid_pixels, parts: see `pixels.mean_over_pixels`; "rmi" is a mean over images and needs neither.
    Both are fp64 for fp64 logits and fp32 otherwise, finite for any finite logits.
    """
    check_shapes(logits, label)
    if logits.shape[1] != num_classes:
        raise LossError(f"logits have {logits.shape[1]} classes, but num_classes is {num_classes}.")
    check_rmi(radius=radius, pool=pool, pool_size=pool_size)
    valid = valid_mask(label, num_classes=num_classes, ignore_label=ignore_label)
    with without_autocast(logits.device):
        if pool == "avg":
            total, error = binary_terms(logits, label, valid, pool_size=pool_size)
            bce = mean_over_pixels(total, valid, valid_pixels=valid_pixels, parts=parts, added=1)
            one_hot = (
                _label_counts(label, valid, num_classes, pool_size).to(error.dtype) / pool_size**2
            )
            covered = [_coverage(length, pool_size, label.device) for length in label.shape[1:]]
            offset = covered[0][:, None] * covered[1] * (probability_epsilon / pool_size**2)
        else:
            bce = binary_cross_entropy(
                logits, label, ignore_label=ignore_label, valid_pixels=valid_pixels, parts=parts
            )
            masked = (
                whole(logits).to(computing_dtype(logits)).sigmoid() * valid[:, None]
                + probability_epsilon
            )
            one_hot = (
                functional.one_hot(class_index(label, valid), num_classes).movedim(-1, 1)
                * valid[:, None]
            )
            one_hot, probability = _pool(one_hot.to(masked.dtype), masked, pool, pool_size)
            error, offset = (
                probability - one_hot,
                one_hot.new_zeros(one_hot.shape[2:], dtype=torch.float64),
            )
        bound = region_information(
            error,
            one_hot,
            offset,
            radius=radius,
            covariance_epsilon=covariance_epsilon,
            log_epsilon=log_epsilon,
        )
        return {"bce": bce, "rmi": (bound.mean(0).sum() / radius**2).to(bce.dtype)}


def weighted_rmi_loss(
    logits: Maps,
    label: Tensor,
    *,
    num_classes: int,
    weight: float = 0.5,
    lambda_way: int = 1,
    **constants: object,
) -> dict[str, Tensor]:
    """The terms of `rmi_loss` (its further keywords are `constants`) with their weights; their sum is the loss.

    lambda_way 1: weight * bce + (1 - weight) * rmi, as in the paper's runs. 0: bce + weight * rmi.
    """
    check_rmi(lambda_way=lambda_way)
    terms = rmi_loss(logits, label, num_classes=num_classes, **constants)  # type: ignore[arg-type]
    if lambda_way == 0:
        return {"bce": terms["bce"], "rmi": weight * terms["rmi"]}
    return {"bce": weight * terms["bce"], "rmi": (1 - weight) * terms["rmi"]}


def check_rmi(
    *, radius: int = 3, pool: str = "avg", pool_size: int = 4, lambda_way: int = 1, **_: object
) -> None:
    """Raise LossError for settings that RMI does not have."""
    if pool not in get_args(Pool):
        raise LossError(f"pool must be one of {', '.join(get_args(Pool))}, not {pool!r}.")
    if radius < 1 or pool_size < 1:
        raise LossError(f"radius and pool_size must be at least 1, not {radius} and {pool_size}.")
    if lambda_way not in (0, 1):
        raise LossError(f"lambda_way must be 0 or 1, not {lambda_way}.")


def _label_counts(label: Tensor, valid: Tensor, num_classes: int, pool_size: int) -> Tensor:
    """How many pixels of each class lie in each pooling window, int32 [N, C, h, w]; no one-hot map of full size."""
    images, height, width = label.shape
    rows, columns = pooled_size(height, pool_size), pooled_size(width, pool_size)
    row = (torch.arange(height, device=label.device) + pool_size // 2) // pool_size
    column = (torch.arange(width, device=label.device) + pool_size // 2) // pool_size
    inside = (row < rows)[:, None] & (column < columns)
    place = row.clamp(max=rows - 1)[:, None] * columns + column.clamp(max=columns - 1)
    counts = torch.zeros(
        images, num_classes * rows * columns, dtype=torch.int32, device=label.device
    )
    for block, lines in row_blocks((images, 1, height, width), label.device):
        counted = valid[block, lines] & inside[lines]
        index = class_index(label[block, lines], counted).mul_(rows * columns).add_(place[lines])
        counts[block].scatter_add_(1, index.flatten(1), counted.flatten(1).int())
    return counts.view(images, num_classes, rows, columns)


def _coverage(length: int, pool_size: int, device: torch.device) -> Tensor:
    """How many pixels of a line of `length` lie in each pooling window, fp64 [pooled length]; fewer at the padding."""
    first = torch.arange(pooled_size(length, pool_size), device=device) * pool_size - pool_size // 2
    return ((first + pool_size).clamp(max=length) - first.clamp(min=0)).double()


def _pool(one_hot: Tensor, probability: Tensor, pool: Pool, size: int) -> tuple[Tensor, Tensor]:
    """One-hot labels and probabilities [N, C, H, W] at a `size`-th of the resolution, by another way than averaging."""
    if size == 1:
        return one_hot, probability
    if pool == "max":
        return (
            functional.max_pool2d(one_hot, size, size, size // 2),
            functional.max_pool2d(probability, size, size, size // 2),
        )
    target = [max(length // size, 1) for length in probability.shape[2:]]
    return (
        functional.interpolate(one_hot, target, mode="nearest"),
        functional.interpolate(probability, target, mode="bilinear", align_corners=True),
    )
