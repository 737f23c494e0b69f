"""Between which rows of a map interpolated ones lie, and with what weights."""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
from torch import Tensor

# What is kept for the next image of the same size: tables of a kilobyte, matrices of some dozens.
KEPT_TABLES = 4096
KEPT_MATRICES = 512
CPU = torch.device("cpu")


class NeighbouringRows(NamedTuple):
    """The two rows of the source between which each row of an interpolated strip lies.

    They count from the source row `first`; the rows up to and with `last` are needed.
    """

    above: Tensor  # int64 [rows]
    below: Tensor  # int64 [rows]
    weight: Tensor  # of the row below, [rows, 1]
    first: int
    last: int


@functools.lru_cache(maxsize=KEPT_TABLES)
def neighbouring_rows(
    height: int,
    wanted: int,
    start: int,
    stop: int,
    *,
    align_corners: bool,
    dtype: torch.dtype,
    device: torch.device,
) -> NeighbouringRows:
    """The neighbours of rows `[start, stop)` where `height` rows become `wanted` ones.

    The tables are computed where they are used, and kept there for the next image of that size: to
    copy them from the host would make it wait for the device in every strip.
    """
    above, below, weight = _positions(height, wanted, start, stop, align_corners, dtype, device)
    # Which rows the strip needs is asked of the host's own table, so that nothing waits.
    ends = above, below
    if device.type != "cpu":
        ends = _positions(height, wanted, start, stop, align_corners, dtype, CPU)[:2]
    first, last = int(ends[0][0]), int(ends[1][-1])

    # Both tables are of the same arithmetic. Should a device round otherwise, then not out of it.
    above, below = (rows.sub_(first).clamp_(0, last - first) for rows in (above, below))
    return NeighbouringRows(above, below, weight.unsqueeze(1), first, last)


class InterpolationMatrix(NamedTuple):
    """Rows (or columns) of an interpolated map as a product of a matrix with those of its source.

    The matrix is `[rows of the result, last - first]`, of source rows `[first, last)`.
    """

    matrix: Tensor
    first: int
    last: int


@functools.lru_cache(maxsize=KEPT_MATRICES)
def interpolation_matrix(
    lengths: tuple[int, ...],
    start: int,
    stop: int,
    *,
    align_corners: bool,
    dtype: torch.dtype,
    device: torch.device,
) -> InterpolationMatrix:
    """What makes rows `[start, stop)` of a map that was resized from each of `lengths` to the next.

    The maps between the first and the last never exist.
    """
    exact = _exact_matrix(lengths, start, stop, align_corners)
    return InterpolationMatrix(exact.matrix.to(dtype).to(device), exact.first, exact.last)


def _exact_matrix(
    lengths: tuple[int, ...], start: int, stop: int, align_corners: bool
) -> InterpolationMatrix:
    """The matrix in float64, on the host."""
    *before, length, wanted = lengths
    above, below, weight = _positions(
        length, wanted, start, stop, align_corners, torch.float64, CPU
    )
    first, last = int(above[0]), int(below[-1]) + 1
    matrix = torch.zeros(stop - start, last - first, dtype=torch.float64)

    # At the border of the source both neighbours are the same row.
    matrix.scatter_add_(1, above[:, None] - first, 1 - weight[:, None])
    matrix.scatter_add_(1, below[:, None] - first, weight[:, None])
    if not before:
        return InterpolationMatrix(matrix, first, last)
    source = _exact_matrix((*before, length), first, last, align_corners)
    return InterpolationMatrix(matrix @ source.matrix, source.first, source.last)


def _positions(
    height: int,
    wanted: int,
    start: int,
    stop: int,
    align_corners: bool,
    dtype: torch.dtype,
    device: torch.device,
) -> tuple[Tensor, Tensor, Tensor]:
    """The source rows above and below each row, and the weight of the one below."""
    # As exact as `interpolate` is for this dtype.
    position = torch.arange(start, stop, dtype=dtype, device=device)
    if align_corners:
        position = position * ((height - 1) / max(wanted - 1, 1))
    else:
        position = ((position + 0.5) * (height / wanted) - 0.5).clamp_(min=0)

    above = position.floor().long().clamp_(max=height - 1)
    below = (above + 1).clamp_(max=height - 1)
    return above, below, position - above
