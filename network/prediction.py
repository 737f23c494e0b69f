"""The one named type that leaves this room."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Prediction(NamedTuple):
    """What a model says about a batch of images, for one scale or after fusion."""

    logits: Tensor  # [N, C, H, W]
    aux: Tensor | None = None  # [N, C, H, W], in training, of decoders with an auxiliary head
    attention: Tensor | None = (
        None  # [N, 1, H, W] in (0, 1); explicit: [N, S, H, W], ascending scales
    )
    scales: dict[float, Prediction] | None = (
        None  # on request: each scale at the size of its own scaled image
    )
