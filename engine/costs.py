"""What a way to infer costs: seconds and floating-point operations of an image."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor, nn

from hmsa.network import InferenceOptions, MultiScaleModel
from hmsa.network.inference import RefinedArea, predict
from hmsa.utils.training.cost import count_flops

PROBE = 128  # pixels; side of the image by which operations are counted, times 0.25 / lowest scale


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
    """Measures inference while an evaluation runs; a GPU is not waited for before the end."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.images = 0
        self.seconds = 0.0
        self.area = RefinedArea()
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def of(self, images: int) -> Iterator[RefinedArea]:
        """Inside, so many images are inferred; gives what counts the refined area."""
        self.images += images
        if self.device.type != "cuda":
            begin = time.perf_counter()
            yield self.area
            self.seconds += time.perf_counter() - begin
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


@torch.inference_mode()
def relative_flops(
    model: nn.Module, options: InferenceOptions, area: RefinedArea | None = None
) -> float | None:
    """Floating-point operations of a way to infer, over those of one pass at scale 1.

    Both are counted on a small image. Of scales above 1 the share that `area` says was computed is
    taken. The overlap of tiles is not counted. None for a network of another package.
    """
    if not isinstance(model, MultiScaleModel):
        return None
    side = PROBE * max(1, round(0.25 / min(options.scales)))
    parameter = next(model.parameters())
    noise = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(0))
    probe = noise.to(parameter.device)
    if parameter.dtype == torch.float64:
        probe = probe.double()

    single = _scale_flops(model, probe, options, 1.0)
    whole = replace(options, refine=1.0, tile=None)
    flops = count_flops(partial(predict, model, probe, whole))
    if area is None or not area.pixels:
        return flops / single

    ways = 2 if options.flip else 1
    for scale, computed in area.computed.items():
        saved = 1 - computed / area.pixels
        flops -= int(ways * saved * _scale_flops(model, probe, options, scale))
    return flops / single


def _scale_flops(
    model: MultiScaleModel, probe: Tensor, options: InferenceOptions, scale: float
) -> int:
    """Operations of trunk and decoder at one scale."""
    dtype = options.autocast_dtype
    with torch.autocast(probe.device.type, dtype=dtype, enabled=dtype is not None):
        return count_flops(partial(model.decode_at, probe, scale))
