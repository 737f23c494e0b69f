"""What the per-pixel losses share: which pixels count, how a sum becomes a mean, and strips of rows."""
from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

# Elements of one strip of class maps. On the CPU a strip and its temporaries should stay in a core's L2 cache; on a GPU
# a strip should be large enough that starting kernels costs nothing, and small beside the logits of a training crop.
CPU_STRIP_ELEMENTS = 2**17
GPU_STRIP_ELEMENTS = 2**24


class LossError(ValueError):
    """A mistake in what the user asked of the losses, in one sentence that says what to do."""


def valid_mask(label: Tensor, *, num_classes: int, ignore_label: int = 255) -> Tensor:
    """Where `label` [N, H, W] names one of the classes and is not `ignore_label`; bool, same shape.

    Every other value counts as ignored, as in the authors' definition (their mask is label < C).
    """
    valid = label < num_classes
    if label.dtype != torch.uint8:
        valid &= label >= 0
    if ignore_label < num_classes:
        valid &= label != ignore_label
    return valid


def mean_over_pixels(
    total: Tensor, valid: Tensor, *, valid_pixels: Tensor | int | None = None, parts: int = 1, added: int = 0
) -> Tensor:
    """`parts * total / (valid pixels + added)`, where `total` is the sum over the valid pixels of this part of a batch.

    valid_pixels: number of valid pixels of the whole batch, over all processes and accumulated micro-batches; None
    takes the count of `valid`, right when this part is the whole. parts: in how many equal parts the batch was cut, so
    that the mean over the parts is the loss of the whole batch. Without any valid pixel the result is zero.
    """
    if valid_pixels is None:
        valid_pixels = valid.sum()
    if isinstance(valid_pixels, Tensor):
        count = (valid_pixels.to(total.device) + added).clamp(min=1).to(total.dtype)
        return parts * total / count
    return parts * total / max(valid_pixels + added, 1)


def check_shapes(logits: Tensor, label: Tensor) -> None:
    """Raise LossError unless `logits` is floating [N, C, H, W] and `label` integer [N, H, W]."""
    if logits.dim() != 4 or not logits.is_floating_point():
        raise LossError(f"logits must be floating point [N, C, H, W], not {logits.dtype} {list(logits.shape)}.")
    expected = [logits.shape[0], *logits.shape[2:]]
    if list(label.shape) != expected or label.is_floating_point():
        raise LossError(f"label must be integer {expected} to match the logits, not {label.dtype} {list(label.shape)}.")


def computing_dtype(logits: Tensor) -> torch.dtype:
    """fp64 for fp64 logits and fp32 for everything else: half precision is widened strip by strip, never as a whole."""
    return torch.float64 if logits.dtype == torch.float64 else torch.float32


def strips(logits: Tensor, *, multiple: int = 1) -> Iterator[tuple[int, int]]:
    """Cut the rows of `logits` [N, C, H, W] into (first, last) of strips, each a multiple of `multiple` rows or the last."""
    elements = CPU_STRIP_ELEMENTS if logits.device.type == "cpu" else GPU_STRIP_ELEMENTS
    images, classes, height, width = logits.shape
    rows = max(elements // max(images * classes * width, 1) // multiple, 1) * multiple
    for first in range(0, height, rows):
        yield first, min(first + rows, height)
