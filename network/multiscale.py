"""Ways of combining scales: single, hierarchical (the paper's), its dual variant, and explicit attention to scale."""
from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .decoders.decoder import Decoded
from .fusion import checked_scales, fuse_scales, resized, scaled_size
from .layers import ConvHead, ModelError, lifted, resize
from .prediction import Prediction
from .segmenter import Segmenter


class Single(Segmenter):
    """One scale, one answer. Averaging and maximum over scales are ways to evaluate it: see `inference.predict`."""

    multiscale = "single"

    def forward(self, image: Tensor, *, scales: Sequence[float] | None = None, keep_scales: bool = False) -> Prediction:
        """Normalised image `[N, 3, H, W]` to logits `[N, C, H, W]`, and auxiliary logits in training."""
        (scale,) = self._one(scales)
        size = scaled_size(image.shape[-2:], scale)
        decoded = self.decode(resize(image, size, align_corners=self.align_corners), with_aux=self.training)
        low = Prediction(lifted(decoded.logits), None if decoded.aux is None else lifted(decoded.aux))
        own = resized(low, size, align_corners=self.align_corners)
        result = resized(own, image.shape[-2:], align_corners=self.align_corners)
        return result._replace(scales={scale: own} if keep_scales else None)

    def _one(self, scales: Sequence[float] | None) -> tuple[float, ...]:
        chosen = checked_scales(self.train_scales if scales is None else scales)
        if len(chosen) > 1:
            raise ModelError(
                f"a single-scale model cannot fuse scales {list(chosen)}: average them with network.inference.predict, "
                "or choose multiscale hierarchical."
            )
        return chosen


class Hierarchical(Segmenter):
    """Hierarchical multi-scale attention: the lower scale of a pair decides, per pixel, how much the higher counts."""

    multiscale = "hierarchical"

    def __init__(self, *, attention: nn.Module, fuse_at: str = "image", **parts: object) -> None:
        super().__init__(**parts)  # type: ignore[arg-type]
        self.attention = attention
        self.fuse_at = fuse_at

    def forward(self, image: Tensor, *, scales: Sequence[float] | None = None, keep_scales: bool = False) -> Prediction:
        """Normalised image `[N, 3, H, W]` to the fused prediction at its size; `scales` in any order."""
        chosen = checked_scales(self.train_scales if scales is None else scales)
        predictions = self._predict_scales(image, sorted(chosen, reverse=not self.training))
        size = image.shape[-2:]
        own = {scale: self._own_size(part, size, scale) for scale, part in predictions.items()}
        fused = fuse_scales(
            own if self.fuse_at == "image" else predictions, size=size, align_corners=self.align_corners
        )
        return fused._replace(scales=own if keep_scales else None)

    def _own_size(self, prediction: Prediction, size: Sequence[int], scale: float) -> Prediction:
        return resized(prediction, scaled_size(size, scale), align_corners=self.align_corners)

    def _predict_scales(self, image: Tensor, order: list[float]) -> dict[float, Prediction]:
        """Low-resolution predictions of each scale, in the order given; the highest has no attention.

        Training goes from low to high, as the authors do, because batch norm's running statistics remember the order.
        """
        result = {}
        for scale in order:
            size = scaled_size(image.shape[-2:], scale)
            decoded = self.decode(resize(image, size, align_corners=self.align_corners), with_aux=self.training)
            wanted = scale != max(order)
            attention = torch.sigmoid(lifted(self.attention(decoded.features))) if wanted else None
            result[scale] = as_prediction(decoded, attention)
        return result


def as_prediction(decoded: Decoded, attention: Tensor | None) -> Prediction:
    """Low-resolution maps in at least single precision."""
    aux = None if decoded.aux is None else lifted(decoded.aux)
    return Prediction(logits=lifted(decoded.logits), aux=aux, attention=attention)


def build_attention(*, inputs: int, channels: int, dropout: float) -> ConvHead:
    """The attention head; PyTorch's default initialisation starts it close to 0.5 everywhere."""
    return ConvHead(inputs=inputs, outputs=1, channels=channels, dropout=dropout)
