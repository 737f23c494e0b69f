"""RMI loss, forward plus backward: ours against its readable definition (hmsa.loss.reference)."""

from __future__ import annotations

import argparse
import math
from typing import Any

import torch
from torch import Tensor

from hmsa.loss import rmi_loss
from hmsa.loss.reference import reference_rmi_loss
from hmsa.utils.words import UserError
from scripts.measuring.harness import (
    MIB,
    Workload,
    compare,
    numbers_of,
    require_close,
    size_text,
    time_alternately,
)

SIZES = ("1x19x512x1024", "1x65x512x928")
# Measured once with the released code (https://github.com/NVIDIA/semantic-segmentation).
AUTHORS = {"1x19x512x1024": "0.49 s and 410 MiB", "1x19x1024x2048": "2.0 s"}
SMALLEST = 16  # pooled by 4, a region of 3 x 3 still has several places
BLOCK = 16  # side of a block of equal labels in pixels
IGNORE = 255


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Sizes of the logits."""
    parser.add_argument(
        "--sizes",
        nargs="+",
        type=size_text("NxCxHxW"),
        default=list(SIZES),
        metavar="NxCxHxW",
        help="default: %(default)s",
    )


def run(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """One row a size; its note names the floor, which no version can beat."""
    for size in arguments.sizes:
        if min(numbers_of(size)[2:]) < SMALLEST:
            raise UserError(
                f"--sizes: {size} is too small; height and width are {SMALLEST} or more"
            )

    rows = []
    for size in arguments.sizes:
        shape = numbers_of(size)
        inputs: dict[str, Any] = {"shape": shape, "device": arguments.device}
        row = compare(
            name="rmi",
            size=size,
            ours=build_ours,
            baseline=build_reference,
            arguments=inputs,
            check=agree,
            device=arguments.device,
            rounds=arguments.rounds,
        )

        # How far ours is from what the memory of the machine allows.
        (floor_s,) = time_alternately(
            (build_floor(**inputs),), device=arguments.device, rounds=arguments.rounds
        )
        gradient_mib = 4 * math.prod(shape) / MIB
        row["note"] = (
            f"floor {1e3 * floor_s:.1f} ms and {gradient_mib:.0f} MiB (the gradient); "
            f"ours takes {row['ours_s'] / floor_s:.1f} times as long"
        )
        if size in AUTHORS:
            row["note"] += f"; the authors' version: {AUTHORS[size]} on two quiet cores"
        rows.append(row)
    return rows


def build_ours(*, shape: tuple[int, ...], device: str) -> Workload:
    """Our loss and its gradient."""
    logits, label = _inputs(shape, device)

    def workload() -> tuple[Tensor, Tensor]:
        return _loss_and_gradient(rmi_loss(logits, label, num_classes=shape[1]), logits)

    return workload


def build_reference(*, shape: tuple[int, ...], device: str) -> Workload:
    """The definition and its gradient."""
    logits, label = _inputs(shape, device)

    def workload() -> tuple[Tensor, Tensor]:
        return _loss_and_gradient(reference_rmi_loss(logits, label, num_classes=shape[1]), logits)

    return workload


def build_floor(*, shape: tuple[int, ...], device: str) -> Workload:
    """What no version avoids: reading the logits, one exponential, writing a gradient."""
    logits, _ = _inputs(shape, device)
    return lambda: torch.sigmoid(logits.detach())


def agree(ours: tuple[Tensor, Tensor], reference: tuple[Tensor, Tensor]) -> None:
    """Raise Disagreement unless loss and gradient are the same."""
    require_close(ours[0], reference[0], relative=1e-4, what="the RMI loss")
    require_close(ours[1], reference[1], relative=1e-4, what="the gradient of the RMI loss")


def _loss_and_gradient(terms: dict[str, Tensor], logits: Tensor) -> tuple[Tensor, Tensor]:
    """Both terms of the loss weighed equally, as in the release, and the gradient of the logits."""
    loss = 0.5 * terms["bce"] + 0.5 * terms["rmi"]
    return loss.detach(), torch.autograd.grad(loss, logits)[0]


def _inputs(shape: tuple[int, ...], device: str) -> tuple[Tensor, Tensor]:
    """Random logits, and labels in blocks of which 5 % of the pixels are ignored.

    Every class occurs, so that none is cheap.
    """
    images, classes, height, width = shape
    generator = torch.Generator().manual_seed(0)

    coarse_size = (images, math.ceil(height / BLOCK), math.ceil(width / BLOCK))
    coarse = torch.randint(classes, coarse_size, generator=generator, dtype=torch.uint8)
    label = coarse.repeat_interleave(BLOCK, 1).repeat_interleave(BLOCK, 2)
    label = label[:, :height, :width].contiguous()
    label[torch.rand(label.shape, generator=generator) < 0.05] = IGNORE

    logits = 3 * torch.randn(shape, generator=generator)
    return logits.to(device).requires_grad_(), label.to(device)
