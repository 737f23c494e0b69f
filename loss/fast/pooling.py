"""Average pooling as RMI has it: windows of `pool_size` x `pool_size` pixels, side by side.

The padding above and to the left is `pool_size // 2` pixels of zeros, and padding counts in the
average.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..pixels import class_index
from .blocks import row_blocks


def pooled_size(size: int, pool_size: int) -> int:
    """Length of a map of length `size` after pooling."""
    return (size + 2 * (pool_size // 2) - pool_size) // pool_size + 1


def pixels_per_window(label: Tensor, valid: Tensor, num_classes: int, pool_size: int) -> Tensor:
    """How many pixels of each class lie in each window.

    Divided by pool_size^2 this is the pooled one-hot map, which is never made at full size.

    Args:
        label: integer [N, H, W].
        valid: bool [N, H, W]; other pixels are of no class.
        num_classes: number of classes.
        pool_size: side of a window.

    Returns:
        int32 [N, C, h, w].
    """
    images, height, width = label.shape
    rows, columns = pooled_size(height, pool_size), pooled_size(width, pool_size)

    # The window of each pixel. Pixels beyond the last window are left out.
    row = (torch.arange(height, device=label.device) + pool_size // 2) // pool_size
    column = (torch.arange(width, device=label.device) + pool_size // 2) // pool_size
    inside = (row < rows)[:, None] & (column < columns)
    window = row.clamp(max=rows - 1)[:, None] * columns + column.clamp(max=columns - 1)

    # Count at the place (class, window) of each pixel.
    places = num_classes * rows * columns
    counts = torch.zeros(images, places, dtype=torch.int32, device=label.device)
    for block, lines in row_blocks((images, 1, height, width), label.device):
        counted = valid[block, lines] & inside[lines]
        index = class_index(label[block, lines], counted)
        index = index.mul_(rows * columns).add_(window[lines])
        counts[block].scatter_add_(1, index.flatten(1), counted.flatten(1).int())
    return counts.view(images, num_classes, rows, columns)


def window_areas(height: int, width: int, pool_size: int, device: torch.device) -> Tensor:
    """How many pixels of an image lie in each window, fp64 [h, w]; fewer at the padding."""
    return _covered(height, pool_size, device)[:, None] * _covered(width, pool_size, device)


def _covered(length: int, pool_size: int, device: torch.device) -> Tensor:
    """How many pixels of a line of `length` lie in each window, fp64 [pooled length]."""
    windows = torch.arange(pooled_size(length, pool_size), device=device)
    first = windows * pool_size - pool_size // 2
    return ((first + pool_size).clamp(max=length) - first.clamp(min=0)).double()
