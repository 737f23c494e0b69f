"""Instance-weighted IoU (iIoU) as Cityscapes scores it.

Each instance counts as if it had the average size of its class, so that small ones count as much as
large ones (Cordts et al., CVPR 2016; https://www.cityscapes-dataset.com/benchmarks).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from .scores import MetricsError, divide

# Average instance size in pixels over the Cityscapes training set: constants of the official
# evaluation (https://github.com/mcordts/cityscapesScripts, evalPixelLevelSemanticLabeling.py).
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


def instances_path(label_path: Path) -> Path | None:
    """The instance map beside a Cityscapes label file, or None where there is no such file."""
    if not label_path.name.endswith("_labelIds.png"):
        return None
    path = label_path.with_name(label_path.name.removesuffix("_labelIds.png") + "_instanceIds.png")
    return path if path.is_file() else None


def read_instances(path: Path) -> np.ndarray:
    """int32 [H, W]: raw id * 1000 + number on pixels of an instance, the raw id (< 1000) elsewhere.

    Raises:
        MetricsError: the file cannot be read, or is no grey image of 8, 16 or 32 bits.
    """
    try:
        with Image.open(path) as file:
            if file.mode not in ("I", "I;16", "L"):
                raise MetricsError(
                    f"{path}: mode {file.mode} is no instance map; expected 16-bit or 32-bit grey"
                )
            return np.array(file).astype(np.int32)
    except (OSError, SyntaxError) as error:
        raise MetricsError(f"{path}: cannot be read as an instance map ({error})") from error


class InstanceIoU:
    """Pixels found and missed of every instance, gathered image by image.

    An instance weighs (average size of its class) / (its own size); false positives come from the
    confusion matrix, unweighted. What is kept are integers, one row an instance, and scores are
    summed exactly from all of them, so that they do not depend on the order of the images or on the
    number of processes.
    """

    def __init__(
        self,
        *,
        names: Sequence[str],
        to_train: np.ndarray,
        categories: Sequence[str | None] | None = None,
        average_sizes: Mapping[str, float] = CITYSCAPES_AVERAGE_SIZES,
    ) -> None:
        """Score the classes `names` that `average_sizes` (in pixels) has, too.

        `to_train` uint8 [256] maps raw ids to the C classes (a value of C or more is not scored);
        `categories` names one category per class.
        """
        self.names = tuple(names)
        self.to_train = np.asarray(to_train)
        self.categories = tuple(categories) if categories is not None else (None,) * len(self.names)
        self.average_sizes = np.array([average_sizes.get(name, np.nan) for name in self.names])

        # Categories by number, so that predicted and own ones can be compared as arrays.
        order = list(dict.fromkeys(self.categories))
        self._group = np.array([order.index(category) for category in self.categories])
        self._rows: list[np.ndarray] = []

    def update(self, predicted: np.ndarray, instances: np.ndarray) -> None:
        """Add the instances of one image: class ids [H, W] and an instance map [H, W].

        Raises:
            MetricsError: the map has another size or an id beyond raw id 255.
        """
        if predicted.shape != instances.shape:
            raise MetricsError(
                f"the instance map is {instances.shape} where the prediction is {predicted.shape}"
            )
        on_instance = instances > 1000
        ids, which, sizes = np.unique(
            instances[on_instance], return_inverse=True, return_counts=True
        )
        if ids.size and ids[-1] >= 256_000:
            raise MetricsError(f"instance value {ids[-1]} is no raw id * 1000 + number")

        # Instances of classes that are not scored are left out.
        classes = self.to_train[ids // 1000].astype(np.int64)
        scored = classes < len(self.names)
        scored[scored] &= ~np.isnan(self.average_sizes[classes[scored]])

        # Per instance: pixels predicted as its class, and pixels predicted as its category.
        of_scored = scored[which]
        which, found = which[of_scored], predicted[on_instance][of_scored].astype(np.int64)
        own = classes[which]
        right = np.bincount(which[found == own], minlength=ids.size)
        in_group = np.bincount(which[self._group[found] == self._group[own]], minlength=ids.size)
        self._rows.append(np.stack([classes, sizes, right, in_group], axis=1)[scored])

    def state(self) -> np.ndarray:
        """int64 [instances, 4]: class, size, pixels found, pixels found as its category."""
        return np.concatenate([np.zeros((0, 4), dtype=np.int64), *self._rows])

    def load(self, states: Iterable[np.ndarray]) -> None:
        """Replace what was added by the `state()` of all processes."""
        self._rows = [np.asarray(state, dtype=np.int64).reshape(-1, 4) for state in states]

    def _weighted(self, classes: np.ndarray, *, column: int) -> tuple[float, float]:
        """Weighted found pixels (column 2 or 3) and all pixels of the instances of `classes`.

        `classes` is bool [C].
        """
        # An instance weighs the average size of its class over its own size.
        rows = self.state()
        rows = rows[classes[rows[:, 0]]]
        average = self.average_sizes[rows[:, 0]]
        return math.fsum(rows[:, column] * (average / rows[:, 1])), math.fsum(average)

    def iiou(self, matrix: np.ndarray) -> dict[str, float]:
        """iIoU per class that has instances, or nan.

        `matrix` is the confusion matrix int64 [C, C] of the same images.
        """
        false_positive = matrix.sum(axis=0) - np.diag(matrix)
        scores = {}
        for index in np.flatnonzero(~np.isnan(self.average_sizes)):
            found, whole = self._weighted(np.arange(len(self.names)) == index, column=2)
            scores[self.names[index]] = float(divide(found, whole + false_positive[index]))
        return scores

    def category_iiou(self, matrix: np.ndarray) -> dict[str, float]:
        """iIoU per category all of whose classes have instances.

        A pixel is found when its category is.
        """
        scores = {}
        for category in dict.fromkeys(name for name in self.categories if name is not None):
            member = np.array([name == category for name in self.categories])
            if np.isnan(self.average_sizes[member]).any():
                continue
            found, whole = self._weighted(member, column=3)
            # Pixels of other categories that were taken for this one.
            false_positive = matrix[np.ix_(~member, member)].sum()
            scores[category] = float(divide(found, whole + false_positive))
        return scores
