"""DeepLab V3+ (Chen et al., 2018) as the authors' ablation network builds it (RELEASE.md 2.7)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from ..heads import ConvHead, in_strips
from ..inference.raster import Joined, Stored, at_size, settled
from ..layers import ConvNorm, initialise_kaiming, normalise_pooled
from ..trunks.trunk import Features
from .decoder import Decoded, Decoder


class PyramidPooling(nn.Module):
    """Atrous spatial pyramid pooling: image pooling, a 1x1 and three dilated 3x3 convolutions, side by side.

    Rates are 6, 12, 18 at stride 16 and grow as the stride shrinks (12, 24, 36 at stride 8), so that they span the same
    part of the image. In training, a batch of one image normalises its pooled branch by running statistics.
    """

    def __init__(self, *, inputs: int, channels: int, stride: int) -> None:
        super().__init__()
        rates = [max(1, rate * 16 // stride) for rate in (6, 12, 18)]
        self.branches = nn.ModuleList(
            [ConvNorm(inputs=inputs, outputs=channels)]
            + [ConvNorm(inputs=inputs, outputs=channels, kernel=3, dilation=rate) for rate in rates]
        )
        self.pooled = ConvNorm(inputs=inputs, outputs=channels)

    def forward(self, tensor: Tensor, *, weight: Tensor) -> Tensor:
        """A 1x1 convolution (`weight`) of the concatenated branches, image pooling first, without concatenating them."""
        of_pooled, *of_branches = weight.chunk(len(self.branches) + 1, dim=1)
        pooled = self.pooled.conv(tensor.mean(dim=(2, 3), keepdim=True))
        total = F.conv2d(
            normalise_pooled(self.pooled.norm, pooled).relu(), of_pooled
        )  # one pixel for all positions
        for branch, of_branch in zip(self.branches, of_branches, strict=True):
            total = F.conv2d(branch(tensor), of_branch).add_(total)
        return total


class DeepLabV3Plus(Decoder):
    """ASPP context joined with the trunk's fine features, then the 3x3, 3x3, 1x1 semantic head.

    The attention head reads the joined features, as in the release, or with `head="paper"` the trunk's final stage.
    """

    classifiers = ("head.output",)

    def __init__(
        self,
        *,
        trunk_channels: int,
        trunk_stride: int,
        fine_channels: int,
        num_classes: int,
        align_corners: bool,
        channels: int = 256,
        bottleneck_channels: int = 48,
        head: str = "release",
    ) -> None:
        super().__init__()
        self.align_corners = align_corners
        self.attend_trunk = head == "paper"
        self.aspp = PyramidPooling(inputs=trunk_channels, channels=channels, stride=trunk_stride)
        self.context = nn.Conv2d(5 * channels, channels, 1, bias=False)
        self.fine = nn.Conv2d(fine_channels, bottleneck_channels, 1, bias=False)
        merged_channels = bottleneck_channels + channels
        self.feature_channels = trunk_channels if self.attend_trunk else merged_channels
        self.head = ConvHead(inputs=merged_channels, outputs=num_classes, channels=channels)
        initialise_kaiming(self)

    def forward(self, features: Features, *, with_aux: bool) -> Decoded:
        context = Stored(self.aspp(features.semantic.whole(), weight=self.context.weight))
        fine = Stored(self.fine(features.fine.whole()))
        merged = settled(
            Joined(fine, at_size(context, fine.size, align_corners=self.align_corners))
        )
        logits = in_strips(self.head, merged, halo=ConvHead.halo, training=self.training)
        return Decoded(
            logits=logits, aux=None, features=features.semantic if self.attend_trunk else merged
        )
