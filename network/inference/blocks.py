"""Which blocks of an image to compute, and the few rectangles that they are computed in."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

STRIDE = 32  # of the coarsest features of a trunk, in pixels: rectangles begin at its multiples
BLOCKS = 128  # of an image, about
MOST = 12  # rectangles of an image
STEPS = 7  # of the search for a price
# What one more rectangle costs beside its pixels, as the side of a square of so many pixels.
OVERHEAD = 48
NOTHING = 1e-6  # a block with less to gain than this is never computed
# With "auto": the least gain of a pixel that is computed, in the share of the attention times the
# probability of an error.
PRICE = 0.04


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
class BlockGrid:
    """Blocks of an image of `size` (height, width): squares of `side` pixels from its corner."""

    size: tuple[int, int]
    side: int
    halo: int

    @classmethod
    def of_image(cls, size: tuple[int, int], *, least_halo: float) -> BlockGrid:
        """Blocks for an image of that size; sides and halos are multiples of the network's stride.

        `least_halo` is what seamless blending needs, in pixels.
        """
        wanted = math.sqrt(size[0] * size[1] / BLOCKS)
        side = STRIDE * max(1, math.ceil(wanted / STRIDE))
        halo = STRIDE * max(1, math.ceil(least_halo / STRIDE))
        return cls(size, side, halo)

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns) of blocks."""
        height, width = self.size
        return math.ceil(height / self.side), math.ceil(width / self.side)

    def edges(self, axis: int) -> np.ndarray:
        """Where the blocks begin and end along an axis, in pixels."""
        count = self.shape[axis]
        return np.minimum(np.arange(count + 1) * self.side, self.size[axis])

    def areas(self) -> np.ndarray:
        """Pixels of each block."""
        return np.outer(np.diff(self.edges(0)), np.diff(self.edges(1)))

    def means(self, values: np.ndarray) -> np.ndarray:
        """The mean over each block of a map [h, w] of any resolution."""
        summed = np.zeros((values.shape[0] + 1, values.shape[1] + 1))
        summed[1:, 1:] = values.astype(np.float64).cumsum(0).cumsum(1)
        first, last = [], []
        for axis in (0, 1):
            scaled = self.edges(axis) * (values.shape[axis] / self.size[axis])
            low = np.minimum(np.floor(scaled[:-1]).astype(int), values.shape[axis] - 1)
            first.append(low)
            last.append(np.maximum(np.floor(scaled[1:]).astype(int), low + 1))

        (top, left), (bottom, right) = first, last
        total = (
            summed[np.ix_(bottom, right)]
            - summed[np.ix_(top, right)]
            - summed[np.ix_(bottom, left)]
            + summed[np.ix_(top, left)]
        )
        return total / np.outer(bottom - top, right - left)

    def whole(self) -> Rectangle:
        """All of the image."""
        height, width = self.size
        return Rectangle(Extent(0, 0, height, height), Extent(0, 0, width, width))

    def rectangle(self, box: np.ndarray) -> Rectangle:
        """The rectangle of the blocks (top, bottom, left, right), with its halo."""
        return Rectangle(self._extent(0, *box[:2]), self._extent(1, *box[2:]))

    def costs(self, boxes: np.ndarray) -> np.ndarray:
        """What computing the rectangles of boxes [..., 4] costs, in pixels."""
        low = np.maximum(boxes[..., ::2] * self.side - self.halo, 0)
        high = np.minimum(boxes[..., 1::2] * self.side + self.halo, np.array(self.size))
        return (high - low).prod(axis=-1) + OVERHEAD**2

    def _extent(self, axis: int, begin: int, end: int) -> Extent:
        length = self.size[axis]
        first, last = int(begin) * self.side, min(int(end) * self.side, length)
        return Extent(max(first - self.halo, 0), first, last, min(last + self.halo, length))


class Choice(NamedTuple):
    """Rectangles of one image, and the share of the image that counts fully in them."""

    rectangles: list[Rectangle]
    refined: float

    @property
    def is_whole(self) -> bool:
        """Whether it is all of the image at once."""
        return self.refined == 1


def choose_rectangles(
    grid: BlockGrid, priority: np.ndarray, share: float | Literal["auto"]
) -> Choice:
    """The rectangles with the most to gain for what they cost; `priority` is [rows, columns].

    They hold at most `share` of the image, beside their halos; with "auto" those that gain more
    than `PRICE` for each pixel that is computed. What gains nothing is never computed. They never
    cost more than all of the image: where "auto" would, that is chosen.
    """
    priority = np.nan_to_num(priority, nan=0.0, posinf=0.0, neginf=0.0)
    search = _Search(grid, priority)
    if share == "auto":
        boxes = search.worth(PRICE)
        if search.cost_of(boxes) >= search.cost_of_all:
            return Choice([grid.whole()], 1.0)
        return search.choice(boxes)

    # The lowest price at which what is worth it stays within the share; the first try is free.
    budget = share * search.total
    low, high = NOTHING, max(float(priority.max()), NOTHING)
    best: list[np.ndarray] = []
    for step in range(STEPS):
        price = math.sqrt(low * high)
        if step == 0:
            price = low
        boxes = search.worth(price, most_cost=search.cost_of_all)
        if search.pixels_of(boxes) <= budget:
            best, high = boxes, price
            if step == 0:
                break
        else:
            low = price

    # What is left of the share goes to smaller rectangles, and to those that gain less.
    price = max(0.3 * high, NOTHING)
    most_cost = search.cost_of_all
    return search.choice(search.worth(price, budget=budget, most_cost=most_cost, begin=best))


class _Search:
    """All boxes (top, bottom, left, right) of the blocks of a grid, by what they gain and cost."""

    def __init__(self, grid: BlockGrid, priority: np.ndarray) -> None:
        self.grid = grid
        self.areas = grid.areas().astype(np.float64)
        self.total = float(self.areas.sum())
        self.gains = priority * self.areas

        # Every pair of rows with every pair of columns.
        rows, columns = grid.shape
        vertical = np.stack(np.triu_indices(rows + 1, 1), axis=1)
        horizontal = np.stack(np.triu_indices(columns + 1, 1), axis=1)
        self.boxes = np.concatenate(
            [
                np.repeat(vertical, len(horizontal), axis=0),
                np.tile(horizontal, (len(vertical), 1)),
            ],
            axis=1,
        )
        self.costs = grid.costs(self.boxes)
        self.cost_of_all = float(grid.costs(np.array([0, rows, 0, columns])))

    def worth(
        self,
        price: float,
        *,
        budget: float = math.inf,
        most_cost: float = math.inf,
        begin: Sequence[np.ndarray] = (),
    ) -> list[np.ndarray]:
        """Boxes, one after the other, that gain most beyond `price` for each pixel of their cost.

        Together with those of `begin` they hold at most `budget` pixels of the image, and cost less
        than `most_cost`.
        """
        gains, areas = self.gains.copy(), self.areas.copy()
        found = list(begin)
        for top, bottom, left, right in found:
            gains[top:bottom, left:right] = 0
            areas[top:bottom, left:right] = 0

        while len(found) < MOST:
            surplus = self._inside(gains) - price * self.costs
            surplus[self._inside(areas) > budget - (self.total - areas.sum()) + 0.5] = 0
            surplus[self.costs >= most_cost - self.cost_of(found)] = 0
            best = int(surplus.argmax())
            if surplus[best] <= 0:
                break

            # What is in a box gains nothing a second time.
            top, bottom, left, right = self.boxes[best]
            gains[top:bottom, left:right] = 0
            areas[top:bottom, left:right] = 0
            found.append(self.boxes[best])
        return found

    def cost_of(self, boxes: Sequence[np.ndarray]) -> float:
        """What computing these boxes costs, in pixels."""
        return float(sum(self.grid.costs(box) for box in boxes))

    def pixels_of(self, boxes: Sequence[np.ndarray]) -> float:
        """Pixels of the image that are in any of the boxes."""
        mask = np.zeros(self.grid.shape, dtype=bool)
        for top, bottom, left, right in boxes:
            mask[top:bottom, left:right] = True
        return float(self.areas[mask].sum())

    def choice(self, boxes: Sequence[np.ndarray]) -> Choice:
        """These boxes as rectangles."""
        share = self.pixels_of(boxes) / self.total
        return Choice([self.grid.rectangle(box) for box in boxes], share)

    def _inside(self, values: np.ndarray) -> np.ndarray:
        """The sum of block values in every box."""
        summed = np.zeros((values.shape[0] + 1, values.shape[1] + 1))
        summed[1:, 1:] = values.cumsum(0).cumsum(1)
        top, bottom, left, right = self.boxes.T
        return summed[bottom, right] - summed[top, right] - summed[bottom, left] + summed[top, left]
