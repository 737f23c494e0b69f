"""DeepLab V3+ (Chen et al., 2018, https://arxiv.org/abs/1802.02611) for the ablations of table 1.

Layers and their order are those of the authors' network: docs/release_notes.md, DeepLab V3+.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from ..heads import ConvHead
from ..layers import Concatenate, ConvNorm, initialise_kaiming, normalise_pooled, over_image
from ..trunks.trunk import Features
from .decoder import Decoded, Decoder


class PyramidPooling(nn.Module):
    """Atrous spatial pyramid pooling: image pooling, a 1x1 and three dilated 3x3 convolutions.

    Rates, published as 6, 12, 18, are those at stride 16 and grow as the stride shrinks (12, 24, 36
    at stride 8), so that they span the same part of the image. A tap that lies outside the features
    of every training crop is never trained, and adds noise to larger images: crops of 192 x 256
    have features of 12 x 16, for which 18 and 12 are too wide. In training, a batch of one image
    normalises its pooled branch by running statistics.
    """

    def __init__(
        self, *, inputs: int, channels: int, stride: int, rates: Sequence[int], pooling: bool
    ) -> None:
        super().__init__()
        dilations = [max(1, rate * 16 // stride) for rate in rates]
        branches = [ConvNorm(inputs=inputs, outputs=channels)]
        branches += [
            ConvNorm(inputs=inputs, outputs=channels, kernel=3, dilation=dilation)
            for dilation in dilations
        ]
        self.branches = nn.ModuleList(branches)
        self.pooled: ConvNorm | None = None
        if pooling:
            self.pooled = ConvNorm(inputs=inputs, outputs=channels)

    def forward(self, tensor: Tensor, *, weight: Tensor) -> Tensor:
        """The branches, image pooling first, reduced by a 1x1 convolution with `weight`.

        A 1x1 convolution of a concatenation is the sum of one for each part, so that the five
        branches need not be held together.
        """
        weights = list(weight.chunk(len(self.branches) + (self.pooled is not None), dim=1))
        total: Tensor | None = None

        # Image pooling is the same for all positions: [N, channels, 1, 1].
        if self.pooled is not None:
            pooled = self.pooled.conv(self.pool(tensor))
            pooled = normalise_pooled(self.pooled.norm, pooled).relu()
            total = F.conv2d(pooled, weights.pop(0))

        for branch, weight_of_branch in zip(self.branches, weights, strict=True):
            part = F.conv2d(branch(tensor), weight_of_branch)
            if total is not None:
                part = part.add_(total)
            total = part
        assert total is not None
        return total

    @over_image
    def pool(self, tensor: Tensor) -> Tensor:
        """The mean of the features over the image, `[N, inputs, 1, 1]`."""
        return tensor.mean(dim=(2, 3), keepdim=True)


class DeepLabV3Plus(Decoder):
    """ASPP context joined with the trunk's fine features, then the 3x3, 3x3, 1x1 semantic head.

    The attention head reads the joined features, as in the authors' release, or with
    `head="paper"` the trunk's final stage (paper, section 3.1).
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
        rates: Sequence[int] = (6, 12, 18),
        pooling: bool = True,
        head: str = "release",
    ) -> None:
        super().__init__()
        self.attend_trunk = head == "paper"
        self.aspp = PyramidPooling(
            inputs=trunk_channels,
            channels=channels,
            stride=trunk_stride,
            rates=rates,
            pooling=pooling,
        )
        branches = pooling + 1 + len(rates)
        self.context = nn.Conv2d(branches * channels, channels, 1, bias=False)
        self.fine = nn.Conv2d(fine_channels, bottleneck_channels, 1, bias=False)
        self.concatenate = Concatenate(align_corners=align_corners)

        merged_channels = bottleneck_channels + channels
        self.feature_channels = merged_channels
        if self.attend_trunk:
            self.feature_channels = trunk_channels
        self.head = ConvHead(inputs=merged_channels, outputs=num_classes, channels=channels)
        initialise_kaiming(self)

    def forward(self, features: Features, *, with_aux: bool) -> Decoded:
        context = self.aspp(features.semantic, weight=self.context.weight)
        merged = self.concatenate([self.fine(features.fine), context])
        attended = merged
        if self.attend_trunk:
            attended = features.semantic
        return Decoded(logits=self.head(merged), aux=None, features=attended)
