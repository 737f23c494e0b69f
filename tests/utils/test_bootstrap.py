"""Intervals of scores by drawing images again."""

from __future__ import annotations

import numpy as np
import pytest

from hmsa.utils.metrics.bootstrap import Bootstrap, interval_of, recommended
from hmsa.utils.metrics.scores import iou_of, mean_of


def matrices(images: int, *, right: float, seed: int = 0) -> list[np.ndarray]:
    """Images of two classes, of which about the share `right` of the pixels is predicted right."""
    random = np.random.default_rng(seed)
    found = []
    for hard in random.uniform(0.6, 1.0, images):
        hits = round(100 * right * hard)
        found.append(np.array([[hits, 100 - hits], [100 - hits, hits]]))
    return found


def test_draws_score_as_the_metrics_do() -> None:
    """One image drawn again is itself; all draws of equal images score alike."""
    matrix = np.array([[8, 2, 0], [1, 5, 0], [0, 0, 0]])
    bootstrap = Bootstrap([matrix] * 7, draws=20)
    np.testing.assert_allclose(bootstrap.iou[:, :2], np.tile(iou_of(matrix)[:2], (20, 1)))
    assert np.isnan(bootstrap.iou[:, 2]).all()
    assert bootstrap.miou == pytest.approx(mean_of(iou_of(matrix)))
    interval = bootstrap.iou_intervals()[2]
    assert np.isnan(interval.low) and np.isnan(interval.high)


def test_an_interval_holds_the_score_and_shrinks_with_more_images() -> None:
    widths = []
    for images in (10, 160):
        drawn = Bootstrap(matrices(images, right=0.9))
        interval = drawn.miou_interval()
        score = mean_of(iou_of(np.sum(matrices(images, right=0.9), axis=0)))
        assert interval.low < score < interval.high
        widths.append(interval.high - interval.low)
    assert widths[1] < widths[0] / 2


def test_a_paired_difference_is_told_apart_where_the_intervals_overlap() -> None:
    """The same images are drawn for both, so that hard ones cancel out; and always the same."""
    better, worse = Bootstrap(matrices(40, right=0.9)), Bootstrap(matrices(40, right=0.88))
    assert worse.miou_interval().high > better.miou_interval().low
    assert worse.difference_to(better).is_below_zero
    assert better.difference_to(worse).is_above_zero
    same = better.difference_to(better)
    assert (same.low, same.high) == (0, 0) and not same.is_above_zero and not same.is_below_zero
    assert (Bootstrap(matrices(40, right=0.9)).miou == better.miou).all()


def test_many_images_are_drawn_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Bootstrap(matrices(12, right=0.9), draws=50)
    monkeypatch.setattr("hmsa.utils.metrics.bootstrap._AT_ONCE", 12 * 7)
    parts = Bootstrap(matrices(12, right=0.9), draws=50)
    assert parts.miou.shape == (50,)
    assert parts.miou.mean() == pytest.approx(whole.miou.mean(), abs=0.02)


def test_the_cheapest_that_is_as_good_as_the_best_is_advised() -> None:
    good = matrices(40, right=0.90)
    ways = [Bootstrap(matrices(40, right=0.8)), Bootstrap(good), Bootstrap(good)]
    mious = [float(way.miou.mean()) for way in ways]
    assert recommended(mious, ways, [1, 2, 3]) == 1
    assert recommended(mious, ways, [1, 3, 2]) == 2
    assert recommended([float("nan"), *mious[1:]], ways[:1] + ways[1:], [4, 3, 2]) == 2


def test_the_interval_of_nothing_is_no_number() -> None:
    assert np.isnan(interval_of(np.array([np.nan])).low)
