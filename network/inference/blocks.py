"""Which blocks of an image to compute, and the few rectangles that they are computed in."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

import numpy as np

STRIDE = 32  # of the coarsest features of a trunk, in pixels: rectangles begin at its multiples
BLOCKS = 512  # of an image, about
HALO = 16  # pixels along the border of a rectangle, at least
MOST = 12  # rectangles of an image
STEPS = 9  # of the search for a price, at most
ENOUGH = 0.97  # of the share that is asked for: the search ends there
# What one more rectangle costs beside its pixels, as the side of a square of so many pixels.
OVERHEAD = 48
LARGEST_SEED = 3  # blocks; the side of a square to begin with
NOTHING = 1e-6  # a block with less to gain than this is never computed
# With "auto": the least gain of a pixel that is computed, in the share of the attention times the
# probability of an error.
PRICE = 0.04

Box = tuple[int, int, int, int]  # of blocks: rows [top, bottom), columns [left, right)


class Extent(NamedTuple):
    """Pixels [start, stop) that are computed, and those of them, [first, last), that count fully.

    Between the two lies the halo, in which a rectangle counts less and less. There is none at the
    border of the image.
    """

    start: int
    first: int
    last: int
    stop: int

    def weights(self, positions: np.ndarray, *, margin: float = 0.0) -> np.ndarray:
        """Smooth weights, 0 to 1, at positions in pixels; 0 less than `margin` from the ends."""
        result = np.ones_like(positions)
        for halo, inside in (
            (self.first - self.start, positions - self.start),
            (self.stop - self.last, self.stop - positions),
        ):
            if halo:
                share = np.clip((inside - margin) / max(halo - margin, 1e-6), 0, 1)
                result *= share * share * (3 - 2 * share)

        # What lies beyond the border of the image is read nowhere.
        outside = (positions < self.start) | (positions > self.stop)
        result[outside] = 0
        return result


class Rectangle(NamedTuple):
    """A part of an image that is computed at once."""

    rows: Extent
    columns: Extent

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width) of the pixels that are computed."""
        return self.rows.stop - self.rows.start, self.columns.stop - self.columns.start

    @property
    def pixels(self) -> int:
        """How many pixels are computed."""
        height, width = self.shape
        return height * width


@dataclass(frozen=True)
class BlockAxis:
    """One axis of a grid of blocks: `length` pixels, cut into blocks of `side` pixels."""

    length: int
    side: int
    halo: int
    inset: int

    @property
    def count(self) -> int:
        """How many blocks there are; the last may be smaller."""
        return math.ceil(self.length / self.side)

    @cached_property
    def borders(self) -> np.ndarray:
        """Where blocks begin and end, in pixels: `count + 1` numbers."""
        return np.minimum(np.arange(self.count + 1) * self.side, self.length)

    @cached_property
    def inner(self) -> tuple[np.ndarray, np.ndarray]:
        """Where rectangles count from that begin with each block, and up to if they end with it."""
        first, last = self.borders[:-1] + self.inset, self.borders[1:] - self.inset
        first[0], last[-1] = 0, self.length
        return np.minimum(first, self.length), np.maximum(last, 0)

    @cached_property
    def cuts(self) -> np.ndarray:
        """All of these positions, ascending: between two of them pixels are always together."""
        return np.unique(np.concatenate([*self.inner, [0, self.length]]))

    @cached_property
    def inner_cuts(self) -> tuple[np.ndarray, np.ndarray]:
        """`inner` as indices into `cuts`."""
        first, last = (np.searchsorted(self.cuts, positions) for positions in self.inner)
        return first, last

    def cover(self, cells: int) -> np.ndarray:
        """How much of each of `cells` of a map lies between two cuts, `[cuts - 1, cells]`."""
        edges = self.cuts * (cells / self.length)
        first = np.maximum(edges[:-1, None], np.arange(cells))
        last = np.minimum(edges[1:, None], np.arange(1, cells + 1))
        return np.maximum(last - first, 0)

    def extent(self, begin: int, end: int) -> Extent:
        """The pixels of the blocks [begin, end)."""
        start, stop = int(self.borders[begin]), int(self.borders[end])
        first, last = start, stop
        if start > 0:
            first = min(start + self.halo, stop)
        if stop < self.length:
            last = max(stop - self.halo, first)
        return Extent(start, first, last, stop)


@dataclass(frozen=True)
class BlockGrid:
    """Blocks of an image of `size` (height, width): squares of `side` pixels from its corner.

    A rectangle is computed on whole blocks. Along its border, in the halo, it counts in part: from
    nothing to fully between `margin` and `halo` pixels from its end. The middle of that is taken
    for the border of the pixels that count.
    """

    size: tuple[int, int]
    side: int
    halo: int
    margin: float

    @classmethod
    def of_image(cls, size: tuple[int, int], *, margin: float) -> BlockGrid:
        """Blocks for an image of that size; their sides are multiples of the network's stride.

        Nearer than `margin` pixels to its end a rectangle must not count, for reasons of the maps.
        """
        wanted = math.sqrt(size[0] * size[1] / BLOCKS)
        side = STRIDE * max(1, math.ceil(wanted / STRIDE))
        return cls(size, side, max(HALO, math.ceil(2 * margin)), margin)

    @cached_property
    def rows(self) -> BlockAxis:
        """The blocks from top to bottom."""
        return self._axis(0)

    @cached_property
    def columns(self) -> BlockAxis:
        """The blocks from left to right."""
        return self._axis(1)

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns) of blocks."""
        return self.rows.count, self.columns.count

    @property
    def all(self) -> Box:
        """The box of all blocks."""
        return 0, self.rows.count, 0, self.columns.count

    def areas(self) -> np.ndarray:
        """Pixels between the cuts of rows and columns."""
        return np.outer(np.diff(self.rows.cuts), np.diff(self.columns.cuts)).astype(np.float64)

    def sums(self, values: np.ndarray) -> np.ndarray:
        """The sum over the pixels between the cuts of a map [h, w] of any resolution."""
        height, width = values.shape
        summed = self.rows.cover(height) @ values.astype(np.float64) @ self.columns.cover(width).T
        return summed * (self.size[0] / height * self.size[1] / width)

    def inside(self, box: Box) -> tuple[slice, slice]:
        """Where the rectangle of a box counts, as a part of `areas` and `sums`."""
        top, bottom, left, right = box
        (row, row_end), (column, column_end) = self.rows.inner_cuts, self.columns.inner_cuts
        return slice(row[top], row_end[bottom - 1]), slice(column[left], column_end[right - 1])

    def _axis(self, axis: int) -> BlockAxis:
        inset = round((self.halo + self.margin) / 2)
        return BlockAxis(self.size[axis], self.side, self.halo, inset)

    def rectangle(self, box: Box) -> Rectangle:
        """The rectangle of the blocks of a box."""
        return Rectangle(self.rows.extent(*box[:2]), self.columns.extent(*box[2:]))

    def weights(self, part: Rectangle, cells: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """How much a rectangle counts, 0 to 1, in the rows and columns of a map of so many."""
        rows, columns = (
            extent.weights((np.arange(count) + 0.5) * (length / count), margin=self.margin)
            for extent, length, count in zip(part, self.size, cells, strict=True)
        )
        return rows, columns

    def cost(self, box: Box) -> float:
        """What computing the rectangle of a box costs, in pixels."""
        top, bottom, left, right = box
        height = self.rows.borders[bottom] - self.rows.borders[top]
        width = self.columns.borders[right] - self.columns.borders[left]
        return float(height * width + OVERHEAD**2)


class Choice(NamedTuple):
    """Rectangles of one image, and the share of the image that counts in them."""

    rectangles: list[Rectangle]
    refined: float

    @property
    def is_whole(self) -> bool:
        """Whether it is all of the image at once."""
        return self.refined == 1


def choose_rectangles(
    grid: BlockGrid, priority: np.ndarray, share: float | Literal["auto"]
) -> Choice:
    """The rectangles with the most to gain for what they cost.

    `priority` is a map [h, w] of the image, of any resolution: what each pixel has to gain. They
    count on at most `share` of the image; with "auto" on those that gain more than `PRICE`
    for each pixel that is computed. What gains nothing is never computed. They never cost more than
    all of the image: where "auto" would, that is chosen.
    """
    search = _Search(grid, np.nan_to_num(priority, nan=0.0, posinf=0.0, neginf=0.0))
    if share == "auto":
        return search.choice(search.worth(PRICE))
    if share == 0:
        return Choice([], 0.0)

    # The lowest price at which what is worth it stays within the share; the first try is free.
    budget = share * search.total
    low, high = NOTHING, max(float(priority.max()), NOTHING)
    best: list[Box] = []
    price = low
    for _ in range(STEPS):
        boxes = search.worth(price)
        pixels = search.pixels_of(boxes)
        if pixels > budget:
            # At a small part of the mean gain nearly everything is worth it.
            low = max(price, search.mean_gain / 4)
        else:
            best, high = boxes, price
            if price == NOTHING or pixels > ENOUGH * budget:
                break
        price = math.sqrt(low * high)

    # Where everything is worth the same, no price divides it: one block is what to begin with.
    if not best:
        best = search.smallest(budget)
    # What is left of the share widens the rectangles where that gains most.
    return search.choice(search.widened(best, budget))


class _Search:
    """All boxes of the blocks of a grid, by what they gain and cost."""

    def __init__(self, grid: BlockGrid, priority: np.ndarray) -> None:
        self.grid = grid
        self.areas = grid.areas()
        self.total = float(self.areas.sum())
        self.gains = grid.sums(priority)
        self.mean_gain = float(self.gains.sum()) / self.total
        self.cost_of_all = grid.cost(grid.all)

        # Every pair of a first and a last row between which anything counts.
        top, last = np.triu_indices(grid.rows.count)
        first_cut, last_cut = grid.rows.inner_cuts
        counting = last_cut[last] > first_cut[top]
        self.top, self.bottom = top[counting], last[counting] + 1
        self.first_cut, self.last_cut = first_cut[self.top], last_cut[self.bottom - 1]
        borders = grid.rows.borders
        self.heights = (borders[self.bottom] - borders[self.top])[:, None].astype(np.float64)

    def worth(self, price: float) -> list[Box]:
        """Boxes, one after the other, that gain most beyond `price` for each pixel of their cost.

        Where they would cost more than all of the image, that is the only one.
        """
        gains = self.gains.copy()
        found: list[Box] = []
        cost = 0.0
        while len(found) < MOST:
            box, surplus = self._best(gains, price)
            if surplus <= 0:
                break
            cost += self.grid.cost(box)
            if cost >= self.cost_of_all:
                return [self.grid.all]

            # What is in a box gains nothing a second time.
            gains[self.grid.inside(box)] = 0
            found.append(box)
        return found

    def widened(self, boxes: Sequence[Box], budget: float) -> list[Box]:
        """Boxes, made larger block by block where that gains most for each pixel of the cost.

        They count on at most `budget` pixels of the image, and cost less than all of it.
        """
        found = list(boxes)
        gains, areas = self.gains.copy(), self.areas.copy()
        for box in found:
            gains[self.grid.inside(box)] = areas[self.grid.inside(box)] = 0
        budget -= self.total - areas.sum()
        cost = sum(self.grid.cost(box) for box in found)

        while True:
            best, place, wider = 0.0, -1, self.grid.all
            for index, box in enumerate(found):
                for larger in self._larger(box):
                    inside = self.grid.inside(larger)
                    more = self.grid.cost(larger) - self.grid.cost(box)
                    too_large = areas[inside].sum() > budget or cost + more >= self.cost_of_all
                    gain = gains[inside].sum() / more
                    if gain > best and not too_large:
                        best, place, wider = gain, index, larger
            if best <= NOTHING:
                return found

            inside = self.grid.inside(wider)
            budget -= areas[inside].sum()
            cost += self.grid.cost(wider) - self.grid.cost(found[place])
            gains[inside] = areas[inside] = 0
            found[place] = wider

    def smallest(self, budget: float) -> list[Box]:
        """The box of the fewest blocks that counts anywhere, where most is gained; or none."""
        rows, columns = self.grid.shape
        for side in range(1, min(rows, columns, LARGEST_SEED) + 1):
            best, found = NOTHING, []
            for top, left in np.ndindex(rows - side + 1, columns - side + 1):
                box = (top, top + side, left, left + side)
                inside = self.grid.inside(box)
                gain = self.gains[inside].sum() / self.grid.cost(box)
                if gain > best and self.areas[inside].sum() <= budget:
                    best, found = gain, [box]
            if found:
                return found
        return []

    def pixels_of(self, boxes: Sequence[Box]) -> float:
        """Pixels of the image that count in any of the boxes."""
        mask = np.zeros(self.areas.shape, dtype=bool)
        for box in boxes:
            mask[self.grid.inside(box)] = True
        return float(self.areas[mask].sum())

    def choice(self, boxes: Sequence[Box]) -> Choice:
        """These boxes as rectangles."""
        share = self.pixels_of(boxes) / self.total
        return Choice([self.grid.rectangle(box) for box in boxes], share)

    def _larger(self, box: Box) -> list[Box]:
        """A box with one more row or column of blocks, on each of its four sides."""
        top, bottom, left, right = box
        rows, columns = self.grid.shape
        larger = []
        if top > 0:
            larger.append((top - 1, bottom, left, right))
        if bottom < rows:
            larger.append((top, bottom + 1, left, right))
        if left > 0:
            larger.append((top, bottom, left - 1, right))
        if right < columns:
            larger.append((top, bottom, left, right + 1))
        return larger

    def _best(self, gains: np.ndarray, price: float) -> tuple[Box, float]:
        """The box whose gain is most above `price` for each pixel of its cost, and by how much.

        Between two rows the gain of a box is a difference of two sums, as its cost is. So the best
        first column for every last one is where what is subtracted has been smallest so far:
        no box is looked at by itself.
        """
        summed = np.zeros((gains.shape[0] + 1, gains.shape[1] + 1))
        gains.cumsum(0).cumsum(1, out=summed[1:, 1:])
        between = summed[self.last_cut] - summed[self.first_cut]

        columns = self.grid.columns
        first_cut, last_cut = columns.inner_cuts
        before = between[:, first_cut] - price * self.heights * columns.borders[:-1]
        upto = between[:, last_cut] - price * self.heights * columns.borders[1:]
        surplus = upto - np.minimum.accumulate(before, axis=1)

        pair, last = divmod(int(surplus.argmax()), surplus.shape[1])
        left = int(before[pair, : last + 1].argmin())
        box = (int(self.top[pair]), int(self.bottom[pair]), left, last + 1)
        return box, float(surplus[pair, last]) - price * OVERHEAD**2
