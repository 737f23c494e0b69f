"""Calibrated attention: biases act on their pair of scales alone, and fitting finds them."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from hmsa.network import InferenceOptions, ModelError, build_model
from hmsa.network.calibration import (
    WINDOW,
    KeptMaps,
    average_kept,
    fit_attention_bias,
    fuse_kept,
    keep_maps,
)
from hmsa.network.inference import predict
from hmsa.network.layers import resize
from hmsa.network.model import Hierarchical, PairBias, calibrated
from hmsa.network.prediction import Prediction

CLASSES = 3


def small_model(multiscale: str = "hierarchical") -> Hierarchical:
    torch.manual_seed(0)
    model = build_model(
        trunk="resnet18", decoder="fcn", multiscale=multiscale, num_classes=CLASSES
    ).eval()
    assert isinstance(model, Hierarchical)
    return model


def an_image(height: int = 64, width: int = 96) -> torch.Tensor:
    return torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("multiscale", ["hierarchical", "hierarchical_dual"])
@torch.no_grad()
def test_a_bias_moves_the_attention_of_its_pair_and_of_no_other(multiscale: str) -> None:
    model = small_model(multiscale)
    plain = model(an_image(), scales=(0.5, 1, 2), keep_scales=True)

    model.attention_bias = {(1.0, 2.0): PairBias((1.5,)), (0.5, 2.0): PairBias((9.0,))}
    moved = model(an_image(), scales=(0.5, 1, 2), keep_scales=True)
    assert plain.scales is not None and moved.scales is not None
    assert torch.equal(moved.scales[0.5].attention, plain.scales[0.5].attention)
    expected = torch.sigmoid(torch.logit(plain.scales[1.0].attention) + 1.5)
    torch.testing.assert_close(moved.scales[1.0].attention, expected)
    assert not torch.equal(moved.logits, plain.logits)

    # A list in which no biased pair stands side by side gives what it gave, to the last bit.
    neighbours = model(an_image(), scales=(0.5, 1))
    model.attention_bias = {}
    assert torch.equal(neighbours.logits, model(an_image(), scales=(0.5, 1)).logits)


@pytest.mark.parametrize("multiscale", ["hierarchical", "hierarchical_dual"])
@torch.no_grad()
def test_a_bias_of_a_class_counts_as_often_as_a_scale_sees_it(multiscale: str) -> None:
    model = small_model(multiscale)
    plain = model(an_image(), scales=(0.5, 1), keep_scales=True).scales
    model.attention_bias = {(0.5, 1.0): PairBias((30.0, -60.0, 30.0), (20.0, 20.0, -40.0))}
    moved = model(an_image(), scales=(0.5, 1), keep_scales=True).scales[0.5]

    lower = plain[0.5].logits.softmax(1)
    higher = resize(plain[1.0].logits, lower.shape[-2:], align_corners=False).softmax(1)
    added = 30 * lower[:, :1] - 60 * lower[:, 1:2] + 30 * lower[:, 2:]
    added += 20 * higher[:, :1] + 20 * higher[:, 1:2] - 40 * higher[:, 2:]
    assert float(added.max()) > float(added.min()) + 1
    expected = torch.sigmoid(torch.logit(plain[0.5].attention) + added)
    torch.testing.assert_close(moved.attention, expected)

    # The same number for every class is that number, to rounding.
    model.attention_bias = {(0.5, 1.0): PairBias((1.5,) * CLASSES)}
    same = model(an_image(), scales=(0.5, 1)).logits
    model.attention_bias = {(0.5, 1.0): PairBias((1.5,))}
    torch.testing.assert_close(same, model(an_image(), scales=(0.5, 1)).logits)


@torch.no_grad()
def test_a_large_bias_leaves_one_scale_of_the_pair() -> None:
    model = small_model()
    model.attention_bias = {(0.5, 1.0): PairBias((50.0,))}
    lower = model(an_image(), scales=(0.5, 1)).logits
    torch.testing.assert_close(lower, model(an_image(), scales=(0.5,)).logits)
    model.attention_bias = {(0.5, 1.0): PairBias((-50.0,))}
    higher = model(an_image(), scales=(0.5, 1)).logits
    torch.testing.assert_close(higher, model(an_image(), scales=(1,)).logits)


@pytest.mark.parametrize("tile", [None, (64, 64)])
@torch.inference_mode()
def test_inference_with_flip_and_tiles_uses_the_bias(tile: tuple[int, int] | None) -> None:
    model = small_model()
    model.attention_bias = {(0.5, 1.0): PairBias((-50.0,))}
    both = InferenceOptions(scales=(0.5, 1.0), flip=True, tile=tile)
    higher = InferenceOptions(scales=(1.0,), flip=True, tile=tile)
    torch.testing.assert_close(
        predict(model, an_image(), both).logits, predict(model, an_image(), higher).logits
    )


def test_kept_maps_are_fused_as_the_model_does_it() -> None:
    model = small_model()
    label = torch.zeros(64, 96, dtype=torch.uint8)
    kept = keep_maps(model, an_image(), label, (0.25, 0.5, 1, 2))
    model.attention_bias = {
        (0.25, 0.5): PairBias((-1.0,)),
        (1.0, 2.0): PairBias((2.0, -1.0, 4.0), (-5.0, 30.0, 1.0)),
    }

    with torch.no_grad():
        expected = model(an_image(), scales=(0.25, 0.5, 1, 2)).logits
        fused = fuse_kept(model, kept, model.attention_bias)
    torch.testing.assert_close(fused, expected, atol=2e-2, rtol=2e-3)  # kept in half precision


def test_a_window_of_a_large_image_is_that_part_of_its_maps() -> None:
    model = small_model()
    height, width = WINDOW[0] + 128, WINDOW[1] + 128
    image, label = an_image(height, width), torch.zeros(height, width, dtype=torch.uint8)
    label[64 : 64 + WINDOW[0], 64 : 64 + WINDOW[1]] = 1
    kept = keep_maps(model, image, label, (0.5, 1))
    assert kept.label.shape == WINDOW and bool((kept.label == 1).all())

    with torch.no_grad():
        fused = fuse_kept(model, kept, {})
        whole = model(image, scales=(0.5, 1)).logits
    inside = whole[..., 64 : 64 + WINDOW[0], 64 : 64 + WINDOW[1]]
    # At the border of the window interpolation has no neighbour to look at.
    margin = slice(32, -32)
    torch.testing.assert_close(
        fused[..., margin, margin], inside[..., margin, margin], atol=2e-2, rtol=2e-3
    )


def test_a_window_lies_where_it_is_asked_for() -> None:
    model = small_model()
    label = torch.arange(128, dtype=torch.uint8)[:, None].repeat(1, 192)
    for place, first in ((0.0, 0), (0.5, 0), (0.999, 0), (1.0, 64)):
        kept = keep_maps(
            model, an_image(128, 192), label, (0.5, 1), window=(64, 192), place=(place, 0.5)
        )
        assert kept.label.shape == (64, 192) and int(kept.label[0, 0]) == first
        assert kept.scales[1].logits.shape[-2] * 2 == model_height(model, 128)


def model_height(model: Hierarchical, height: int) -> int:
    """Rows of the features of an image of so many rows."""
    with torch.no_grad():
        return model.predict_scales(an_image(height, 192), (1.0,))[1.0].logits.shape[-2]


def kept_with_wrong_attention(offset: float) -> KeptMaps:
    """Two scales, each right in one half of the image, and attention that is off by `offset`."""
    label = torch.zeros(16, 16, dtype=torch.uint8)
    label[:, 8:] = 1
    right = torch.full((1, CLASSES, 16, 16), -4.0)
    right.scatter_(1, label.long()[None, None], 4.0)
    wrong = -right
    left_half = torch.arange(16).expand(1, 1, 16, 16) < 8
    lower = torch.where(left_half, right, wrong)
    higher = torch.where(left_half, wrong, right)
    scores = torch.where(left_half, 2.0, -2.0) + offset
    return KeptMaps(
        {
            0.5: Prediction(logits=lower, attention=torch.sigmoid(scores)),
            1.0: Prediction(logits=higher),
        },
        label,
    )


def require_fitted_attention_right(kept: KeptMaps) -> None:
    """With the biases that are fitted on it, the lower scale counts on the left half alone."""
    model = small_model()
    model.fuse_at = "features"
    (bias,) = fit_attention_bias(model, [kept], ignore_label=255).values()
    attention = calibrated(kept.scales[0.5], kept.scales[1.0], bias, align_corners=False).attention
    assert attention is not None
    assert bool((attention[..., :8] > 0.7).all()) and bool((attention[..., 8:] < 0.3).all())


@pytest.mark.parametrize("offset", [-3.0, 3.0])
def test_fitting_takes_back_what_the_attention_is_off_by(offset: float) -> None:
    require_fitted_attention_right(kept_with_wrong_attention(offset))


def test_fitting_finds_which_class_the_lower_scale_is_wrong_about() -> None:
    """No single number would do: the attention trusts the lower scale alike everywhere."""
    kept = kept_with_wrong_attention(0.0)
    blind = torch.full_like(kept.scales[0.5].attention, 0.5)
    lower = Prediction(logits=kept.scales[0.5].logits, attention=blind)
    require_fitted_attention_right(KeptMaps({**kept.scales, 0.5: lower}, kept.label))


def test_a_class_that_the_images_do_not_show_has_the_mean_of_the_others() -> None:
    model = small_model()
    model.fuse_at = "features"
    kept = kept_with_wrong_attention(-3.0)
    scales = {
        scale: Prediction(
            logits=functional.pad(part.logits, (0, 0, 0, 0, 0, 1), value=-40.0),
            attention=part.attention,
        )
        for scale, part in kept.scales.items()
    }
    (bias,) = fit_attention_bias(model, [KeptMaps(scales, kept.label)], ignore_label=255).values()
    assert len(bias.lower) == len(bias.higher) == CLASSES + 1
    assert bias.lower[-1] == pytest.approx(sum(bias.lower[:-1]) / CLASSES, abs=0.2)
    assert bias.lower[-1] > 0.5 and bias.higher[-1] == pytest.approx(0, abs=0.2)


def test_an_average_is_the_mean_of_all_scales_at_full_size() -> None:
    scales = {
        0.5: Prediction(
            logits=torch.full((1, CLASSES, 2, 2), 1.0), attention=torch.zeros(1, 1, 2, 2)
        ),
        1.0: Prediction(logits=torch.full((1, CLASSES, 4, 4), 4.0)),
    }
    average = average_kept(small_model(), KeptMaps(scales, torch.zeros(8, 8, dtype=torch.uint8)))
    assert average.shape == (1, CLASSES, 8, 8) and bool((average == 2.5).all())


def test_fitting_without_a_labelled_pixel_is_said() -> None:
    kept = kept_with_wrong_attention(0.0)
    with pytest.raises(ModelError, match="labelled"):
        fit_attention_bias(
            small_model(), [KeptMaps(kept.scales, kept.label.fill_(255))], ignore_label=255
        )
