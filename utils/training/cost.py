"""What a training costs: operations counted by torch, peak memory, time, share of validation."""

from __future__ import annotations

import math
import resource
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from ..words import UserError, counted, duration

# What validations may cost, as a share of the training's computing (runtime.val_every: auto).
VALIDATION_SHARE = 0.05
# A forward and a backward pass together, in forward passes.
FORWARD_AND_BACKWARD = 3


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
    step_s: float,
    steps: int,
    images: int,
    loading_s: float,
    device: torch.device,
) -> list[str]:
    """Three lines on the steps of a dry run: speed, peak memory, loss terms.

    Args:
        terms: of the last step.
        step_s: seconds that a step took.
        steps: how many steps were timed after the first one, which is slower; 0: it alone was.
        images: of a step, over all ranks.
        loading_s: seconds waited for images in all steps.
        device: on which it ran.
    """
    losses = ", ".join(f"{name} {float(term):.4f}" for name, term in terms.items())
    timed = f"{steps} steps after the first"
    if not steps:
        timed = "the first step, which is slower than the others"
    return [
        f"training      {images / step_s:.2f} images/s, {images} in a step of {step_s:.2f} s "
        f"({timed}); {loading_s:.1f} s were waited for images",
        f"peak memory   {peak_memory_mib(device):.0f} MiB on {device}, "
        "one validation batch included",
        f"loss          {losses}",
    ]


def validation_cost(
    *,
    images: int,
    image_pixels: float,
    scales: Sequence[float],
    flip: bool,
    epoch_images: int,
    crop_pixels: int,
    train_scales: Sequence[float],
) -> float:
    """Computing of one validation as a share of that of an epoch.

    A network computes in proportion to its pixels, and training with its backward pass takes three
    times as long as prediction.

    Args:
        images: in the validation split.
        image_pixels: of one of them, on average.
        scales: of the validation.
        flip: whether mirrored images are predicted, too.
        epoch_images: of an epoch of training, over all ranks.
        crop_pixels: of a training crop.
        train_scales: of a training step.
    """
    predicted = images * image_pixels * sum(scale**2 for scale in scales)
    if flip:
        predicted *= 2
    trained = epoch_images * crop_pixels * sum(scale**2 for scale in train_scales)
    return predicted / (FORWARD_AND_BACKWARD * trained)


def validation_interval(cost: float, *, epochs: int) -> int:
    """Epochs between validations, so that these cost at most `VALIDATION_SHARE` of the training.

    The last epoch is validated anyway. `cost` is that of `validation_cost`, from which alone the
    answer follows: a resumed training validates after the same epochs.
    """
    return max(1, min(epochs, math.ceil(cost / VALIDATION_SHARE - 1e-9)))


@dataclass(frozen=True)
class Outlook:
    """What a training still has to do, and how long that takes."""

    epochs: int
    steps_per_epoch: int
    val_every: int
    """Epochs between validations."""
    validation_cost: float
    """Computing of a validation as a share of that of an epoch."""

    def validations_after(self, epoch: int) -> int:
        """Validations still to come when `epoch` epochs are done."""
        regular = self.epochs // self.val_every - epoch // self.val_every
        # The last epoch is validated whatever its number.
        is_extra = self.epochs % self.val_every != 0 and epoch < self.epochs
        return regular + is_extra

    def describe_validations(self, how: str) -> str:
        """When validations are, `how` they infer, and what they compute beside the training."""
        often = "every epoch" if self.val_every == 1 else f"every {self.val_every} epochs"
        if self.val_every > self.epochs:
            often = "after the last epoch"
        share = 100 * self.validation_cost * self.validations_after(0) / self.epochs
        return f"{often} at {how}, about {share:.2g} % of the computing"

    def describe(
        self, *, step_s: float, epoch: int, step_in_epoch: int, validation_s: float | None
    ) -> str:
        """Times of an epoch, of a validation and of all that is left, in one sentence.

        Args:
            step_s: seconds that a step takes.
            epoch: epochs done.
            step_in_epoch: steps done of the present one.
            validation_s: seconds that a validation took; None before there was one.
        """
        epoch_s = step_s * self.steps_per_epoch
        if validation_s is None:
            validation_s = epoch_s * self.validation_cost
        steps = (self.epochs - epoch) * self.steps_per_epoch - step_in_epoch
        validations = self.validations_after(epoch)
        left_s = steps * step_s + validations * validation_s
        return (
            f"an epoch takes about {duration(epoch_s)} and a validation about "
            f"{duration(validation_s)}; {counted(steps, 'step')} and "
            f"{counted(validations, 'validation')} are left, about {duration(left_s)} in all"
        )
