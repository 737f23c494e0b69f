"""What a trunk is: image in, two feature maps out."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn


class Features(NamedTuple):
    """Features of a batch of images at one scale."""

    fine: Tensor  # [N, fine_channels, H / fine_stride, W / fine_stride]: early and sharp
    semantic: Tensor  # [N, channels, H / stride, W / stride]: what the heads classify


class Trunk(nn.Module):
    """Image `[N, 3, H, W]` to `Features`. It declares its channels and strides itself."""

    fine_channels: int
    fine_stride: int
    channels: int
    stride: int

    def forward(self, image: Tensor) -> Features:
        raise NotImplementedError
