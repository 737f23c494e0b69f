"""Pictures and the weights of figure 3."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hmsa.utils.report.colours import heat_colours, oklch, scale_colours
from hmsa.utils.report.panels import panel, to_width
from hmsa.utils.report.visualise import (
    attention_share,
    colorize,
    error_map,
    heat,
    overlay,
    scale_map,
    scale_shares,
)

PALETTE = np.arange(768, dtype=np.uint16).reshape(256, 3).astype(np.uint8)


def lightness(colours: np.ndarray) -> np.ndarray:
    """CIE L* 0-100 of sRGB [n, 3], by opencv: not the space in which the scales are made."""
    return cv2.cvtColor(colours[None].astype(np.float32) / 255, cv2.COLOR_RGB2LAB)[0, :, 0]


def test_colorize_and_overlay() -> None:
    label = np.array([[0, 1], [2, 255]], dtype=np.uint8)
    image = np.full((2, 2, 3), 100, dtype=np.uint8)
    np.testing.assert_array_equal(colorize(label, PALETTE), PALETTE[label])
    np.testing.assert_array_equal(overlay(image, label, PALETTE, alpha=0.0), image)
    np.testing.assert_array_equal(overlay(image, label, PALETTE, alpha=1.0), PALETTE[label])
    mixed = overlay(image, label, PALETTE, alpha=0.25, ignore_label=255)
    assert np.abs(mixed[0, 1] - (0.75 * 100 + 0.25 * PALETTE[1])).max() <= 0.5
    np.testing.assert_array_equal(mixed[1, 1], image[1, 1])


def test_error_map_shows_wrong_red_ignored_black_right_light() -> None:
    label, predicted = (
        np.array([[0, 1, 255]], dtype=np.uint8),
        np.array([[0, 2, 1]], dtype=np.uint8),
    )
    for image in (None, np.full((1, 3, 3), 40, dtype=np.uint8)):
        right, wrong, ignored = error_map(predicted, label, image=image)[0].astype(int)
        assert right.min() > 120 and np.ptp(right) == 0
        assert wrong[0] > 200 and wrong[1:].max() < 60
        assert ignored.max() == 0


def test_heat_rises_in_even_steps_of_lightness() -> None:
    steps = np.diff(lightness(heat_colours()[::8]))
    assert (steps > 0).all() and steps.max() < 1.5 * steps.mean()
    assert lightness(heat_colours()[:1])[0] < 8 and lightness(heat_colours()[-1:])[0] > 92


def test_heat_clips_and_keeps_order() -> None:
    picture = heat(np.array([[-1.0, 0.0, 0.5, 1.0, 9.0]]))
    np.testing.assert_array_equal(picture[0, 0], picture[0, 1])
    np.testing.assert_array_equal(picture[0, 3], picture[0, 4])
    np.testing.assert_array_equal(heat(np.array([[7.5]]), low=5, high=10), heat(np.array([[0.5]])))
    assert (np.diff(lightness(picture[0, 1:4])) > 20).all()


def test_colours_stay_inside_srgb() -> None:
    hues = np.linspace(0, 360, 25)
    grey = oklch(np.full(25, 0.6), np.zeros(25), hues).astype(int)
    assert np.ptp(grey) <= 1, "no chroma is grey"
    strong = oklch(np.full(25, 0.6), np.full(25, 0.9), hues)
    assert lightness(strong).min() > 45, "an impossible chroma is reduced, the lightness stays"


@pytest.mark.parametrize("count", [1, 2, 3, 4, 6])
def test_scale_colours_are_distinct(count: int) -> None:
    colours = scale_colours(count).astype(int)
    gaps = [np.abs(a - b).max() for n, a in enumerate(colours) for b in colours[:n]]
    assert colours.shape == (count, 3) and min(gaps, default=255) > 25


@given(
    st.lists(st.sampled_from([0.25, 0.5, 0.75, 1.0, 1.5, 2.0]), min_size=1, unique=True),
    st.integers(0, 2**32 - 1),
)
def test_shares_sum_to_one_and_say_what_each_scale_gives(scales: list[float], seed: int) -> None:
    """The share of a scale is what the chain (equation 1) gives of it.

    Were the logits of a scale 1 and those of the others 0, the chain would give the scale's share.
    """
    rng = np.random.default_rng(seed)
    size = (12, 16)
    attentions = {scale: rng.random(size).astype(np.float32) for scale in scales}
    shares = scale_shares({**attentions, max(scales): None}, size)
    assert list(shares) == scales
    np.testing.assert_allclose(sum(shares.values()), 1, atol=1e-5)
    for chosen in scales:
        running = np.full(size, float(max(scales) == chosen))
        for scale in sorted(scales, reverse=True)[1:]:
            running = attentions[scale] * (scale == chosen) + (1 - attentions[scale]) * running
        np.testing.assert_allclose(shares[chosen], running, atol=1e-5)


def test_shares_resize_attention_as_the_network_does() -> None:
    rng = np.random.default_rng(0)
    low, high = rng.random((6, 8)).astype(np.float32), rng.random((24, 32)).astype(np.float32)
    shares = scale_shares({0.5: low, 1.0: high, 2.0: None}, (12, 16))

    def resized(values: np.ndarray) -> np.ndarray:
        tensor = torch.from_numpy(values)[None, None]
        return torch.nn.functional.interpolate(
            tensor, (12, 16), mode="bilinear", align_corners=False
        )[0, 0].numpy()

    np.testing.assert_allclose(shares[0.5], resized(low), atol=1e-5)
    np.testing.assert_allclose(shares[1.0], (1 - resized(low)) * resized(high), atol=1e-5)


def test_only_the_largest_scale_may_lack_attention() -> None:
    with pytest.raises(AssertionError, match=r"scale 0\.5 has no attention"):
        scale_shares({0.5: None, 1.0: np.zeros((2, 2))}, (2, 2))


def test_attention_share_per_class() -> None:
    label = np.array([[0, 0, 2, 255]], dtype=np.uint8)
    own = np.array([[0.2, 0.4, 1.0, 0.7]], dtype=np.float32)
    sums, pixels = attention_share({0.5: own, 1.0: 1 - own}, label, 3)
    np.testing.assert_allclose(sums, [[0.6, 0, 1], [1.4, 0, 0]], atol=1e-6)
    assert pixels.tolist() == [2, 0, 1]


def test_scale_map_has_the_colour_of_the_scale_that_counts_most() -> None:
    ones, zeros = np.ones((2, 2), dtype=np.float32), np.zeros((2, 2), dtype=np.float32)
    colours = scale_colours(2)
    np.testing.assert_array_equal(scale_map({1.0: ones, 0.5: zeros})[0, 0], colours[1])
    np.testing.assert_array_equal(scale_map({1.0: zeros, 0.5: ones})[0, 0], colours[0])
    for ahead, colour in ((0.45, colours[0]), (0.55, colours[1])):
        mixed = scale_map({0.5: 1 - ahead * ones, 1.0: ahead * ones})
        np.testing.assert_array_equal(mixed[0, 0], colour)


def test_panel_lays_out_rows_and_writes_captions() -> None:
    red, tall = (
        np.full((40, 80, 3), (200, 0, 0), dtype=np.uint8),
        np.full((120, 60, 3), (0, 0, 200), dtype=np.uint8),
    )
    picture = panel([("first", red), ("second", tall), ("third", red)], columns=2, width=80, gap=8)
    assert picture.dtype == np.uint8 and picture.shape[1] == 2 * 80 + 3 * 8
    strip = round(1.6 * 11)
    assert picture.shape[0] == (strip + 160) + (strip + 40) + 3 * 8
    np.testing.assert_array_equal(picture[8 + strip : 8 + strip + 40, 8:88], red)
    assert (picture[8 + strip : 8 + strip + 160, 96:176] == (0, 0, 200)).all()
    assert (picture[8 : 8 + strip, 8:88] < 128).any(), "a caption is written above the picture"
    assert (picture[: 8 + strip, 176:] == 255).all()


def test_a_long_caption_stays_in_its_column() -> None:
    red = np.full((30, 60, 3), (200, 0, 0), dtype=np.uint8)
    picture = panel([("x" * 200, red), ("", red)], width=60)
    assert (picture[: 8 + round(1.6 * 11), 8 + 60 :] == 255).all()


def test_to_width_averages_down_and_repeats_up() -> None:
    board = np.indices((8, 8)).sum(axis=0) % 2 * 200
    picture = np.repeat(board[..., None], 3, axis=2).astype(np.uint8)
    np.testing.assert_array_equal(to_width(picture, 4), np.full((4, 4, 3), 100))
    np.testing.assert_array_equal(
        to_width(picture, 16), np.kron(picture, np.ones((2, 2, 1), dtype=np.uint8))
    )


def test_a_panel_says_what_its_colours_mean() -> None:
    red = np.full((40, 80, 3), (200, 0, 0), dtype=np.uint8)
    entries = [("road", (1, 2, 250)), ("a class with a long name", (3, 250, 4))]
    without = panel([("first", red)], width=80)
    picture = panel([("first", red)], width=80, legends=[entries])
    np.testing.assert_array_equal(picture[: len(without)], without)
    below = picture[len(without) :]
    for _, colour in entries:
        assert (below == colour).all(axis=2).any(), colour
