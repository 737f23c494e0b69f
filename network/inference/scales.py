"""How an image becomes one map of logits over scales and its mirror image.

A multi-scale model fuses its scales itself; those of a single-scale model are averaged, or their
maximum is taken, as the authors' evaluation does (docs/release_notes.md, evaluation).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..layers import at_least_float32, resize
from ..model import MultiScaleModel, resized, scaled_size
from ..prediction import Prediction
from .options import InferenceOptions
from .patches import fuse_refined
from .refinement import RefinedArea, predict_refined, require_refinable
from .strips import Mirrored, RowByRow, StripMap, as_strip_map, held, in_strips

KeepScales = bool | Literal["attention"]  # "attention" keeps the attention maps alone
SMALLEST_PROBABILITY = 1e-30  # keeps the logarithm of a vanished probability finite


@dataclass(frozen=True)
class ImageMaps:
    """Logits of images at their size, to be computed in strips, and the maps that are kept."""

    logits: StripMap  # [N, C, H, W]
    attention: Tensor | None = None
    scales: dict[float, Prediction] | None = None  # each at the size of the scaled image


def describe_logits(
    model: nn.Module,
    image: Tensor,
    options: InferenceOptions,
    *,
    keep_scales: KeepScales,
    area: RefinedArea | None = None,
) -> ImageMaps:
    """Run the network on normalised images `[N, 3, H, W]`; full-size logits are described only.

    For a model of this package nothing larger than maps at the resolution of the features is held.
    Any other module that returns a `Prediction` works too; its maps are held at full size. What is
    computed of scales above 1 is added to `area`, where the options ask for a part of them.
    """
    require_refinable(model, options)
    run: Callable[..., ImageMaps] = _pooled
    combined = len(options.scales)
    if is_chained(model):
        run, combined = partial(_fused_by_model, area=area), 1
    if options.flip:
        combined *= 2
    over_probabilities = options.over == "probabilities" and combined > 1

    result = run(model, image, options, keep_scales, over_probabilities)
    if options.flip:
        mirrored = run(model, image.flip(-1), options, keep_scales, over_probabilities)
        result = _mean_of_both_ways(result, mirrored)
    if over_probabilities:
        result = replace(result, logits=RowByRow(_log_probabilities, result.logits))
    return result


def is_chained(model: nn.Module) -> bool:
    """Whether the model fuses scales itself, so that they must not be averaged here."""
    return getattr(model, "multiscale", "single") != "single"


def _fused_by_model(
    model: nn.Module,
    image: Tensor,
    options: InferenceOptions,
    keep_scales: KeepScales,
    over_probabilities: bool,
    *,
    area: RefinedArea | None = None,
) -> ImageMaps:
    """All scales go into the model's own fusion."""
    size = (image.shape[-2], image.shape[-1])
    own: dict[float, Prediction] = {}
    if isinstance(model, MultiScaleModel) and options.refined_scales:
        refined = predict_refined(model, image, options, area)
        own = {scale: held(part) for scale, part in refined.shown.items()}
        fused = fuse_refined(model, refined, size)
        align_corners = model.align_corners
    elif isinstance(model, MultiScaleModel):
        with in_strips(model):
            small = model.predict_scales(image, options.scales, keep_scales=bool(keep_scales))
        own = {scale: held(part) for scale, part in small.items()}
        fused = model.fuse_scales(own, size)
        align_corners = model.align_corners
    else:
        keep = {"keep_scales": True} if keep_scales else {}
        fused = model(image, scales=options.scales, **keep)
        own = {scale: held(part) for scale, part in (fused.scales or {}).items()}
        align_corners = False

    attention, scales = None, None
    if keep_scales:
        scales = {}
        for scale, part in own.items():
            own_size = scaled_size(size, scale)
            if keep_scales == "attention":
                scales[scale] = _attention_alone(part, own_size, align_corners=align_corners)
            else:
                scales[scale] = _computed(resized(part, own_size, align_corners=align_corners))
        if fused.attention is not None:
            attention = as_strip_map(fused.attention).whole()

    logits = as_strip_map(at_least_float32(fused.logits))
    if over_probabilities:
        logits = RowByRow(_probabilities, logits)
    return ImageMaps(logits, attention, scales)


def _pooled(
    model: nn.Module,
    image: Tensor,
    options: InferenceOptions,
    keep_scales: KeepScales,
    over_probabilities: bool,
) -> ImageMaps:
    """Average or maximum over scales, each for the image resized to round(size * scale)."""
    size = (image.shape[-2], image.shape[-1])
    align_corners = bool(getattr(model, "align_corners", False))
    parts: list[StripMap] = []
    kept: dict[float, Prediction] = {}
    for scale in options.scales:
        scaled = (max(1, round(size[0] * scale)), max(1, round(size[1] * scale)))
        own = _one_scale(model, resize(image, scaled, align_corners=align_corners))
        if keep_scales:
            kept[scale] = Prediction(logits=own.whole())
        part: Any = resize(own, size, align_corners=align_corners)  # type: ignore[arg-type]
        if over_probabilities:
            part = RowByRow(_probabilities, part)
        parts.append(part)

    combine = _maximum if options.combine == "max" else _mean
    maps = ImageMaps(RowByRow(combine, *parts))
    if keep_scales:
        maps = replace(maps, scales=kept)
    return maps


def _one_scale(model: nn.Module, image: Tensor) -> StripMap:
    """Logits of a single-scale model at the size of an image that is resized already."""
    if not isinstance(model, MultiScaleModel):
        return as_strip_map(at_least_float32(model(image).logits))
    with in_strips(model):
        small = model.predict_scales(image, (1.0,))
    own = {scale: held(part) for scale, part in small.items()}
    size = (image.shape[-2], image.shape[-1])
    return as_strip_map(model.fuse_scales(own, size).logits)


def _mean_of_both_ways(straight: ImageMaps, mirrored: ImageMaps) -> ImageMaps:
    """The mean of the maps of an image and of its mirror image, the latter turned back."""

    def mean(one: Tensor | None, other: Tensor | None) -> Tensor | None:
        if one is None or other is None:
            return None
        return (one + other.flip(-1)) / 2

    scales = None
    if straight.scales is not None and mirrored.scales is not None:
        scales = {}
        for scale, one in straight.scales.items():
            other = mirrored.scales[scale]
            logits = mean(one.logits, other.logits)
            assert logits is not None
            scales[scale] = Prediction(logits, attention=mean(one.attention, other.attention))

    return ImageMaps(
        logits=RowByRow(_mean, straight.logits, Mirrored(mirrored.logits)),
        attention=mean(straight.attention, mirrored.attention),
        scales=scales,
    )


def _computed(prediction: Prediction) -> Prediction:
    """Strip maps to tensors."""
    attention = prediction.attention
    if attention is not None:
        attention = as_strip_map(attention).whole()
    return Prediction(logits=as_strip_map(prediction.logits).whole(), attention=attention)


def _attention_alone(
    prediction: Prediction, size: tuple[int, int], *, align_corners: bool
) -> Prediction:
    """The attention at `size`, and logits without a channel: they would be the largest part."""
    attention = prediction.attention
    if attention is not None:
        attention = as_strip_map(resize(attention, size, align_corners=align_corners)).whole()
    logits = prediction.logits
    no_logits = torch.empty((logits.shape[0], 0, *size), dtype=logits.dtype, device=logits.device)
    return Prediction(logits=no_logits, attention=attention)


def _mean(*maps: Tensor) -> Tensor:
    if len(maps) == 1:
        return maps[0]
    total = maps[0] + maps[1]
    for part in maps[2:]:
        total += part
    return total.div_(len(maps))


def _maximum(*maps: Tensor) -> Tensor:
    largest = maps[0]
    for part in maps[1:]:
        largest = torch.maximum(largest, part)
    return largest


def _probabilities(logits: Tensor) -> Tensor:
    return logits.softmax(dim=1)


def _log_probabilities(probabilities: Tensor) -> Tensor:
    """Logits whose soft-max is these probabilities again (after a maximum: in proportion)."""
    return probabilities.clamp_min(SMALLEST_PROBABILITY).log_()
