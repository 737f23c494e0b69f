"""RMI as the paper defines it, in plain PyTorch: what the fast version is compared with.

Zhao et al., Region Mutual Information Loss for Semantic Segmentation, NeurIPS 2019
(https://arxiv.org/abs/1910.12037), with the constants of the authors' code. `loss/rmi.py` computes
the same numbers in a fraction of the time and memory, and does not fail on awkward inputs.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

PROBABILITY_EPSILON = 1e-6
COVARIANCE_EPSILON = 5e-4
LOG_EPSILON = 1e-8


def reference_rmi_loss(
    logits: Tensor,
    label: Tensor,
    *,
    num_classes: int,
    radius: int = 3,
    pool: str = "avg",
    pool_size: int = 4,
) -> dict[str, Tensor]:
    """Both terms of the loss, unweighted, as `rmi_loss` gives them.

    Args:
        logits: fp32 or fp64 [N, C, H, W].
        label: integer [N, H, W]; pixels of `num_classes` or more are ignored.
        num_classes: C.
        radius: side of a region in pixels of the pooled maps.
        pool: "avg", "max" or "interp".
        pool_size: size and stride of the pooling.

    Returns:
        {"bce": ..., "rmi": ...}, scalars.
    """
    # One-hot labels and masked probabilities, [N, C, H, W].
    valid = label < num_classes
    mask = valid[:, None].to(logits.dtype)
    one_hot = functional.one_hot(torch.where(valid, label, 0).long(), num_classes)
    one_hot = one_hot.movedim(-1, 1).to(logits.dtype) * mask
    probability = logits.sigmoid() * mask + PROBABILITY_EPSILON

    # The first term: binary cross-entropy, summed over classes.
    total = functional.binary_cross_entropy_with_logits(
        logits, one_hot, weight=mask, reduction="sum"
    )
    bce = total / (valid.sum() + 1)

    # The second term: all regions of the pooled maps, and how much those of the probability leave
    # open of those of the label; the mean over images, by the size of a region, over all classes.
    label_regions = regions(pooled(one_hot, pool, pool_size), radius)
    probability_regions = regions(pooled(probability, pool, pool_size, soft=True), radius)
    rmi = half_logdet(label_regions, probability_regions).mean(0).sum() / radius**2
    return {"bce": bce, "rmi": rmi}


def pooled(maps: Tensor, pool: str, size: int, *, soft: bool = False) -> Tensor:
    """Maps [N, C, H, W] at a `size`-th of the resolution.

    "interp" interpolates `soft` maps, and takes the nearest value of others.
    """
    if pool == "avg":
        return functional.avg_pool2d(maps, size, size, size // 2)
    if pool == "max":
        return functional.max_pool2d(maps, size, size, size // 2)

    target = (maps.shape[2] // size, maps.shape[3] // size)
    if soft:
        return functional.interpolate(maps, target, mode="bilinear", align_corners=True)
    return functional.interpolate(maps, target, mode="nearest")


def regions(maps: Tensor, radius: int) -> Tensor:
    """All `radius` x `radius` regions of maps [N, C, h, w] as points, [N, C, radius^2, regions]."""
    rows, columns = maps.shape[2] - radius + 1, maps.shape[3] - radius + 1
    shifted = [
        maps[:, :, y : y + rows, x : x + columns] for y in range(radius) for x in range(radius)
    ]
    return torch.stack(shifted, dim=2).flatten(3)


def half_logdet(label: Tensor, probability: Tensor) -> Tensor:
    """0.5 logdet(M + epsilon I), with M = S_y - S_yp (S_p + epsilon I)^-1 S_yp^T.

    Args:
        label: points [N, C, radius^2, regions].
        probability: points of the same shape.

    Returns:
        fp64 [N, C].
    """
    # Centred points, and covariances that are sums over the points.
    y = label.double() - label.double().mean(-1, keepdim=True)
    p = probability.double() - probability.double().mean(-1, keepdim=True)
    identity = torch.eye(y.shape[2], dtype=torch.float64, device=y.device)
    mixed = y @ p.mT

    inverse = torch.linalg.inv(p @ p.mT + COVARIANCE_EPSILON * identity)
    remainder = y @ y.mT - mixed @ inverse @ mixed.mT

    # The determinant of a matrix is the squared product of the diagonal of its Cholesky factor.
    factor = torch.linalg.cholesky(remainder + COVARIANCE_EPSILON * identity)
    diagonal = factor.diagonal(dim1=-2, dim2=-1)
    return 0.5 * 2 * (diagonal + LOG_EPSILON).log().sum(-1)
