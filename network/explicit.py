"""Explicit attention to scale (Chen et al., 2016, https://arxiv.org/abs/1511.03339), for table 1.

What the authors' release does differently from that paper: docs/release_notes.md, explicit
attention.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from .layers import Concatenate, ModelError, at_least_float32, resize, row_by_row
from .model import MultiScaleModel, Size, as_prediction, resized
from .prediction import Prediction


class ExplicitHead(nn.Module):
    """The release's head without batch norm: 3x3 conv, ReLU, 1x1 conv, no biases.

    With `padded` the last convolution has a border of one pixel, so that the map grows by two
    pixels, as in the release.
    """

    def __init__(self, *, inputs: int, outputs: int, channels: int, padded: bool) -> None:
        super().__init__()
        self.hidden = nn.Conv2d(inputs, channels, 3, padding=1, bias=False)
        self.output = nn.Conv2d(channels, outputs, 1, padding=int(padded), bias=False)

    def forward(self, features: Tensor) -> Tensor:
        return self.output(self.embed(features))

    @row_by_row(halo=1)
    def embed(self, features: Tensor) -> Tensor:
        """Hidden features `[N, channels, h, w]`."""
        return F.relu(self.hidden(features), inplace=True)


class Explicit(MultiScaleModel):
    """One head reads the features of all scales and weighs them.

    With `softmax` the weights of a pixel sum to 1, as in Chen et al.; without it they are the raw
    outputs of the head, as in the release.
    """

    multiscale = "explicit"

    def __init__(self, *, attention: nn.Module, softmax: bool, **parts: object) -> None:
        super().__init__(**parts)  # type: ignore[arg-type]
        self.attention = attention
        self.softmax = softmax
        self.concatenate = Concatenate(align_corners=self.align_corners)

    def predict_scales(
        self, image: Tensor, scales: Sequence[float], *, keep_scales: bool = False
    ) -> dict[float, Prediction]:
        if len(scales) != len(self.train_scales):
            expected = ", ".join(map(str, self.train_scales))
            raise ModelError(
                f"the explicit model was built for {len(self.train_scales)} scales and cannot take "
                f"{list(scales)}: give as many as it was trained with ({expected})."
            )

        # The scale nearest to 1 first, then the others in ascending order: the order in which the
        # release concatenates the features.
        first = min(scales, key=lambda scale: abs(scale - 1))
        order = [first, *sorted(set(scales) - {first})]
        decoded = {scale: self.decode_at(image, scale) for scale in order}

        features = self.concatenate([part.features for part in decoded.values()])
        attention = at_least_float32(self.attention(features))
        if self.softmax:
            attention = attention.softmax(dim=1)
        if self.fuse_at == "features":
            size = decoded[first].logits.shape[-2:]
            attention = resize(attention, size, align_corners=self.align_corners)

        result = {scale: as_prediction(part) for scale, part in decoded.items()}
        result[first] = as_prediction(decoded[first], attention)
        return result

    def fuse_scales(self, scales: Mapping[float, Prediction], size: Size) -> Prediction:
        """The sum over scales of attention times logits, everything at one size first."""
        (attended,) = (part for part in scales.values() if part.attention is not None)
        common: Sequence[int] = size
        if self.fuse_at == "features":
            common = attended.logits.shape[-2:]

        own = self.at_fusion_size(scales, size)
        parts = [
            resized(own[scale], common, align_corners=self.align_corners) for scale in sorted(own)
        ]
        (attention,) = (part.attention for part in parts if part.attention is not None)

        def weighted_sum(maps: Sequence[Tensor]) -> Tensor:
            # Channel i of the attention belongs to the i-th scale in ascending order.
            total = maps[0] * attention[:, 0:1]
            for index, part in enumerate(maps[1:], start=1):
                total = total + part * attention[:, index : index + 1]
            return total

        logits = weighted_sum([part.logits for part in parts])
        aux: Tensor | None = None
        maps = [part.aux for part in parts if part.aux is not None]
        if maps:
            aux = weighted_sum(maps)
        fused = Prediction(logits=logits, aux=aux, attention=attention)
        return resized(fused, size, align_corners=self.align_corners)
