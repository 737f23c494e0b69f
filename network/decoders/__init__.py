"""Decoders by name.

Each entry of DECODERS is a function of the trunk, the number of classes and the options of
`build_model` that concern decoders; `channels` None means the published width, and `rates`
and `pooling` are deeplabv3plus's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ..trunks.trunk import Trunk
from .decoder import Decoded, Decoder
from .deeplabv3plus import DeepLabV3Plus
from .fcn import FCN
from .ocr import OCR

__all__ = ["DECODERS", "Decoded", "Decoder"]


def _ocr(
    *,
    trunk: Trunk,
    num_classes: int,
    align_corners: bool,
    head: str,
    dropout: float,
    channels: int | None,
    rates: Sequence[int],
    pooling: bool,
) -> Decoder:
    width = channels or 512
    return OCR(
        trunk_channels=trunk.channels,
        num_classes=num_classes,
        head=head,
        dropout=dropout,
        channels=width,
        key_channels=max(1, width // 2),
    )


def _deeplabv3plus(
    *,
    trunk: Trunk,
    num_classes: int,
    align_corners: bool,
    head: str,
    dropout: float,
    channels: int | None,
    rates: Sequence[int],
    pooling: bool,
) -> Decoder:
    width = channels or 256
    return DeepLabV3Plus(
        trunk_channels=trunk.channels,
        trunk_stride=trunk.stride,
        fine_channels=trunk.fine_channels,
        num_classes=num_classes,
        align_corners=align_corners,
        head=head,
        channels=width,
        bottleneck_channels=max(1, 48 * width // 256),
        rates=rates,
        pooling=pooling,
    )


def _fcn(
    *,
    trunk: Trunk,
    num_classes: int,
    align_corners: bool,
    head: str,
    dropout: float,
    channels: int | None,
    rates: Sequence[int],
    pooling: bool,
) -> Decoder:
    return FCN(trunk_channels=trunk.channels, num_classes=num_classes, channels=channels or 256)


DECODERS: dict[str, Callable[..., Decoder]] = {
    "ocr": _ocr,
    "deeplabv3plus": _deeplabv3plus,
    "fcn": _fcn,
}
