"""Equation 1 of the paper and its chain over any list of scales."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import NamedTuple

from .inference.raster import Mixed, Raster, Stored, Weighted, at_size, compute
from .layers import ModelError
from .prediction import Prediction

Size = tuple[int, int]


class Maps(NamedTuple):
    """A prediction that is described, not yet computed."""

    logits: Raster
    aux: Raster | None = None
    attention: Raster | None = None

    def computed(self) -> Prediction:
        """The prediction itself."""
        return Prediction(*(None if raster is None else compute(raster) for raster in self))  # type: ignore[arg-type]


def maps_of(prediction: Prediction) -> Maps:
    """The maps of a prediction that exists."""
    return Maps(*(None if tensor is None else Stored(tensor) for tensor in prediction[:3]))  # type: ignore[arg-type]


def resized(maps: Maps, size: Sequence[int], *, align_corners: bool) -> Maps:
    """Every map at `size` (height, width); those that have it already stay as they are."""
    return Maps(
        *(
            None if raster is None else at_size(raster, size, align_corners=align_corners)
            for raster in maps
        )
    )  # type: ignore[arg-type]


def scaled_size(size: Sequence[int], scale: float) -> Size:
    """(height, width) of an image resized by `scale`: rounded down, at least one pixel."""
    return _scaled(size[0], scale), _scaled(size[1], scale)


def _scaled(length: int, scale: float) -> int:
    if isinstance(length, int):
        return max(1, math.floor(length * scale))
    exact = Fraction(scale).limit_denominator(
        1000
    )  # a symbolic length (torch.export) knows integers only
    return length if exact == 1 else length * exact.numerator // exact.denominator


def checked_scales(scales: Sequence[float]) -> tuple[float, ...]:
    """The scales as floats, or a ModelError when there are none, one is not positive, or one occurs twice."""
    values = tuple(float(scale) for scale in scales)
    if not values or any(not math.isfinite(scale) or scale <= 0 for scale in values):
        raise ModelError(
            f"scales {list(scales)} must be one or more positive numbers, such as 0.5 1.0 2.0."
        )
    if len(set(values)) < len(values):
        raise ModelError(f"scales {list(scales)} name a scale twice: give each scale once.")
    return values


def fuse_maps(lower: Maps, higher: Maps, *, size: Sequence[int], align_corners: bool) -> Maps:
    """Describe the fusion of two adjacent scales at `size` (paper, equation 1); the product comes before resizing."""
    assert lower.attention is not None, "the lower scale of a pair carries the attention"
    attention = at_size(lower.attention, size, align_corners=align_corners)

    def mixed(low: Raster, high: Raster) -> Raster:
        assert lower.attention is not None
        weighted = at_size(Weighted(low, lower.attention), size, align_corners=align_corners)
        return Mixed(weighted, attention, at_size(high, size, align_corners=align_corners))

    aux = None if lower.aux is None or higher.aux is None else mixed(lower.aux, higher.aux)
    return Maps(logits=mixed(lower.logits, higher.logits), aux=aux, attention=attention)


def chain(scales: Mapping[float, Maps], *, size: Sequence[int], align_corners: bool) -> Maps:
    """Describe the fusion of all scales, from the highest to the lowest, at `size` (height, width).

    Each scale's maps have the size of its own image (or features). At scales of 1 and above the running result is
    resized down to the scale that joins it; below 1 the scale that joins is resized up to the running result. The list
    need not hold 1.0. The attention of the result is that of the lowest scale.
    """
    order = sorted(scales, reverse=True)
    running = scales[order[0]]._replace(attention=None)
    for scale in order[1:]:
        lower = scales[scale]
        target = lower.logits.size if scale >= 1 else running.logits.size
        running = fuse_maps(lower, running, size=target, align_corners=align_corners)
    return resized(running, size, align_corners=align_corners)


def fuse(
    lower: Prediction,
    higher: Prediction,
    *,
    size: Sequence[int] | None = None,
    align_corners: bool = False,
) -> Prediction:
    """Fuse two adjacent scales: L = U(L_low * a_low) + (1 - U(a_low)) * L_high (paper, equation 1).

    `lower` carries the attention `[N, 1, h, w]`, in (0, 1), at the size of its logits `[N, C, h, w]`; `size` (height,
    width) is that of the result, by default that of `higher`. Auxiliary logits, where both have them, are fused by the
    same attention. Constant logits come out unchanged.
    """
    wanted = tuple(size or higher.logits.shape[-2:])
    return fuse_maps(
        maps_of(lower), maps_of(higher), size=wanted, align_corners=align_corners
    ).computed()


def fuse_scales(
    predictions: Mapping[float, Prediction], *, size: Sequence[int], align_corners: bool = False
) -> Prediction:
    """Fuse predictions of any list of scales, each at its own size, into one at `size` (see `chain`)."""
    maps = {scale: maps_of(prediction) for scale, prediction in predictions.items()}
    return chain(maps, size=size, align_corners=align_corners).computed()
