"""The paper's plain semantic head, straight on the trunk's features (section 3.1)."""

from __future__ import annotations

from ..heads import ConvHead
from ..trunks.trunk import Features
from .decoder import Decoded, Decoder


class FCN(Decoder):
    """3x3 conv, BN, ReLU, 3x3 conv, BN, ReLU, 1x1 conv; attention reads the trunk's features."""

    classifiers = ("head.output",)

    def __init__(self, *, trunk_channels: int, num_classes: int, channels: int = 256) -> None:
        super().__init__()
        self.feature_channels = trunk_channels
        self.head = ConvHead(inputs=trunk_channels, outputs=num_classes, channels=channels)

    def forward(self, features: Features, *, with_aux: bool) -> Decoded:
        logits = self.head(features.semantic)
        return Decoded(logits=logits, aux=None, features=features.semantic)
