"""What a decoder is: features of a trunk in, low-resolution scores out."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn

from ..trunks.trunk import Features


class Decoded(NamedTuple):
    """Scores of one image at one scale, at the resolution of the features."""

    logits: Tensor  # [N, C, h, w]
    aux: Tensor | None  # [N, C, h, w], when asked for and the decoder has an auxiliary head
    features: Tensor  # [N, feature_channels, h, w]: what the attention head reads


class Decoder(nn.Module):
    """`Features` to `Decoded`; it declares the channels that it hands to the attention head."""

    feature_channels: int
    classifiers: tuple[str, ...]  # names of the layers whose shape depends on the number of classes

    def forward(self, features: Features, *, with_aux: bool) -> Decoded:
        """Decode; auxiliary scores are computed only `with_aux`, which evaluation does not ask."""
        raise NotImplementedError
