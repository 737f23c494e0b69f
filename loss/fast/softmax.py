"""Cross-entropy of every pixel, without a map of probabilities."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..pixels import class_index, computing_dtype, without_autocast
from .blocks import row_blocks


def softmax_cross_entropy(logits: Tensor, label: Tensor, valid: Tensor) -> Tensor:
    """-log softmax(logits)[label] of every pixel, zero where it is not valid.

    Args:
        logits: floating point [N, C, H, W].
        label: integer [N, H, W].
        valid: bool [N, H, W].

    Returns:
        [N, H, W], fp64 for fp64 logits and fp32 otherwise. Half precision is widened block by
        block, never as a whole.
    """
    result: Tensor = _SoftmaxCrossEntropy.apply(logits, label, valid)
    return result


class _SoftmaxCrossEntropy(torch.autograd.Function):
    """Keeps its arguments alone; the gradient is the only map of the size of the logits."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, label: Tensor, valid: Tensor) -> Tensor:
        dtype = computing_dtype(logits)
        result = label.new_empty(label.shape, dtype=dtype)

        for images, rows in row_blocks(logits.shape, logits.device):
            index = class_index(label[images, rows], valid[images, rows])
            likelihood = torch.log_softmax(logits[images, :, rows], dim=1, dtype=dtype)
            result[images, rows] = -likelihood.gather(1, index[:, None])[:, 0]

        ctx.save_for_backward(logits, label, valid)
        return torch.where(valid, result, 0.0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        logits, label, valid = ctx.saved_tensors
        dtype = computing_dtype(logits)
        gradient = torch.empty_like(logits)

        # Autocast is on in the backward pass if the caller runs that under it.
        with without_autocast(grad.device):
            for images, rows in row_blocks(logits.shape, logits.device):
                mask = valid[images, rows]
                index = class_index(label[images, rows], mask)

                # softmax(z) - onehot, times the gradient of the pixel
                weight = torch.where(mask, grad[images, rows], 0.0)[:, None]
                block = torch.softmax(logits[images, :, rows], dim=1, dtype=dtype).mul_(weight)
                block.scatter_add_(1, index[:, None], -weight)
                gradient[images, :, rows] = block

        return gradient, None, None
