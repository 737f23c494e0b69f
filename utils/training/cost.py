"""What a step costs: floating-point operations counted by torch, and peak memory."""

from __future__ import annotations

import resource
import sys
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from ..words import UserError


class MemoryShortage(UserError, ValueError):
    """The memory of a device or of the host ran out; the message says in doing what."""


def count_flops(step: Callable[[], Any]) -> int:
    """Floating-point operations of `step()`, with its backward pass when it has one.

    They are counted by torch.utils.flop_counter, which counts a multiply-add as two.
    """
    with FlopCounterMode(display=False) as counter:
        step()
    return int(counter.get_total_flops())


def peak_memory_mib(device: torch.device) -> float:
    """Peak memory in MiB: the allocator's on CUDA, the process's resident set elsewhere."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20

    # The system counts in bytes on macOS and in KiB on Linux.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


def describe_network(model: Any, crop: Tensor) -> list[str]:
    """Two lines on a multi-scale network: its parameters and its FLOPs.

    The FLOPs are those of a forward pass of `crop` [1, 3, h, w], also relative to a single scale.
    """
    # In evaluation mode, so that counting does not move the batch-norm statistics.
    was_training = model.training
    model.eval()
    with torch.no_grad():
        trained, single = (
            count_flops(partial(model, crop, scales=scales))
            for scales in (model.train_scales, (1.0,))
        )
    model.train(was_training)

    parameters = sum(parameter.numel() for parameter in model.parameters())
    size = tuple(crop.shape[2:])
    return [
        f"parameters    {parameters:,}",
        f"FLOPs         {trained / 1e9:.1f} G forward for a crop of {size}, "
        f"{trained / single:.2f} x one scale",
    ]


def describe_step(
    terms: Mapping[str, Tensor],
    *,
    seconds: float,
    images: int,
    loading_s: float,
    device: torch.device,
) -> list[str]:
    """Three lines on a first step: speed, peak memory, loss terms.

    The step took `seconds` for `images` images over all ranks, after `loading_s` of loading.
    """
    losses = ", ".join(f"{name} {float(term):.4f}" for name, term in terms.items())
    return [
        f"training      {images / seconds:.2f} images/s in the first step of {images}; "
        f"its images took {loading_s:.1f} s to load",
        f"peak memory   {peak_memory_mib(device):.0f} MiB on {device}, "
        "one validation batch included",
        f"loss          {losses}",
    ]
