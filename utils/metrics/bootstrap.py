"""How far a score would move had other images of the same kind been scored.

The bootstrap (Efron 1979, https://doi.org/10.1214/aos/1176344552) draws as many images as there
are, with repetition, adds up their counts and scores them, many times over. Two ways to infer are
compared on the same draws: what makes an image hard for both then cancels out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .scores import divide

DRAWS = 1000
LEAST_IMAGES = 5  # of fewer, drawing again says nothing
_COVERED = 0.95  # of the draws, that an interval holds
_AT_ONCE = 1 << 22  # weights of images held at once


@dataclass(frozen=True)
class Interval:
    """What 95 % of the draws lie in; a fraction."""

    low: float
    high: float

    @property
    def is_above_zero(self) -> bool:
        """Whether a difference is surely positive."""
        return self.low > 0

    @property
    def is_below_zero(self) -> bool:
        """Whether a difference is surely negative."""
        return self.high < 0


class Bootstrap:
    """Scores of one evaluation on images drawn again."""

    def __init__(self, per_image: Sequence[np.ndarray], *, draws: int = DRAWS) -> None:
        """Score `draws` draws of the images.

        The draws depend on the number of images alone, so that those of two evaluations of one
        split are the same.

        Args:
            per_image: confusion matrix int64 [C, C] of each image, labels as rows, in the order of
                the split.
            draws: how many.
        """
        matrices = np.stack(per_image)
        images, classes = matrices.shape[:2]

        # All that IoU needs of a matrix: what is right, labelled and predicted of each class.
        right = np.diagonal(matrices, axis1=1, axis2=2)
        counts = np.concatenate([right, matrices.sum(axis=2), matrices.sum(axis=1)], axis=1)

        random = np.random.default_rng(images)
        scores = []
        step = max(1, _AT_ONCE // images)
        for start in range(0, draws, step):
            number = min(step, draws - start)
            drawn = random.multinomial(images, np.full(images, 1 / images), size=number)
            sums = (drawn.astype(np.float64) @ counts).reshape(number, 3, classes)
            scores.append(divide(sums[:, 0], sums[:, 1] + sums[:, 2] - sums[:, 0]))

        self.iou = np.concatenate(scores)
        """float64 [draws, C], nan where a draw has nothing of a class."""
        known = ~np.isnan(self.iou)
        self.miou = divide(np.where(known, self.iou, 0).sum(axis=1), known.sum(axis=1))
        """float64 [draws]."""

    def miou_interval(self) -> Interval:
        """Of the mIoU."""
        return interval_of(self.miou)

    def iou_intervals(self) -> list[Interval]:
        """Of the IoU of each class; nan for one that no draw has."""
        return [interval_of(values) for values in self.iou.T]

    def difference_to(self, other: Bootstrap) -> Interval:
        """Of the mIoU minus that of `other`, draw by draw."""
        return interval_of(self.miou - other.miou)


def interval_of(values: np.ndarray) -> Interval:
    """What 95 % of `values` lie in; both ends are nan where there are none."""
    known = values[~np.isnan(values)]
    if not known.size:
        return Interval(float("nan"), float("nan"))
    low, high = np.quantile(known, [(1 - _COVERED) / 2, (1 + _COVERED) / 2])
    return Interval(float(low), float(high))


def recommended(
    mious: Sequence[float], bootstraps: Sequence[Bootstrap], costs: Sequence[float]
) -> int:
    """Which way to infer to use: the cheapest that cannot be told from the best.

    Args:
        mious: of each way.
        bootstraps: of each way, on the same images.
        costs: of each way, in any unit.
    """
    best = int(np.argmax(np.nan_to_num(mious, nan=-1.0)))
    as_good = [
        way
        for way, bootstrap in enumerate(bootstraps)
        if way == best or not bootstrap.difference_to(bootstraps[best]).is_below_zero
    ]
    return min(as_good, key=lambda way: (costs[way], -mious[way]))
