"""How an image becomes one map of logits: the model's own chain, or the average or maximum of a single-scale model over scales; and flip."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..layers import ModelError, lifted, resize
from ..model import MultiScale
from ..prediction import Prediction
from .raster import Pointwise, Raster, Resized, Stored, compute

COMBINE = ("average", "max")
OVER = ("logits", "probabilities")
SMALLEST_PROBABILITY = 1e-30  # keeps the logarithm of a vanished probability finite


@dataclass(frozen=True)
class Wish:
    """What `inference.predict` was asked for, apart from the size of tiles."""

    scales: tuple[float, ...] | None
    flip: bool
    combine: str
    over: str
    overlap: float
    autocast_dtype: torch.dtype | None
    keep_scales: bool | str = False

    def __post_init__(self) -> None:
        if self.overlap < 0:
            raise ModelError(
                f"overlap {self.overlap:g} is negative: give pixels, or a share of the tile below 1."
            )
        for name, value, choices in (("combine", self.combine, COMBINE), ("over", self.over, OVER)):
            if value not in choices:
                raise ModelError(
                    f"{name} {value!r} is not known: choose one of {', '.join(choices)}."
                )


class Mirrored(Pointwise):
    """Its source with left and right exchanged."""

    def compute(self, *tensors: Tensor) -> Tensor:
        return tensors[0].flip(-1)


class Mean(Pointwise):
    """The mean of its sources, added up in their order."""

    def compute(self, *tensors: Tensor) -> Tensor:
        if len(tensors) == 1:
            return tensors[0]
        total = tensors[0] + tensors[1]
        for tensor in tensors[2:]:
            total += tensor
        return total.div_(len(tensors))


class Maximum(Pointwise):
    """The largest of its sources at every place."""

    def compute(self, *tensors: Tensor) -> Tensor:
        largest = tensors[0]
        for tensor in tensors[1:]:
            largest = torch.maximum(largest, tensor)
        return largest


class Probabilities(Pointwise):
    """Soft-max of its source over the classes."""

    def compute(self, *tensors: Tensor) -> Tensor:
        return tensors[0].softmax(dim=1)


class LogProbabilities(Pointwise):
    """Logarithm of probabilities: logits whose soft-max is these probabilities again (after a maximum: in proportion)."""

    def compute(self, *tensors: Tensor) -> Tensor:
        return tensors[0].clamp_min(SMALLEST_PROBABILITY).log_()


@dataclass(frozen=True)
class Answer:
    """One image's logits as a raster at its size `[N, C, H, W]`, and, when kept, the maps of each scale."""

    logits: Raster
    attention: Tensor | None = None
    scales: dict[float, Prediction] | None = None


def answer(model: nn.Module, image: Tensor, wish: Wish) -> Answer:
    """The logits of normalised images `[N, 3, H, W]`, described but not yet computed at full size.

    Only maps at the resolution of the features are held for a model of this room; any other module that returns a
    `Prediction` works too, its maps being held at full size.
    """
    chained = is_chained(model)
    one_way = _chain if chained else _pool
    maps_to_combine = (2 if wish.flip else 1) * (1 if chained else len(wish.scales or (1.0,)))
    over_probabilities = wish.over == "probabilities" and maps_to_combine > 1
    result = one_way(model, image, wish, over_probabilities)
    if wish.flip:
        result = _both_ways(result, one_way(model, image.flip(-1), wish, over_probabilities))
    if over_probabilities:
        result = Answer(LogProbabilities(result.logits), result.attention, result.scales)
    return result


def is_chained(model: nn.Module) -> bool:
    """Whether the model itself joins scales, so that they must not be averaged here."""
    return getattr(model, "multiscale", "single") != "single"


def _chain(model: nn.Module, image: Tensor, wish: Wish, over_probabilities: bool) -> Answer:
    """Scales go into the model's own chain (or its attention to scale), which answers at the size of the image."""
    prediction = _run(model, image, scales=wish.scales, keep_scales=wish.keep_scales)
    logits = _raster(prediction.logits)
    attention = None
    if wish.keep_scales and prediction.attention is not None:
        attention = compute(_raster(prediction.attention))
    return Answer(
        Probabilities(logits) if over_probabilities else logits, attention, prediction.scales
    )


def _pool(model: nn.Module, image: Tensor, wish: Wish, over_probabilities: bool) -> Answer:
    """Average or maximum over scales, each answering for the image resized to round(size * scale) (RELEASE.md 5.1)."""
    scales = wish.scales or (1.0,)
    align_corners = bool(getattr(model, "align_corners", False))
    size = (image.shape[-2], image.shape[-1])
    rasters: list[Raster] = []
    kept: dict[float, Prediction] = {}
    for scale in scales:
        scaled = (max(1, round(size[0] * scale)), max(1, round(size[1] * scale)))
        own = _raster(_run(model, resize(image, scaled, align_corners=align_corners)).logits)
        if wish.keep_scales:
            kept[scale] = Prediction(logits=compute(own))
        raster = own if own.size == size else Resized(own, size, align_corners=align_corners)
        rasters.append(Probabilities(raster) if over_probabilities else raster)
    combined = (Maximum if wish.combine == "max" else Mean)(*rasters)
    return Answer(combined, scales=kept if wish.keep_scales else None)


def _run(
    model: nn.Module,
    image: Tensor,
    *,
    scales: Sequence[float] | None = None,
    keep_scales: bool | str = False,
) -> Prediction:
    options: dict[str, object] = {"lazy": True} if isinstance(model, MultiScale) else {}
    if scales is not None:
        options["scales"] = tuple(scales)
    if keep_scales:
        options["keep_scales"] = keep_scales
    return model(image, **options)


def _raster(logits: Tensor | Raster) -> Raster:
    return logits if isinstance(logits, Raster) else Stored(lifted(logits))


def _both_ways(straight: Answer, mirrored: Answer) -> Answer:
    """The mean of the answers for an image and for its mirror image, the latter turned back."""
    scales = None
    if straight.scales is not None and mirrored.scales is not None:
        scales = {
            scale: _mean_prediction(one, mirrored.scales[scale])
            for scale, one in straight.scales.items()
        }
    attention = None
    if straight.attention is not None and mirrored.attention is not None:
        attention = _mean_tensor(straight.attention, mirrored.attention)
    return Answer(Mean(straight.logits, Mirrored(mirrored.logits)), attention, scales)


def _mean_prediction(straight: Prediction, mirrored: Prediction) -> Prediction:
    def mean(name: str) -> Tensor | None:
        one, other = getattr(straight, name), getattr(mirrored, name)
        return None if one is None or other is None else _mean_tensor(one, other)

    logits = mean("logits")
    assert logits is not None
    return Prediction(logits=logits, attention=mean("attention"))


def _mean_tensor(straight: Tensor, mirrored: Tensor) -> Tensor:
    return (straight + mirrored.flip(-1)) / 2
