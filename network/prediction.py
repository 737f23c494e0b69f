"""The one type in which every model answers, for one scale or for all of them."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Prediction(NamedTuple):
    """What a model says about a batch of images, for one scale or after fusion.

    Example:
        >>> import torch
        >>> Prediction(torch.zeros(1, 19, 8, 16))
        Prediction(logits [1, 19, 8, 16] float32 cpu)
    """

    # [N, C, H, W]
    logits: Tensor
    # [N, C, H, W], in training, of decoders with an auxiliary head
    aux: Tensor | None = None
    # [N, 1, H, W] in (0, 1); of the explicit model [N, S, H, W], scales in ascending order
    attention: Tensor | None = None
    # On request, each scale's own prediction. A model gives it at the resolution of its features,
    # `inference.predict` at the size of the scaled image.
    scales: dict[float, Prediction] | None = None

    def __repr__(self) -> str:
        dtype = str(self.logits.dtype).removeprefix("torch.")
        parts = [f"logits {list(self.logits.shape)} {dtype} {self.logits.device}"]
        for name, maps in (("aux", self.aux), ("attention", self.attention)):
            if maps is not None:
                parts.append(f"{name} {list(maps.shape)}")
        if self.scales is not None:
            scales = ", ".join(f"{scale:g}" for scale in sorted(self.scales))
            parts.append(f"scales {{{scales}}}")
        return f"Prediction({', '.join(parts)})"
