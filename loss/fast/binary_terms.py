"""Binary cross-entropy and the pooled errors that RMI needs, from one pass over the logits.

A block's sigmoid, the only exponential, stays in the cache: it gives the cross-entropy and the
pooled errors. In the backward pass it is computed again in place of being kept.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from ..pixels import class_index, computing_dtype, without_autocast
from .blocks import row_blocks
from .pooling import pooled_size


def binary_terms(
    logits: Tensor,
    label: Tensor,
    valid: Tensor,
    *,
    pool_size: int,
    class_weights: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The summed binary cross-entropy, and the errors sigmoid(logits) - onehot after pooling.

    Errors are zero where a pixel is not valid. They are averaged as in `fast/pooling.py`. In fp32
    an error keeps its relative precision, which a probability close to 1 would not. Call this
    outside autocast.

    Args:
        logits: floating point [N, C, H, W].
        label: integer [N, H, W].
        valid: bool [N, H, W].
        pool_size: side and stride of the pooling windows; 0 pools nothing, and the second result
            is empty.
        class_weights: [C]; the cross-entropy of a pixel, of all its classes, is multiplied by the
            weight of its label. None: all pixels weigh one. The errors have no weights.

    Returns:
        The sum over classes and valid pixels, a scalar, and the pooled errors [N, C, h, w]; both
        fp64 for fp64 logits and fp32 otherwise.
    """
    total, pooled = _BinaryTerms.apply(logits, label, valid, pool_size, class_weights)
    return total, pooled


class _BinaryTerms(torch.autograd.Function):
    """Keeps its arguments alone; the gradient is the only map of the size of the logits."""

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        label: Tensor,
        valid: Tensor,
        pool_size: int,
        class_weights: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        number, classes, height, width = logits.shape
        dtype = computing_dtype(logits)
        rows, columns = 0, 0
        if pool_size:
            rows, columns = pooled_size(height, pool_size), pooled_size(width, pool_size)

        # A sum of millions of fp32 numbers is kept in fp64, where there is fp64.
        total = label.new_zeros((), dtype=_sum_dtype(label.device))
        pooled = label.new_empty((number, classes, rows, columns), dtype=dtype)
        for block in _blocks(logits, label, valid, pool_size):
            total += block.cross_entropy(class_weights)
            if pool_size:
                pooled[block.images, :, block.pooled_rows] = block.pool(columns)

        ctx.pool_size = pool_size
        ctx.save_for_backward(logits, label, valid, class_weights)
        return total.to(dtype), pooled

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, grad_pooled: Tensor) -> tuple[Tensor | None, ...]:
        logits, label, valid, class_weights = ctx.saved_tensors
        gradient = torch.empty_like(logits)

        # Autocast is on in the backward pass if the caller runs that under it.
        with without_autocast(grad.device):
            for block in _blocks(logits, label, valid, ctx.pool_size):
                block.write_gradient(
                    gradient[block.images, :, block.rows],
                    grad=block.gradient_of_pixels(grad, class_weights),
                    grad_pooled=grad_pooled[block.images, :, block.pooled_rows],
                )
        return gradient, None, None, None, None


def _sum_dtype(device: torch.device) -> torch.dtype:
    """The dtype of long sums on a device; GPUs of Apple's have no fp64."""
    return torch.float32 if device.type == "mps" else torch.float64


def _blocks(logits: Tensor, label: Tensor, valid: Tensor, pool_size: int) -> Iterator[_Block]:
    """The logits block by block, cut at the borders of pooling windows."""
    buffers = _Buffers(computing_dtype(logits), logits.device)
    window, padding = max(pool_size, 1), pool_size // 2
    for images, rows in row_blocks(logits.shape, logits.device, window=window, padding=padding):
        yield _Block(
            logits[images, :, rows],
            label[images, rows],
            valid[images, rows],
            images=images,
            rows=rows,
            height=logits.shape[2],
            pool_size=window,
            buffers=buffers,
        )


class _Buffers:
    """Memory that all blocks of one pass share.

    To ask the allocator for it anew for each block would cost more than the arithmetic.
    """

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        self.dtype, self.device = dtype, device
        self._buffers: dict[str, Tensor] = {}

    def take(self, name: str, *shape: int) -> Tensor:
        """The buffer of that name as a tensor of `shape`; it holds what it was last used for."""
        size = math.prod(shape)
        buffer = self._buffers.get(name)
        if buffer is None or buffer.numel() < size:
            buffer = torch.empty(size, dtype=self.dtype, device=self.device)
            self._buffers[name] = buffer
        return buffer[:size].view(shape)


class _Block:
    """Some rows of some images: their logits, their errors, and the pooling windows they fill.

    `error` [n, C, rows of the windows, W] is (sigmoid(z) - onehot) * valid. It begins and ends at
    borders of windows; rows of padding are zero. Attributes are valid until the next block is made,
    because all blocks use the same buffers.
    """

    def __init__(
        self,
        logits: Tensor,
        label: Tensor,
        valid: Tensor,
        *,
        images: slice,
        rows: slice,
        height: int,
        pool_size: int,
        buffers: _Buffers,
    ) -> None:
        """Compute the errors of logits [n, C, rows, W] with label and valid [n, rows, W].

        `images` and `rows` say where the block lies in the batch; `height` is that of the images.
        """
        self.images, self.rows = images, rows
        self.pool_size, self.buffers = pool_size, buffers

        # Which windows the rows fill. The first window of an image begins in its padding.
        padding = pool_size // 2
        above = 0
        if rows.start == 0:
            above = padding
        first_window = (rows.start + padding) // pool_size
        windows = math.ceil((above + rows.stop - rows.start) / pool_size)
        last_window = min(first_window + windows, pooled_size(height, pool_size))
        self.pooled_rows = slice(first_window, last_window)

        # Logits in the dtype to compute in, row after row in memory.
        self.logits = logits
        if logits.dtype != buffers.dtype or logits.stride()[2:] != (logits.shape[3], 1):
            self.logits = buffers.take("logits", *logits.shape).copy_(logits)
        self.mask = valid.to(buffers.dtype)
        self.index = class_index(label, valid)
        index = self.index[:, None]
        self.logits_at_label = self.logits.gather(1, index)[:, 0]

        # The errors, between rows of zeros where windows reach beyond the image.
        number, classes, own_height, width = logits.shape
        self.error = buffers.take("error", number, classes, windows * pool_size, width)
        self.inside = slice(above, above + own_height)
        self.error[:, :, : self.inside.start].zero_()
        self.error[:, :, self.inside.stop :].zero_()
        torch.sigmoid(self.logits, out=self.error[:, :, self.inside]).mul_(self.mask[:, None])

        # At the label the error is -sigmoid(-z): sigmoid(z) - 1 would lose a good prediction's
        # digits.
        at_label = torch.sigmoid(-self.logits_at_label).mul_(self.mask).neg_()
        self.error[:, :, self.inside].scatter_(1, index, at_label[:, None])

    def cross_entropy(self, class_weights: Tensor | None) -> Tensor:
        """Sum over classes and valid pixels of softplus(z) - z * onehot, a scalar of `_sum_dtype`.

        An element's cross-entropy is -log(1 - |error|), which is max(x, 0) - log(1 - p) with
        p = min(|error|, 1 - |error|) and x = z, or -z at the label. The first part is summed as it
        is. In place of a logarithm for each element, factors 1 - p are multiplied first: eight of
        them are at least 2^-8, so 32 such products do not underflow in fp64.

        With class weights each pixel counts by the weight of its label, and each element needs its
        own logarithm.
        """
        if class_weights is not None:
            distance = self.error.abs()[:, :, self.inside]
            of_elements = torch.log1p(-torch.minimum(distance, 1 - distance))
            of_pixels = self.logits.clamp_min(0).sum(1) - self.logits_at_label - of_elements.sum(1)
            of_pixels *= self.mask * self._weights(class_weights)
            return of_pixels.sum(dtype=_sum_dtype(of_pixels.device))

        work = self.buffers.take("work", *self.logits.shape)
        positive = torch.clamp_min(self.logits, 0, out=work).sum(1)
        linear = (positive - self.logits_at_label).mul_(self.mask)
        linear = linear.sum(dtype=_sum_dtype(linear.device))

        # p of all elements, filled up with zeros to a multiple of 8 x 32.
        size = self.error.numel()
        padded = math.ceil(size / 256) * 256
        work, other = self.buffers.take("work", padded), self.buffers.take("other", padded)
        work[size:].zero_()
        error = torch.abs(self.error.view(-1), out=work[:size])
        torch.sub(error.new_ones(()), error, out=other[:size])
        torch.minimum(error, other[:size], out=error)

        # Products of two, four and eight factors, kept as one minus the product so that a small p
        # does not vanish beside 1: 1 - (1 - a)(1 - b) = a + b - a b.
        for _ in range(3):
            first, second = work.view(2, -1)
            product = torch.add(first, second, out=other[: first.numel()])
            product.addcmul_(first, second, value=-1)
            work, other = product, work

        if linear.dtype == torch.float32:
            return linear - torch.log1p(-work).sum()
        products = work.double().neg_().add_(1).view(32, -1).prod(0)
        return linear - products.log_().sum()

    def gradient_of_pixels(self, grad: Tensor, class_weights: Tensor | None) -> Tensor:
        """The gradient by each pixel's cross-entropy: `grad`, or [n, 1, rows, W] with weights."""
        if class_weights is None:
            return grad
        return (grad * self._weights(class_weights))[:, None]

    def _weights(self, class_weights: Tensor) -> Tensor:
        """The weight of each pixel's label, [n, rows, W]; that of class 0 where it is not valid."""
        return class_weights.to(self.logits)[self.index]

    def pool(self, width: int) -> Tensor:
        """The errors averaged over windows, [n, C, pooled rows, width]; padding counts as zeros."""
        size = self.pool_size
        number, classes, rows, columns = self.error.shape
        windows = self.error.view(number, classes, rows // size, size, columns)

        # Sums over the rows of each window, with the padding to the left and right of the image.
        padded = self.buffers.take("work", number, classes, rows // size, width * size)
        inside = slice(size // 2, min(size // 2 + columns, width * size))
        padded[..., : inside.start].zero_()
        padded[..., inside.stop :].zero_()
        torch.sum(windows[..., : inside.stop - inside.start], dim=3, out=padded[..., inside])

        # Then over the columns, as a product with a vector of 1 / size^2.
        pooled = torch.mv(padded.view(-1, size), padded.new_full((size,), size**-2))
        filled = self.pooled_rows.stop - self.pooled_rows.start
        return pooled.view(number, classes, rows // size, width)[:, :, :filled]

    def write_gradient(self, gradient: Tensor, *, grad: Tensor, grad_pooled: Tensor) -> None:
        """Write the gradient by the logits of this block to `gradient` [n, C, rows, W].

        It is grad * error (of the cross-entropy; `grad` may differ by pixel) + sigmoid' * (the
        share of the pixel in its window's gradient), where sigmoid' = p (1 - p) = |error| - error^2
        on valid pixels.
        """
        error = self.error[:, :, self.inside]
        target = gradient
        if gradient.dtype != error.dtype:
            target = self.buffers.take("gradient", *error.shape)

        if grad_pooled.numel():
            slope = torch.abs(self.error, out=self.buffers.take("work", *self.error.shape))
            slope.addcmul_(self.error, self.error, value=-1)

            # Multiply all rows of a window with that window's gradient.
            number, classes, rows, columns = self.error.shape
            size = self.pool_size
            windows = slope.view(number, classes, rows // size, size, columns)
            windows.mul_(self._spread(grad_pooled)[:, :, :, None])
            torch.addcmul(slope[:, :, self.inside], error, grad, out=target)
        else:
            torch.mul(error, grad, out=target)

        if target is not gradient:
            gradient.copy_(target)

    def _spread(self, grad_pooled: Tensor) -> Tensor:
        """The gradient of pooled rows [n, C, rows, w] at each column, [n, C, windows, W]."""
        number, classes, rows, columns = self.error.shape
        size = self.pool_size
        spread = (grad_pooled * size**-2).repeat_interleave(size, dim=-1)
        spread = spread[..., size // 2 : size // 2 + columns]

        # Pixels beyond the last window take no part in the pooling.
        missing = (0, columns - spread.shape[-1], 0, rows // size - spread.shape[2])
        if any(missing):
            spread = functional.pad(spread, missing)
        return spread
