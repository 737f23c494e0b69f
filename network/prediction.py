"""The one type in which every model answers, for one scale or for all of them."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Prediction(NamedTuple):
    """What a model says about a batch of images, for one scale or after fusion."""

    # [N, C, H, W]
    logits: Tensor
    # [N, C, H, W], in training, of decoders with an auxiliary head
    aux: Tensor | None = None
    # [N, 1, H, W] in (0, 1); of the explicit model [N, S, H, W], scales in ascending order
    attention: Tensor | None = None
    # On request, each scale's own prediction. A model gives it at the resolution of its features,
    # `inference.predict` at the size of the scaled image.
    scales: dict[float, Prediction] | None = None
