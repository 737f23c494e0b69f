"""From uint8 to what trunks expect, on the device.

A quarter of the bytes travels, and no worker spends time on floats.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

# ImageNet's mean and standard deviation of R, G, B in [0, 1], with which every trunk is trained.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


def normalise(
    image: Tensor, *, dtype: torch.dtype = torch.float32, channels_last: bool = True
) -> Tensor:
    """(image / 255 - mean) / std, on the image's device.

    Computed in float32 (float64 for float64) and rounded once.

    Args:
        image: uint8 RGB [N, 3, H, W] or [N, H, W, 3].
        dtype: type of the result.
        channels_last: whether the result lies in channels-last memory.

    Returns:
        `dtype` [N, 3, H, W].
    """
    assert image.dtype == torch.uint8 and image.ndim == 4, (
        f"normalise takes uint8 of 4 dimensions, not {image.dtype} {list(image.shape)}"
    )
    if image.shape[1] != 3:
        assert image.shape[3] == 3, f"normalise takes images of 3 channels, not {list(image.shape)}"
        image = image.permute(0, 3, 1, 2)

    # Reduced precision would round twice.
    exact = torch.float32
    if dtype == torch.float64:
        exact = torch.float64
    values = image.to(exact, memory_format=_memory_format(channels_last))
    return standardise_(values).to(dtype)


def _memory_format(channels_last: bool) -> torch.memory_format:
    if channels_last:
        return torch.channels_last
    return torch.contiguous_format


def standardise_(values: Tensor) -> Tensor:
    """(values / 255 - mean) / std in place; float32 or float64 [N, 3, H, W] from 0 to 255."""
    scale, shift = _constants(values.device, values.dtype)
    return values.mul_(scale).add_(shift)


@lru_cache(maxsize=16)
def _constants(device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """1 / (255 std) and -mean / std, each [1, 3, 1, 1].

    They are kept, because copying them to a GPU for each batch would wait for the GPU.
    """
    # A first call from within inference mode would leave tensors that training cannot use.
    with torch.inference_mode(False):
        std = torch.tensor(STD, dtype=torch.float64).view(1, 3, 1, 1)
        mean = torch.tensor(MEAN, dtype=torch.float64).view(1, 3, 1, 1)
        return (1 / (255 * std)).to(device, dtype), (-mean / std).to(device, dtype)
