"""A confusion matrix counted in int64 on the device, and the scores read from it.

Every score is a fraction. A class that is neither in the labels nor predicted has no score: it is
nan, listed by `ConfusionMatrix.absent()` and left out of every mean.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .boundary_f import BoundaryF
from .instance_iou import InstanceIoU, instances_path, read_instances
from .scores import MetricsError, divide, iou_of, mean_of


class ConfusionMatrix:
    """Counts of pixels by (label, predicted), int64 [C, C] on `device`; rows are labels.

    Pixels labelled `ignore_label` are not counted. Integer sums commute, so the matrix is the same,
    bit for bit, for any order of the images, any batching and any number of processes.
    """

    def __init__(
        self, num_classes: int, ignore_label: int = 255, device: torch.device | str = "cpu"
    ) -> None:
        assert num_classes > 0 and not 0 <= ignore_label < num_classes, (
            f"ignore label {ignore_label} is a class"
        )
        self.num_classes = num_classes
        self.ignore_label = ignore_label
        self.matrix = torch.zeros(num_classes, num_classes, dtype=torch.int64, device=device)

    def update(self, predicted: Tensor, label: Tensor) -> None:
        """Count the pixels of two integer tensors of one shape; two of uint8 are counted fastest.

        Raises:
            MetricsError: a label is neither a class nor `ignore_label`, or a prediction is no
                class. Nothing of the two tensors is counted then.
        """
        assert predicted.shape == label.shape, (
            f"predicted {tuple(predicted.shape)} against label {tuple(label.shape)}"
        )
        assert not (predicted.is_floating_point() or label.is_floating_point()), (
            "class ids are integers"
        )
        if label.numel() == 0:
            return

        # Wrong values are found before anything is added, so that a caller may go on without them.
        predicted = predicted.to(self.matrix.device).reshape(-1)
        label = label.to(self.matrix.device).reshape(-1)
        self._check_predicted(predicted)
        if predicted.dtype == label.dtype == torch.uint8:
            self.matrix += self._count_bytes(predicted, label)
        else:
            self.matrix += self._count(predicted, label)

    def _count_bytes(self, predicted: Tensor, label: Tensor) -> Tensor:
        """One bin for each of the 256 * C pairs: ignored and wrong labels then need no mask."""
        bins = 256 * self.num_classes
        # The narrower the integers, the less memory is read and written.
        pair_dtype = torch.int32
        if bins <= torch.iinfo(torch.int16).max:
            pair_dtype = torch.int16
        pairs = label.to(pair_dtype).mul_(self.num_classes).add_(predicted)
        counts = torch.bincount(pairs, minlength=bins).reshape(256, self.num_classes)

        # The rows beyond the classes hold ignored pixels and mistakes.
        beyond = counts[self.num_classes :].sum(dim=1).tolist()
        for value, pixels in enumerate(beyond, start=self.num_classes):
            if pixels and value != self.ignore_label:
                raise self._bad_label(value)
        return counts[: self.num_classes]

    def _count(self, predicted: Tensor, label: Tensor) -> Tensor:
        """The counts for integers of any dtype; ignored pixels get a row of their own."""
        ignored = label == self.ignore_label
        low, high = torch.stack(label.masked_fill(ignored, 0).aminmax()).tolist()
        if low < 0 or high >= self.num_classes:
            raise self._bad_label(low if low < 0 else high)

        row = label.long().masked_fill(ignored, self.num_classes)
        pairs = row.mul_(self.num_classes).add_(predicted)
        counts = torch.bincount(pairs, minlength=(self.num_classes + 1) * self.num_classes)
        return counts.reshape(self.num_classes + 1, self.num_classes)[: self.num_classes]

    def _check_predicted(self, predicted: Tensor) -> None:
        # Both in one copy, for the host waits for each.
        low, high = torch.stack(predicted.aminmax()).tolist()
        if low < 0 or high >= self.num_classes:
            raise MetricsError(
                f"predicted value {low if low < 0 else high} is none of the "
                f"{self.num_classes} classes"
            )

    def _bad_label(self, value: int) -> MetricsError:
        return MetricsError(
            f"label value {value} is none of the {self.num_classes} classes nor the ignore label "
            f"{self.ignore_label}; map the label files' ids to train ids before scoring"
        )

    def merge(self, other: ConfusionMatrix) -> None:
        """Add the counts of another matrix of the same classes."""
        assert other.num_classes == self.num_classes
        self.matrix += other.matrix.to(self.matrix.device)

    def reduce(self, all_reduce: Callable[[Tensor], Tensor] | None) -> None:
        """Replace the counts by their sum over processes.

        `all_reduce` sums int64 [C, C] over them; None means a single process.
        """
        if all_reduce is None:
            return
        reduced = all_reduce(self.matrix)
        assert reduced.dtype == torch.int64 and reduced.shape == self.matrix.shape, (
            "counts are summed as int64"
        )
        self.matrix = reduced

    def numpy(self) -> np.ndarray:
        """The matrix on the host, int64 [C, C]."""
        return self.matrix.cpu().numpy()

    @property
    def counts(self) -> np.ndarray:
        """Scored pixels of each label class, int64 [C]."""
        return self.numpy().sum(axis=1)

    def iou(self) -> np.ndarray:
        """Intersection over union per class, float64 [C]; nan for an absent class."""
        return iou_of(self.numpy())

    def miou(self) -> float:
        """Mean of `iou` over the classes that are not absent; nan when all are."""
        return mean_of(self.iou())

    def absent(self) -> list[int]:
        """Indices of the classes in neither labels nor predictions: they have no score."""
        return np.flatnonzero(np.isnan(self.iou())).tolist()

    def pixel_accuracy(self) -> float:
        """Right share of the scored pixels; nan when there are none."""
        matrix = self.numpy()
        return float(divide(np.trace(matrix), matrix.sum()))

    def precision(self) -> np.ndarray:
        """Right share of what was predicted as each class, float64 [C]; nan where it never was."""
        matrix = self.numpy()
        return divide(np.diag(matrix), matrix.sum(axis=0))

    def recall(self) -> np.ndarray:
        """Found share of each class's labelled pixels, float64 [C]; nan where there are none."""
        matrix = self.numpy()
        return divide(np.diag(matrix), matrix.sum(axis=1))


def category_iou(matrix: np.ndarray | Tensor, categories: Sequence[str | None]) -> dict[str, float]:
    """IoU of groups of classes, by name in order of first appearance; {} without any category.

    `categories` names the category of each of the C classes. A pixel is right when the category of
    its label is that of its prediction, as in the Cityscapes category score. Classes without a
    category still count as mistakes.
    """
    counts = torch.as_tensor(matrix).cpu().numpy()
    assert counts.shape == (len(categories), len(categories)), (
        f"{counts.shape} for {len(categories)} classes"
    )

    # The IoU formula for a whole block of the matrix.
    scores = {}
    for name in dict.fromkeys(category for category in categories if category is not None):
        member = np.array([category == name for category in categories])
        hit = counts[np.ix_(member, member)].sum()
        scores[name] = float(divide(hit, counts[member].sum() + counts[:, member].sum() - hit))
    return scores


class ImageScores:
    """Scores that need whole label maps on the host: boundary F, and iIoU with instance maps.

    `update` may run in several threads, and the images may be shared among processes in any way:
    the scores have the same bits.
    """

    def __init__(
        self,
        *,
        names: Sequence[str],
        to_train: np.ndarray,
        categories: Sequence[str | None],
        ignore_label: int,
        with_instances: bool,
    ) -> None:
        """`to_train` uint8 [256] maps raw ids to the classes `names`, grouped by `categories`."""
        self.boundary = BoundaryF(len(names), ignore_label=ignore_label)
        self.instances: InstanceIoU | None = None
        if with_instances:
            self.instances = InstanceIoU(names=names, to_train=to_train, categories=categories)

    def update(
        self, predicted: np.ndarray, label: np.ndarray, label_path: Path | None = None
    ) -> None:
        """Add one image: train ids uint8 [H, W] of prediction and label.

        An instance map is looked for beside the label file `label_path`.

        Raises:
            MetricsError: there is none although the other labels have one, or it cannot be read.
        """
        self.boundary.update(predicted, label)
        if self.instances is None:
            return

        path = None
        if label_path is not None:
            path = instances_path(label_path)
        if path is None:
            raise MetricsError(
                f"{label_path}: has no instance map (*_instanceIds.png) beside it, which other "
                "labels of the split have"
            )
        self.instances.update(predicted, read_instances(path))

    def state(self) -> tuple[np.ndarray, np.ndarray | None]:
        """All that was added, to be gathered from every process."""
        instances = None
        if self.instances is not None:
            instances = self.instances.state()
        return self.boundary.state(), instances

    def load(self, states: Sequence[tuple[np.ndarray, Any]]) -> None:
        """Replace what was added by the `state()` of all processes."""
        self.boundary.load([state[0] for state in states])
        if self.instances is not None:
            self.instances.load([state[1] for state in states])
