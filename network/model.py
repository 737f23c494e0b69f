"""Hierarchical multi-scale attention for semantic segmentation.

Tao, Sapra, Catanzaro, 2020, https://arxiv.org/abs/2005.10821.

A model runs one trunk and one decoder on an image at several scales and joins what they say:
`fuse` is equation 1 of the paper, `fuse_chain` applies it from the highest scale to the lowest.
`inference` passes maps that compute their rows on demand; the arithmetic is this one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import NamedTuple, Self

import torch
from torch import Tensor, nn

from .decoders.decoder import Decoded, Decoder
from .layers import Concatenate, ModelError, at_least_float32, resize
from .prediction import Prediction
from .trunks.trunk import Trunk

Size = tuple[int, int]  # (height, width) in pixels
ScalePair = tuple[float, float]  # a scale and the next higher one of a list

# An attention nearer to 0 or 1 counts as so far from it: its score stays finite, so that a
# calibration can move it.
SATURATED = 1e-6

# Beyond these an image is nothing, or takes the memory of hundreds: a slip of the keyboard.
SMALLEST_SCALE, LARGEST_SCALE = 1 / 64, 16.0

# What torch says where batch norm has nothing to take a variance of.
ONE_VALUE = "Expected more than 1 value per channel"


class PairBias(NamedTuple):
    """What a calibration adds to the scores of a pair's attention, before the sigmoid.

    One number for each class, which counts as often as a scale of the pair thinks it sees that
    class: those of `lower` by the probabilities of the lower scale, those of `higher` by those of
    the higher one. A single number counts everywhere.
    """

    lower: tuple[float, ...] | Tensor
    higher: tuple[float, ...] | Tensor = (0.0,)


PairBiases = Mapping[ScalePair, PairBias]


def fuse(
    lower: Prediction,
    higher: Prediction,
    *,
    size: Sequence[int] | None = None,
    align_corners: bool = False,
) -> Prediction:
    """Fuse two adjacent scales: L = U(a * L_lower) + (1 - U(a)) * U(L_higher) (equation 1).

    `lower` carries the attention a, `[N, 1, h, w]` in (0, 1), at the size of its logits
    `[N, C, h, w]`. U is bilinear interpolation to `size` (height, width), by default that of
    `higher`, whose logits then stay as they are. The product comes before the interpolation.
    Auxiliary logits, where both have them, are fused by the same attention. Constant logits come
    out unchanged.
    """
    target = higher.logits.shape[-2:] if size is None else size
    attention = lower.attention
    assert attention is not None, "the lower scale of a pair carries the attention"

    def at_target(maps: Tensor) -> Tensor:
        return resize(maps, target, align_corners=align_corners)

    share_of_lower = at_target(attention)

    def mixed(low: Tensor, high: Tensor) -> Tensor:
        # The sum and the second product in one step.
        return torch.addcmul(at_target(low * attention), 1 - share_of_lower, at_target(high))

    logits = mixed(lower.logits, higher.logits)
    aux: Tensor | None = None
    if lower.aux is not None and higher.aux is not None:
        aux = mixed(lower.aux, higher.aux)
    return Prediction(logits=logits, aux=aux, attention=share_of_lower)


def fuse_chain(
    scales: Mapping[float, Prediction], *, size: Sequence[int], align_corners: bool = False
) -> Prediction:
    """Fuse any scales, from the highest to the lowest, and resize the result to `size`.

    Each scale's maps have the size of its own image (or of its features). At scales of 1 and above
    the running result is resized down to the scale that joins it; below 1 the scale that joins is
    resized up to the running result. So with 2.0, 1.0 and 0.5 what 2.0 says is shrunk to 1.0, and
    0.5 is enlarged to that: the result ends near the size of the image. `scales` need not hold 1.0.
    The attention of the result is that of the lowest scale.
    """
    highest, *others = sorted(scales, reverse=True)
    running = Prediction(scales[highest].logits, scales[highest].aux)
    for scale in others:
        lower = scales[scale]
        meeting = lower if scale >= 1 else running
        target = meeting.logits.shape[-2:]
        running = fuse(lower, running, size=target, align_corners=align_corners)
    return resized(running, size, align_corners=align_corners)


def calibrated(
    lower: Prediction, higher: Prediction, bias: PairBias, *, align_corners: bool
) -> Prediction:
    """The lower scale of a pair, its attention a' = sigmoid(logit(a) + p_l . b_l + p_h . b_h).

    p_l and p_h `[N, C, h, w]` are the soft-max of each scale's own logits, and b_l and b_h `[C]`
    the numbers of `bias`.
    """
    assert lower.attention is not None, "the lower scale of a pair carries the attention"
    size = lower.attention.shape[-2:]
    scores = torch.logit(lower.attention, eps=SATURATED)

    for logits, numbers in ((lower.logits, bias.lower), (higher.logits, bias.higher)):
        by_class = torch.as_tensor(numbers, dtype=scores.dtype, device=scores.device)
        # What is the same for every class needs no probabilities.
        if len(by_class) == 1:
            scores = scores + by_class
            continue
        own = resize(at_least_float32(logits), size, align_corners=align_corners)
        scores = scores + (own.softmax(dim=1) * by_class[:, None, None]).sum(dim=1, keepdim=True)
    return Prediction(lower.logits, lower.aux, torch.sigmoid(scores))


def resized(prediction: Prediction, size: Sequence[int], *, align_corners: bool) -> Prediction:
    """Every map of a prediction at `size` (height, width)."""
    logits, aux, attention = prediction.logits, prediction.aux, prediction.attention
    if aux is not None:
        aux = resize(aux, size, align_corners=align_corners)
    if attention is not None:
        attention = resize(attention, size, align_corners=align_corners)
    logits = resize(logits, size, align_corners=align_corners)
    return Prediction(logits=logits, aux=aux, attention=attention)


class MultiScaleModel(nn.Module):
    """Runs the shared trunk and decoder on an image at several scales and fuses what they say.

    Subclasses differ in how: `Single`, `Hierarchical`, `HierarchicalDual`, and `Explicit` in
    `explicit.py`. `fuse_at` "image" fuses at the size of the image, as the authors' release and
    published weights do; "features" at the resolution of the features, as the paper says.
    """

    multiscale: str  # its name in a configuration

    def __init__(
        self,
        *,
        trunk: Trunk,
        decoder: Decoder,
        num_classes: int,
        align_corners: bool,
        train_scales: tuple[float, ...],
        fuse_at: str = "image",
    ) -> None:
        super().__init__()
        self.trunk = trunk
        self.decoder = decoder
        self.num_classes = num_classes
        self.align_corners = align_corners
        self.train_scales = train_scales
        self.fuse_at = fuse_at
        self.frozen_parts: tuple[str, ...] = ()
        # Keywords of `build_model`; None for a model that was put together otherwise.
        self.built_with: dict[str, object] | None = None
        self.trunk_origin = ""  # a sentence: where the trunk's weights came from before training

    def __repr__(self) -> str:
        # The tree of all layers is that of the parts: print(model.trunk), print(model.decoder).
        millions = sum(parameter.numel() for parameter in self.parameters()) / 1e6
        parts = f"{type(self.trunk).__name__} + {type(self.decoder).__name__}"
        return (
            f"{type(self).__name__}({parts}, {self.num_classes} classes, "
            f"{millions:.1f} M parameters)"
        )

    def freeze(self, parts: Sequence[str]) -> None:
        """Train no parameter of `parts`, such as "trunk" and "decoder", from now on.

        Their batch norms stay in evaluation mode, so that the statistics do not change either. No
        gradient is computed below the lowest part that is trained, which makes steps cheap.
        """
        self.frozen_parts = tuple(parts)
        for name in self.frozen_parts:
            self.get_submodule(name).requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        """As torch's, but frozen parts stay in evaluation mode."""
        super().train(mode)
        for name in self.frozen_parts:
            self.get_submodule(name).eval()
        return self

    def forward(
        self, image: Tensor, *, scales: Sequence[float] | None = None, keep_scales: bool = False
    ) -> Prediction:
        """Predict a batch of images at all scales and fuse.

        `image` is `[N, 3, H, W]`, normalised, of any size; `scales` in any order (default: those
        of training). The maps of the result are full tensors of the image's size, in float32 or
        better; in training auxiliary logits are among them. With `keep_scales` the result holds
        each scale's own prediction, at the resolution of its features.

        Raises:
            ModelError: the scales make no sense, or not for this model, or the images are too
                small for batch norm in training.
        """
        chosen = checked_scales(self.train_scales if scales is None else scales)
        try:
            own = self.predict_scales(image, chosen, keep_scales=keep_scales)
        except ValueError as error:
            if ONE_VALUE not in str(error):
                raise
            raise ModelError(
                f"crops of {image.shape[-2]} x {image.shape[-1]} pixels in a batch of "
                f"{image.shape[0]} are too small for batch norm at scale {min(chosen):g}, where "
                "only one value is left: use larger crops, larger scales or a larger batch."
            ) from error
        fused = self.fuse_scales(own, (image.shape[-2], image.shape[-1]))
        if not keep_scales:
            return fused
        return Prediction(fused.logits, fused.aux, fused.attention, scales=own)

    def predict_scales(
        self, image: Tensor, scales: Sequence[float], *, keep_scales: bool = False
    ) -> dict[float, Prediction]:
        """Each scale's prediction at the resolution of its features, with what fusing it needs."""
        raise NotImplementedError

    def fuse_scales(self, scales: Mapping[float, Prediction], size: Size) -> Prediction:
        """Fuse what `predict_scales` gave into one prediction at the size of the image."""
        raise NotImplementedError

    def decode_at(self, image: Tensor, scale: float) -> Decoded:
        """Scores of the image resized by `scale`; auxiliary ones in training only."""
        size = scaled_size(image.shape[-2:], scale)
        # No name for the resized image, which need not live as long as the features.
        features = self.trunk(resize(image, size, align_corners=self.align_corners).to(image.dtype))
        return self.decoder(features, with_aux=self.training)

    def at_fusion_size(
        self, scales: Mapping[float, Prediction], size: Size
    ) -> dict[float, Prediction]:
        """Each scale's maps where they are fused: at the size of its own image, or as they are."""
        if self.fuse_at == "features":
            return dict(scales)
        return {
            scale: resized(part, scaled_size(size, scale), align_corners=self.align_corners)
            for scale, part in scales.items()
        }

    def parameters_of_attention(self) -> list[nn.Parameter]:
        """Every parameter of the attention head; none of a model without one."""
        return [
            parameter
            for name, parameter in self.named_parameters()
            if name.startswith("attention.")
        ]

    def parameters_of_heads(self) -> list[nn.Parameter]:
        """Every parameter outside the trunk, for optimisers that train new layers faster."""
        return [
            parameter
            for name, parameter in self.named_parameters()
            if not name.startswith("trunk.")
        ]


class Single(MultiScaleModel):
    """One scale. Averaging over several is a way to evaluate it: see `inference.predict`."""

    multiscale = "single"

    def predict_scales(
        self, image: Tensor, scales: Sequence[float], *, keep_scales: bool = False
    ) -> dict[float, Prediction]:
        if len(scales) > 1:
            raise ModelError(
                f"a single-scale model cannot fuse scales {list(scales)}: average them with "
                "network.inference.predict, or choose multiscale hierarchical."
            )
        return {scales[0]: as_prediction(self.decode_at(image, scales[0]))}

    def fuse_scales(self, scales: Mapping[float, Prediction], size: Size) -> Prediction:
        (only,) = self.at_fusion_size(scales, size).values()
        return resized(only, size, align_corners=self.align_corners)


class Hierarchical(MultiScaleModel):
    """The paper's model: the lower scale of a pair decides how much the higher one counts.

    `attention_bias` may hold what is added to the attention's scores of a pair of scales, wherever
    these two are neighbours in the list of scales. It is empty in training and for published
    weights; `calibration` fits it.

    With `attention_reads_scales` the attention head has two more inputs, constant maps that tell it
    which pair it judges.
    """

    multiscale = "hierarchical"

    def __init__(
        self, *, attention: nn.Module, attention_reads_scales: bool = False, **parts: object
    ) -> None:
        super().__init__(**parts)  # type: ignore[arg-type]
        self.attention = attention
        self.attention_reads_scales = attention_reads_scales
        self.concatenate = Concatenate(align_corners=self.align_corners)
        self.attention_bias: dict[ScalePair, PairBias] = {}

    def predict_scales(
        self, image: Tensor, scales: Sequence[float], *, keep_scales: bool = False
    ) -> dict[float, Prediction]:
        # The attention of the highest scale has nothing to decide and is not computed. That of a
        # lone scale is computed only to be shown.
        attended = set(scales) - {max(scales)}
        if keep_scales and len(scales) == 1:
            attended = set(scales)

        # In training from low to high as the authors do, for the running statistics of batch norm.
        pairs = pair_of_each(scales)
        own = {
            scale: self.predict_scale(
                image, scale, attended=scale in attended, pair=pairs.get(scale)
            )
            for scale in sorted(scales, reverse=not self.training)
        }
        return self.calibrate_scales(own)

    def predict_scale(
        self, image: Tensor, scale: float, *, attended: bool, pair: ScalePair | None = None
    ) -> Prediction:
        """One scale's prediction at the resolution of its features; with attention if `attended`.

        `pair` is told to a head that reads scales. The attention is as it was trained.
        """
        decoded = self.decode_at(image, scale)
        attention = None
        if attended:
            attention = self.attend(decoded.features, decoded.logits, pair=pair)
        return as_prediction(decoded, attention)

    def calibrate_scales(self, scales: Mapping[float, Prediction]) -> dict[float, Prediction]:
        """Each scale's own prediction, with the attention of each pair as a calibration says."""
        found = dict(scales)
        for pair in adjacent_pairs(list(scales)):
            found[pair[0]] = self.calibrate_pair(pair, scales[pair[0]], scales[pair[1]])
        return found

    def calibrate_pair(self, pair: ScalePair, lower: Prediction, higher: Prediction) -> Prediction:
        """The lower scale of a pair, its attention as a calibration says, if there was one."""
        bias = self.attention_bias.get(pair)
        if bias is None:
            return lower
        return calibrated(lower, higher, bias, align_corners=self.align_corners)

    def attend(self, features: Tensor, logits: Tensor, *, pair: ScalePair | None = None) -> Tensor:
        """Attention `[N, 1, h, w]` in (0, 1); fuse_at "features" resizes it to the logits.

        Raises:
            ModelError: the head reads scales, and the caller does not know the pair.
        """
        if self.attention_reads_scales:
            if pair is None:
                raise ModelError(
                    "the attention of this model reads its scales (model.attention_reads_scales), "
                    "which refining does not tell it: set refine to 0."
                )
            features = self.concatenate([features, maps_of_pair(pair, like=features)])
        attention = torch.sigmoid(at_least_float32(self.attention(features)))
        if self.fuse_at == "features":
            attention = resize(attention, logits.shape[-2:], align_corners=self.align_corners)
        return attention

    def fuse_scales(self, scales: Mapping[float, Prediction], size: Size) -> Prediction:
        own = self.at_fusion_size(scales, size)
        return fuse_chain(own, size=size, align_corners=self.align_corners)


class HierarchicalDual(Hierarchical):
    """The attention of a pair reads the features of both scales (paper, section 3.2.1).

    Those of the higher scale are resized to the lower one.
    """

    multiscale = "hierarchical_dual"

    def predict_scales(
        self, image: Tensor, scales: Sequence[float], *, keep_scales: bool = False
    ) -> dict[float, Prediction]:
        # Training decodes from low to high for the running statistics of batch norm, and only
        # then goes through the pairs; evaluation keeps no more than one pair of features.
        order = sorted(scales, reverse=True)
        decoded = {}
        if self.training:
            decoded = {scale: self.decode_at(image, scale) for scale in reversed(order)}

        pairs = pair_of_each(scales)
        result = {}
        higher: Tensor | None = None
        for scale in order:
            own = decoded.pop(scale) if self.training else self.decode_at(image, scale)
            attention = None
            if higher is not None:
                both = self.concatenate([own.features, higher])
                attention = self.attend(both, own.logits, pair=pairs.get(scale))
            higher = own.features
            result[scale] = as_prediction(own, attention)
        return self.calibrate_scales(result)


def as_prediction(decoded: Decoded, attention: Tensor | None = None) -> Prediction:
    """What a decoder gave for one scale, in at least single precision."""
    aux = None if decoded.aux is None else at_least_float32(decoded.aux)
    return Prediction(logits=at_least_float32(decoded.logits), aux=aux, attention=attention)


def adjacent_pairs(scales: Sequence[float]) -> list[ScalePair]:
    """Each scale with the next higher one of the list, from the lowest."""
    ascending = sorted(scales)
    return list(zip(ascending, ascending[1:], strict=False))


def pair_of_each(scales: Sequence[float]) -> dict[float, ScalePair]:
    """Each scale but the highest with its pair; a lone one, whose attention is only shown, too."""
    pairs = {pair[0]: pair for pair in adjacent_pairs(scales)}
    return pairs or {scales[0]: (scales[0], 2 * scales[0])}


def maps_of_pair(pair: ScalePair, *, like: Tensor) -> Tensor:
    """Constant maps `[N, 2, h, w]` for features `like`: log2 of the lower scale, and of the ratio.

    Images are enlarged and shrunk in training as well, so that the ratio tells more.
    """
    lower, higher = pair
    size = (like.shape[0], 1, *like.shape[-2:])
    values = (math.log2(lower), math.log2(higher / lower))
    maps = [torch.full(size, value, dtype=like.dtype, device=like.device) for value in values]
    return torch.cat(maps, dim=1)


def scaled_size(size: Sequence[int], scale: float) -> Size:
    """(height, width) of an image resized by `scale`: rounded down, at least one pixel."""
    return _scaled(size[0], scale), _scaled(size[1], scale)


def _scaled(length: int, scale: float) -> int:
    if isinstance(length, int):
        return max(1, math.floor(length * scale))
    # A symbolic length (torch.export) can be multiplied and divided by integers only.
    exact = Fraction(scale).limit_denominator(1000)
    if exact == 1:
        return length
    return length * exact.numerator // exact.denominator


def checked_scales(scales: Sequence[float]) -> tuple[float, ...]:
    """The scales as floats.

    Raises:
        ModelError: there are none, one is not a number between 1/64 and 16, or one occurs twice.
    """
    values = tuple(float(scale) for scale in scales)
    # A comparison with NaN is false, so that NaN is refused as well.
    if not values or not all(SMALLEST_SCALE <= scale <= LARGEST_SCALE for scale in values):
        raise ModelError(
            f"scales {list(scales)} must be one or more numbers from {SMALLEST_SCALE:g} to "
            f"{LARGEST_SCALE:g}, such as 0.5 1.0 2.0."
        )
    if len(set(values)) < len(values):
        raise ModelError(f"scales {list(scales)} name a scale twice: give each scale once.")
    return values
