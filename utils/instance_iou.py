"""Instance-weighted IoU (iIoU) as Cityscapes scores it: every instance counts as if it had the average size of its class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

# Average instance size in pixels over the Cityscapes training set, the constants of the official evaluation (RELEASE 5.3).
CITYSCAPES_AVERAGE_SIZES: dict[str, float] = {
    "person": 3462.4756337644,
    "rider": 3930.4788056518,
    "car": 12794.0202738185,
    "truck": 27855.1264367816,
    "bus": 35732.1511111111,
    "train": 67583.7075812274,
    "motorcycle": 6298.7200839748,
    "bicycle": 4672.3249222261,
}


class InstanceIoU:
    """Weighted true positives and false negatives per class and per category, gathered instance by instance.

    Instance maps hold raw_id * 1000 + number for a pixel of an instance and the raw id (< 1000) elsewhere, as in *_instanceIds.png. An
    instance weighs average size of its class / its own size (RELEASE 5.3); false positives are pixels of the confusion matrix, unweighted.
    """

    def __init__(self, *, names: Sequence[str], to_train: np.ndarray, categories: Sequence[str | None] | None = None,
                 average_sizes: Mapping[str, float] = CITYSCAPES_AVERAGE_SIZES) -> None:
        """`names` of the C classes, `to_train` uint8 [256] from raw id to class (anything >= C: not scored), `categories` one per class."""
        self.names = tuple(names)
        self.to_train = np.asarray(to_train)
        self.categories = tuple(categories) if categories is not None else (None,) * len(self.names)
        self.weights = np.array([average_sizes.get(name, np.nan) for name in self.names])
        self.true = np.zeros(len(self.names))
        self.false_negative = np.zeros(len(self.names))
        self.category_true = np.zeros(len(self.names))

    @property
    def scored(self) -> np.ndarray:
        """bool [C]: the classes that have an average instance size."""
        return ~np.isnan(self.weights)

    def update(self, predicted: np.ndarray, instances: np.ndarray) -> None:
        """Count the instances of one image: `predicted` class ids [H, W], `instances` [H, W] as read from *_instanceIds.png."""
        assert predicted.shape == instances.shape, f"predicted {predicted.shape} against instances {instances.shape}"
        inside = instances > 1000
        if not inside.any():
            return
        ids, which, sizes = np.unique(instances[inside], return_inverse=True, return_counts=True)
        classes = self.to_train[ids // 1000].astype(np.int64)
        known = (classes < len(self.names)) & self.scored[np.minimum(classes, len(self.names) - 1)]
        pixels = predicted[inside].astype(np.int64)
        groups = self._group_of()
        own = classes[which]
        right = np.bincount(which[pixels == own], minlength=len(ids))
        safe = np.minimum(own, len(self.names) - 1)
        in_group = np.bincount(which[(own < len(self.names)) & (groups[pixels] == groups[safe])], minlength=len(ids))
        for index in np.flatnonzero(known):
            weight = self.weights[classes[index]] / sizes[index]
            self.true[classes[index]] += right[index] * weight
            self.false_negative[classes[index]] += (sizes[index] - right[index]) * weight
            self.category_true[classes[index]] += in_group[index] * weight

    def _group_of(self) -> np.ndarray:
        order = list(dict.fromkeys(self.categories))
        return np.array([order.index(category) for category in self.categories])

    def state(self) -> np.ndarray:
        """The sums so far, float64 [3, C]; add those of all processes (in rank order, for equal bits) and give them to `load`."""
        return np.stack([self.true, self.false_negative, self.category_true])

    def load(self, state: np.ndarray) -> None:
        """Continue from the sums of `state`."""
        self.true, self.false_negative, self.category_true = (np.array(row, dtype=np.float64) for row in state)

    def iiou(self, matrix: np.ndarray) -> dict[str, float]:
        """iIoU per class name that has instances, given the confusion matrix int64 [C, C] of the same images; nan where there are none."""
        false_positive = matrix.sum(axis=0) - np.diag(matrix)
        whole = self.true + self.false_negative + false_positive
        return {name: _ratio(self.true[c], whole[c]) for c, name in enumerate(self.names) if self.scored[c]}

    def category_iiou(self, matrix: np.ndarray) -> dict[str, float]:
        """iIoU per category all of whose classes have instances."""
        scores = {}
        for category in dict.fromkeys(self.categories):
            member = np.array([one == category for one in self.categories])
            if category is None or not self.scored[member].all():
                continue
            false_positive = matrix[np.ix_(~member, member)].sum()
            weighted = self.true[member].sum() + self.false_negative[member].sum()
            scores[category] = _ratio(self.category_true[member].sum(), weighted + false_positive)
        return scores


def _ratio(part: float, whole: float) -> float:
    return float(part / whole) if whole > 0 else float("nan")
