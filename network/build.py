"""The one function that knows every trunk, decoder and way of combining scales."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Sequence
from functools import partial

from torch import nn

from hmsa.utils.words import did_you_mean

from .decoders import DECODERS
from .decoders.decoder import Decoder
from .explicit import Explicit, ExplicitHead
from .heads import ConvHead
from .layers import ModelError
from .model import Hierarchical, HierarchicalDual, MultiScaleModel, Single, checked_scales
from .trunks import build_trunk
from .trunks.trunk import Trunk

FUSE_AT = ("image", "features")
HEADS = ("release", "paper")

MULTISCALE: dict[str, Callable[..., MultiScaleModel]] = {
    "single": Single,
    "hierarchical": Hierarchical,
    "hierarchical_dual": HierarchicalDual,
    "explicit": Explicit,
}
# Keywords that say how a network is made or run, and not which one it is.
_NOT_OF_THE_NETWORK = {"num_classes", "trunk_weights", "activation_checkpointing"}
DEFAULT_SCALES = {
    "single": (1.0,),
    "hierarchical": (0.5, 1.0),
    "hierarchical_dual": (0.5, 1.0),
    "explicit": (0.5, 1.0, 2.0),
}


def build_model(
    *,
    num_classes: int,
    trunk: str | Callable[..., Trunk] = "hrnet_w48",
    decoder: str | Callable[..., Decoder] = "ocr",
    multiscale: str = "hierarchical",
    output_stride: int | None = None,
    align_corners: bool = False,
    fuse_at: str = "image",
    train_scales: Sequence[float] | None = None,
    trunk_weights: str | None = None,
    decoder_channels: int | None = None,
    aspp_rates: Sequence[int] = (6, 12, 18),
    aspp_pooling: bool = True,
    attention_channels: int = 256,
    attention_dropout: float = 0.0,
    attention_reads_scales: bool = False,
    head: str = "release",
    dropout: float = 0.05,
    activation_checkpointing: bool = False,
    explicit_softmax: bool = True,
    explicit_batchnorm: bool = True,
) -> MultiScaleModel:
    """Build a model from names and plain values.

    Args:
        num_classes: number of classes, the channels of the logits.
        trunk: one of TRUNKS, `timm:<name>`, or a function that makes a `Trunk` of the keywords
            output_stride, align_corners and activation_checkpointing, as those in TRUNKS.
        decoder: one of DECODERS, or a function that makes a `Decoder` of the keywords of those.
        multiscale: one of MULTISCALE, the way of combining scales.
        output_stride: 8 (default) or 16, of trunks that can be dilated; HRNet has its own.
        align_corners: of every interpolation in the model; the authors' weights need False,
            HRNet-OCR's own need True.
        fuse_at: "image" fuses at the size of the images, as the release and published weights do;
            "features" at the resolution of the features and upsamples once, as the paper says.
        train_scales: default (0.5, 1.0), for explicit (0.5, 1.0, 2.0); a single-scale model always
            trains at 1.0.
        trunk_weights: "auto" (pre-trained where such weights can be had, else random with a
            warning), "imagenet", another name that `weights/pretrained.py` knows, or a file.
        decoder_channels: width of the decoder; default the published ones, 256, and for OCR 512, of
            which keys, and the paper's semantic head, have half.
        aspp_rates: dilations of deeplabv3plus's 3x3 branches at stride 16; smaller ones for crops
            of less than 300 pixels.
        aspp_pooling: whether deeplabv3plus has the branch of image pooling, whose batch norm has
            one value per image only.
        attention_channels: width of the attention head.
        attention_dropout: before the last layer of the attention head.
        attention_reads_scales: tell the attention head which pair of scales it judges; for
            hierarchical and hierarchical_dual.
        head: "release" is the architecture of the published weights; "paper" follows the text of
            section 3.1: the 3x3, 3x3, 1x1 semantic head after OCR, and for deeplabv3plus an
            attention head that reads the trunk's final stage.
        dropout: of OCR's features.
        activation_checkpointing: recompute the trunk's stages in the backward pass instead of
            keeping them.
        explicit_softmax: of attention to scale; the release has none.
        explicit_batchnorm: of the head of attention to scale, with which one of the release's two
            networks does without; then the soft-max may end at one scale within fifty steps and
            never leave it.

    Raises:
        ModelError: a name or value is not known, with what to do.

    Example:
        >>> model = build_model(num_classes=5, trunk="resnet18", decoder="fcn", multiscale="single")
        >>> model
        Single(ResNet + FCN, 5 classes, 12.9 M parameters)
    """
    given = {name: value for name, value in locals().items() if name not in _NOT_OF_THE_NETWORK}
    if isinstance(decoder, str):
        _check_choice("decoder", decoder, DECODERS)
    _check_choice("multiscale", multiscale, MULTISCALE)
    _check_choice("fuse_at", fuse_at, FUSE_AT)
    _check_choice("head", head, HEADS)
    if num_classes < 1:
        raise ModelError(f"num_classes is {num_classes}: a model needs at least one class.")
    if decoder_channels is not None and decoder_channels < 1:
        raise ModelError(
            f"decoder_channels is {decoder_channels}: a decoder needs at least one channel, or "
            "leave it out."
        )

    if attention_reads_scales and not multiscale.startswith("hierarchical"):
        raise ModelError(
            f"attention_reads_scales is for hierarchical attention, not for {multiscale}: leave it "
            "out."
        )

    # Trunk and decoder, which every way of combining scales shares.
    make_trunk = partial(build_trunk, trunk) if isinstance(trunk, str) else trunk
    built_trunk = make_trunk(
        output_stride=output_stride,
        align_corners=align_corners,
        activation_checkpointing=activation_checkpointing,
    )
    make_decoder = DECODERS[decoder] if isinstance(decoder, str) else decoder
    built_decoder = make_decoder(
        trunk=built_trunk,
        num_classes=num_classes,
        align_corners=align_corners,
        head=head,
        dropout=dropout,
        channels=decoder_channels,
        rates=aspp_rates,
        pooling=aspp_pooling,
    )

    # The scales of training, and the head that weighs them.
    scales = DEFAULT_SCALES[multiscale]
    if train_scales and multiscale != "single":
        scales = checked_scales(train_scales)
    attention: dict[str, object] = {}
    if multiscale == "explicit":
        attention["softmax"] = explicit_softmax
        attention["attention"] = _explicit_head(
            built_decoder,
            scales=len(scales),
            channels=attention_channels,
            dropout=attention_dropout,
            batchnorm=explicit_batchnorm,
            padded=not explicit_softmax,
        )
    elif multiscale != "single":
        scales_read = 2 if multiscale == "hierarchical_dual" else 1
        attention["attention"] = ConvHead(
            inputs=scales_read * built_decoder.feature_channels + 2 * attention_reads_scales,
            outputs=1,
            channels=attention_channels,
            dropout=attention_dropout,
        )
        attention["attention_reads_scales"] = attention_reads_scales

    model = MULTISCALE[multiscale](
        trunk=built_trunk,
        decoder=built_decoder,
        num_classes=num_classes,
        align_corners=align_corners,
        fuse_at=fuse_at,
        train_scales=scales,
        **attention,
    )

    if trunk_weights is not None:
        # Imported here, because most models are built without them.
        from .weights.loading import load_trunk_weights
        from .weights.pretrained import find_weights

        trunk_name = trunk if isinstance(trunk, str) else type(model.trunk).__name__
        found = find_weights(trunk_weights, trunk=trunk_name)
        if found.path is None:
            warnings.warn(found.sentence, stacklevel=2)
        else:
            load_trunk_weights(model.trunk, found.path, mean=found.mean, std=found.std)

    # What its parts were named by, so that a saved model can be built again.
    if isinstance(trunk, str) and isinstance(decoder, str):
        model.built_with = {name: value for name, value in given.items() if value is not None}
    return model


def _explicit_head(
    decoder: Decoder, *, scales: int, channels: int, dropout: float, batchnorm: bool, padded: bool
) -> nn.Module:
    inputs = decoder.feature_channels * scales
    if batchnorm:
        return ConvHead(inputs=inputs, outputs=scales, channels=channels, dropout=dropout)
    # The release's head without batch norm is twice as wide as the one with it.
    return ExplicitHead(inputs=inputs, outputs=scales, channels=2 * channels, padded=padded)


def _check_choice(name: str, value: str, choices: Collection[str]) -> None:
    if value not in choices:
        hint = did_you_mean(str(value), choices)
        raise ModelError(
            f"{name} {value!r} is not known{hint}: choose one of {', '.join(choices)}."
        )
