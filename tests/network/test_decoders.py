"""The width of a decoder is an option; without it every decoder has its published size."""

from __future__ import annotations

import pytest
import torch

from hmsa.network import DECODERS, ModelError, build_model
from hmsa.network.decoders import Decoder
from hmsa.network.trunks.trunk import Features

PUBLISHED = {"ocr": 512, "deeplabv3plus": 256, "fcn": 256}
CLASSES = 7


def built(decoder: str, trunk: str = "hrnet_w18_small", **options: object) -> torch.nn.Module:
    return build_model(
        trunk=trunk, decoder=decoder, num_classes=CLASSES, **{"multiscale": "single", **options}
    )  # type: ignore[arg-type]


def conv(
    inputs: int, outputs: int, kernel: int = 1, *, bias: bool = False, norm: bool = True
) -> int:
    """Parameters of a convolution and, unless it is a last layer, of the batch norm behind it."""
    return inputs * outputs * kernel**2 + outputs * bias + 2 * outputs * norm


def head(inputs: int, width: int) -> int:
    """The 3x3, 3x3, 1x1 semantic head."""
    return conv(inputs, width, 3) + conv(width, width, 3) + conv(width, CLASSES, norm=False)


def expected_parameters(decoder: str, width: int, *, trunk: int, fine: int) -> int:
    """Counted by hand from the papers' layer tables with every width in proportion."""
    if decoder == "fcn":
        return head(trunk, width)
    if decoder == "deeplabv3plus":
        bottleneck = 48 * width // 256
        pyramid = 2 * conv(trunk, width) + 3 * conv(trunk, width, 3)
        reduced = conv(5 * width, width, norm=False) + conv(fine, bottleneck, norm=False)
        return pyramid + reduced + head(width + bottleneck, width)
    keys = width // 2
    embeddings = 2 * (conv(width, keys) + conv(keys, keys))
    attention = embeddings + conv(width, keys) + conv(keys, width)
    aux = conv(trunk, trunk, bias=True) + conv(trunk, CLASSES, bias=True, norm=False)
    return (
        conv(trunk, width, 3, bias=True)
        + aux
        + attention
        + conv(2 * width, width)
        + conv(width, CLASSES, bias=True, norm=False)
    )


def parameters(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("width", [None, 32, 96])
@pytest.mark.parametrize("decoder", list(DECODERS))
def test_every_layer_of_a_decoder_follows_its_width(decoder: str, width: int | None) -> None:
    """The trunk does not; features and logits have the shapes that the decoder declares."""
    model = built(decoder, decoder_channels=width)
    own = PUBLISHED[decoder] if width is None else width
    trunk = model.trunk
    assert (trunk.channels, trunk.fine_channels) == (240, 16)
    assert isinstance(model.decoder, Decoder)
    assert parameters(model.decoder) == expected_parameters(
        decoder, own, trunk=trunk.channels, fine=trunk.fine_channels
    )
    features = trunk.eval()(torch.randn(2, 3, 64, 96))
    assert isinstance(features, Features)
    decoded = model.decoder.eval()(features, with_aux=True)
    assert (
        model.decoder.feature_channels
        == {"ocr": own, "deeplabv3plus": own + 48 * own // 256, "fcn": trunk.channels}[decoder]
    )
    assert decoded.features.shape == (2, model.decoder.feature_channels, 16, 24)
    assert decoded.logits.shape == (2, CLASSES, 16, 24)
    assert (None if decoded.aux is None else decoded.aux.shape) == (
        (2, CLASSES, 16, 24) if decoder == "ocr" else None
    )


@pytest.mark.parametrize("decoder", list(DECODERS))
def test_the_published_width_is_the_default(decoder: str) -> None:
    default, named = (
        built(decoder, decoder_channels=width).state_dict() for width in (None, PUBLISHED[decoder])
    )
    assert {key: value.shape for key, value in default.items()} == {
        key: value.shape for key, value in named.items()
    }


@pytest.mark.parametrize("head", ["release", "paper"])
@pytest.mark.parametrize("decoder", list(DECODERS))
def test_a_narrow_decoder_trains_and_evaluates_over_scales(decoder: str, head: str) -> None:
    """The attention head fits what the decoder hands it; one channel is a decoder, too."""
    for width in (1, 24):
        model = built(
            decoder,
            "resnet18",
            multiscale="hierarchical",
            decoder_channels=width,
            attention_channels=8,
            head=head,
            dropout=0.0,
        ).train()
        model(torch.randn(2, 3, 32, 32)).logits.square().mean().backward()
        assert all(parameter.grad is not None for parameter in model.parameters())
        with torch.no_grad():
            assert model.eval()(torch.randn(1, 3, 32, 48), scales=(0.5, 1.0, 2.0)).logits.shape == (
                1,
                CLASSES,
                32,
                48,
            )


def test_the_papers_head_after_ocr_is_in_proportion() -> None:
    """256 channels after 512, as published; half of any other width."""
    for width, hidden in ((None, 256), (64, 32)):
        head = built("ocr", decoder_channels=width, head="paper").decoder.classifier
        assert [part.conv.out_channels for part in head.hidden] == [hidden, hidden]  # type: ignore[union-attr]


@pytest.mark.parametrize("width", [0, -8])
def test_no_width_is_one_sentence(width: int) -> None:
    with pytest.raises(
        ModelError, match=f"decoder_channels is {width}: a decoder needs at least one channel"
    ):
        built("fcn", decoder_channels=width)


def test_deeplab_takes_other_rates_and_no_image_pooling() -> None:
    model = built(
        "deeplabv3plus",
        "resnet18",
        decoder_channels=16,
        output_stride=16,
        aspp_rates=(2, 5),
        aspp_pooling=False,
    )
    dilations = [branch.conv.dilation[0] for branch in model.decoder.aspp.branches]
    assert dilations == [1, 2, 5]
    assert not any("pooled" in name for name in model.state_dict())
    assert model.eval()(torch.randn(1, 3, 64, 64)).logits.shape == (1, CLASSES, 64, 64)

    # The 1x1 convolution behind the branches has a part for each of them.
    assert model.decoder.context.weight.shape == (16, 3 * 16, 1, 1)
