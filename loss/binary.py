"""Binary cross-entropy over classes, each class against all others, as the authors' code has it."""
from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from .pixels import check_shapes, computing_dtype, mean_over_pixels, strips, valid_mask


def binary_cross_entropy(
    logits: Tensor,
    label: Tensor,
    *,
    ignore_label: int = 255,
    valid_pixels: Tensor | int | None = None,
    parts: int = 1,
) -> Tensor:
    """Sum over classes and valid pixels of the binary cross-entropy, divided by (valid pixels + 1).

    Summed, not averaged, over classes (RMI's first part, Zhao et al. 2019, as released).
    logits: floating [N, C, H, W]; label: integer [N, H, W]. Returns a scalar, fp64 for fp64 logits, fp32 otherwise.
    """
    check_shapes(logits, label)
    valid = valid_mask(label, num_classes=logits.shape[1], ignore_label=ignore_label)
    with torch.autocast(logits.device.type, enabled=False):
        total = _BinaryCrossEntropySum.apply(logits, label, valid)
    return mean_over_pixels(total, valid, valid_pixels=valid_pixels, parts=parts, added=1)


class _BinaryCrossEntropySum(torch.autograd.Function):
    """sum over valid pixels of (sum over classes softplus(z) - z[label]); the gradient is sigmoid(z) - onehot."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, label: Tensor, valid: Tensor) -> Tensor:
        dtype = computing_dtype(logits)
        total = logits.new_zeros((), dtype=torch.float64)
        for first, last in strips(logits):
            strip, mask = logits[:, :, first:last].to(dtype), valid[:, None, first:last]
            index = torch.where(mask, label[:, None, first:last], 0).long()
            chosen = strip.gather(1, index).masked_fill_(~mask, 0)
            total += (functional.softplus(strip) * mask).sum() - chosen.sum()
        ctx.save_for_backward(logits, label, valid)
        return total.to(dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        logits, label, valid = ctx.saved_tensors
        result = torch.empty_like(logits)
        for first, last in strips(logits):
            mask = valid[:, None, first:last]
            strip = logits[:, :, first:last].to(grad.dtype, copy=True).sigmoid_()
            strip.mul_(mask).scatter_add_(
                1, torch.where(mask, label[:, None, first:last], 0).long(), -mask.to(strip.dtype)
            )
            result[:, :, first:last] = strip.mul_(grad)
        return result, None, None
