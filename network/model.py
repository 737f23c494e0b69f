"""Ways of combining scales: single, hierarchical (the paper's), its dual variant, and explicit attention to scale."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .decoders.decoder import Decoded
from .fusion import Maps, chain, checked_scales, maps_of, resized, scaled_size
from .heads import in_strips
from .inference.raster import Joined, Raster, Summed, Weighted, at_size
from .layers import ModelError, lifted, resize
from .prediction import Prediction
from .segmenter import Segmenter
from .trunks.trunk import Features


def as_prediction(decoded: Decoded, attention: Tensor | None = None) -> Prediction:
    """Low-resolution maps in at least single precision."""
    aux = None if decoded.aux is None else lifted(decoded.aux)
    return Prediction(logits=lifted(decoded.logits), aux=aux, attention=attention)


class MultiScale(Segmenter):
    """Runs the shared trunk and decoder on an image at several scales. How the answers become one is for subclasses."""

    def __init__(self, *, fuse_at: str = "image", **parts: object) -> None:
        super().__init__(**parts)  # type: ignore[arg-type]
        self.fuse_at = fuse_at

    def forward(
        self,
        image: Tensor,
        *,
        scales: Sequence[float] | None = None,
        keep_scales: bool | str = False,
        lazy: bool = False,
    ) -> Prediction:
        """Predict a batch of images at all scales and fuse.

        `image` is `[N, 3, H, W]`, normalised, of any size; `scales` in any order (default: those of training). The maps
        of the result have the image's size; in training auxiliary logits are among them. `keep_scales` adds each
        scale's own prediction, at the size of its scaled image or, when it is "features", at that of its features, which
        takes no memory to speak of. With `lazy` the maps of the result are rasters
        (`raster.render_rows` computes strips of them), so that a loss need not hold full-size logits.
        """
        chosen = checked_scales(self.train_scales if scales is None else scales)
        low = self.predict_scales(image, chosen, keep_scales=bool(keep_scales))
        size = (image.shape[-2], image.shape[-1])
        own = {
            scale: resized(
                maps_of(part), scaled_size(size, scale), align_corners=self.align_corners
            )
            for scale, part in low.items()
        }
        kept = None
        if keep_scales == "features":
            kept = dict(low)
        elif keep_scales:
            kept = {scale: maps.computed() for scale, maps in own.items()}
            own = {scale: maps_of(part) for scale, part in kept.items()}
        if self.fuse_at == "features":
            own = {scale: maps_of(part) for scale, part in low.items()}
        fused = self.combine(own, size)
        prediction = Prediction(*fused) if lazy else fused.computed()  # type: ignore[arg-type]
        return prediction._replace(scales=kept)

    def predict_scales(
        self, image: Tensor, scales: Sequence[float], *, keep_scales: bool
    ) -> dict[float, Prediction]:
        """Each scale's prediction at the resolution of its features."""
        raise NotImplementedError

    def combine(self, scales: dict[float, Maps], size: tuple[int, int]) -> Maps:
        """Describe the fusion of the scales at the size of the image."""
        raise NotImplementedError

    def decode_at(self, image: Tensor, scale: float) -> Decoded:
        """Scores of the image resized by `scale`; auxiliary ones in training only."""
        return self.decoder(self._features_at(image, scale), with_aux=self.training)

    def _features_at(self, image: Tensor, scale: float) -> Features:
        size = scaled_size(image.shape[-2:], scale)
        return self.trunk(resize(image, size, align_corners=self.align_corners).to(image.dtype))


class Single(MultiScale):
    """One scale, one answer. Averaging and maximum over scales are ways to evaluate it: see `inference.predict`."""

    multiscale = "single"

    def predict_scales(
        self, image: Tensor, scales: Sequence[float], *, keep_scales: bool
    ) -> dict[float, Prediction]:
        if len(scales) > 1:
            raise ModelError(
                f"a single-scale model cannot fuse scales {list(scales)}: average them with network.inference.predict, "
                "or choose multiscale hierarchical."
            )
        return {scales[0]: as_prediction(self.decode_at(image, scales[0]))}

    def combine(self, scales: dict[float, Maps], size: tuple[int, int]) -> Maps:
        (only,) = scales.values()
        return resized(only, size, align_corners=self.align_corners)


class Hierarchical(MultiScale):
    """Hierarchical multi-scale attention: the lower scale of a pair decides, per pixel, how much the higher counts."""

    multiscale = "hierarchical"

    def __init__(self, *, attention: nn.Module, **parts: object) -> None:
        super().__init__(**parts)  # type: ignore[arg-type]
        self.attention = attention

    def predict_scales(
        self, image: Tensor, scales: Sequence[float], *, keep_scales: bool
    ) -> dict[float, Prediction]:
        """From high to low; in training from low to high as the authors do, for the running statistics of batch norm.

        The attention of the highest scale has nothing to decide and is not computed, unless a lone scale is asked to be
        kept: then the map is all there is to look at.
        """
        wanted = set(scales) - {max(scales)} if len(scales) > 1 or not keep_scales else set(scales)
        result = {}
        for scale in sorted(scales, reverse=not self.training):
            decoded = self.decode_at(image, scale)
            attention = None
            if scale in wanted:
                attention = self.attend(decoded.features, decoded.logits)
            result[scale] = as_prediction(decoded, attention)
        return result

    def attend(self, features: Raster, logits: Tensor) -> Tensor:
        """Attention in (0, 1); at the resolution of the logits where fusion happens there."""
        attention = torch.sigmoid(lifted(self.attention(features)))
        if self.fuse_at == "features":
            attention = resize(attention, logits.shape[-2:], align_corners=self.align_corners)
        return attention

    def combine(self, scales: dict[float, Maps], size: tuple[int, int]) -> Maps:
        return chain(scales, size=size, align_corners=self.align_corners)


class HierarchicalDual(Hierarchical):
    """The attention of a pair reads the features of both scales, the higher ones resized to the lower (section 3.2.1)."""

    multiscale = "hierarchical_dual"

    def predict_scales(
        self, image: Tensor, scales: Sequence[float], *, keep_scales: bool
    ) -> dict[float, Prediction]:
        if not self.training:
            return self._attend_pairs(
                (scale, self.decode_at(image, scale)) for scale in sorted(scales, reverse=True)
            )
        decoded = [(scale, self.decode_at(image, scale)) for scale in sorted(scales)]
        return self._attend_pairs(reversed(decoded))

    def _attend_pairs(self, decoded: Iterable[tuple[float, Decoded]]) -> dict[float, Prediction]:
        """Predictions from decoded scales that come from high to low."""
        result = {}
        higher: Raster | None = None
        for scale, scores in decoded:
            attention = None
            if higher is not None:
                aligned = at_size(higher, scores.features.size, align_corners=self.align_corners)
                attention = self.attend(Joined(scores.features, aligned), scores.logits)
            higher = scores.features
            result[scale] = as_prediction(scores, attention)
        return result


class ExplicitHead(nn.Module):
    """The release's head: 3x3 conv, ReLU, 1x1 conv, no batch norm, no biases.

    With `padded` the last convolution has a border of one pixel, so that the map grows by two pixels (RELEASE.md 2.9).
    """

    def __init__(self, *, inputs: int, outputs: int, channels: int, padded: bool) -> None:
        super().__init__()
        self.hidden = nn.Conv2d(inputs, channels, 3, padding=1, bias=False)
        self.output = nn.Conv2d(channels, outputs, 1, padding=int(padded), bias=False)

    def forward(self, features: Raster) -> Tensor:
        hidden = in_strips(self.hidden, features, halo=1, training=self.training)
        return self.output(F.relu(hidden, inplace=True))


class Explicit(MultiScale):
    """Attention to scale (Chen et al., 2016): one head reads the features of all scales and weighs them.

    With `softmax` the weights of a pixel sum to 1, as in that paper; without it they are the raw outputs of the head,
    as in the release.
    """

    multiscale = "explicit"

    def __init__(self, *, attention: nn.Module, softmax: bool, **parts: object) -> None:
        super().__init__(**parts)  # type: ignore[arg-type]
        self.attention = attention
        self.softmax = softmax

    def predict_scales(
        self, image: Tensor, scales: Sequence[float], *, keep_scales: bool
    ) -> dict[float, Prediction]:
        """The scale nearest to 1 first, then the others ascending: the order of the head's inputs (RELEASE.md 2.9)."""
        if len(scales) != len(self.train_scales):
            raise ModelError(
                f"the explicit model was built for {len(self.train_scales)} scales and cannot take {list(scales)}: give "
                f"as many as it was trained with ({', '.join(map(str, self.train_scales))})."
            )
        first = min(scales, key=lambda scale: abs(scale - 1))
        order = [first, *sorted(set(scales) - {first})]
        decoded = {scale: self.decode_at(image, scale) for scale in order}
        size = decoded[first].features.size
        features = (
            at_size(part.features, size, align_corners=self.align_corners)
            for part in decoded.values()
        )
        attention = lifted(self.attention(Joined(*features)))
        if self.softmax:
            attention = attention.softmax(dim=1)
        if self.fuse_at == "features":
            attention = resize(
                attention, decoded[first].logits.shape[-2:], align_corners=self.align_corners
            )
        return {
            scale: as_prediction(part, attention if scale == first else None)
            for scale, part in decoded.items()
        }

    def combine(self, scales: dict[float, Maps], size: tuple[int, int]) -> Maps:
        """Sum over scales of attention times logits, everything resized to one size first."""
        (attended,) = (maps for maps in scales.values() if maps.attention is not None)
        common = size if self.fuse_at == "image" else attended.logits.size
        at_common = {
            scale: resized(scales[scale], common, align_corners=self.align_corners)
            for scale in sorted(scales)
        }
        (attention,) = (maps.attention for maps in at_common.values() if maps.attention is not None)

        def summed(rasters: Sequence[Raster]) -> Raster:
            return Summed(
                *(
                    Weighted(raster, attention, channel=index)
                    for index, raster in enumerate(rasters)
                )
            )

        aux = [maps.aux for maps in at_common.values() if maps.aux is not None]
        logits = summed([maps.logits for maps in at_common.values()])
        fused = Maps(logits=logits, aux=summed(aux) if aux else None, attention=attention)
        return resized(fused, size, align_corners=self.align_corners)
