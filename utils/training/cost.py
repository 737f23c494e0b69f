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


class MemoryShortage(ValueError):
    """The memory of a device or of the host ran out; the message says in doing what, and what to change."""


def count_flops(step: Callable[[], Any]) -> int:
    """Floating-point operations of `step()` (forward and, when it does so, backward), as torch.utils.flop_counter counts them."""
    with FlopCounterMode(display=False) as counter:
        step()
    return int(counter.get_total_flops())


def reset_peak_memory(device: torch.device) -> None:
    """Start a new measurement on CUDA; the CPU's peak is the process's own and cannot be reset."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory_mib(device: torch.device) -> float:
    """Peak memory in MiB: the allocator's on CUDA, the process's resident set elsewhere."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


def describe_network(model: Any, crop: Tensor) -> list[str]:
    """Two lines on a multi-scale network: its parameters, and the FLOPs of a forward pass of `crop` [1, 3, h, w] relative to one scale."""
    was_training = model.training
    model.eval()
    with torch.no_grad():
        trained, single = (
            count_flops(partial(model, crop, scales=scales))
            for scales in (model.train_scales, (1.0,))
        )
    model.train(was_training)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return [
        f"parameters    {parameters:,}",
        f"FLOPs         {trained / 1e9:.1f} G forward for a crop of {tuple(crop.shape[2:])}, {trained / single:.2f} x one scale",
    ]


def describe_step(
    terms: Mapping[str, Tensor],
    *,
    seconds: float,
    images: int,
    loading_s: float,
    device: torch.device,
) -> list[str]:
    """Three lines on a first step of `images` images over all ranks that took `seconds`: speed, peak memory, loss terms."""
    return [
        f"training      {images / seconds:.2f} images/s in the first step of {images}; its images took {loading_s:.1f} s to load",
        f"peak memory   {peak_memory_mib(device):.0f} MiB on {device}, one validation batch included",
        "loss          " + ", ".join(f"{name} {float(term):.4f}" for name, term in terms.items()),
    ]
