"""Tiles: where they lie, and how they join without a seam while only strips of them are held."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from .strips import StripMap

# Stride of the coarsest features of a trunk, in pixels: tiles that begin at its multiples see the
# pixel grid of the whole image.
STRIDE = 32
STRIP = 32  # rows that are computed at once on a CPU, where they stay in its caches
GPU_STRIP = 256  # and elsewhere, where each strip launches its own kernels
# Pixels over which neighbouring tiles are blended: so many rows of logits are held.
LONGEST_RAMP = 32


class Span(NamedTuple):
    """One tile along one axis, in pixels: it is computed on [start, stop), and keeps [first, last).

    Within [first, first + from_before) it is blended with the tile before it, which weighs less and
    less there; [last, last + to_after) is likewise blended by the tile after it. The outermost
    pixels of an overlap, which saw the tile's border instead of the image, have no weight at all.
    """

    start: int
    stop: int
    first: int
    from_before: int
    last: int
    to_after: int


def spans(length: int, *, tile: int, overlap: int, alignment: int = 1) -> list[Span]:
    """Cover `length` pixels by tiles of at most `tile` that overlap by at least `overlap` pixels.

    `overlap` is less than `tile`. Starts are multiples of `alignment` as far as tile and overlap
    leave room for it. Half-way through every overlap lies a ramp of a quarter of its length,
    `LONGEST_RAMP` at most; the weights of a pixel sum to one.
    """
    if length <= tile:
        return [Span(0, length, 0, 0, length, 0)]

    # Evenly spread starts, the last of them such that its tile reaches the end.
    while alignment > tile - overlap:
        alignment //= 2
    step = (tile - overlap) // alignment * alignment
    last_start = math.ceil((length - tile) / alignment) * alignment
    count = 1 + math.ceil(last_start / step)
    starts = [index * last_start // (count - 1) // alignment * alignment for index in range(count)]
    stops = [min(start + tile, length) for start in starts]

    # The ramp (first pixel, length) at the beginning of each tile, and one of nothing at the end.
    ramps = [(0, 0)]
    for stop, start in zip(stops, starts[1:], strict=False):
        overlapping = stop - start
        width = max(1, min(overlapping // 4, step // 2, LONGEST_RAMP))
        width = min(overlapping, width)
        ramps.append((start + (overlapping - width) // 2, width))
    ramps.append((length, 0))
    return [
        Span(start, stop, *before, *after)
        for start, stop, (before, after) in zip(starts, stops, pairwise(ramps), strict=True)
    ]


def overlap_pixels(overlap: float, side: int) -> int:
    """An overlap in pixels from one given in pixels or, below 1, as a share of the tile's side.

    At most half of a tile that had to be shrunk.
    """
    if overlap < 1:
        return int(overlap * side)
    if overlap < side:
        return int(overlap)
    return side // 2


def alignment(scales: Sequence[float]) -> int:
    """Multiple of pixels at which a tile sees the pixel grid of the whole image at all `scales`."""
    exact = [Fraction(scale).limit_denominator(64) for scale in scales]
    needed = math.lcm(*((STRIDE / scale).numerator for scale in exact if scale > 0))
    # A scale such as 0.3 would align to the size of a tile.
    if needed > 8 * STRIDE:
        return STRIDE
    return needed


class Piece(NamedTuple):
    """A finished part of the map: `logits` `[N, C, rows, columns]` and where it belongs."""

    rows: slice
    columns: slice
    logits: Tensor


def stitch(
    logits_of_tile: Callable[[Span, Span], StripMap],
    *,
    rows: Sequence[Span],
    columns: Sequence[Span],
) -> Iterator[Piece]:
    """Compute tiles row by row and yield finished pieces that cover the image once.

    `logits_of_tile(row_span, column_span)` gives the logits of that tile. Of neighbouring tiles
    only the ramps are held: one along the whole lower border of a row of tiles, one along the right
    border of a tile.
    """
    seam = _Seam(ramp_rows=max(row.to_after for row in rows), columns=columns[-1].stop)
    for row in rows:
        beside: Tensor | None = None
        for column in columns:
            # A generator of its own, so that nothing here refers to a tile any more when the next
            # one is computed.
            beside = yield from _pieces_of(logits_of_tile(row, column), row, column, beside, seam)


def _pieces_of(
    logits: StripMap, row: Span, column: Span, beside: Tensor | None, seam: _Seam
) -> Generator[Piece, None, Tensor | None]:
    """The finished pieces of one tile.

    Returns its ramp to the tile beside it, and leaves that to the next row of tiles in `seam`.
    `beside` is the ramp of the tile before.
    """
    after: Tensor | None = None
    if column.to_after:
        sample = logits.rows(0, 1)
        height = row.last + row.to_after - row.first
        after = sample.new_empty((*logits.shape[:2], height, column.to_after))

    for start, stop in _strips(row, strip_rows(logits.device)):
        strip = logits.rows(start - row.start, stop - row.start)
        in_ramp = slice(start - row.first, stop - row.first)
        if after is not None:
            after[:, :, in_ramp] = _columns(strip, column, column.last, column.to_after)

        # The ramp shared with the tile before this one, then the rest of the strip.
        if beside is not None:
            part = _columns(strip, column, column.first, column.from_before)
            weights = ramp(column.from_before, like=part)
            part = torch.lerp(beside[:, :, in_ramp], part, weights)
            yield from seam.join(part, row=row, start=start, begin=column.first)
        begin = column.first + column.from_before
        if column.last > begin:
            part = _columns(strip, column, begin, column.last - begin)
            yield from seam.join(part, row=row, start=start, begin=begin)
    return after


def strip_rows(device: torch.device) -> int:
    """How many rows are computed at once on `device`."""
    return STRIP if device.type == "cpu" else GPU_STRIP


def _strips(row: Span, height: int) -> Iterator[tuple[int, int]]:
    """Strips of `height` rows in image coordinates; none crosses the border of a ramp."""
    borders = (row.first, row.first + row.from_before, row.last, row.last + row.to_after)
    for begin, end in pairwise(borders):
        for start in range(begin, end, height):
            yield start, min(start + height, end)


def _columns(strip: Tensor, column: Span, begin: int, count: int) -> Tensor:
    return strip[..., begin - column.start : begin - column.start + count]


def ramp(length: int, *, like: Tensor) -> Tensor:
    """Weights `[length]` that rise smoothly from 0 to 1; mirrored, they are the other tile's."""
    # GPUs of Apple's have no float64.
    device = torch.device("cpu") if like.device.type == "mps" else like.device
    position = (torch.arange(length, device=device, dtype=torch.float64) + 0.5) / length
    return (0.5 - 0.5 * torch.cos(torch.pi * position)).to(like.dtype).to(like.device)


@dataclass
class _Seam:
    """The ramp `[N, C, ramp, W]` between two rows of tiles.

    `torch.lerp` gives equal tiles back to the last bit, so that what no border has touched is
    exactly what the whole image would give. A tile takes the ramp above it out of its columns
    before it puts the one below it there, hence one tensor.
    """

    ramp_rows: int
    columns: int
    ramps: Tensor | None = None

    def join(self, part: Tensor, *, row: Span, start: int, begin: int) -> Iterator[Piece]:
        """Blend a strip that begins at image row `start` and column `begin`.

        It is then finished, or kept for the next row of tiles.
        """
        stop = start + part.shape[-2]
        columns = slice(begin, begin + part.shape[-1])

        if start < row.first + row.from_before:
            assert self.ramps is not None
            rows = slice(start - row.first, stop - row.first)
            weights = ramp(row.from_before, like=part)[rows, None]
            part = torch.lerp(self.ramps[:, :, rows, columns], part, weights)

        if start < row.last:
            yield Piece(slice(start, stop), columns, part)
            return
        if self.ramps is None:
            self.ramps = part.new_empty((*part.shape[:2], self.ramp_rows, self.columns))
        self.ramps[:, :, start - row.last : stop - row.last, columns] = part
