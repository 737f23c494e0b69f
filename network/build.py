"""The one function that knows every trunk, decoder and way of combining scales."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Sequence

from torch import nn

from .decoders import DECODERS
from .fusion import checked_scales
from .heads import ConvHead
from .layers import ModelError
from .model import Explicit, ExplicitHead, Hierarchical, HierarchicalDual, MultiScale, Single
from .trunks import build_trunk

FUSE_AT = ("image", "features")
HEADS = ("release", "paper")


def build_model(
    *,
    num_classes: int,
    trunk: str = "hrnet_w48",
    decoder: str = "ocr",
    multiscale: str = "hierarchical",
    output_stride: int | None = None,
    align_corners: bool = False,
    fuse_at: str = "image",
    train_scales: Sequence[float] | None = None,
    trunk_weights: str | None = None,
    decoder_channels: int | None = None,
    attention_channels: int = 256,
    attention_dropout: float = 0.0,
    head: str = "release",
    dropout: float = 0.05,
    activation_checkpointing: bool = False,
    explicit_softmax: bool = True,
    explicit_batchnorm: bool = True,
) -> MultiScale:
    """Build a model from names and plain values.

    - `trunk` (see TRUNKS, or `timm:<name>`), `decoder` (DECODERS) and `multiscale` (MULTISCALE) name its three parts.
    - `output_stride`: 8 (default) or 16, of trunks that can be dilated; HRNet has its own and ignores it.
    - `align_corners`: of every interpolation in the model; the authors' weights need False, HRNet-OCR's own need True.
    - `fuse_at`: "image" fuses at the size of the images, as the release and published weights do; "features" fuses at
      the resolution of the features and upsamples once, as the paper says.
    - `train_scales`: default (0.5, 1.0), for explicit (0.5, 1.0, 2.0); a single-scale model always trains at 1.0.
    - `trunk_weights`: "imagenet", a name that `network.pretrained` knows, or a file.
    - `head`: "release" is the architecture of the published weights; "paper" follows the paper's text: the 3x3, 3x3,
      1x1 semantic head after OCR, and for deeplabv3plus an attention head that reads the trunk's final stage.
    - `decoder_channels`: width of the decoder; default the published ones, 256, and for OCR 512, of which keys, and the
      paper's semantic head, have half.
    - `dropout`: of OCR's features; `attention_channels`, `attention_dropout`: of the attention head.
    - `activation_checkpointing`: recompute the trunk's stages in the backward pass instead of keeping them.
    - `explicit_softmax`, `explicit_batchnorm`: of attention to scale. The release has neither, or batch norm alone; without it the soft-max may
      end at one scale within fifty steps and never leave it.

    Raises ModelError, with what to do, for an unknown name or value.
    """
    _check_choice("decoder", decoder, DECODERS)
    _check_choice("multiscale", multiscale, MULTISCALE)
    _check_choice("fuse_at", fuse_at, FUSE_AT)
    _check_choice("head", head, HEADS)
    if num_classes < 1:
        raise ModelError(f"num_classes is {num_classes}: a model needs at least one class.")
    if decoder_channels is not None and decoder_channels < 1:
        raise ModelError(
            f"decoder_channels is {decoder_channels}: a decoder needs at least one channel, or leave it out."
        )
    backbone = build_trunk(
        trunk,
        output_stride=output_stride,
        align_corners=align_corners,
        activation_checkpointing=activation_checkpointing,
    )
    decode = DECODERS[decoder](
        trunk=backbone,
        num_classes=num_classes,
        align_corners=align_corners,
        head=head,
        dropout=dropout,
        channels=decoder_channels,
    )
    scales = (
        checked_scales(train_scales or DEFAULT_SCALES[multiscale])
        if multiscale != "single"
        else (1.0,)
    )
    attention: dict[str, object] = {}
    if multiscale == "explicit":
        attention = {
            "softmax": explicit_softmax,
            "attention": _explicit_head(
                decode.feature_channels,
                len(scales),
                attention_channels,
                attention_dropout,
                batchnorm=explicit_batchnorm,
                padded=not explicit_softmax,
            ),
        }
    elif multiscale != "single":
        inputs = decode.feature_channels * (2 if multiscale == "hierarchical_dual" else 1)
        attention = {
            "attention": ConvHead(
                inputs=inputs, outputs=1, channels=attention_channels, dropout=attention_dropout
            )
        }
    model = MULTISCALE[multiscale](
        trunk=backbone,
        decoder=decode,
        num_classes=num_classes,
        align_corners=align_corners,
        fuse_at=fuse_at,
        train_scales=scales,
        **attention,
    )
    if trunk_weights is not None:
        from .weights.loading import load_trunk_weights
        from .weights.pretrained import resolve_weights

        load_trunk_weights(model.trunk, resolve_weights(trunk_weights, trunk=trunk))
    return model


MULTISCALE: dict[str, Callable[..., MultiScale]] = {
    "single": Single,
    "hierarchical": Hierarchical,
    "hierarchical_dual": HierarchicalDual,
    "explicit": Explicit,
}
DEFAULT_SCALES = {
    "hierarchical": (0.5, 1.0),
    "hierarchical_dual": (0.5, 1.0),
    "explicit": (0.5, 1.0, 2.0),
}


def _explicit_head(
    features: int, scales: int, channels: int, dropout: float, *, batchnorm: bool, padded: bool
) -> nn.Module:
    """The release's head without batch norm is twice as wide as the one with it."""
    if batchnorm:
        return ConvHead(
            inputs=features * scales, outputs=scales, channels=channels, dropout=dropout
        )
    return ExplicitHead(
        inputs=features * scales, outputs=scales, channels=2 * channels, padded=padded
    )


def _check_choice(name: str, value: str, choices: Collection[str]) -> None:
    if value not in choices:
        near = difflib.get_close_matches(str(value), list(choices), n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise ModelError(
            f"{name} {value!r} is not known{hint}: choose one of {', '.join(choices)}."
        )
