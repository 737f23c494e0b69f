"""The definition of the RMI loss transcribed line by line (RELEASE.md section 4): the oracle of the tests and the baseline of the benchmark."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def direct_rmi_loss(
    logits: Tensor,
    label: Tensor,
    *,
    num_classes: int,
    radius: int = 3,
    pool: str = "avg",
    pool_size: int = 4,
) -> dict[str, Tensor]:
    """{"bce", "rmi"} of logits [N, C, H, W] and label [N, H, W]; labels of `num_classes` or more are ignored."""
    valid = label < num_classes
    one_hot = (
        functional.one_hot(torch.where(valid, label, 0).long(), num_classes)
        .movedim(-1, 1)
        .to(logits.dtype)
    )
    mask = valid[:, None].to(logits.dtype)
    one_hot = one_hot * mask
    bce = functional.binary_cross_entropy_with_logits(
        logits, one_hot, weight=mask, reduction="sum"
    ) / (valid.sum() + 1)
    probability = logits.sigmoid() * mask + 1e-6
    rmi = information(
        _windows(pooled(one_hot, pool, pool_size), radius),
        _windows(pooled(probability, pool, pool_size, soft=True), radius),
    )
    return {"bce": bce, "rmi": rmi.mean(0).sum() / radius**2}


def pooled(maps: Tensor, pool: str, size: int, *, soft: bool = False) -> Tensor:
    """Maps at a `size`-th of the resolution; `soft` maps are interpolated, the others take the nearest value."""
    if pool == "avg":
        return functional.avg_pool2d(maps, size, size, size // 2)
    if pool == "max":
        return functional.max_pool2d(maps, size, size, size // 2)
    target = (maps.shape[2] // size, maps.shape[3] // size)
    if soft:
        return functional.interpolate(maps, target, mode="bilinear", align_corners=True)
    return functional.interpolate(maps, target, mode="nearest")


def information(label: Tensor, probability: Tensor) -> Tensor:
    """0.5 logdet(M + 5e-4 I) [N, C] of points [N, C, radius^2, positions], with explicit inverse and Cholesky factor."""
    identity = torch.eye(label.shape[2], dtype=torch.float64, device=label.device)
    label = label.double() - label.double().mean(-1, keepdim=True)
    probability = probability.double() - probability.double().mean(-1, keepdim=True)
    mixed = label @ probability.mT
    inverse = torch.linalg.inv(probability @ probability.mT + 5e-4 * identity)
    remainder = label @ label.mT - mixed @ inverse @ mixed.mT
    factor = torch.linalg.cholesky(remainder + 5e-4 * identity)
    return 0.5 * 2 * (factor.diagonal(dim1=-2, dim2=-1) + 1e-8).log().sum(-1)


def _windows(maps: Tensor, radius: int) -> Tensor:
    """All radius^2 shifted views of maps [N, C, h, w], stacked as [N, C, radius^2, positions]."""
    rows, columns = maps.shape[2] - radius + 1, maps.shape[3] - radius + 1
    shifts = [
        maps[:, :, y : y + rows, x : x + columns] for y in range(radius) for x in range(radius)
    ]
    return torch.stack(shifts, dim=2).flatten(3)
