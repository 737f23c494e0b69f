"""Loss of logits interpolated to image size, forward plus backward: in blocks of rows against whole maps.

`upsample_ce`: one map at a quarter of the size and cross-entropy, against torch's interpolate and cross_entropy.
`upsample_rmi`: the same with RMI, against interpolate and the same RMI of the whole tensor: what the blocks alone bring.
`fuse_rmi`: the whole tail of hierarchical training, upsample, fuse two scales (equation 1), RMI; the network's lazy
rasters against the network's whole maps.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from hmsa.loss import cross_entropy, rmi_loss
from hmsa.loss.sources import at_size
from hmsa.network.fusion import Maps, fuse_maps, resized
from hmsa.network.inference.raster import Stored
from scripts.benchmarks.harness import Workload, compare, require_close, size_text

SIZES = ("1x19x1024x2048", "1x65x1024x2048")
Result = tuple[Tensor, ...]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Sizes of the image-size logits as NxCxHxW."""
    parser.add_argument(
        "--sizes",
        nargs="+",
        type=size_text("NxCxHxW"),
        default=list(SIZES),
        metavar="NxCxHxW",
        help="default: %(default)s",
    )


def run(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Three rows a size."""
    rows = []
    for size in arguments.sizes:
        inputs = {"shape": tuple(int(word) for word in size.split("x")), "device": arguments.device}
        for name, (ours, baseline) in BUILDERS.items():
            rows.append(
                compare(
                    name=name,
                    size=size,
                    ours=ours,
                    baseline=baseline,
                    arguments=inputs,
                    check=partial(agree, name),
                    device=arguments.device,
                    rounds=arguments.rounds,
                )
            )
    return rows


def agree(name: str, ours: Result, baseline: Result) -> None:
    """Same loss and same gradients."""
    require_close(ours[0], baseline[0], relative=1e-5, what=f"the loss of {name}")
    for mine, other in zip(ours[1:], baseline[1:], strict=True):
        require_close(mine, other, relative=1e-5, what=f"a gradient of {name}")


def ours_ce(*, shape: tuple[int, ...], device: str) -> Workload:
    """Cross-entropy in blocks."""
    low, label = _map(shape, 4, device), _label(shape, device)
    return _workload(
        lambda: cross_entropy(at_size(low, shape[2:], align_corners=False), label), low
    )


def torchs_ce(*, shape: tuple[int, ...], device: str) -> Workload:
    """torch.nn.functional.interpolate and cross_entropy."""
    low, label = _map(shape, 4, device), _label(shape, device).long()
    return _workload(
        lambda: functional.cross_entropy(_interpolated(low, shape), label, ignore_index=255), low
    )


def ours_rmi(*, shape: tuple[int, ...], device: str) -> Workload:
    """RMI in blocks."""
    low, label = _map(shape, 4, device), _label(shape, device)
    return _workload(lambda: _rmi(at_size(low, shape[2:], align_corners=False), label), low)


def whole_rmi(*, shape: tuple[int, ...], device: str) -> Workload:
    """torch.nn.functional.interpolate and our RMI of the tensor."""
    low, label = _map(shape, 4, device), _label(shape, device)
    return _workload(lambda: _rmi(_interpolated(low, shape), label), low)


def lazy_fusion(*, shape: tuple[int, ...], device: str) -> Workload:
    """RMI of two scales that are fused as the loss reads them."""
    return _fusion(shape, device, lambda raster: raster)


def whole_fusion(*, shape: tuple[int, ...], device: str) -> Workload:
    """RMI of two scales fused to one tensor."""
    return _fusion(shape, device, lambda raster: raster.whole())


BUILDERS: dict[str, tuple[Callable[..., Workload], Callable[..., Workload]]] = {
    "upsample_ce": (ours_ce, torchs_ce),
    "upsample_rmi": (ours_rmi, whole_rmi),
    "fuse_rmi": (lazy_fusion, whole_fusion),
}


def _fusion(shape: tuple[int, ...], device: str, read: Callable[[Any], Any]) -> Workload:
    low, high = _map(shape, 8, device), _map(shape, 4, device)
    attention, label = (
        _map((shape[0], 1, *shape[2:]), 8, device, attention=True),
        _label(shape, device),
    )
    half = (shape[2] // 2, shape[3] // 2)

    def loss() -> Tensor:
        lower = resized(Maps(Stored(low), None, Stored(attention)), half, align_corners=False)
        higher = resized(Maps(Stored(high)), shape[2:], align_corners=False)
        return _rmi(
            read(fuse_maps(lower, higher, size=shape[2:], align_corners=False).logits), label
        )

    return _workload(loss, low, high, attention)


def _workload(loss: Callable[[], Tensor], *leaves: Tensor) -> Workload:
    def workload() -> Result:
        value = loss()
        return value.detach(), *torch.autograd.grad(value, leaves)

    return workload


def _rmi(logits: Any, label: Tensor) -> Tensor:
    terms = rmi_loss(logits, label, num_classes=logits.shape[1])
    return 0.5 * terms["bce"] + 0.5 * terms["rmi"]


def _interpolated(low: Tensor, shape: tuple[int, ...]) -> Tensor:
    return functional.interpolate(low, shape[2:], mode="bilinear", align_corners=False)


def _map(shape: tuple[int, ...], stride: int, device: str, *, attention: bool = False) -> Tensor:
    """Random logits, or attention in (0, 1), at a part of the image's size."""
    generator = torch.Generator().manual_seed(stride)
    size = (*shape[:2], max(shape[2] // stride, 1), max(shape[3] // stride, 1))
    values = 3 * torch.randn(size, generator=generator)
    return (values.sigmoid() if attention else values).to(device).requires_grad_()


def _label(shape: tuple[int, ...], device: str) -> Tensor:
    """Labels in blocks, 5 % of the pixels ignored."""
    generator = torch.Generator().manual_seed(0)
    number, classes, height, width = shape
    coarse = torch.randint(
        classes, (number, -(-height // 16), -(-width // 16)), generator=generator, dtype=torch.uint8
    )
    label = (
        coarse.repeat_interleave(16, 1).repeat_interleave(16, 2)[:, :height, :width].contiguous()
    )
    label[torch.rand(label.shape, generator=generator) < 0.05] = 255
    return label.to(device)
