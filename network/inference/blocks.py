"""Which blocks of an image to compute, and the few rectangles that they are computed in."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

STRIDE = 32  # of the coarsest features of a trunk, in pixels: rectangles begin at its multiples
BLOCKS = 256  # of an image, about
# What one more rectangle costs beside its pixels, as the side of a square of so many pixels.
OVERHEAD = 48
NOTHING = 1e-6  # a block with less to gain than this is never computed
# With "auto": what may be left out, as a mean over the pixels of the image.
LEFT_OUT = 0.002


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
    """The rectangles of the blocks with the largest `priority` [rows, columns].

    They hold at most `share` of the image, beside their halos; with "auto" as few blocks as leave
    out less than `LEFT_OUT`. Blocks whose priority is nothing are left out, so that there may be
    no rectangle. They never cost more than all of the image: where "auto" would, that is chosen.
    """
    areas = grid.areas()
    total = areas.sum()
    priority = np.nan_to_num(priority, nan=0.0, posinf=0.0, neginf=0.0)
    order = np.argsort(-priority, axis=None, kind="stable")
    order = order[priority.flat[order] > NOTHING]

    # The most blocks that may be taken.
    if share == "auto":
        gains = (priority * areas).flat[order]
        left = gains.sum() - gains.cumsum()
        count = 0
        if gains.sum() > LEFT_OUT * total:
            count = 1 + int((left > LEFT_OUT * total).sum())
        budget = float(total)
    else:
        budget = share * total
        count = int((areas.flat[order].cumsum() <= budget).sum())

    # Rectangles hold blocks between the chosen ones, too: as many are chosen as leave room for it.
    best, fewest, too_many = Choice([], 0.0), 0, count + 1
    while too_many - fewest > 1:
        boxes = merged_boxes(grid, order[:count])
        # With their halos, parts may cost more than all of the image at once.
        is_cheap = grid.costs(boxes).sum() < grid.costs(_whole_box(grid))
        if share == "auto" and not is_cheap:
            return Choice([grid.whole()], 1.0)
        pixels = _union(grid, boxes, areas)
        if is_cheap and pixels <= budget:
            fewest = count
            rectangles = [grid.rectangle(box) for box in boxes]
            best = Choice(rectangles, float(pixels / total))
        else:
            too_many = count
        count = (fewest + too_many) // 2
    return best


def merged_boxes(grid: BlockGrid, chosen: np.ndarray) -> np.ndarray:
    """Boxes (top, bottom, left, right) of blocks [R, 4] that cover the chosen ones, cheaply.

    Two boxes become one wherever that costs no more than both.
    """
    mask = np.zeros(grid.shape, dtype=bool)
    mask.flat[chosen] = True
    boxes = np.array(_runs(mask)).reshape(-1, 4)
    while len(boxes) > 1:
        low = np.minimum(boxes[:, None, ::2], boxes[None, :, ::2])
        high = np.maximum(boxes[:, None, 1::2], boxes[None, :, 1::2])
        unions = np.stack([low[..., 0], high[..., 0], low[..., 1], high[..., 1]], axis=-1)
        own = grid.costs(boxes)
        savings = own[:, None] + own[None, :] - grid.costs(unions)
        np.fill_diagonal(savings, -1)
        one, other = np.unravel_index(savings.argmax(), savings.shape)
        if savings[one, other] < 0:
            break

        # What the union holds goes with it.
        union = unions[one, other]
        inside = (
            (boxes[:, 0] >= union[0])
            & (boxes[:, 1] <= union[1])
            & (boxes[:, 2] >= union[2])
            & (boxes[:, 3] <= union[3])
        )
        boxes = np.concatenate([boxes[~inside], union[None]])
    return boxes


def _whole_box(grid: BlockGrid) -> np.ndarray:
    rows, columns = grid.shape
    return np.array([0, rows, 0, columns])


def _runs(mask: np.ndarray) -> list[tuple[int, int, int, int]]:
    """Boxes of neighbouring blocks: runs of each row, joined with equal ones of the row above."""
    open_runs: dict[tuple[int, int], int] = {}
    boxes = []
    for row in range(mask.shape[0] + 1):
        runs: set[tuple[int, int]] = set()
        if row < mask.shape[0]:
            borders = np.flatnonzero(np.diff(np.pad(mask[row], 1).astype(np.int8)))
            runs = set(zip(borders[::2].tolist(), borders[1::2].tolist(), strict=True))

        for run in sorted(set(open_runs) - runs):
            boxes.append((open_runs.pop(run), row, *run))
        for run in runs - set(open_runs):
            open_runs[run] = row
    return boxes


def _union(grid: BlockGrid, boxes: np.ndarray, areas: np.ndarray) -> float:
    """Pixels of the image that are in any of the boxes."""
    mask = np.zeros(grid.shape, dtype=bool)
    for top, bottom, left, right in boxes:
        mask[top:bottom, left:right] = True
    return float(areas[mask].sum())
