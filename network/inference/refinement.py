"""High scales only where attention asks for them.

Before a scale above 1 is computed, the lower ones say where it would count: the chain leaves it the
share (1 - U(a)) of each pixel, multiplied over the lower scales, and there is something to gain
where what they say together is not sure. Blocks where this product is largest are computed in a few
rectangles; elsewhere the weight of the scale falls smoothly to 0. The share of the image is an
option (`InferenceOptions.refine`). The network's weights are what they were.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ..layers import ModelError, at_least_float32, resize
from ..model import Hierarchical, HierarchicalDual, fuse_chain, scaled_size
from ..prediction import Prediction
from .blocks import BlockGrid, Choice, Rectangle, choose_rectangles
from .options import InferenceOptions
from .strips import eager_modules, in_strips

HALO = 32  # pixels of the scaled image around a rectangle, at least


@dataclass
class RefinedArea:
    """How much of the images was computed at scales above 1; `predict` and others add to it."""

    pixels: int = 0
    """Pixels of the images (of each and its mirror image; of tiles with their overlap)"""
    refined: dict[float, float] = field(default_factory=dict)
    """Of these, for each scale, those where it counts fully"""
    computed: dict[float, float] = field(default_factory=dict)
    """And those on which the network ran, with the halos"""

    def add(self, other: RefinedArea) -> None:
        """Add what another one counted."""
        self.pixels += other.pixels
        for own, others in ((self.refined, other.refined), (self.computed, other.computed)):
            for scale, pixels in others.items():
                own[scale] = own.get(scale, 0.0) + pixels

    @property
    def share(self) -> float | None:
        """The share of the images where scales above 1 count fully: their mean."""
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


class RefinedScales(NamedTuple):
    """Each scale's prediction, as `model.predict_scales` gives them."""

    all: dict[float, Prediction]
    computed: tuple[float, ...]  # those scales that were computed anywhere: what is to be fused


def predict_refined(
    model: nn.Module, image: Tensor, options: InferenceOptions, area: RefinedArea | None = None
) -> RefinedScales:
    """Each scale's prediction at the resolution of its features.

    Attention is 1 where the next higher scale was not computed, and the logits of that are 0 there.

    Raises:
        ModelError: the model has no attention that could be asked.
    """
    require_refinable(model, options)
    assert isinstance(model, Hierarchical)
    refined = options.refined_scales
    whole = [scale for scale in options.scales if scale not in refined]
    biases = model.biases_of(options.scales)

    # The highest of the scales that are computed whole lends its view of the image to the parts.
    context = ImageContext(model)
    result: dict[float, Prediction] = {}
    for scale in sorted(whole, reverse=True):
        recording: AbstractContextManager[None] = nullcontext()
        if scale == max(whole):
            recording = context.recorded()
        with in_strips(model), recording:
            result[scale] = model.predict_scale(image, scale, attended=True, bias=biases.get(scale))

    unsure = _uncertainty(result, align_corners=model.align_corners)
    area_of_batch = RefinedArea(pixels=image.shape[0] * image.shape[-2] * image.shape[-1])
    for scale in refined:
        lower = max(result)
        priority = unsure * _left_for_higher(result, unsure, align_corners=model.align_corners)
        choices, grid = _choose(result[lower], priority, image, scale, lower, options)
        run = _ScaleRun(
            model=model,
            scale=scale,
            attended=scale != max(options.scales),
            bias=biases.get(scale),
            classes=result[lower].logits.shape[1],
            context=context,
        )
        result[scale] = run.predict(image, grid, choices)
        result[lower] = _where_computed(result[lower], grid, choices)

        # In pixels of the images, so that scales can be compared.
        per_image = area_of_batch.pixels / image.shape[0]
        area_of_batch.refined[scale] = per_image * sum(choice.refined for choice in choices)
        area_of_batch.computed[scale] = per_image * sum(
            rectangle.pixels / (grid.size[0] * grid.size[1])
            for choice in choices
            for rectangle in choice.rectangles
        )
    if area is not None:
        area.add(area_of_batch)
    skipped = [scale for scale in refined if not area_of_batch.refined[scale]]
    return RefinedScales(result, tuple(scale for scale in result if scale not in skipped))


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
    lower_part: Prediction,
    priority: Tensor,
    image: Tensor,
    scale: float,
    lower: float,
    options: InferenceOptions,
) -> tuple[list[Choice], BlockGrid]:
    """What is computed of each image at `scale`."""
    height, width = scaled_size(image.shape[-2:], scale)
    grid = BlockGrid.of_image(
        (height, width), least_halo=max(HALO, 2 * _margin(lower_part, (height, width)))
    )
    # One transfer for the batch: what is computed depends on it.
    maps = priority[:, 0].float().cpu().numpy()
    return [
        choose_rectangles(grid, grid.means(of_image), options.refine) for of_image in maps
    ], grid


def _margin(lower: Prediction, size: Sequence[int]) -> float:
    """How far interpolation of the attention reaches, in pixels of the higher scale, and of that.

    Nearer to the end of a rectangle than this the weight of the higher scale is 0, so that nothing
    is read where it was not computed.
    """
    assert lower.attention is not None
    cells = [
        length / min(cells, logits)
        for length, cells, logits in zip(
            size, lower.attention.shape[-2:], lower.logits.shape[-2:], strict=True
        )
    ]
    return 1.5 * max(cells)


def _where_computed(lower: Prediction, grid: BlockGrid, choices: Sequence[Choice]) -> Prediction:
    """The lower scale's prediction, its attention 1 where the higher scale was not computed."""
    assert lower.attention is not None
    if all(choice.is_whole for choice in choices):
        return lower
    margin = _margin(lower, grid.size)
    weights = np.stack(
        [
            _summed_weights(choice.rectangles, grid.size, lower.attention.shape[-2:], margin)
            for choice in choices
        ]
    )
    weight = torch.from_numpy(weights[:, None]).to(lower.attention)

    # `lerp` gives both ends exactly.
    attention = torch.lerp(torch.ones_like(lower.attention), lower.attention, weight)
    return Prediction(lower.logits, lower.aux, attention, lower.scales)


def _summed_weights(
    rectangles: Sequence[Rectangle], size: tuple[int, int], cells: Sequence[int], margin: float
) -> np.ndarray:
    """How much the rectangles count, 0 to 1, on a map of `cells` (rows, columns) of the image."""
    rows, columns = (
        (np.arange(count) + 0.5) * (length / count)
        for length, count in zip(size, cells, strict=True)
    )
    total = np.zeros((len(rows), len(columns)))
    for rectangle in rectangles:
        total += np.outer(
            rectangle.rows.weights(rows, margin=margin),
            rectangle.columns.weights(columns, margin=margin),
        )
    return np.minimum(total, 1)


# --- computing it ---


@dataclass(frozen=True)
class _ScaleRun:
    """One scale of a batch of images, computed on rectangles."""

    model: Hierarchical
    scale: float
    attended: bool
    bias: float | None
    classes: int
    context: ImageContext

    def predict(self, image: Tensor, grid: BlockGrid, choices: Sequence[Choice]) -> Prediction:
        """The scale's logits, and its attention where that is asked for, put together."""
        if all(choice.is_whole for choice in choices):
            with in_strips(self.model):
                return self.model.predict_scale(
                    image, self.scale, attended=self.attended, bias=self.bias
                )
        if not any(choice.rectangles for choice in choices):
            return self._nothing(image)

        logits = FeatureCanvas(image.shape[0], grid.size)
        attention = FeatureCanvas(image.shape[0], grid.size)
        for shape, members, crops in self._crops(image, grid, choices):
            # A whole image has its own context.
            lent: AbstractContextManager[None] = nullcontext()
            if shape != grid.size:
                lent = self.context.lent([index for index, _ in members])
            with in_strips(self.model), lent:
                found = self.model.predict_scale(crops, 1.0, attended=self.attended, bias=self.bias)

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

        All are cut out at once, so that the scaled images need not be held meanwhile.
        """
        scaled = resize(image, grid.size, align_corners=self.model.align_corners).to(image.dtype)
        groups = []
        for shape, members in self._by_shape(choices).items():
            parts = [
                scaled[
                    index : index + 1,
                    :,
                    part.rows.start : part.rows.stop,
                    part.columns.start : part.columns.stop,
                ]
                for index, part in members
            ]
            groups.append((shape, members, torch.cat(parts)))
        del scaled, parts

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


# --- context ---


class ImageContext:
    """What methods that `layers.over_image` marks gave for whole images, for parts of them.

    OCR gathers what is typical of each class over the image, and DeepLab's image pooling is a mean
    over it: a part of the image would have another one.
    """

    def __init__(self, model: nn.Module) -> None:
        self.methods = [
            (module, name)
            for module in eager_modules(model)
            for name in _marked_methods(type(module))  # type: ignore[arg-type]
        ]
        self.known: dict[tuple[int, str], Tensor] = {}

    @contextmanager
    def recorded(self) -> Iterator[None]:
        """Inside, results of the marked methods are kept."""

        def keep(key: tuple[int, str], method: Callable, *inputs: Tensor) -> Tensor:
            self.known[key] = method(*inputs)
            return self.known[key]

        with self._replaced(keep):
            yield

    @contextmanager
    def lent(self, images: Sequence[int]) -> Iterator[None]:
        """Inside, the marked methods give what was kept for these images of the batch."""

        def give(key: tuple[int, str], method: Callable, *inputs: Tensor) -> Tensor:
            known = self.known.get(key)
            if known is None:
                return method(*inputs)
            return known[list(images)]

        with self._replaced(give):
            yield

    @contextmanager
    def _replaced(self, function: Callable) -> Iterator[None]:
        for module, name in self.methods:
            method = getattr(module, name)
            setattr(module, name, functools.partial(function, (id(module), name), method))
        try:
            yield
        finally:
            for module, name in self.methods:
                delattr(module, name)


@functools.cache
def _marked_methods(kind: type) -> list[str]:
    """Names of the methods that `layers.over_image` marks."""
    return [name for name in dir(kind) if getattr(getattr(kind, name, None), "over_image", False)]
