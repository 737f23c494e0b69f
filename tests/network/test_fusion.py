"""Equation 1 and its chain: the authors' numbers, a direct transcription, and identities."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from hmsa.network import (
    InferenceOptions,
    ModelError,
    Prediction,
    build_model,
    fuse,
    fuse_chain,
)
from hmsa.network.inference.strips import held
from hmsa.network.model import checked_scales, resized, scaled_size

# Sums of the two channels, channel 0 at [3, 5] and channel 1 at [7, 11] of the fused 8 x 12 map,
# from running the authors' code.
AUTHORS = {
    (1.0,): (46.027977, 116.617514, 0.917438, 1.041099),
    (0.5, 1.0): (58.663424, 110.497710, 0.806464, 1.067164),
    (1.0, 2.0): (28.799831, 121.277456, 0.160524, 0.869055),
    (0.5, 1.0, 2.0): (53.263537, 112.021310, 0.551096, 0.988907),
    (0.5, 1.0, 1.5, 2.0): (53.888484, 111.538522, 0.660354, 1.015169),
    (0.25, 0.5, 1.0, 2.0): (38.708332, 104.812057, 0.370596, 1.035069),
}


def wave(size: tuple[int, int]) -> Prediction:
    """The prediction that the authors' numbers were made from, at one working size."""
    height, width = size
    y = torch.arange(height, dtype=torch.float64)[:, None]
    x = torch.arange(width, dtype=torch.float64)
    first = torch.sin(0.3 * y + 0.2 * x + 0.01 * height)
    second = torch.cos(0.1 * y * x / width) + 0.02 * width
    attention = torch.sigmoid(torch.sin(0.5 * y) + torch.cos(0.7 * x) + 0.03 * height)
    return Prediction(logits=torch.stack([first, second])[None], attention=attention[None, None])


@pytest.mark.parametrize("scales", list(AUTHORS))
def test_chain_gives_the_authors_numbers(scales):
    predictions = {scale: wave(scaled_size((8, 12), scale)) for scale in scales}
    fused = fuse_chain(predictions, size=(8, 12)).logits[0]
    found = (fused[0].sum(), fused[1].sum(), fused[0, 3, 5], fused[1, 7, 11])
    assert torch.stack(found).tolist() == pytest.approx(AUTHORS[scales], abs=1e-5)


def transcribed(predictions: dict[float, Prediction], size: tuple[int, int]) -> torch.Tensor:
    """The chain once more, in the plainest words."""

    def to(tensor, target):
        return F.interpolate(tensor, size=tuple(target), mode="bilinear", align_corners=False)

    order = sorted(predictions, reverse=True)
    running = predictions[order[0]].logits
    for scale in order[1:]:
        logits, attention = predictions[scale].logits, predictions[scale].attention
        if scale >= 1:
            running = attention * logits + (1 - attention) * to(running, logits.shape[-2:])
        else:
            weight = to(attention, running.shape[-2:])
            running = to(attention * logits, running.shape[-2:]) + (1 - weight) * running
    return to(running, size)


SCALES = st.lists(
    st.sampled_from([0.25, 0.3, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0]),
    min_size=1,
    max_size=5,
    unique=True,
)


def random_predictions(scales, size, *, stride: int = 4) -> dict[float, Prediction]:
    """Low-resolution predictions, as a network gives them."""
    generator = torch.Generator().manual_seed(len(scales) + size[0])
    result = {}
    for scale in scales:
        height, width = scaled_size(size, scale)
        low = (math.ceil(height / stride), math.ceil(width / stride))
        logits = torch.randn(2, 3, *low, generator=generator, dtype=torch.float64)
        aux = torch.randn(2, 3, *low, generator=generator, dtype=torch.float64)
        attention = torch.rand(2, 1, *low, generator=generator, dtype=torch.float64)
        result[scale] = Prediction(logits, aux, attention)
    return result


def at_own_size(predictions, size, *, align_corners=False):
    return {
        scale: resized(part, scaled_size(size, scale), align_corners=align_corners)
        for scale, part in predictions.items()
    }


def described(predictions):
    """As strip maps: what inference hands to the same functions."""
    return {scale: held(part) for scale, part in predictions.items()}


@given(scales=SCALES, height=st.integers(1, 70), width=st.integers(1, 50))
def test_any_scales_and_sizes_in_strips_and_whole(scales, height, width):
    """With or without 1.0, odd sizes, sizes below the stride: tensors, strips, transcription."""
    size = (height, width)
    small = random_predictions(scales, size)
    own = at_own_size(small, size)
    fused = fuse_chain(own, size=size)
    expected = transcribed(own, size)
    assert fused.logits.shape[-2:] == size
    assert torch.allclose(fused.logits, expected, atol=1e-12)
    in_strips = fuse_chain(at_own_size(described(small), size), size=size)
    assert in_strips.logits.shape == expected.shape
    assert torch.allclose(in_strips.logits.whole(), expected, atol=1e-12)


@given(
    scales=SCALES, height=st.integers(1, 40), width=st.integers(1, 40), align_corners=st.booleans()
)
def test_constant_logits_come_out_unchanged(scales, height, width, align_corners):
    """The weights of a pixel over all scales sum to 1."""
    size = (height, width)
    predictions = {
        scale: part._replace(
            logits=torch.full_like(part.logits, 3.7), aux=torch.full_like(part.logits, -1.3)
        )
        for scale, part in random_predictions(scales, size).items()
    }
    for given_maps in (predictions, described(predictions)):
        own = at_own_size(given_maps, size, align_corners=align_corners)
        fused = fuse_chain(own, size=size, align_corners=align_corners)
        for maps, constant in ((fused.logits, 3.7), (fused.aux, -1.3)):
            whole = maps if isinstance(maps, torch.Tensor) else maps.whole()
            assert torch.allclose(whole, torch.tensor(constant, dtype=torch.float64))


def test_one_pair_is_equation_one():
    size = (17, 23)
    pair = at_own_size(random_predictions((0.5, 1.0), size), size)
    lower, higher = pair[0.5], pair[1.0]

    def up(tensor):
        return F.interpolate(tensor, size=size, mode="bilinear", align_corners=False)

    fused = fuse(lower, higher)
    for name in ("logits", "aux"):
        low, high = getattr(lower, name), getattr(higher, name)
        expected = up(low * lower.attention) + (1 - up(lower.attention)) * high
        assert torch.allclose(getattr(fused, name), expected, atol=1e-12)
    assert torch.allclose(fused.attention, up(lower.attention), atol=1e-12)


def test_the_attention_chooses_between_the_scales():
    size = (8, 8)
    pair = at_own_size(random_predictions((0.5, 1.0), size), size)
    none = pair[0.5]._replace(attention=torch.zeros_like(pair[0.5].attention))
    every = pair[0.5]._replace(attention=torch.ones_like(pair[0.5].attention))
    assert torch.equal(fuse(none, pair[1.0]).logits, pair[1.0].logits)
    lifted = F.interpolate(pair[0.5].logits, size=size, mode="bilinear", align_corners=False)
    assert torch.allclose(fuse(every, pair[1.0]).logits, lifted)


@pytest.mark.parametrize("align_corners", [False, True])
def test_rows_are_those_of_the_whole_map(align_corners):
    size = (37, 29)
    small = random_predictions((0.5, 1.0, 2.0), size)
    fused, in_strips = (
        fuse_chain(
            at_own_size(maps, size, align_corners=align_corners),
            size=size,
            align_corners=align_corners,
        ).logits
        for maps in (small, described(small))
    )
    strips = [in_strips.rows(*strip) for strip in ((0, 1), (1, 9), (9, 30), (30, 37))]
    assert torch.allclose(torch.cat(strips, dim=2), fused, atol=1e-12)


def test_gradients_reach_every_map_that_has_a_say():
    size = (37, 29)
    small = random_predictions((0.5, 1.0, 2.0), size)
    leaves = {
        (scale, name): getattr(part, name).requires_grad_()
        for scale, part in small.items()
        for name in ("logits", "attention")
    }
    (fuse_chain(at_own_size(small, size), size=size).logits ** 2).sum().backward()
    # The attention of the highest scale has no say.
    assert {key for key, leaf in leaves.items() if leaf.grad is None} == {(2.0, "attention")}


@pytest.mark.parametrize(
    "scales",
    [
        (),
        (0.5, -1.0),
        (0.0,),
        (1.0, 1.0),
        (float("nan"),),
        (1.0, float("inf")),
        (-float("inf"),),
        (1.0, 17.0),
        (0.01, 1.0),
    ],
)
def test_scales_that_make_no_sense_are_refused(scales):
    """Non-finite and absurd ones included, wherever scales are taken."""
    image = torch.zeros(1, 3, 32, 32)
    model = build_model(num_classes=2, trunk="resnet18", decoder="fcn", decoder_channels=4).eval()
    ways = (
        lambda: checked_scales(scales),
        lambda: InferenceOptions(scales),
        lambda: model(image, scales=scales),
        lambda: build_model(num_classes=2, trunk="resnet18", train_scales=scales or (0.0,)),
    )
    for take in ways:
        with pytest.raises(ModelError, match="scale") as caught:
            take()
        assert "\n" not in str(caught.value)
