"""Fusing scales of which the higher ones were computed on parts of the images.

Outside of these parts the result is that of the lower scales, and nothing is computed for it at the
size of a higher one. So what fusing takes follows the share that is computed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..layers import resize
from ..model import MultiScaleModel, Size, fuse, resized
from ..prediction import Prediction
from .blocks import BlockGrid, Rectangle
from .refinement import RefinedScales
from .strips import StripMap, as_strip_map, held


def fuse_refined(model: MultiScaleModel, refined: RefinedScales, size: Size) -> Prediction:
    """Fuse as `model.fuse_scales` does; the maps of the result are strip maps of that size.

    Every image has parts of its own, and so a fusion of its own. Its attention is that of the
    lowest scale, 1 where nothing higher was computed.
    """
    lowest = min(refined.shown)
    images = range(refined.shown[lowest].logits.shape[0])
    logits = Stacked([_fused_image(model, refined, index, size) for index in images])

    shown = model.at_fusion_size({lowest: held(refined.shown[lowest])}, size)[lowest]
    attention = shown.attention
    assert attention is not None
    return Prediction(
        logits,  # type: ignore[arg-type]
        attention=resize(attention, size, align_corners=model.align_corners),
    )


def _fused_image(
    model: MultiScaleModel, refined: RefinedScales, index: int, size: Size
) -> StripMap:
    """The logits of one image of the batch: equation 1 from the highest scale to the lowest."""
    scales = {}
    for scale, prediction in refined.own.items():
        part = refined.parts.get(scale)
        if part is None or part.choices[index].rectangles:
            scales[scale] = held(_of_image(prediction, index))
    own = model.at_fusion_size(scales, size)

    above, *others = sorted(own, reverse=True)
    running = Prediction(own[above].logits)
    for scale in others:
        lower = own[scale]
        # Where they meet is as in `model.fuse_chain`.
        meeting = lower if scale >= 1 else running
        target = meeting.logits.shape[-2:]
        part = refined.parts.get(above)
        if part is None or part.choices[index].is_whole:
            running = fuse(lower, running, size=target, align_corners=model.align_corners)
        else:
            where = Region(part.grid, part.choices[index].rectangles)
            running = _fused_inside(lower, running, where, target, model.align_corners)
        above = scale
    found = resized(running, size, align_corners=model.align_corners)
    return as_strip_map(found.logits)


def _fused_inside(
    lower: Prediction, higher: Prediction, where: Region, target: Sequence[int], align_corners: bool
) -> Prediction:
    """Two scales, fused inside of rectangles of the higher one; elsewhere it is the lower one."""
    # The lower one is needed for both.
    once = Remembered(as_strip_map(lower.logits))
    lower = Prediction(once, attention=lower.attention)  # type: ignore[arg-type]
    inside = fuse(lower, higher, size=target, align_corners=align_corners)
    outside = resized(lower, target, align_corners=align_corners)

    joined = Patched(as_strip_map(outside.logits), as_strip_map(inside.logits), where)
    return Prediction(joined)  # type: ignore[arg-type]


def _of_image(prediction: Prediction, index: int) -> Prediction:
    """The maps of one image of a batch."""
    attention = prediction.attention
    if attention is not None:
        attention = attention[index : index + 1]
    return Prediction(prediction.logits[index : index + 1], attention=attention)


class Region(NamedTuple):
    """The rectangles of an image that were computed at a scale."""

    grid: BlockGrid
    rectangles: list[Rectangle]


class Stacked(StripMap):
    """Maps of single images, as those of a batch."""

    def __init__(self, images: Sequence[StripMap]) -> None:
        self.images = images
        first = images[0]
        self.shape = torch.Size((len(images), *first.shape[1:]))
        self.dtype, self.device = first.dtype, first.device

    def rows(self, start: int, stop: int) -> Tensor:
        if len(self.images) == 1:
            return self.images[0].rows(start, stop)
        return torch.cat([image.rows(start, stop) for image in self.images])


class Remembered(StripMap):
    """Another map; the rows that it computed last are kept."""

    def __init__(self, source: StripMap) -> None:
        self.source = source
        self.shape, self.dtype, self.device = source.shape, source.dtype, source.device
        self.span = (0, 0)
        self.last: Tensor | None = None

    def rows(self, start: int, stop: int) -> Tensor:
        if self.last is None or self.span != (start, stop):
            self.last, self.span = self.source.rows(start, stop), (start, stop)
        return self.last

    def window(self, rows: slice, columns: slice) -> Tensor:
        if self.last is None or self.span != (rows.start, rows.stop):
            return self.source.window(rows, columns)
        return self.last[..., columns]


class Patch(NamedTuple):
    """How much one rectangle counts in the rows and columns of a map, and where it does at all."""

    row_weights: Tensor  # [H], 0 to 1
    column_weights: Tensor  # [W]
    rows: slice
    columns: slice


class Patched(StripMap):
    """A map of one image that is another one in rectangles, with smooth transitions."""

    def __init__(self, outside: StripMap, inside: StripMap, where: Region) -> None:
        self.outside, self.inside = outside, inside
        self.shape, self.dtype, self.device = outside.shape, outside.dtype, outside.device

        self.patches = []
        for rectangle in where.rectangles:
            weights = where.grid.weights(rectangle, self.shape[2:])
            spans = []
            for of_axis in weights:
                counting = of_axis.nonzero()[0]
                # At a coarse resolution a rectangle may lie between two pixels.
                span = slice(0, 0)
                if len(counting):
                    span = slice(int(counting[0]), int(counting[-1]) + 1)
                spans.append(span)
            rows, columns = (
                torch.from_numpy(of_axis).to(self.dtype).to(self.device) for of_axis in weights
            )
            self.patches.append(Patch(rows, columns, *spans))

    def rows(self, start: int, stop: int) -> Tensor:
        return self.window(slice(start, stop), slice(0, self.shape[3]))

    def window(self, rows: slice, columns: slice) -> Tensor:
        result = self.outside.rows(rows.start, rows.stop)[..., columns].clone()
        for span in self._spans(rows, columns):
            place = slice(span.start - columns.start, span.stop - columns.start)
            part = self.inside.window(rows, span)
            result[..., place] = torch.lerp(result[..., place], part, self._weight(rows, span))
        return result

    def _spans(self, rows: slice, columns: slice) -> list[slice]:
        """Columns in which rectangles count in any of these rows, those that overlap as one."""
        touched = sorted(
            (max(patch.columns.start, columns.start), min(patch.columns.stop, columns.stop))
            for patch in self.patches
            if patch.rows.start < rows.stop and rows.start < patch.rows.stop
        )
        joined: list[tuple[int, int]] = []
        for start, stop in touched:
            if joined and start <= joined[-1][1]:
                joined[-1] = (joined[-1][0], max(joined[-1][1], stop))
            elif start < stop:
                joined.append((start, stop))
        return [slice(start, stop) for start, stop in joined]

    def _weight(self, rows: slice, columns: slice) -> Tensor:
        """How much the inside counts, `[rows, columns]`."""
        weight = torch.zeros((), dtype=self.dtype, device=self.device)
        for patch in self.patches:
            own = torch.outer(patch.row_weights[rows], patch.column_weights[columns])
            weight = weight + own
        return weight.clamp_(max=1)
