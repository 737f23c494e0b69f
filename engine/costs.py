"""What a way to infer costs: seconds and floating-point operations of an image."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch
from torch import nn

from hmsa.network import InferenceOptions, MultiScaleModel
from hmsa.network.inference import RefinedArea

from .inference_cost import inference_costs

PROBE = 128  # pixels; side of the image for which operations are counted, times 0.25 / lowest scale


@dataclass(frozen=True)
class CostTotal:
    """What inferring some images took."""

    images: int = 0
    seconds: float = 0.0
    """Of inference alone, without reading images and scoring labels"""
    area: RefinedArea = field(default_factory=RefinedArea)

    @property
    def seconds_per_image(self) -> float | None:
        """None where no image was inferred."""
        if not self.images:
            return None
        return self.seconds / self.images


class InferenceMeter:
    """Measures inference while an evaluation runs; a GPU is not waited for before the end.

    Where one thread computes, its own processor time is taken, which other programs on the machine
    do not lengthen.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.clock = time.perf_counter
        if device.type == "cpu" and torch.get_num_threads() == 1:
            self.clock = time.thread_time
        self.images = 0
        self.seconds = 0.0
        self.area = RefinedArea()
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def of(self, images: int) -> Iterator[RefinedArea]:
        """Inside, so many images are inferred; gives what counts the refined area."""
        self.images += images
        if self.device.type != "cuda":
            begin = self.clock()
            yield self.area
            self.seconds += self.clock() - begin
            return

        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        first.record()
        yield self.area
        last.record()
        self._events.append((first, last))

    def total(self) -> CostTotal:
        """What was measured so far."""
        seconds = self.seconds
        if self._events:
            torch.cuda.synchronize(self.device)
            seconds += sum(first.elapsed_time(last) for first, last in self._events) / 1000
        return CostTotal(self.images, seconds, self.area)


def joined_cost(parts: Sequence[CostTotal]) -> CostTotal:
    """What all ranks measured, as one; seconds are those of all of them, as are images."""
    area = RefinedArea()
    for part in parts:
        area.add(part.area)
    images = sum(part.images for part in parts)
    return CostTotal(images, sum(part.seconds for part in parts), area)


def relative_flops(
    model: nn.Module,
    options: InferenceOptions,
    area: RefinedArea | None = None,
    *,
    size: tuple[int, int] | None = None,
) -> float | None:
    """Floating-point operations of a way to infer, over those of one pass at scale 1.

    Both are counted for an image of `size` (H, W), by default a small one. Of scales above 1 the
    share that `area` says was computed is taken. The overlap of tiles is not counted. None for a
    network of another package, or one that looks at values.
    """
    if not isinstance(model, MultiScaleModel):
        return None
    if size is None:
        side = PROBE * max(1, round(0.25 / min(options.scales)))
        size = (side, side)
    computed = {}
    if area is not None and area.pixels:
        computed = {scale: count / area.pixels for scale, count in area.computed.items()}

    # One pass, all of them, and each of those of which a part was left out.
    whole = replace(options, refine=1.0)
    alone = replace(whole, scales=(1.0,), flip=False)
    parts = [replace(alone, scales=(scale,)) for scale in computed]
    costs = inference_costs(model, [alone, whole, *parts], size=size)
    if None in costs:
        return None
    single, flops, *of_scales = (cost.flops for cost in costs if cost is not None)

    ways = 2 if options.flip else 1
    for share, of_scale in zip(computed.values(), of_scales, strict=True):
        flops -= int(ways * (1 - share) * of_scale)
    return flops / single
