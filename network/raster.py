"""Feature maps that are described first and computed later, whole or a strip of rows at a time.

Fusing at image resolution needs maps of C x H x W numbers that are all interpolated from maps sixteen times smaller.
A raster describes such a map; computing it in strips keeps the memory of evaluation near that of its result, and lets a
loss run over strips without ever holding full-size logits. Computed whole, it is plain torch on whole tensors.
"""
from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .layers import resize

STRIPS = 16  # an image is computed in about this many strips ...
FEWEST_ROWS = 8  # ... of no fewer rows than this


class Raster:
    """A map `[N, C, H, W]` that `rows(start, stop)` computes as `[N, C, stop - start, W]` and `whole()` at once."""

    shape: tuple[int, int, int, int]
    dtype: torch.dtype

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
        self.shape, self.dtype = (count, channels, height, width), tensor.dtype

    def rows(self, start: int, stop: int) -> Tensor:
        return self.tensor[:, :, start:stop]

    def whole(self) -> Tensor:
        return self.tensor


class Resized(Raster):
    """Bilinear interpolation of another raster to `size`, the same numbers as `layers.resize` to rounding."""

    def __init__(self, source: Raster, size: Sequence[int], *, align_corners: bool) -> None:
        self.source = source
        self.shape, self.dtype = (*source.shape[:2], size[0], size[1]), source.dtype
        self.align_corners = align_corners

    def whole(self) -> Tensor:
        return resize(self.source.whole(), self.size, align_corners=self.align_corners)

    def rows(self, start: int, stop: int) -> Tensor:
        above, below, weight = self._neighbours(start, stop)
        first, last = int(above[0]), int(below[-1])
        source = self.source.rows(first, last + 1)
        upper = source.index_select(2, (above - first).to(source.device))
        lower = source.index_select(2, (below - first).to(source.device))
        lines = torch.lerp(upper, lower, weight.to(source.device).unsqueeze(1))
        return resize(lines, (stop - start, self.size[1]), align_corners=self.align_corners)

    def _neighbours(self, start: int, stop: int) -> tuple[Tensor, Tensor, Tensor]:
        """For each row of the strip: the source rows above and below it, and the weight of the one below."""
        height, wanted = self.source.size[0], self.size[0]
        place = torch.arange(start, stop, dtype=torch.float64 if self.dtype == torch.float64 else torch.float32)
        if self.align_corners:
            place = place * ((height - 1) / max(wanted - 1, 1))
        else:
            place = ((place + 0.5) * (height / wanted) - 0.5).clamp_(min=0)
        above = place.floor().long().clamp_(max=height - 1)
        return above, (above + 1).clamp_(max=height - 1), place - above


class Pointwise(Raster):
    """A raster computed pixel by pixel from others of the same height and width."""

    def __init__(self, *sources: Raster) -> None:
        assert len({source.size for source in sources}) == 1, [source.size for source in sources]
        self.sources = sources
        self.shape, self.dtype = sources[0].shape, sources[0].dtype

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
        return weighted + (1 - attention) * higher


class Summed(Pointwise):
    """The sum of its sources."""

    def compute(self, *tensors: Tensor) -> Tensor:
        return sum(tensors[1:], start=tensors[0])


def compute(raster: Raster) -> Tensor:
    """The whole map `[N, C, H, W]`: in strips where nothing is differentiated, traced or exported."""
    if torch.is_grad_enabled() or torch.compiler.is_compiling() or torch.jit.is_tracing():
        return raster.whole()
    height = raster.size[0]
    step = max(FEWEST_ROWS, -(-height // STRIPS))
    if isinstance(raster, Stored) or step >= height:
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
