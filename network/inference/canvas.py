"""Maps of whole images, put together from those of rectangles."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ..layers import resize
from .blocks import Rectangle


class FeatureCanvas:
    """Maps of the features of images of `size` pixels, put together from rectangles.

    Where rectangles overlap their mean is taken, weighted by how far inside a pixel lies.
    """

    def __init__(self, images: int, size: tuple[int, int]) -> None:
        self.images = images
        self.size = size
        self.maps: Tensor | None = None
        self.weight: Tensor | None = None
        self.cell = (1, 1)  # pixels (high, wide) of the image for each of the features

    def add(self, maps: Tensor, members: Sequence[tuple[int, Rectangle]]) -> None:
        """Enter the maps of rectangles of one shape, `[len(members), C, h, w]`."""
        if self.maps is None:
            self._open(maps, members[0][1].shape)
        assert self.maps is not None and self.weight is not None
        for own, (index, part) in zip(maps.split(1), members, strict=True):
            spans = [
                self._span(axis, extent.start, extent.stop)
                for axis, extent in enumerate((part.rows, part.columns))
            ]
            target = (slice(index, index + 1), slice(None), *spans)

            # A map of a part at the end of an image may be a row larger or smaller than its place.
            own = resize(own, [span.stop - span.start for span in spans], align_corners=False)
            rows, columns = (
                extent.weights((np.arange(span.start, span.stop) + 0.5) * cell)
                for extent, span, cell in zip(part, spans, self.cell, strict=True)
            )
            weight = torch.from_numpy(np.outer(rows, columns)).to(own)
            self.maps[target] += own * weight
            self.weight[target] += weight

    def finished(self) -> Tensor:
        """The maps `[N, C, H, W]`, 0 where there is no rectangle."""
        assert self.maps is not None and self.weight is not None
        return self.maps.div_(self.weight.masked_fill_(self.weight == 0, 1))

    def _open(self, maps: Tensor, shape: tuple[int, int]) -> None:
        """Make room for all features of the images."""
        counts, cells = [], []
        for axis in (0, 1):
            length, count = shape[axis], maps.shape[2 + axis]
            cells.append(max(1, round(length / count)))

            # The features of an image may end in the middle of a cell.
            if length != self.size[axis]:
                count = math.ceil(self.size[axis] / cells[axis])
            counts.append(count)
        self.cell = (cells[0], cells[1])
        self.maps = maps.new_zeros((self.images, maps.shape[1], *counts))
        self.weight = maps.new_zeros((self.images, 1, *counts))

    def _span(self, axis: int, start: int, stop: int) -> slice:
        assert self.maps is not None
        count = self.maps.shape[2 + axis]
        first = min(round(start / self.cell[axis]), count - 1)
        last = count
        if stop < self.size[axis]:
            last = round(stop / self.cell[axis])
        return slice(first, max(last, first + 1))
