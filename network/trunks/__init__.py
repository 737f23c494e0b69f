"""Trunks by name."""
from __future__ import annotations

from collections.abc import Callable
from functools import partial

from . import hrnet, resnet
from .trunk import Features, Trunk

__all__ = ["TRUNKS", "Features", "Trunk"]


def _hrnet(*, name: str, output_stride: int | None, align_corners: bool, activation_checkpointing: bool) -> Trunk:
    return hrnet.HRNet(
        size=hrnet.SIZES[name], align_corners=align_corners, activation_checkpointing=activation_checkpointing
    )


def _resnet(*, name: str, output_stride: int | None, align_corners: bool, activation_checkpointing: bool) -> Trunk:
    return resnet.ResNet(
        name=name, output_stride=output_stride or 8, activation_checkpointing=activation_checkpointing
    )


TRUNKS: dict[str, Callable[..., Trunk]] = {name: partial(_hrnet, name=name) for name in hrnet.SIZES}
TRUNKS.update({name: partial(_resnet, name=name) for name in resnet.NAMES})
