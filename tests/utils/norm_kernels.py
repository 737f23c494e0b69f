"""Stand-ins for the kernels of synchronised batch norm, which torch has on CUDA alone.

Each does in plain operations what torch/csrc and ATen/native/cuda/Normalization.cu document and
compute; dtypes are checked as the kernels check them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from hmsa.utils import synchronised_norm

SHAPE = (1, -1, 1, 1)


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def batch_norm_stats(image: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    variance, mean = torch.var_mean(_wide(image), dim=(0, 2, 3), correction=0)
    return mean, (variance + eps).rsqrt()


def batch_norm_gather_stats_with_counts(
    image: Tensor,
    means: Tensor,
    inverses: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    momentum: float,
    eps: float,
    counts: Tensor,
) -> tuple[Tensor, Tensor]:
    assert means.is_contiguous() and inverses.is_contiguous() and means.shape == inverses.shape
    assert counts.dtype == running_mean.dtype and counts.shape == (len(means),)
    counts = counts.to(means.dtype)[:, None]
    total = counts.sum()
    mean = (means * counts).sum(0) / total
    squares = ((inverses**-2 - eps) + (means - mean) ** 2) * counts
    variance = squares.sum(0) / total

    running_mean.mul_(1 - momentum).add_(momentum * mean.to(running_mean.dtype))
    unbiased = squares.sum(0) / (total - 1)
    running_var.mul_(1 - momentum).add_(momentum * unbiased.to(running_var.dtype))
    return mean, (variance + eps).rsqrt()


def batch_norm_elemt(
    image: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, inverse: Tensor, eps: float
) -> Tensor:
    normalised = (_wide(image) - mean.view(SHAPE)) * inverse.view(SHAPE)
    return (normalised * weight.view(SHAPE) + bias.view(SHAPE)).to(image.dtype)


def batch_norm_backward_reduce(
    gradient: Tensor,
    image: Tensor,
    mean: Tensor,
    inverse: Tensor,
    weight: Tensor,
    image_wanted: bool,
    weight_wanted: bool,
    bias_wanted: bool,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    wide = _wide(gradient)
    sums = wide.sum((0, 2, 3))
    products = (wide * (_wide(image) - mean.view(SHAPE))).sum((0, 2, 3))
    weight_gradient = (products * inverse).to(weight.dtype) if weight_wanted else None
    bias_gradient = sums.to(weight.dtype) if bias_wanted else None
    return sums, products, weight_gradient, bias_gradient


def batch_norm_backward_elemt(
    gradient: Tensor,
    image: Tensor,
    mean: Tensor,
    inverse: Tensor,
    weight: Tensor,
    sums: Tensor,
    products: Tensor,
    counts: Tensor,
) -> Tensor:
    assert counts.dtype == torch.int32 and weight.dtype == mean.dtype
    total = counts.sum()
    centred = (_wide(image) - mean.view(SHAPE)) * (inverse**2).view(SHAPE)
    inner = _wide(gradient) - (sums / total).view(SHAPE) - centred * (products / total).view(SHAPE)
    return (inner * (inverse * weight).view(SHAPE)).to(gradient.dtype)


def as_norm_kernels(replace: Callable[[Any, str, Any], None] = setattr) -> None:
    """Let synchronised batch norm run on these by `replace(owner, name, function)`."""
    for kernel in (
        batch_norm_stats,
        batch_norm_gather_stats_with_counts,
        batch_norm_elemt,
        batch_norm_backward_reduce,
        batch_norm_backward_elemt,
    ):
        replace(torch, kernel.__name__, kernel)
    replace(synchronised_norm, "has_kernels", lambda image: True)
