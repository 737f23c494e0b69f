"""RMI loss, forward plus backward: ours against the definition transcribed (tests/loss/direct_rmi.py)."""

from __future__ import annotations

import argparse
from typing import Any

import torch
from torch import Tensor

from hmsa.loss import rmi_loss
from scripts.benchmarks.harness import (
    MIB,
    Workload,
    compare,
    require_close,
    size_text,
    time_alternately,
)
from tests.loss.direct_rmi import direct_rmi_loss

SIZES = ("1x19x512x1024", "1x65x512x928")
AUTHORS = {"1x19x512x1024": "0.49 s and 410 MiB", "1x19x1024x2048": "2.0 s"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Sizes as NxCxHxW."""
    parser.add_argument(
        "--sizes",
        nargs="+",
        type=size_text("NxCxHxW"),
        default=list(SIZES),
        metavar="NxCxHxW",
        help="default: %(default)s",
    )


def run(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """One row a size; the note tells the floor: one read of the logits, one exponential, one write of the gradient."""
    rows = []
    for size in arguments.sizes:
        shape = tuple(int(word) for word in size.split("x"))
        inputs: dict[str, Any] = {"shape": shape, "device": arguments.device}
        row = compare(
            name="rmi",
            size=size,
            ours=build_ours,
            baseline=build_direct,
            arguments=inputs,
            check=agree,
            device=arguments.device,
            rounds=arguments.rounds,
        )
        (floor_s,) = time_alternately(
            (build_floor(**inputs),), device=arguments.device, rounds=arguments.rounds
        )
        authors = (
            f"; the authors' version: {AUTHORS[size]} on two quiet cores" if size in AUTHORS else ""
        )
        row["note"] = (
            f"floor {1e3 * floor_s:.1f} ms and {4 * torch.Size(shape).numel() / MIB:.0f} MiB (the gradient); "
            f"ours takes {row['ours_s'] / floor_s:.1f} times as long{authors}"
        )
        rows.append(row)
    return rows


def build_ours(*, shape: tuple[int, ...], device: str) -> Workload:
    """Our loss and its gradient."""
    logits, label = _inputs(shape, device)

    def workload() -> tuple[Tensor, Tensor]:
        terms = rmi_loss(logits, label, num_classes=shape[1])
        loss = 0.5 * terms["bce"] + 0.5 * terms["rmi"]
        return loss.detach(), torch.autograd.grad(loss, logits)[0]

    return workload


def build_direct(*, shape: tuple[int, ...], device: str) -> Workload:
    """The transcription and its gradient."""
    logits, label = _inputs(shape, device)

    def workload() -> tuple[Tensor, Tensor]:
        terms = direct_rmi_loss(logits, label, num_classes=shape[1])
        loss = 0.5 * terms["bce"] + 0.5 * terms["rmi"]
        return loss.detach(), torch.autograd.grad(loss, logits)[0]

    return workload


def build_floor(*, shape: tuple[int, ...], device: str) -> Workload:
    """What no version avoids: every logit read, one exponential of it, every element of a fresh gradient written."""
    logits, _ = _inputs(shape, device)
    return lambda: torch.sigmoid(logits.detach())


def agree(ours: tuple[Tensor, Tensor], direct: tuple[Tensor, Tensor]) -> None:
    """Same loss and same gradient."""
    require_close(ours[0], direct[0], relative=1e-4, what="the RMI loss")
    require_close(ours[1], direct[1], relative=1e-4, what="the gradient of the RMI loss")


def _inputs(shape: tuple[int, ...], device: str) -> tuple[Tensor, Tensor]:
    """Random logits, and labels in blocks in which every class occurs (none is cheap) and 5 % of the pixels are ignored."""
    images, classes, height, width = shape
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randint(
        classes, (images, -(-height // 16), -(-width // 16)), generator=generator, dtype=torch.uint8
    )
    label = (
        coarse.repeat_interleave(16, 1).repeat_interleave(16, 2)[:, :height, :width].contiguous()
    )
    label[torch.rand(label.shape, generator=generator) < 0.05] = 255
    logits = 3 * torch.randn(shape, generator=generator)
    return logits.to(device).requires_grad_(), label.to(device)
