"""High scales only where attention asks for them.

Before a scale above 1 is computed, the lower ones say where it would count: the chain leaves it the
share (1 - U(a)) of each pixel, multiplied over the lower scales, and there is something to gain
where what they say together is not sure. Blocks where this product is largest are computed in a few
rectangles; at their borders the weight of the scale falls smoothly to 0, and outside the result is
that of the lower scales (`patches`). The share of the image is an option
(`InferenceOptions.refine`). The network's weights are what they were.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ..layers import ModelError, at_least_float32, resize
from ..model import Hierarchical, HierarchicalDual, fuse_chain, scaled_size
from ..prediction import Prediction
from .blocks import BlockGrid, Choice, Rectangle, choose_rectangles
from .canvas import FeatureCanvas
from .context import ImageContext
from .options import InferenceOptions
from .strips import Resized, as_strip_map, in_strips

CUT_ROWS = 32  # of scaled images, from which rectangles are cut out
ROUNDING = 2  # pixels by which positions in maps of different scales may differ


@dataclass
class RefinedArea:
    """How much of the images was computed at scales above 1; `predict` and others add to it."""

    pixels: int = 0
    """Pixels of the images (of each and its mirror image; of tiles with their overlap)"""
    refined: dict[float, float] = field(default_factory=dict)
    """Of these, for each scale, those where it counts, up to the middle of its transitions"""
    computed: dict[float, float] = field(default_factory=dict)
    """And those on which the network ran"""

    def add(self, other: RefinedArea) -> None:
        """Add what another one counted."""
        self.pixels += other.pixels
        for own, others in ((self.refined, other.refined), (self.computed, other.computed)):
            for scale, pixels in others.items():
                own[scale] = own.get(scale, 0.0) + pixels

    @property
    def share(self) -> float | None:
        """The share of the images where scales above 1 count: their mean."""
        if not self.refined or not self.pixels:
            return None
        return sum(self.refined.values()) / len(self.refined) / self.pixels


def require_refinable(model: nn.Module, options: InferenceOptions) -> None:
    """Raise ModelError where high scales cannot be computed on a part of the image."""
    if not options.refined_scales:
        return
    if isinstance(model, HierarchicalDual):
        raise ModelError(
            "refine: the attention of a hierarchical_dual model reads the features of the higher "
            "scale, so that it cannot say before where that would count: leave refine out, or "
            "take a hierarchical model."
        )
    if not isinstance(model, Hierarchical):
        kind = getattr(model, "multiscale", type(model).__name__)
        raise ModelError(
            f"refine: a model of the kind {kind} has no attention that says where a higher scale "
            "would count: leave refine out, or take a hierarchical model."
        )


@dataclass(frozen=True)
class PartOfScale:
    """Where a scale was computed."""

    grid: BlockGrid
    choices: list[Choice]  # of each image


class RefinedScales(NamedTuple):
    """Each scale's prediction at the resolution of its features."""

    own: dict[float, Prediction]  # as the network gave them; 0 where it did not run
    shown: dict[float, Prediction]  # attention is 1 where the next higher scale was not computed
    parts: dict[float, PartOfScale]  # those scales that were computed on a part


def predict_refined(
    model: nn.Module, image: Tensor, options: InferenceOptions, area: RefinedArea | None = None
) -> RefinedScales:
    """Run the network on normalised images `[N, 3, H, W]`; what it computes is added to `area`.

    Raises:
        ModelError: the model has no attention that could be asked.
    """
    require_refinable(model, options)
    assert isinstance(model, Hierarchical)
    refined = options.refined_scales
    whole = [scale for scale in options.scales if scale not in refined]

    # To look for the model's layers takes as long as a small rectangle: once for all of them.
    with in_strips(model):
        # The highest of the scales that are computed whole lends its view of the image to parts.
        context = ImageContext(model)
        own: dict[float, Prediction] = {}
        for scale in sorted(whole, reverse=True):
            recording: AbstractContextManager[None] = nullcontext()
            if scale == max(whole):
                recording = context.recorded()
            with recording:
                own[scale] = model.predict_scale(image, scale, attended=True)
        own = model.calibrate_scales(own)

        shown = dict(own)
        parts: dict[float, PartOfScale] = {}
        unsure = _uncertainty(own, align_corners=model.align_corners)
        for scale in refined:
            # Before the higher scale is computed it is taken to see what the lower one sees.
            lower = max(own)
            pair = (lower, scale)
            trusted = {**shown, lower: model.calibrate_pair(pair, own[lower], own[lower])}
            priority = unsure * _left_for_higher(trusted, unsure, align_corners=model.align_corners)
            part = _choose(own[lower], priority, image, scale, lower, options)
            run = _ScaleRun(
                model=model,
                scale=scale,
                attended=scale != max(options.scales),
                classes=own[lower].logits.shape[1],
                context=context,
            )
            # While the scale is computed, memory is at its peak.
            del priority, trusted
            own[scale] = shown[scale] = run.predict(image, part.grid, part.choices)
            own[lower] = model.calibrate_pair(pair, own[lower], own[scale])
            shown[lower] = _where_computed(own[lower], part)
            parts[scale] = part

    if area is not None:
        area.add(_counted(parts, image))
    return RefinedScales(own, shown, parts)


def _counted(parts: dict[float, PartOfScale], image: Tensor) -> RefinedArea:
    """What was computed, in pixels of the images, so that scales can be compared."""
    of_one = image.shape[-2] * image.shape[-1]
    area = RefinedArea(pixels=image.shape[0] * of_one)
    for scale, part in parts.items():
        height, width = part.grid.size
        computed = sum(
            rectangle.pixels for choice in part.choices for rectangle in choice.rectangles
        )
        area.refined[scale] = of_one * sum(choice.refined for choice in part.choices)
        area.computed[scale] = of_one * computed / (height * width)
    return area


# --- where ---


def _uncertainty(scales: dict[float, Prediction], *, align_corners: bool) -> Tensor:
    """1 - the largest probability of the fused scales `[N, 1, h, w]`, at the highest one's size."""
    size = scales[max(scales)].logits.shape[-2:]
    fused = fuse_chain(scales, size=size, align_corners=align_corners)
    return 1 - fused.logits.softmax(dim=1).amax(dim=1, keepdim=True)


def _left_for_higher(
    scales: dict[float, Prediction], like: Tensor, *, align_corners: bool
) -> Tensor:
    """How much the chain leaves to a scale above `scales`, as maps of the shape of `like`."""
    left = torch.ones_like(like)
    for part in scales.values():
        assert part.attention is not None
        left *= 1 - resize(part.attention, like.shape[-2:], align_corners=align_corners)
    return left


def _choose(
    lower: Prediction,
    priority: Tensor,
    image: Tensor,
    scale: float,
    lower_scale: float,
    options: InferenceOptions,
) -> PartOfScale:
    """What is computed of each image at `scale`, of which `lower` is the next lower scale."""
    # The features of both scales are as many pixels of their images apart. Nearer to the border
    # of a rectangle than half of that, something is read that was not computed.
    lower_size = scaled_size(image.shape[-2:], lower_scale)
    cells = [
        length / count for length, count in zip(lower_size, lower.logits.shape[-2:], strict=True)
    ]
    grid = BlockGrid.of_image(
        scaled_size(image.shape[-2:], scale), margin=max(cells) / 2 + ROUNDING
    )

    # One transfer for the batch: what is computed depends on it.
    maps = priority[:, 0].float().cpu().numpy()
    choices = [choose_rectangles(grid, of_image, options.refine) for of_image in maps]
    return PartOfScale(grid, choices)


def _where_computed(lower: Prediction, part: PartOfScale) -> Prediction:
    """The lower scale's prediction, its attention 1 where the higher scale was not computed."""
    assert lower.attention is not None
    if all(choice.is_whole for choice in part.choices):
        return lower
    weights = np.stack(
        [
            _summed_weights(choice.rectangles, part, lower.attention.shape[-2:])
            for choice in part.choices
        ]
    )
    weight = torch.from_numpy(weights[:, None]).to(lower.attention)

    # `lerp` gives both ends exactly.
    attention = torch.lerp(torch.ones_like(lower.attention), lower.attention, weight)
    return Prediction(lower.logits, lower.aux, attention, lower.scales)


def _summed_weights(
    rectangles: Sequence[Rectangle], part: PartOfScale, cells: Sequence[int]
) -> np.ndarray:
    """How much the rectangles count, 0 to 1, on a map of `cells` (rows, columns) of the image."""
    total = np.zeros(tuple(cells))
    for rectangle in rectangles:
        rows, columns = part.grid.weights(rectangle, cells)
        total += np.outer(rows, columns)
    return np.minimum(total, 1)


# --- computing it ---


@dataclass(frozen=True)
class _ScaleRun:
    """One scale of a batch of images, computed on rectangles."""

    model: Hierarchical
    scale: float
    attended: bool
    classes: int
    context: ImageContext

    def predict(self, image: Tensor, grid: BlockGrid, choices: Sequence[Choice]) -> Prediction:
        """The scale's logits, and its attention where that is asked for, put together."""
        if all(choice.is_whole for choice in choices):
            return self.model.predict_scale(image, self.scale, attended=self.attended)
        if not any(choice.rectangles for choice in choices):
            return self._nothing(image)

        logits = FeatureCanvas(image.shape[0], grid.size)
        attention = FeatureCanvas(image.shape[0], grid.size)
        for shape, members, crops in self._crops(image, grid, choices):
            # A whole image has its own context.
            lent: AbstractContextManager[None] = nullcontext()
            if shape != grid.size:
                lent = self.context.lent([index for index, _ in members])
            with lent:
                found = self.model.predict_scale(crops, 1.0, attended=self.attended)

            logits.add(found.logits, members)
            if found.attention is not None:
                attention.add(found.attention, members)
            del crops, found
        if not self.attended:
            return Prediction(logits.finished())
        return Prediction(logits.finished(), attention=attention.finished())

    def _crops(
        self, image: Tensor, grid: BlockGrid, choices: Sequence[Choice]
    ) -> Iterator[tuple[tuple[int, int], list[tuple[int, Rectangle]], Tensor]]:
        """Parts of the scaled images, of one shape at a time.

        All are cut out in one pass over strips of the scaled images, which never exist as a whole.
        """
        groups = []
        for shape, members in self._by_shape(choices).items():
            crops = image.new_empty((len(members), image.shape[1], *shape))
            groups.append((shape, members, crops))
        scaled = as_strip_map(image)
        if tuple(image.shape[-2:]) != grid.size:
            scaled = Resized(scaled, grid.size, align_corners=self.model.align_corners)

        for start in range(0, grid.size[0], CUT_ROWS):
            stop = min(start + CUT_ROWS, grid.size[0])
            strip: Tensor | None = None
            for _, members, crops in groups:
                for crop, (index, part) in zip(crops, members, strict=True):
                    first, last = max(start, part.rows.start), min(stop, part.rows.stop)
                    if first >= last:
                        continue
                    if strip is None:
                        strip = scaled.rows(start, stop)
                    columns = slice(part.columns.start, part.columns.stop)
                    place = slice(first - part.rows.start, last - part.rows.start)
                    crop[:, place] = strip[index, :, first - start : last - start, columns]

        while groups:
            yield groups.pop(0)

    def _by_shape(
        self, choices: Sequence[Choice]
    ) -> dict[tuple[int, int], list[tuple[int, Rectangle]]]:
        """(index of the image, rectangle) by shape, the largest first: they go through together."""
        groups: dict[tuple[int, int], list[tuple[int, Rectangle]]] = {}
        for index, choice in enumerate(choices):
            for rectangle in choice.rectangles:
                groups.setdefault(rectangle.shape, []).append((index, rectangle))
        return dict(sorted(groups.items(), reverse=True))

    def _nothing(self, image: Tensor) -> Prediction:
        """Logits of 0 that take no memory, and attention that leaves nothing to higher scales."""
        number = at_least_float32(image.new_zeros(()))
        size = (image.shape[0], self.classes, 1, 1)
        attention = None
        if self.attended:
            attention = (number + 1).expand(image.shape[0], 1, 1, 1)
        return Prediction(number.expand(size), attention=attention)
