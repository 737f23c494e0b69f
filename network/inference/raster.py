"""Feature maps that are described first and computed later, whole or a strip of rows at a time.

Fusing at image resolution needs maps of C x H x W numbers that are all interpolated from maps sixteen times smaller.
A raster describes such a map; computing it in strips keeps the memory of evaluation near that of its result, and lets a
loss run over strips without ever holding full-size logits. Computed whole, it is plain torch on whole tensors.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..layers import frugal, lifted, resize

FEWEST_ROWS = 4  # of a strip


def strips_of(device: torch.device) -> int:
    """In how many strips a map is computed: on a CPU so many that they stay in its caches, elsewhere fewer, because
    each strip launches its own kernels."""
    return 64 if device.type == "cpu" else 16


class Raster:
    """A map `[N, C, H, W]` that `rows(start, stop)` computes as `[N, C, stop - start, W]` and `whole()` at once."""

    shape: tuple[int, int, int, int]
    dtype: torch.dtype
    device: torch.device

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)"""
        return self.shape[2], self.shape[3]

    def rows(self, start: int, stop: int) -> Tensor:
        raise NotImplementedError

    def whole(self) -> Tensor:
        raise NotImplementedError


class Stored(Raster):
    """A tensor that exists already."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor
        count, channels, height, width = tensor.shape
        self.shape, self.dtype, self.device = (
            (count, channels, height, width),
            tensor.dtype,
            tensor.device,
        )

    def rows(self, start: int, stop: int) -> Tensor:
        return self.tensor[:, :, start:stop]

    def whole(self) -> Tensor:
        return self.tensor


class Resized(Raster):
    """Bilinear interpolation of another raster to `size`, the same numbers as `layers.resize` to rounding."""

    def __init__(self, source: Raster, size: Sequence[int], *, align_corners: bool) -> None:
        self.source = source
        self.shape = (*source.shape[:2], size[0], size[1])
        self.dtype = torch.float64 if source.dtype == torch.float64 else torch.float32
        self.device = source.device
        self.align_corners = align_corners

    def whole(self) -> Tensor:
        return resize(self.source.whole(), self.size, align_corners=self.align_corners)

    def rows(self, start: int, stop: int) -> Tensor:
        above, below, weight = self._neighbours(start, stop)
        first, last = int(above[0]), int(below[-1])
        wide = self._columns(lifted(self.source.rows(first, last + 1)))
        upper = wide.index_select(2, (above - first).to(self.device))
        lower = wide.index_select(2, (below - first).to(self.device))
        return torch.lerp(upper, lower, weight.to(self.device).unsqueeze(1))

    def _columns(self, rows: Tensor) -> Tensor:
        """Rows of the source, interpolated to the width of the result: in one dimension, cheaper in both directions."""
        width = self.size[1]
        if rows.shape[3] == width:
            return rows
        lines = F.interpolate(
            rows.flatten(1, 2), width, mode="linear", align_corners=self.align_corners
        )
        return lines.unflatten(1, rows.shape[1:3])

    def _neighbours(self, start: int, stop: int) -> tuple[Tensor, Tensor, Tensor]:
        """For each row of the strip: the source rows above and below it, and the weight of the one below."""
        height, wanted = self.source.size[0], self.size[0]
        place = torch.arange(
            start, stop, dtype=self.dtype
        )  # as exact as `interpolate` is for this dtype
        if self.align_corners:
            place = place * ((height - 1) / max(wanted - 1, 1))
        else:
            place = ((place + 0.5) * (height / wanted) - 0.5).clamp_(min=0)
        above = place.floor().long().clamp_(max=height - 1)
        return above, (above + 1).clamp_(max=height - 1), place - above


class Pointwise(Raster):
    """A raster computed pixel by pixel from others of the same height and width."""

    def __init__(self, *sources: Raster) -> None:
        assert all(source.size == sources[0].size for source in sources), [
            source.size for source in sources
        ]
        self.sources = sources
        self.shape, self.dtype, self.device = sources[0].shape, sources[0].dtype, sources[0].device

    def rows(self, start: int, stop: int) -> Tensor:
        return self.compute(*(source.rows(start, stop) for source in self.sources))

    def whole(self) -> Tensor:
        return self.compute(*(source.whole() for source in self.sources))

    def compute(self, *tensors: Tensor) -> Tensor:
        raise NotImplementedError


class Weighted(Pointwise):
    """Logits times one channel of the attention: Weighted(logits, attention)."""

    def __init__(self, *sources: Raster, channel: int = 0) -> None:
        super().__init__(*sources)
        self.channel = channel

    def compute(self, *tensors: Tensor) -> Tensor:
        logits, attention = tensors
        return logits * attention[:, self.channel : self.channel + 1]


class Mixed(Pointwise):
    """Equation 1 of the paper after resizing: Mixed(U(a L_low), U(a), L_high) is U(a L_low) + (1 - U(a)) L_high."""

    def compute(self, *tensors: Tensor) -> Tensor:
        weighted, attention, higher = tensors
        return torch.addcmul(weighted, 1 - attention, higher)


class Summed(Pointwise):
    """The sum of its sources."""

    def compute(self, *tensors: Tensor) -> Tensor:
        return sum(tensors[1:], start=tensors[0])


class Joined(Raster):
    """Rasters of one height and width, their channels concatenated, in the dtype of the first."""

    def __init__(self, *sources: Raster) -> None:
        assert all(source.size == sources[0].size for source in sources), [
            source.size for source in sources
        ]
        self.sources = sources
        count, _, height, width = sources[0].shape
        self.shape = (count, sum(source.shape[1] for source in sources), height, width)
        self.dtype, self.device = sources[0].dtype, sources[0].device

    def rows(self, start: int, stop: int) -> Tensor:
        return torch.cat(
            [source.rows(start, stop).to(self.dtype) for source in self.sources], dim=1
        )

    def whole(self) -> Tensor:
        return torch.cat([source.whole().to(self.dtype) for source in self.sources], dim=1)


def at_size(raster: Raster, size: Sequence[int], *, align_corners: bool) -> Raster:
    """The raster resized to `size` (height, width); itself where it has that size."""
    return (
        raster if raster.size == tuple(size) else Resized(raster, size, align_corners=align_corners)
    )


def settled(raster: Raster) -> Raster:
    """The raster, computed now where gradients or a compiler want plain tensors: several layers may read it."""
    return raster if frugal() else Stored(raster.whole())


def compute(raster: Raster) -> Tensor:
    """The whole map `[N, C, H, W]`: in strips where nothing is differentiated, traced or exported."""
    height = raster.size[0]
    step = max(FEWEST_ROWS, -(-height // strips_of(raster.device)))
    if isinstance(raster, Stored) or step >= height or not frugal():
        return raster.whole()
    result: Tensor | None = None
    for start in range(0, height, step):
        strip = raster.rows(start, min(start + step, height))
        if result is None:
            result = strip.new_empty(raster.shape)
        result[:, :, start : start + step] = strip
    assert result is not None
    return result


def render_rows(raster: Raster, rows: tuple[int, int]) -> Tensor:
    """Rows `[start, stop)` of a map, `[N, C, stop - start, W]`, differentiable; equal to those of `compute(raster)`."""
    start, stop = rows
    assert 0 <= start < stop <= raster.size[0], (rows, raster.size)
    return raster.rows(start, stop)
