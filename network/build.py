"""The one function that knows every trunk, decoder and way of combining scales."""
from __future__ import annotations

from collections.abc import Sequence

from .decoders import DECODERS
from .layers import ModelError
from .multiscale import Hierarchical, Single, build_attention
from .segmenter import Segmenter
from .trunks import TRUNKS

MULTISCALE: dict[str, type[Segmenter]] = {"single": Single, "hierarchical": Hierarchical}


def build_model(
    *, num_classes: int, trunk: str = "hrnet_w48", decoder: str = "ocr", multiscale: str = "hierarchical",
    output_stride: int | None = None, align_corners: bool = False, fuse_at: str = "image",
    train_scales: Sequence[float] | None = None, attention_channels: int = 256, attention_dropout: float = 0.0,
    activation_checkpointing: bool = False,
) -> Segmenter:
    backbone = TRUNKS[trunk](
        output_stride=output_stride, align_corners=align_corners, activation_checkpointing=activation_checkpointing
    )
    head = DECODERS[decoder](
        trunk_channels=backbone.channels, trunk_stride=backbone.stride, fine_channels=backbone.fine_channels,
        num_classes=num_classes, align_corners=align_corners,
    )
    parts = dict(trunk=backbone, decoder=head, num_classes=num_classes, align_corners=align_corners)
    if multiscale == "single":
        return Single(**parts, train_scales=(1.0,))
    if multiscale == "hierarchical":
        attention = build_attention(
            inputs=head.feature_channels, channels=attention_channels, dropout=attention_dropout
        )
        return Hierarchical(**parts, attention=attention, fuse_at=fuse_at, train_scales=tuple(train_scales or (0.5, 1.0)))
    raise ModelError(f"multiscale {multiscale!r} is not known: choose one of {', '.join(MULTISCALE)}.")
