"""What a trunk is: image in, two feature maps out."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn

from ..inference.raster import Raster


class Features(NamedTuple):
    """Features of one image at one scale, as rasters: a trunk need not join or resize what a decoder may not want whole."""

    fine: Raster  # [N, fine_channels, H / fine_stride, W / fine_stride]: early and sharp
    semantic: Raster  # [N, channels, H / stride, W / stride]: what the heads classify


class Trunk(nn.Module):
    """Image `[N, 3, H, W]` to `Features`. A trunk declares its channels and strides, so nobody keeps a table of them."""

    fine_channels: int
    fine_stride: int
    channels: int
    stride: int

    def forward(self, image: Tensor) -> Features:
        raise NotImplementedError
