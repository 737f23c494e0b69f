"""What a way to infer costs, counted on the meta device: nothing is computed for it."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from hmsa.network import InferenceOptions, ModelError, MultiScaleModel
from hmsa.network.inference import predict
from hmsa.utils.training.live_memory import LiveMemory


class InferenceCost(NamedTuple):
    """What one image takes."""

    flops: int
    """A multiply-add counts as two."""
    peak_bytes: int
    """Largest sum of the tensors that live at once, without the weights."""


def inference_costs(
    model: MultiScaleModel, ways: Sequence[InferenceOptions], *, size: tuple[int, int]
) -> list[InferenceCost | None]:
    """The cost of each way to infer an image of `size` (H, W); None where it cannot be counted.

    The images are taken whole and in float32, whatever tiles and precision a way has.
    """
    on_meta = without_weights(model)
    image = torch.empty(1, 3, *size, device="meta")
    plain = [replace(way, tile=None, autocast_dtype=None) for way in ways]
    # Each takes a second of Python, so what stands there twice is counted once.
    costs = {way: _cost_of(on_meta, image, way) for way in dict.fromkeys(plain)}
    return [costs[way] for way in plain]


def without_weights(model: MultiScaleModel) -> MultiScaleModel:
    """A copy of the model on the meta device; the weights are never held twice."""
    memo: dict[int, object] = {}
    for parameter in model.parameters():
        empty = torch.empty_like(parameter, dtype=torch.float32, device="meta")
        memo[id(parameter)] = nn.Parameter(empty, requires_grad=False)
    for buffer in model.buffers():
        memo[id(buffer)] = torch.empty_like(buffer, device="meta")
    return copy.deepcopy(model, memo)


def _cost_of(
    model: MultiScaleModel, image: torch.Tensor, options: InferenceOptions
) -> InferenceCost | None:
    try:
        with LiveMemory() as memory, FlopCounterMode(display=False) as counter:
            predict(model, image, options)
    except (ModelError, NotImplementedError, RuntimeError):
        # What looks at values, which the meta device has not, cannot be counted there.
        return None
    return InferenceCost(int(counter.get_total_flops()), memory.peak)
