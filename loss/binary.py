"""Binary cross-entropy over classes, each class against all others, and the pooled errors that RMI needs.

Both come from one pass over the logits, block by block: a block's sigmoid, the only exponential, stays in the cache,
gives the cross-entropy and the pooled map, and is computed again in the backward pass instead of being kept.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from .pixels import (
    check_shapes,
    class_index,
    computing_dtype,
    mean_over_pixels,
    row_blocks,
    valid_mask,
    without_autocast,
)
from .sources import Layout, Maps, Reader, layout_of


def binary_cross_entropy(
    logits: Maps,
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
    total, _ = binary_terms(logits, label, valid, pool_size=0)
    return mean_over_pixels(total, valid, valid_pixels=valid_pixels, parts=parts, added=1)


def binary_terms(
    logits: Maps, label: Tensor, valid: Tensor, *, pool_size: int
) -> tuple[Tensor, Tensor]:
    """The summed binary cross-entropy, and the errors (sigmoid(logits) - onehot) * valid after average pooling.

    The pooling has size and stride `pool_size` and padding `pool_size // 2` whose zeros count in the average; with
    `pool_size` 0 the second result is empty. Pooled errors keep their relative precision where probabilities, close to
    1, would not. valid: bool [N, H, W]. Both results are fp64 for fp64 logits, else fp32. Runs outside autocast.
    """
    layout, tensors = layout_of(logits)
    with without_autocast(logits.device):
        return _BinaryTerms.apply(
            layout, computing_dtype(logits), label, valid, pool_size, *tensors
        )


def pooled_size(size: int, pool_size: int) -> int:
    """Length of a map of length `size` after pooling with size and stride `pool_size` and padding `pool_size // 2`."""
    return (size + 2 * (pool_size // 2) - pool_size) // pool_size + 1


class _BinaryTerms(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        layout: Layout,
        dtype: torch.dtype,
        label: Tensor,
        valid: Tensor,
        pool_size: int,
        *tensors: Tensor,
    ) -> tuple[Tensor, Tensor]:
        images, classes, height, width = layout.shape
        columns = pooled_size(width, pool_size) if pool_size else 0
        rows = pooled_size(height, pool_size) if pool_size else 0
        pooled = label.new_empty((images, classes, rows, columns), dtype=dtype)
        total = label.new_zeros((), dtype=torch.float64)
        for block in _blocks(layout, layout.reader(tensors), dtype, label, valid, pool_size):
            total += block.cross_entropy()
            if pool_size:
                pooled[block.images, :, block.pooled_rows] = block.pool(columns)
        ctx.layout, ctx.dtype, ctx.pool_size = layout, dtype, pool_size
        ctx.save_for_backward(label, valid, *tensors)
        return total.to(dtype), pooled

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, grad_pooled: Tensor) -> tuple[Tensor | None, ...]:
        label, valid, *tensors = ctx.saved_tensors
        with without_autocast(grad.device):
            gradient = ctx.layout.gradient(tensors)
            for block in _blocks(ctx.layout, gradient, ctx.dtype, label, valid, ctx.pool_size):
                target = gradient.target(block.images, block.rows)
                gradient.put(block.images, block.rows, block.gradient(grad, grad_pooled, target))
            return None, None, None, None, None, *gradient.result()


class _Scratch:
    """Buffers for one pass over the blocks: asking the allocator anew for each block costs more than the arithmetic."""

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        self.dtype, self.device = dtype, device
        self.buffers: dict[str, Tensor] = {}

    def take(self, name: str, *shape: int) -> Tensor:
        """The buffer `name` as an uninitialised tensor of `shape`."""
        size = math.prod(shape)
        buffer = self.buffers.get(name)
        if buffer is None or buffer.numel() < size:
            buffer = torch.empty(size, dtype=self.dtype, device=self.device)
            self.buffers[name] = buffer
        return buffer[:size].view(shape)


class _Block:
    """One block of rows of some images: its logits, its errors, and the pooling windows that it fills.

    `error` [n, C, window rows, W] is (sigmoid(z) - onehot) * valid; at the label it is computed as -sigmoid(-z), which
    keeps its precision when the prediction is good. It begins and ends at window borders, with zeros for the padding.
    """

    def __init__(
        self,
        logits: Tensor,
        label: Tensor,
        valid: Tensor,
        scratch: _Scratch,
        *,
        images: slice,
        rows: slice,
        height: int,
        pool_size: int,
    ) -> None:
        """logits [n, C, rows, W], label and valid [n, rows, W] of this block; `height` is that of the whole image."""
        self.images, self.rows, self.pool_size, self.scratch = (
            images,
            rows,
            max(pool_size, 1),
            scratch,
        )
        above = self.pool_size // 2 if rows.start == 0 else 0
        first_window = (rows.start + self.pool_size // 2) // self.pool_size
        windows = -(-(above + rows.stop - rows.start) // self.pool_size)
        self.pooled_rows = slice(
            first_window, min(first_window + windows, pooled_size(height, self.pool_size))
        )

        self.logits = logits
        if logits.dtype != scratch.dtype or logits.stride()[2:] != (logits.shape[3], 1):
            self.logits = scratch.take("logits", *logits.shape).copy_(logits)
        self.mask = valid.to(scratch.dtype)
        index = class_index(label, valid)[:, None]
        self.logits_at_label = self.logits.gather(1, index)[:, 0]

        number, classes, own_height, width = logits.shape
        self.error = scratch.take("error", number, classes, windows * self.pool_size, width)
        self.inside = slice(above, above + own_height)
        self.error[:, :, : self.inside.start] = 0
        self.error[:, :, self.inside.stop :] = 0
        torch.sigmoid(self.logits, out=self.error[:, :, self.inside]).mul_(self.mask[:, None])
        at_label = torch.sigmoid(-self.logits_at_label).mul_(self.mask).neg_()
        self.error[:, :, self.inside].scatter_(1, index, at_label[:, None])

    def cross_entropy(self) -> Tensor:
        """Sum over classes and valid pixels of softplus(z) - z * onehot, fp64.

        That is -log(1 - |error|) = max(x, 0) - log(1 - p), where p = min(|error|, 1 - |error|) and x is z, at the label
        -z. The logarithms of many factors 1 - p are one logarithm of their product, which is kept as one minus the
        product until p no longer vanishes beside 1.
        """
        work = self.scratch.take("work", *self.logits.shape)
        positive = torch.clamp_min(self.logits, 0, out=work).sum(1)
        linear = (positive - self.logits_at_label).mul_(self.mask).sum(dtype=torch.float64)

        size = self.error.numel()
        padded = -(-size // 256) * 256
        work, other = self.scratch.take("work", padded), self.scratch.take("other", padded)
        work[size:] = 0
        error = torch.abs(self.error.view(-1), out=work[:size])
        torch.sub(error.new_ones(()), error, out=other[:size])
        torch.minimum(error, other[:size], out=error)
        for _ in range(
            3
        ):  # 1 - (1 - a)(1 - b) = a + b - ab; the product of eight factors is at least 2^-8
            first, second = work.view(2, -1)
            product = torch.add(first, second, out=other[: first.numel()]).addcmul_(
                first, second, value=-1
            )
            work, other = product, work
        products = work.double().neg_().add_(1).view(32, -1).prod(0)
        return linear - products.log_().sum()

    def pool(self, width: int) -> Tensor:
        """Average pooling of the errors, [n, C, pooled rows, width]; zeros of the padding count."""
        size, (number, classes, rows, columns) = self.pool_size, self.error.shape
        windows = self.error.view(number, classes, rows // size, size, columns)
        padded = self.scratch.take("work", number, classes, rows // size, width * size)
        inside = slice(size // 2, min(size // 2 + columns, width * size))
        padded[..., : inside.start] = 0
        padded[..., inside.stop :] = 0
        torch.sum(windows[..., : inside.stop - inside.start], dim=3, out=padded[..., inside])
        pooled = torch.mv(padded.view(-1, size), padded.new_full((size,), size**-2))
        return pooled.view(number, classes, rows // size, width)[
            :, :, : self.pooled_rows.stop - self.pooled_rows.start
        ]

    def gradient(self, grad: Tensor, grad_pooled: Tensor, target: Tensor | None) -> Tensor:
        """grad * error + sigmoid' * (gradient of the pixel's pooling window), in `target` if that has the right dtype.

        sigmoid' = p (1 - p) = |error| - error^2, on valid pixels.
        """
        error = self.error[:, :, self.inside]
        if target is None or target.dtype != error.dtype:
            target = self.scratch.take("gradient", *error.shape)
        if not grad_pooled.numel():
            return torch.mul(error, grad, out=target)
        number, classes, rows, columns = self.error.shape
        spread = self._spread(grad_pooled[self.images, :, self.pooled_rows])[:, :, :, None]
        work = torch.abs(self.error, out=self.scratch.take("work", *self.error.shape))
        work.addcmul_(self.error, self.error, value=-1)
        work.view(number, classes, rows // self.pool_size, self.pool_size, columns).mul_(spread)
        return torch.addcmul(work[:, :, self.inside], error, grad, out=target)

    def _spread(self, grad_pooled: Tensor) -> Tensor:
        """The gradient of the pooled rows [n, C, rows, w] over the columns of their windows, [n, C, windows, W]."""
        number, classes, rows, columns = self.error.shape
        size = self.pool_size
        spread = (grad_pooled * size**-2).repeat_interleave(size, dim=-1)[
            ..., size // 2 : size // 2 + columns
        ]
        missing = (0, columns - spread.shape[-1], 0, rows // size - spread.shape[2])
        return functional.pad(spread, missing) if any(missing) else spread


def _blocks(
    layout: Layout, reader: Reader, dtype: torch.dtype, label: Tensor, valid: Tensor, pool_size: int
) -> Iterator[_Block]:
    scratch, window, padding = _Scratch(dtype, label.device), max(pool_size, 1), pool_size // 2
    for images, rows in row_blocks(
        layout.shape, label.device, window=window, padding=padding, rendered=layout.rendered
    ):
        yield _Block(
            reader.read(images, rows),
            label[images, rows],
            valid[images, rows],
            scratch,
            images=images,
            rows=rows,
            height=layout.shape[2],
            pool_size=pool_size,
        )
