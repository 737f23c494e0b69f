"""Trunks by name."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from hmsa.utils.words import did_you_mean

from ..layers import ModelError
from . import hrnet, resnet
from .trunk import Features, Trunk

__all__ = ["TRUNKS", "Features", "Trunk", "build_trunk"]


def _hrnet(
    *, name: str, output_stride: int | None, align_corners: bool, activation_checkpointing: bool
) -> Trunk:
    return hrnet.HRNet(
        size=hrnet.SIZES[name],
        align_corners=align_corners,
        activation_checkpointing=activation_checkpointing,
    )


def _resnet(
    *, name: str, output_stride: int | None, align_corners: bool, activation_checkpointing: bool
) -> Trunk:
    return resnet.ResNet(
        name=name,
        output_stride=output_stride or 8,
        activation_checkpointing=activation_checkpointing,
    )


TRUNKS: dict[str, Callable[..., Trunk]] = {name: partial(_hrnet, name=name) for name in hrnet.SIZES}
TRUNKS.update({name: partial(_resnet, name=name) for name in resnet.NAMES})


def build_trunk(
    name: str,
    *,
    output_stride: int | None = None,
    align_corners: bool = False,
    activation_checkpointing: bool = False,
) -> Trunk:
    """Build the trunk of that name: one of TRUNKS, or `timm:<name>` where timm is installed.

    Raises:
        ModelError: the name or the output stride is not known, or timm is missing.
    """
    options = {
        "output_stride": output_stride,
        "align_corners": align_corners,
        "activation_checkpointing": activation_checkpointing,
    }
    if name.startswith("timm:"):
        # Imported here, because timm is optional and slow to import.
        from .timm_features import TimmFeatures

        return TimmFeatures(name=name.removeprefix("timm:"), **options)  # type: ignore[arg-type]

    if name not in TRUNKS:
        hint = did_you_mean(name, TRUNKS)
        raise ModelError(
            f"trunk {name!r} is not known{hint}: choose one of {', '.join(TRUNKS)}, or timm:<name>."
        )
    return TRUNKS[name](**options)
