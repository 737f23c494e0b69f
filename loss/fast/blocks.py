"""Class maps cut into blocks of rows."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch

# Elements of the logits in one block. On a CPU a block and its temporaries should stay in a core's
# cache. On a GPU a block should be large enough that starting kernels costs nothing, and small
# beside the logits of a crop.
CPU_BLOCK_ELEMENTS = 2**18
GPU_BLOCK_ELEMENTS = 2**24


def block_elements(device: torch.device) -> int:
    """How many elements a block should have on `device`."""
    if device.type == "cpu":
        return CPU_BLOCK_ELEMENTS
    return GPU_BLOCK_ELEMENTS


def row_blocks(
    shape: Sequence[int], device: torch.device, *, window: int = 1, padding: int = 0
) -> Iterator[tuple[slice, slice]]:
    """Cut logits into blocks: several whole images where these are small, else rows of one image.

    Args:
        shape: [N, C, H, W] of the logits.
        device: where they are; it decides how large a block is.
        window: height of the pooling windows in rows. No block but the last ends inside a window.
        padding: how many rows above the image the first window begins.

    Yields:
        A slice of images and a slice of rows.
    """
    images, classes, height, width = shape
    elements = block_elements(device)

    # As many whole images as a block holds, but at least one; then rows, in whole windows.
    images_per_block = max(elements // max(classes * height * width, 1), 1)
    rows_per_block = max(elements // max(images_per_block * classes * width, 1), 1)
    windows_per_block = math.ceil(min(rows_per_block, height + padding) / window)
    rows_per_block = windows_per_block * window

    for first_image in range(0, images, images_per_block):
        chosen = slice(first_image, min(first_image + images_per_block, images))
        for first_row in range(-padding, height, rows_per_block):
            last_row = min(first_row + rows_per_block, height)
            # A block that lies in the padding above the image holds nothing.
            if first_row + rows_per_block > 0:
                yield chosen, slice(max(first_row, 0), last_row)
