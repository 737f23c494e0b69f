"""Tiles: where they lie, and how their maps join without a seam while only strips of them are held."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from math import lcm
from typing import NamedTuple

import torch
from torch import Tensor

from .raster import Raster

STRIDE = 32  # of the coarsest features of a trunk: tiles that begin at its multiples see the pixel grid of the whole image
STRIP = 32  # rows that are rendered at once
LONGEST_RAMP = 32  # pixels over which neighbouring tiles are blended: logits of so many rows are held across the whole image


class Span(NamedTuple):
    """One tile along one axis, in pixels: it is computed on [start, stop), and its own part is [first, last).

    Within [first, first + from_before) it is blended with the tile before it, which weighs less and less there;
    [last, last + to_after) is likewise blended by the tile after it. The outermost pixels of an overlap, which saw the
    tile's border instead of the image, have no weight at all.
    """

    start: int
    stop: int
    first: int
    from_before: int
    last: int
    to_after: int


def spans(length: int, *, tile: int, overlap: int, alignment: int = 1) -> list[Span]:
    """Cover `length` pixels by spans of at most `tile` pixels that overlap by at least `overlap` (less than `tile`).

    Starts are multiples of `alignment` as far as tile and overlap leave room for it. Half-way through every overlap
    lies a ramp of a quarter of its length, `LONGEST_RAMP` at most; the weights of a pixel sum to one.
    """
    if length <= tile:
        return [Span(0, length, 0, 0, length, 0)]
    while alignment > tile - overlap:
        alignment //= 2
    step = (tile - overlap) // alignment * alignment
    end = -(-(length - tile) // alignment) * alignment  # the last start
    count = 1 + -(-end // step)
    starts = [index * end // (count - 1) // alignment * alignment for index in range(count)]
    stops = [min(start + tile, length) for start in starts]
    ramps = [(0, 0)]
    for stop, start in zip(stops, starts[1:], strict=False):
        width = min(stop - start, max(1, min((stop - start) // 4, step // 2, LONGEST_RAMP)))
        begin = start + (stop - start - width) // 2
        ramps.append((begin, width))
    ramps.append((length, 0))
    return [
        Span(start, stop, *before, *after)
        for start, stop, (before, after) in zip(starts, stops, pairwise(ramps), strict=True)
    ]


def overlap_pixels(overlap: float, side: int) -> int:
    """An overlap in pixels from one given in pixels or, below 1, as a share of the tile's side; half of it at most where a tile had to be shrunk."""
    if overlap < 1:
        return int(overlap * side)
    return int(overlap) if overlap < side else side // 2


def alignment(scales: Sequence[float]) -> int:
    """Pixels to which starts of tiles must be rounded for all `scales` to see the pixel grid of the whole image."""
    exact = [Fraction(scale).limit_denominator(64) for scale in scales]
    needed = lcm(*((STRIDE / scale).numerator for scale in exact if scale > 0))
    return (
        needed if needed <= 8 * STRIDE else STRIDE
    )  # a scale such as 0.3 would align to the size of a tile


class Piece(NamedTuple):
    """A finished part of the map: `logits` `[N, C, rows, columns]` and where it belongs."""

    rows: slice
    columns: slice
    logits: Tensor


def stitch(
    tile_of: Callable[[Span, Span], Raster], *, rows: Sequence[Span], columns: Sequence[Span]
) -> Iterator[Piece]:
    """Compute tiles row by row and yield finished pieces that cover the image once.

    `tile_of(row_span, column_span)` gives the logits of that tile. Of neighbouring tiles only the ramps are held: one
    along the whole lower border of a row of tiles, one along the right border of a tile.
    """
    seam = _Seam(ramp_rows=max(row.to_after for row in rows), columns=columns[-1].stop)
    for row in rows:
        beside: Tensor | None = None
        for column in columns:
            # A generator of its own, so that nothing here refers to a tile any more when the next one is computed.
            beside = yield from _pieces_of(tile_of(row, column), row, column, beside, seam)


def _pieces_of(
    raster: Raster, row: Span, column: Span, beside: Tensor | None, seam: _Seam
) -> Generator[Piece, None, Tensor | None]:
    """The finished pieces of one tile; returns its ramp to the next one, and leaves that to the next row of tiles in `seam`."""
    after = (
        _empty(raster, row.last + row.to_after - row.first, column.to_after)
        if column.to_after
        else None
    )
    for start, stop in _strips(row):
        strip = raster.rows(start - row.start, stop - row.start)
        held = slice(start - row.first, stop - row.first)
        if after is not None:
            after[:, :, held] = _columns(strip, column, column.last, column.to_after)
        for begin, part in _blend_beside(
            strip, column, None if beside is None else beside[:, :, held]
        ):
            yield from seam.join(part, row=row, start=start, begin=begin)
    return after


def _empty(raster: Raster, rows: int, columns: int) -> Tensor:
    sample = raster.rows(0, 1)
    return sample.new_empty((*raster.shape[:2], rows, columns))


def _strips(row: Span) -> Iterator[tuple[int, int]]:
    """Strips of rows in image coordinates; none crosses the border of a ramp."""
    borders = (row.first, row.first + row.from_before, row.last, row.last + row.to_after)
    for begin, end in pairwise(borders):
        for start in range(begin, end, STRIP):
            yield start, min(start + STRIP, end)


def _columns(strip: Tensor, column: Span, begin: int, count: int) -> Tensor:
    return strip[..., begin - column.start : begin - column.start + count]


def _blend_beside(
    strip: Tensor, column: Span, beside: Tensor | None
) -> Iterator[tuple[int, Tensor]]:
    """(first column, logits) of the parts of a strip: the ramp shared with the tile before it, and the rest."""
    if beside is not None:
        part = _columns(strip, column, column.first, column.from_before)
        yield column.first, torch.lerp(beside, part, ramp(column.from_before, like=part))
    begin = column.first + column.from_before
    if column.last > begin:
        yield begin, _columns(strip, column, begin, column.last - begin)


def ramp(length: int, *, like: Tensor) -> Tensor:
    """Weights `[length]` that rise smoothly from 0 to 1; mirrored, they are the other tile's."""
    place = (torch.arange(length, device=like.device, dtype=torch.float64) + 0.5) / length
    return (0.5 - 0.5 * torch.cos(torch.pi * place)).to(like.dtype)


@dataclass
class _Seam:
    """The ramp `[N, C, ramp, W]` between two rows of tiles.

    `torch.lerp` gives equal tiles back to the last bit, so that what no border has touched is exactly what the whole
    image would give. A tile takes the ramp above it out of its columns before it puts the one below it there, hence one
    tensor.
    """

    ramp_rows: int
    columns: int
    held: Tensor | None = None

    def join(self, part: Tensor, *, row: Span, start: int, begin: int) -> Iterator[Piece]:
        """A strip that begins at image row `start` and column `begin`: blended, and finished or kept for the next row of tiles."""
        stop = start + part.shape[-2]
        columns = slice(begin, begin + part.shape[-1])
        if start < row.first + row.from_before:
            assert self.held is not None
            rows = slice(start - row.first, stop - row.first)
            part = torch.lerp(
                self.held[:, :, rows, columns], part, ramp(row.from_before, like=part)[rows, None]
            )
        if start >= row.last:
            if self.held is None:
                self.held = part.new_empty((*part.shape[:2], self.ramp_rows, self.columns))
            self.held[:, :, start - row.last : stop - row.last, columns] = part
        else:
            yield Piece(slice(start, stop), columns, part)
