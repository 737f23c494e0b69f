"""Logits as the losses read them: a block of rows at a time, from a tensor or from maps that are rendered on demand.

Logits of a training crop are large (19 classes of 1024 x 2048 pixels: 159 MB in fp32) and are interpolated from maps
sixteen times smaller. A loss that reads them in blocks needs no whole map: `RenderedLogits` renders each block when it
is read, again in the backward pass, and adds its gradient to that of the small maps at once.

Maps to render are duck-typed: `shape`, `dtype`, `device`, `size`, `rows(start, stop)` differentiable, `whole()`. Where
they end in a tensor that exists, that is their attribute `tensor`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional


class Maps(Protocol):
    """Class maps [N, C, H, W]: a tensor, or something that renders strips of them."""

    @property
    def shape(self) -> Sequence[int]: ...
    @property
    def dtype(self) -> torch.dtype: ...
    @property
    def device(self) -> torch.device: ...


class Reader(Protocol):
    """Reads blocks of logits."""

    def read(self, images: slice, rows: slice) -> Tensor:
        """The block [n, C, rows, W], without gradient."""


class Gradient(Reader, Protocol):
    """Reads blocks of logits, and takes the gradient of each before the next is read."""

    def target(self, images: slice, rows: slice) -> Tensor | None:
        """Where the gradient of that block may be written, if it has a place."""

    def put(self, images: slice, rows: slice, gradient: Tensor) -> None:
        """The gradient of the block that was read last; nothing is left to do if it was written to its target."""

    def result(self) -> tuple[Tensor | None, ...]:
        """Gradients of the tensors."""


class Layout(Protocol):
    """How logits are read from tensors. The tensors come apart from it, because autograd must know and may save them."""

    shape: tuple[int, int, int, int]
    rendered: bool  # a block holds rows of all images

    def reader(self, tensors: Sequence[Tensor]) -> Reader: ...
    def gradient(self, tensors: Sequence[Tensor]) -> Gradient: ...


def layout_of(logits: Maps) -> tuple[Layout, tuple[Tensor, ...]]:
    """How to read blocks of `logits`, and the tensors to read them from."""
    if isinstance(logits, Tensor):
        return StoredLogits(logits), (logits,)
    tensors: dict[int, Tensor] = {}

    def place(end: Any) -> _Place:
        tensors.setdefault(id(end.tensor), end.tensor)
        return _Place(list(tensors).index(id(end.tensor)))

    return RenderedLogits(_with_ends(logits, place)), tuple(tensors.values())


def whole(logits: Maps) -> Tensor:
    """All of the logits as one tensor, for losses that do not work in blocks."""
    return logits if isinstance(logits, Tensor) else logits.whole()  # type: ignore[attr-defined,no-any-return]


def at_size(logits: Maps, size: Sequence[int], *, align_corners: bool) -> Maps:
    """`logits` interpolated to `size` (height, width) when they are read; themselves if they have that size."""
    if tuple(logits.shape[2:]) == tuple(size):
        return logits
    return UpsampledMaps(logits, (size[0], size[1]), align_corners=align_corners)


class StoredLogits:
    """Logits that exist as a tensor."""

    rendered = False

    def __init__(self, logits: Tensor) -> None:
        number, classes, height, width = logits.shape
        self.shape = (number, classes, height, width)

    def reader(self, tensors: Sequence[Tensor]) -> _StoredReader:
        return _StoredReader(tensors[0])

    def gradient(self, tensors: Sequence[Tensor]) -> _StoredGradient:
        return _StoredGradient(tensors[0])


class _StoredReader:
    def __init__(self, logits: Tensor) -> None:
        self.logits = logits

    def read(self, images: slice, rows: slice) -> Tensor:
        return self.logits[images, :, rows]


class _StoredGradient(_StoredReader):
    def __init__(self, logits: Tensor) -> None:
        super().__init__(logits)
        self.sum = torch.empty_like(logits)

    def target(self, images: slice, rows: slice) -> Tensor:
        return self.sum[images, :, rows]

    def put(self, images: slice, rows: slice, gradient: Tensor) -> None:
        target = self.target(images, rows)
        if gradient is not target:
            target.copy_(gradient)

    def result(self) -> tuple[Tensor]:
        return (self.sum,)


class RenderedLogits:
    """Logits rendered from smaller maps, strip by strip; `maps` end in places that name one of the tensors each."""

    rendered = True

    def __init__(self, maps: Any) -> None:
        self.maps = maps
        number, classes, height, width = maps.shape
        self.shape = (number, classes, height, width)

    def reader(self, tensors: Sequence[Tensor]) -> _RenderedReader:
        return _RenderedReader(_with_ends(self.maps, lambda place: _End(tensors[place.index])))

    def gradient(self, tensors: Sequence[Tensor]) -> _RenderedGradient:
        return _RenderedGradient(self.maps, tensors)


class _RenderedReader:
    def __init__(self, maps: Any) -> None:
        self.maps = maps

    def read(self, images: slice, rows: slice) -> Tensor:
        return self.maps.rows(rows.start, rows.stop)[images]  # type: ignore[no-any-return]


class _RenderedGradient:
    def __init__(self, maps: Any, tensors: Sequence[Tensor]) -> None:
        self.ends = [_DifferentiableEnd(tensor) for tensor in tensors]
        self.maps = _with_ends(maps, lambda place: self.ends[place.index])
        self.strip: Tensor | None = None

    def read(self, images: slice, rows: slice) -> Tensor:
        with torch.enable_grad():
            self.strip = self.maps.rows(rows.start, rows.stop)[images]
        return self.strip.detach()

    def target(self, images: slice, rows: slice) -> None:
        return None

    def put(self, images: slice, rows: slice, gradient: Tensor) -> None:
        assert self.strip is not None
        leaves = [leaf for end in self.ends for _, leaf in end.leaves]
        gradients = iter(torch.autograd.grad(self.strip, leaves, gradient.to(self.strip.dtype)))
        self.strip = None
        for end in self.ends:
            for place, _ in end.leaves:
                end.sum[:, :, place] += next(gradients)
            end.leaves.clear()

    def result(self) -> tuple[Tensor, ...]:
        return tuple(end.sum for end in self.ends)


class _Place:
    """Stands for the tensor number `index` in maps without tensors."""

    def __init__(self, index: int) -> None:
        self.index = index


class _End:
    """A tensor where maps to render end."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor
        self.shape, self.dtype, self.device, self.size = (
            tensor.shape,
            tensor.dtype,
            tensor.device,
            tensor.shape[2:],
        )

    def rows(self, start: int, stop: int) -> Tensor:
        return self.tensor[:, :, start:stop]

    def whole(self) -> Tensor:
        return self.tensor


class _DifferentiableEnd(_End):
    """Its rows are new leaves of autograd, so that a strip's gradient is as small as the rows that the strip reads."""

    def __init__(self, tensor: Tensor) -> None:
        super().__init__(tensor)
        self.sum = torch.zeros_like(tensor)
        self.leaves: list[tuple[slice, Tensor]] = []

    def rows(self, start: int, stop: int) -> Tensor:
        leaf = self.tensor[:, :, start:stop].detach().requires_grad_()
        self.leaves.append((slice(start, stop), leaf))
        return leaf


class UpsampledMaps:
    """Bilinear interpolation of maps to `size` (height, width), as `torch.nn.functional.interpolate` has it.

    The columns of the few rows that a strip needs are interpolated first, then the rows from those.
    """

    def __init__(self, source: Maps, size: tuple[int, int], *, align_corners: bool) -> None:
        self.source: Any = _End(source) if isinstance(source, Tensor) else source
        self.size, self.align_corners = size, align_corners
        self.shape = (*source.shape[:2], *size)
        self.dtype = torch.float64 if source.dtype == torch.float64 else torch.float32
        self.device = source.device

    def whole(self) -> Tensor:
        source = self.source.whole().to(self.dtype)
        return functional.interpolate(
            source, self.size, mode="bilinear", align_corners=self.align_corners
        )

    def rows(self, start: int, stop: int) -> Tensor:
        above, below, weight = self._neighbours(start, stop)
        first = int(above[0])
        lines = self.source.rows(first, int(below[-1]) + 1).to(self.dtype)
        number, channels, height, _ = lines.shape
        wide = functional.interpolate(
            lines.flatten(1, 2), self.size[1], mode="linear", align_corners=self.align_corners
        ).view(number, channels, height, self.size[1])
        upper = wide.index_select(2, (above - first).to(self.device))
        lower = wide.index_select(2, (below - first).to(self.device))
        return torch.lerp(upper, lower, weight.to(self.device))

    def _neighbours(self, start: int, stop: int) -> tuple[Tensor, Tensor, Tensor]:
        """For each row of the strip the source rows above and below it [rows], and the weight of the latter [rows, 1]."""
        height, wanted = self.source.shape[2], self.size[0]
        place = torch.arange(start, stop, dtype=self.dtype)
        if self.align_corners:
            place = place * ((height - 1) / max(wanted - 1, 1))
        else:
            place = ((place + 0.5) * (height / wanted) - 0.5).clamp_(min=0)
        above = place.floor().long().clamp_(max=height - 1)
        return above, (above + 1).clamp_(max=height - 1), (place - above)[:, None]


def _with_ends(maps: Any, replace: Callable[[Any], Any]) -> Any:
    """A copy of `maps` in which `replace(end)` stands for each end, be it a tensor's or a place for one."""
    if isinstance(maps, _Place) or isinstance(getattr(maps, "tensor", None), Tensor):
        return replace(maps)
    result = copy.copy(maps)
    for name, value in vars(maps).items():
        if _is_maps(value):
            setattr(result, name, _with_ends(value, replace))
        elif isinstance(value, (tuple, list)) and any(_is_maps(part) for part in value):
            setattr(
                result,
                name,
                [_with_ends(part, replace) if _is_maps(part) else part for part in value],
            )
    return result


def _is_maps(value: object) -> bool:
    return isinstance(value, _Place) or hasattr(value, "rows")
