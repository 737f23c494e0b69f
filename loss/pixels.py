"""What the per-pixel losses share: which pixels count, how a sum becomes a mean, and blocks of rows."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from .sources import Maps

# Elements of the class maps in one block. On the CPU a block and its temporaries should stay in a core's cache; on a
# GPU a block should be large enough that starting kernels costs nothing, and small beside the logits of a crop.
# Rendered blocks share rows of the maps they are rendered from, hence larger ones, and no fewer than so many rows.
CPU_BLOCK_ELEMENTS = 2**18
GPU_BLOCK_ELEMENTS = 2**24
RENDERED_BLOCK = 2
RENDERED_ROWS = 16


class LossError(ValueError):
    """A mistake in what the user asked of the losses, in one sentence that says what to do."""


def valid_mask(label: Tensor, *, num_classes: int, ignore_label: int = 255) -> Tensor:
    """Where `label` [N, H, W] names one of the classes and is not `ignore_label`; bool, same shape.

    Every other value counts as ignored, as in the authors' definition (their mask is label < C).
    """
    valid = torch.ones_like(label, dtype=torch.bool)
    limit = (
        256 if label.dtype == torch.uint8 else math.inf
    )  # torch compares uint8 with a number modulo 256
    if num_classes < limit:
        valid &= label < num_classes
    if label.dtype != torch.uint8:
        valid &= label >= 0
    if 0 <= ignore_label < min(num_classes, limit):
        valid &= label != ignore_label
    return valid


def class_index(label: Tensor, valid: Tensor) -> Tensor:
    """`label` as an int64 index that is 0 where the pixel is not valid, for gather and scatter; same shape."""
    return torch.where(valid, label, 0).long()


def mean_over_pixels(
    total: Tensor,
    valid: Tensor,
    *,
    valid_pixels: Tensor | int | None = None,
    parts: int = 1,
    added: int = 0,
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


def check_shapes(logits: Maps, label: Tensor) -> None:
    """Raise LossError unless `logits` is floating [N, C, H, W] and `label` integer [N, H, W]."""
    if len(logits.shape) != 4 or not logits.dtype.is_floating_point:
        raise LossError(
            f"logits must be floating point [N, C, H, W], not {logits.dtype} {list(logits.shape)}."
        )
    expected = [logits.shape[0], *logits.shape[2:]]
    if list(label.shape) != expected or label.is_floating_point():
        raise LossError(
            f"label must be integer {expected} to match the logits, not {label.dtype} {list(label.shape)}."
        )


def computing_dtype(logits: Maps) -> torch.dtype:
    """fp64 for fp64 logits and fp32 for everything else: half precision is widened block by block, never as a whole."""
    return torch.float64 if logits.dtype == torch.float64 else torch.float32


def without_autocast(device: torch.device) -> AbstractContextManager[None]:
    """Inside, operations on `device` keep the dtype they are given."""
    if not torch.amp.is_autocast_available(device.type):
        return nullcontext()
    return torch.autocast(device.type, enabled=False)


def block_elements(device: torch.device) -> int:
    """How many elements a block should have on `device`."""
    return CPU_BLOCK_ELEMENTS if device.type == "cpu" else GPU_BLOCK_ELEMENTS


def row_blocks(
    shape: Sequence[int],
    device: torch.device,
    *,
    window: int = 1,
    padding: int = 0,
    rendered: bool = False,
) -> Iterator[tuple[slice, slice]]:
    """Cut logits of `shape` [N, C, H, W] into blocks, as (slice of images, slice of rows): whole images if small.

    No block but the last ends inside a pooling window, the windows being `window` rows high and starting `padding`
    rows above the image. Blocks of `rendered` logits hold rows of all images.
    """
    images, classes, height, width = shape
    elements = block_elements(device) * (RENDERED_BLOCK if rendered else 1)
    images_per_block = images if rendered else max(elements // max(classes * height * width, 1), 1)
    rows_per_block = max(
        elements // max(images_per_block * classes * width, 1), RENDERED_ROWS if rendered else 1
    )
    rows_per_block = -(-min(rows_per_block, height + padding) // window) * window
    for first_image in range(0, images, max(images_per_block, 1)):
        chosen = slice(first_image, min(first_image + images_per_block, images))
        for first in range(-padding, height, rows_per_block):
            if first + rows_per_block > 0:
                yield chosen, slice(max(first, 0), min(first + rows_per_block, height))
