"""Region mutual information (RMI): the loss of the paper's main runs.

Source: Zhao et al., Region Mutual Information Loss for Semantic Segmentation, NeurIPS 2019
(https://arxiv.org/abs/1910.12037).

A per-pixel loss judges each pixel alone. RMI also asks whether neighbouring pixels go together in
the prediction as they do in the label:

1. The one-hot label map and the probability map of a class (a sigmoid) are pooled to a quarter of
   their height and width. Every 3 x 3 region of a pooled map, read as a vector, is a point in 9
   dimensions. So each image and class has a cloud of label points y and a cloud of probability
   points p, in pairs.
2. How much does p tell about y? Their mutual information is I(y; p) = H(y) - H(y | p). The entropy
   H(y) does not depend on the network. H(y | p) is at most that of a normal distribution with the
   covariance that y has left when p is known,

       M = S_y - S_yp S_p^-1 S_yp^T,

   which is 0.5 logdet(M) plus a constant (S_y and S_p are the covariances of y and p, S_yp the
   covariance of both).
3. So 0.5 logdet(M) is, up to a constant, the negative of a lower bound of the mutual information.
   It is minimised, divided by the 9 dimensions, averaged over images and summed over classes. It
   may be negative, and so may the loss: a class without a pixel has 0.5 ln(5e-4) = -3.80, since
   5e-4 stands on the diagonal of M, and one that is predicted without an error about -3.45.

Binary cross-entropy joins it, because the covariances do not see a constant shift of probabilities:

    loss = weight * bce + (1 - weight) * rmi.

`loss/reference.py` is the same in plain PyTorch, `loss/fast` what computes it here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional

from .binary import binary_cross_entropy
from .fast.binary_terms import binary_terms
from .fast.pooling import pixels_per_window, window_areas
from .fast.region_information import PooledMaps, region_information
from .pixels import (
    LossError,
    check_class_weights,
    check_shapes,
    class_index,
    computing_dtype,
    exact_device,
    mean_over_pixels,
    valid_mask,
    without_autocast,
)

Pool = Literal["avg", "max", "interp"]


def rmi_loss(
    logits: Tensor,
    label: Tensor,
    *,
    num_classes: int,
    ignore_label: int = 255,
    class_weights: Tensor | None = None,
    radius: int = 3,
    pool: Pool = "avg",
    pool_size: int = 4,
    probability_epsilon: float = 1e-6,
    covariance_epsilon: float = 5e-4,
    log_epsilon: float = 1e-8,
    valid_pixels: Tensor | int | None = None,
    parts: int = 1,
) -> dict[str, Tensor]:
    """Both terms of the loss, unweighted.

    Args:
        logits: floating point [N, C, H, W].
        label: integer [N, H, W].
        num_classes: C.
        ignore_label: pixels of this label do not count; label and probability are 0 there.
        class_weights: [C], of binary cross-entropy alone: see `binary_cross_entropy`. RMI sums over
            classes whatever their number of pixels.
        radius: side of a region, in pixels of the pooled maps (the authors' name for it).
        pool: how maps are made smaller: "avg" and "max" pool with padding `pool_size // 2`, which
            counts in the average; "interp" takes nearest labels and bilinear probabilities.
        pool_size: size and stride of the pooling; 1 pools nothing.
        probability_epsilon: added to every probability.
        covariance_epsilon: added to the diagonals of S_p and M.
        log_epsilon: added to the diagonal of the Cholesky factor of M, before its logarithm.
        valid_pixels: see `pixels.mean_over_pixels`; "rmi", a mean over images, does not need it.
        parts: see `pixels.mean_over_pixels`; the same.

    Returns:
        {"bce": `binary_cross_entropy`, "rmi": 0.5 logdet(M) / radius^2, averaged over images and
        summed over classes}. Scalars, fp64 for fp64 logits and fp32 otherwise, finite for all
        finite logits.

    Raises:
        LossError: a setting is not possible, or the shapes do not fit each other.
    """
    check_shapes(logits, label)
    if logits.shape[1] != num_classes:
        raise LossError(f"logits have {logits.shape[1]} classes, but num_classes is {num_classes}.")
    check_class_weights(class_weights, logits)
    check_rmi_settings({"radius": radius, "pool": pool, "pool_size": pool_size})
    valid = valid_mask(label, num_classes=num_classes, ignore_label=ignore_label)
    counts: dict[str, Any] = {"valid_pixels": valid_pixels, "parts": parts}

    with without_autocast(logits.device):
        # The first term, and the pooled maps of label and probability. With averages, one pass
        # over the logits gives both. Instead of the probability p the error p - y is kept: near
        # p = 1 the small difference is exact in fp32, while p itself has been rounded. From the
        # maps on everything is fp64.
        exact = exact_device(logits.device)
        if pool == "avg":
            total, error = binary_terms(
                logits, label, valid, pool_size=pool_size, class_weights=class_weights
            )
            bce = mean_over_pixels(total, valid, added=1, **counts)
            error, label, valid = error.to(exact), label.to(exact), valid.to(exact)
            maps = _averaged_maps(error, label, valid, pool_size, probability_epsilon)
        else:
            bce = binary_cross_entropy(
                logits, label, ignore_label=ignore_label, class_weights=class_weights, **counts
            )
            logits, label, valid = logits.to(exact), label.to(exact), valid.to(exact)
            maps = _pooled_maps(logits, label, valid, pool, pool_size, probability_epsilon)

        # The second term: 0.5 logdet(M) of each image and class, [N, C].
        half_logdet = region_information(
            maps,
            radius=radius,
            covariance_epsilon=covariance_epsilon,
            log_epsilon=log_epsilon,
        )
        rmi = half_logdet.mean(0).sum() / radius**2
        return {"bce": bce, "rmi": rmi.to(bce.dtype).to(bce.device)}


def weighted_rmi_loss(
    logits: Tensor,
    label: Tensor,
    *,
    num_classes: int,
    weight: float = 0.5,
    lambda_way: int = 1,
    **settings: Any,
) -> dict[str, Tensor]:
    """Both terms of the loss with their weights; their sum is the loss.

    Args:
        logits: floating point [N, C, H, W].
        label: integer [N, H, W].
        num_classes: C.
        weight: lambda in Zhao et al.
        lambda_way: 1 is weight * bce + (1 - weight) * rmi, as in the paper's runs; 0 is
            bce + weight * rmi.
        settings: further keywords of `rmi_loss`.

    Returns:
        {"bce": ..., "rmi": ...}, scalars.
    """
    check_rmi_settings({"lambda_way": lambda_way})
    terms = rmi_loss(logits, label, num_classes=num_classes, **settings)
    if lambda_way == 0:
        return {"bce": terms["bce"], "rmi": weight * terms["rmi"]}
    return {"bce": weight * terms["bce"], "rmi": (1 - weight) * terms["rmi"]}


def check_rmi_settings(settings: Mapping[str, Any]) -> None:
    """Check keywords of RMI, those that are given.

    Raises:
        LossError: RMI does not have such a setting.
    """
    pools = get_args(Pool)
    if "pool" in settings and settings["pool"] not in pools:
        raise LossError(f"pool must be one of {', '.join(pools)}, not {settings['pool']!r}.")
    for name in ("radius", "pool_size"):
        if name in settings and settings[name] < 1:
            raise LossError(f"{name} must be at least 1, not {settings[name]}.")
    if "lambda_way" in settings and settings["lambda_way"] not in (0, 1):
        raise LossError(f"lambda_way must be 0 or 1, not {settings['lambda_way']}.")


def _averaged_maps(
    error: Tensor, label: Tensor, valid: Tensor, pool_size: int, probability_epsilon: float
) -> PooledMaps:
    """The maps after average pooling, from the pooled errors sigmoid(logits) - onehot."""
    counts = pixels_per_window(label, valid, error.shape[1], pool_size)
    one_hot = counts.to(error.dtype) / pool_size**2

    # The epsilon of each pixel is averaged too: padding has none.
    height, width = label.shape[1:]
    areas = window_areas(height, width, pool_size, label.device)
    offset = areas * (probability_epsilon / pool_size**2)
    return PooledMaps(label=one_hot, error=error, offset=offset)


def _pooled_maps(
    logits: Tensor,
    label: Tensor,
    valid: Tensor,
    pool: Pool,
    pool_size: int,
    probability_epsilon: float,
) -> PooledMaps:
    """The maps after another kind of pooling than averaging, which needs them at full size."""
    mask = valid[:, None]
    probability = logits.to(computing_dtype(logits)).sigmoid() * mask + probability_epsilon
    one_hot = functional.one_hot(class_index(label, valid), logits.shape[1]).movedim(-1, 1) * mask
    one_hot = one_hot.to(probability.dtype)

    if pool_size > 1 and pool == "max":
        one_hot = functional.max_pool2d(one_hot, pool_size, pool_size, pool_size // 2)
        probability = functional.max_pool2d(probability, pool_size, pool_size, pool_size // 2)
    elif pool_size > 1:
        size = [max(length // pool_size, 1) for length in label.shape[1:]]
        one_hot = functional.interpolate(one_hot, size, mode="nearest")
        probability = functional.interpolate(probability, size, mode="bilinear", align_corners=True)

    # The epsilon is part of the probabilities already.
    no_offset = one_hot.new_zeros(one_hot.shape[2:], dtype=torch.float64)
    return PooledMaps(label=one_hot, error=probability - one_hot, offset=no_offset)
