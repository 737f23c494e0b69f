"""Maps that are computed in strips of rows: inference at many scales in little memory.

Fusing at the size of the image needs maps of C x H x W numbers that are all interpolated from maps
sixteen times smaller. A `StripMap` stands for such a map: functions of it describe the result, and
`rows` computes a few rows of that. The network itself is written with tensors only. Where nothing
is differentiated, `in_strips` makes a model put off its concatenations and run its heads on strips,
and `held` turns a prediction into strip maps, which the `fuse` of training then fuses.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..layers import Concatenate, RowDependence, at_least_float32, full_precision
from ..prediction import Prediction
from .interpolation import InterpolationMatrix, interpolation_matrix, neighbouring_rows

# On a CPU a map is computed in so many strips that they stay in its caches. Heads run on fewer and
# larger ones, because neighbours share `halo` rows.
CPU_STRIPS = 64
FEWEST_ROWS = 4  # of such a strip
HEAD_STRIPS = 8
FEWEST_HEAD_ROWS = 16

# Elsewhere each strip launches its own kernels, which takes longer than the arithmetic of few rows.
GPU_STRIPS = 8
FEWEST_GPU_ROWS = 256
WINDOW_COLUMNS = 128  # of a window that are interpolated at once

# Torch's functions that treat every row of a map alone.
ROW_FUNCTIONS = frozenset({torch.addcmul})


class StripMap:
    """A map `[N, C, H, W]` that can compute any of its rows.

    It takes the place of a tensor in functions of torch by the `__torch_function__` protocol
    (https://docs.pytorch.org/docs/stable/notes/extending.html). Those that work row by row,
    bilinear interpolation and concatenation of channels give another strip map; all others, and
    methods of tensors that are not defined here, get the whole map.
    """

    shape: torch.Size
    dtype: torch.dtype
    device: torch.device
    _whole: Tensor | None = None

    def rows(self, start: int, stop: int) -> Tensor:
        """Rows `[start, stop)`, `[N, C, stop - start, W]`; they may be a view and are read only."""
        raise NotImplementedError

    def window(self, rows: slice, columns: slice) -> Tensor:
        """Some columns of some rows, the same as those of `rows` up to rounding."""
        return self.rows(rows.start, rows.stop)[..., columns]

    def whole(self) -> Tensor:
        """The whole map, computed strip by strip the first time."""
        if self._whole is None:
            result: Tensor | None = None
            for start, stop in strips_of(self.shape[2], self.device):
                strip = self.rows(start, stop)
                if result is None:
                    result = strip.new_empty(self.shape)
                result[:, :, start:stop] = strip
            self._whole = result
        assert self._whole is not None
        return self._whole

    @classmethod
    def __torch_function__(
        cls,
        function: Callable,
        types: Sequence[type],
        arguments: tuple = (),
        keywords: dict[str, Any] | None = None,
    ) -> Any:
        keywords = keywords or {}
        if function in ROW_FUNCTIONS and not keywords:
            return RowByRow(function, *arguments)
        if function is F.interpolate and keywords["mode"] == "bilinear":
            return Resized(arguments[0], keywords["size"], align_corners=keywords["align_corners"])
        if function is torch.cat and keywords.get("dim") == 1:
            return Concatenated([as_strip_map(part) for part in arguments[0]])

        def whole(value: object) -> object:
            return value.whole() if isinstance(value, StripMap) else value

        arguments, keywords = torch.utils._pytree.tree_map(whole, (arguments, keywords))
        return function(*arguments, **keywords)

    def __mul__(self, other: StripMap) -> StripMap:
        return RowByRow(torch.mul, self, other)

    def __add__(self, other: StripMap) -> StripMap:
        return RowByRow(torch.add, self, other)

    def __rsub__(self, number: float) -> StripMap:
        return RowByRow(torch.rsub, self, number)

    def __getitem__(self, index: tuple[slice, slice]) -> StripMap:
        """Some channels: `[:, first:last]`."""
        images, channels = index
        assert images == slice(None), "all images of the batch"
        return RowByRow(lambda rows: rows[:, channels], self)

    def to(self, dtype: torch.dtype) -> StripMap:
        """The map in another dtype."""
        return self if dtype == self.dtype else RowByRow(lambda rows: rows.to(dtype), self)

    def float(self) -> StripMap:
        """The map in float32."""
        return self.to(torch.float32)

    def __getattr__(self, name: str) -> Any:
        # Called for what is not found otherwise: a method or attribute of tensors.
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self.whole(), name)


class Held(StripMap):
    """A tensor that exists already."""

    def __init__(self, tensor: Tensor) -> None:
        self._whole = tensor
        self.shape, self.dtype, self.device = tensor.shape, tensor.dtype, tensor.device

    def rows(self, start: int, stop: int) -> Tensor:
        return self.whole()[:, :, start:stop]


class RowByRow(StripMap):
    """A function of single pixels, applied to the same rows of strip maps and to plain numbers."""

    def __init__(self, function: Callable[..., Tensor], *arguments: Any) -> None:
        self.function = function
        self.arguments = arguments
        maps = [argument for argument in arguments if isinstance(argument, StripMap)]
        sizes = {tuple(part.shape[2:]) for part in maps}
        assert len(sizes) == 1, f"maps of one size are combined row by row, not of {sizes}"

        # A row of one pixel tells channels and dtype of the result. It is on the CPU and not on the
        # meta device, whose first product imports all of torch's compiler: 60 MB and a second.
        pixel = self._apply(lambda part: torch.zeros((*part.shape[:2], 1, 1), dtype=part.dtype))
        self.shape = torch.Size((*pixel.shape[:2], *sizes.pop()))
        self.dtype, self.device = pixel.dtype, maps[0].device

    def rows(self, start: int, stop: int) -> Tensor:
        return self._apply(lambda part: part.rows(start, stop))

    def window(self, rows: slice, columns: slice) -> Tensor:
        return self._apply(lambda part: part.window(rows, columns))

    def _apply(self, rows_of: Callable[[StripMap], Tensor]) -> Tensor:
        values = list(self.arguments)
        for position, argument in enumerate(values):
            if isinstance(argument, StripMap):
                values[position] = rows_of(argument)
        return self.function(*values)


class Mirrored(StripMap):
    """Another map, its left and right exchanged."""

    def __init__(self, source: StripMap) -> None:
        self.source = source
        self.shape, self.dtype, self.device = source.shape, source.dtype, source.device

    def rows(self, start: int, stop: int) -> Tensor:
        return self.source.rows(start, stop).flip(-1)


class Resized(StripMap):
    """Bilinear interpolation of another map to `size`: what `layers.resize` gives, to rounding."""

    lengths: list[tuple[int, ...]]

    def __init__(self, source: StripMap, size: Sequence[int], *, align_corners: bool) -> None:
        self.source = source
        self.align_corners = align_corners
        self.shape = torch.Size((*source.shape[:2], *size))
        self.dtype, self.device = torch.float32, source.device
        if source.dtype == torch.float64:
            self.dtype = torch.float64

        # Heights and widths from the map that is interpolated first to this one.
        self.origin = source
        lengths: list[tuple[int, ...]] = [(length,) for length in source.shape[2:]]
        if isinstance(source, Resized) and source.align_corners == align_corners:
            self.origin, lengths = source.origin, source.lengths
        self.lengths = [(*before, own) for before, own in zip(lengths, size, strict=True)]

    def rows(self, start: int, stop: int) -> Tensor:
        near = neighbouring_rows(
            self.source.shape[2],
            self.shape[2],
            start,
            stop,
            align_corners=self.align_corners,
            dtype=self.dtype,
            device=self.device,
        )
        wide = self._at_full_width(at_least_float32(self.source.rows(near.first, near.last + 1)))

        upper = wide.index_select(2, near.above)
        lower = wide.index_select(2, near.below)
        return torch.lerp(upper, lower, near.weight)

    def window(self, rows: slice, columns: slice) -> Tensor:
        # A product for each axis, however often the map was resized. Most of a matrix is zeros
        # where it has many columns, hence few at a time.
        high = self._matrix(0, rows.start, rows.stop)
        source_rows = slice(high.first, high.last)
        parts = []
        for start in range(columns.start, columns.stop, WINDOW_COLUMNS):
            wide = self._matrix(1, start, min(start + WINDOW_COLUMNS, columns.stop))
            source = self.origin.window(source_rows, slice(wide.first, wide.last))
            with full_precision(source):
                parts.append(high.matrix @ (source.to(self.dtype) @ wide.matrix.T))
        return torch.cat(parts, dim=3)

    def _matrix(self, axis: int, start: int, stop: int) -> InterpolationMatrix:
        return interpolation_matrix(
            self.lengths[axis],
            start,
            stop,
            align_corners=self.align_corners,
            dtype=self.dtype,
            device=self.device,
        )

    def _at_full_width(self, rows: Tensor) -> Tensor:
        """Rows of the source, interpolated along their width only."""
        width = self.shape[3]
        if rows.shape[3] == width:
            return rows
        lines = F.interpolate(
            rows.flatten(1, 2), width, mode="linear", align_corners=self.align_corners
        )
        return lines.unflatten(1, rows.shape[1:3])


class Concatenated(StripMap):
    """Maps of one height and width, their channels one after the other."""

    def __init__(self, parts: Sequence[StripMap]) -> None:
        self.parts = parts
        first = parts[0]
        channels = sum(part.shape[1] for part in parts)
        self.shape = torch.Size((first.shape[0], channels, *first.shape[2:]))
        self.dtype, self.device = first.dtype, first.device

    def rows(self, start: int, stop: int) -> Tensor:
        return torch.cat([part.rows(start, stop) for part in self.parts], dim=1)

    def window(self, rows: slice, columns: slice) -> Tensor:
        return torch.cat([part.window(rows, columns) for part in self.parts], dim=1)


def strips_of(height: int, device: torch.device) -> Iterator[tuple[int, int]]:
    """(start, stop) of the strips in which a map of that height is computed."""
    step = max(FEWEST_ROWS, math.ceil(height / CPU_STRIPS))
    if device.type != "cpu":
        step = max(FEWEST_GPU_ROWS, math.ceil(height / GPU_STRIPS))
    return ((start, min(start + step, height)) for start in range(0, height, step))


def as_strip_map(value: Tensor | StripMap) -> StripMap:
    """A tensor as a strip map; a strip map as it is."""
    return value if isinstance(value, StripMap) else Held(value)


def held(prediction: Prediction) -> Prediction:
    """A prediction whose maps are strip maps, for the functions of `model.py` that fuse."""
    maps = (prediction.logits, prediction.aux, prediction.attention)
    logits, aux, attention = (part if part is None else as_strip_map(part) for part in maps)
    return Prediction(logits, aux, attention)  # type: ignore[arg-type]


@contextmanager
def in_strips(model: nn.Module) -> Iterator[None]:
    """Inside, the model's concatenations are put off and its heads run on strips of rows.

    Only for evaluation without gradients, by one thread at a time: the methods concerned are
    replaced on the instances of the modules, and put back at the end.
    """
    replaced: list[tuple[nn.Module, str]] = []

    def replace(module: nn.Module, name: str, method: Callable) -> None:
        setattr(module, name, method)
        replaced.append((module, name))

    for module in eager_modules(model):
        if isinstance(module, Concatenate):
            replace(module, "forward", functools.partial(_put_off, module.forward))
        for name, dependence in _row_methods(type(module)):  # type: ignore[arg-type]
            method = functools.partial(run_in_strips, getattr(module, name), dependence)
            replace(module, name, method)

    try:
        yield
    finally:
        for module, name in replaced:
            delattr(module, name)


def eager_modules(module: nn.Module) -> Iterator[nn.Module]:
    """The module and those inside it, but none that is compiled: its graph wants tensors."""
    # A list of what is still to be seen, since generators inside of generators take milliseconds.
    waiting = [module]
    while waiting:
        found = waiting.pop()
        if found._compiled_call_impl is not None and not hasattr(found, "predict_scales"):
            continue
        yield found
        waiting.extend(reversed([*found.children()]))


@functools.cache
def _row_methods(kind: type) -> list[tuple[str, RowDependence]]:
    """Names of the methods that `layers.row_by_row` marks, and which rows they depend on."""
    found = []
    for name in dir(kind):
        dependence = getattr(getattr(kind, name, None), "row_dependence", None)
        if isinstance(dependence, RowDependence):
            found.append((name, dependence))
    return found


def _put_off(concatenate: Callable, maps: Sequence[Tensor | StripMap]) -> StripMap:
    """Describe a concatenation: the module's own code, run on strip maps."""
    return concatenate([as_strip_map(part) for part in maps])


def run_in_strips(
    method: Callable[..., Tensor],
    dependence: RowDependence,
    features: Tensor | StripMap,
    *others: Tensor,
) -> Tensor:
    """`method(features, *others)`, computed from strips of the rows of `features`.

    Neither features that are put off nor the hidden features of the method exist as a whole then.
    """
    source = as_strip_map(features)
    height, halo = source.shape[2], dependence.halo
    step = max(FEWEST_HEAD_ROWS, math.ceil(height / HEAD_STRIPS))
    if source.device.type != "cpu":
        step = max(FEWEST_GPU_ROWS, step)
    if step >= height:
        return method(source.whole(), *others)

    result: Tensor | None = None
    if dependence.overwrites and isinstance(features, Tensor):
        result = features
    for start in range(0, height, step):
        stop = min(start + step, height)

        # With `halo` more rows on either side, of which the result is cut off again.
        first, last = max(0, start - halo), min(height, stop + halo)
        strip = method(source.rows(first, last), *others)[:, :, start - first : stop - first]
        if result is None:
            result = strip.new_empty((*strip.shape[:2], height, strip.shape[3]))
        result[:, :, start:stop] = strip
    assert result is not None
    return result
