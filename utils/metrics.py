"""What a prediction is worth: one confusion matrix counted in int64 on the device, and the scores read from it.

Every score is a fraction. A class that is neither in the labels nor predicted has no score: it is nan, listed by `absent()` and left out of
every mean.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from .boundary_f import BoundaryF
from .instance_iou import CITYSCAPES_AVERAGE_SIZES, InstanceIoU

__all__ = ["CITYSCAPES_AVERAGE_SIZES", "BoundaryF", "ConfusionMatrix", "InstanceIoU", "MetricsError", "category_iou"]


class MetricsError(ValueError):
    """A label or a prediction cannot be counted; the message names the value."""


class ConfusionMatrix:
    """Counts of pixels by (label, predicted), kept as int64 [C, C] on `device`; rows are labels.

    Pixels labelled `ignore_label` are not counted. Integer sums commute, so the matrix is the same, bit for bit, for any order of the
    images, any batching and any number of processes.
    """

    def __init__(self, num_classes: int, ignore_label: int = 255, device: torch.device | str = "cpu") -> None:
        assert num_classes > 0 and not 0 <= ignore_label < num_classes, f"{ignore_label} is one of the {num_classes} classes"
        self.num_classes = num_classes
        self.ignore_label = ignore_label
        self.matrix = torch.zeros(num_classes, num_classes, dtype=torch.int64, device=device)

    def update(self, predicted: Tensor, label: Tensor) -> None:
        """Count the pixels of two integer tensors of one shape (uint8 is fastest).

        Raises MetricsError naming the value where a label is neither a class nor `ignore_label`, or a prediction is no class.
        """
        assert predicted.shape == label.shape, f"predicted {tuple(predicted.shape)} against label {tuple(label.shape)}"
        predicted, label = predicted.to(self.matrix.device).reshape(-1), label.to(self.matrix.device).reshape(-1)
        counted = label != self.ignore_label
        predicted, label = predicted[counted].long(), label[counted].long()
        if label.numel() == 0:
            return
        self._check(label, "label")
        self._check(predicted, "predicted")
        pairs = torch.bincount(label * self.num_classes + predicted, minlength=self.num_classes**2)
        self.matrix += pairs.reshape(self.num_classes, self.num_classes)

    def _check(self, values: Tensor, what: str) -> None:
        low, high = (int(value) for value in values.aminmax())
        wrong = low if low < 0 else high
        if low < 0 or high >= self.num_classes:
            ignored = f" nor the ignore label {self.ignore_label}" if what == "label" else ""
            raise MetricsError(f"{what} value {wrong} is none of the {self.num_classes} classes{ignored}: are the ids mapped to train ids?")

    def merge(self, other: ConfusionMatrix) -> None:
        """Add the counts of another matrix of the same classes."""
        assert other.num_classes == self.num_classes
        self.matrix += other.matrix.to(self.matrix.device)

    def reduce(self, all_reduce: Callable[[Tensor], Tensor] | None) -> None:
        """Replace the counts by their sum over processes: `all_reduce` takes and returns int64 [C, C]; None leaves them as they are."""
        if all_reduce is not None:
            self.matrix = all_reduce(self.matrix)
            assert self.matrix.dtype == torch.int64, "counts must be summed as int64"

    @property
    def counts(self) -> np.ndarray:
        """Scored pixels per label class, int64 [C]."""
        return self.numpy().sum(axis=1)

    def numpy(self) -> np.ndarray:
        """The matrix on the host, int64 [C, C]."""
        return self.matrix.cpu().numpy()

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
        """Share of the scored pixels that are right."""
        matrix = self.numpy()
        total = int(matrix.sum())
        return int(np.trace(matrix)) / total if total else float("nan")

    def precision(self) -> np.ndarray:
        """Right share of what was predicted as each class, float64 [C]; nan where it never was."""
        matrix = self.numpy()
        return _divide(np.diag(matrix), matrix.sum(axis=0))

    def recall(self) -> np.ndarray:
        """Found share of each label class, float64 [C]; nan where the labels have none."""
        matrix = self.numpy()
        return _divide(np.diag(matrix), matrix.sum(axis=1))


def _divide(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(whole > 0, part / whole, np.nan)


def iou_of(matrix: np.ndarray) -> np.ndarray:
    """IoU per class of an int64 [C, C] confusion matrix (rows labels): diagonal / (row + column - diagonal), nan where that is 0 / 0."""
    hit = np.diag(matrix)
    return _divide(hit, matrix.sum(axis=0) + matrix.sum(axis=1) - hit)


def mean_of(values: np.ndarray) -> float:
    """Mean of the values that are not nan; nan (without a warning) when all are."""
    there = values[~np.isnan(values)]
    return float(there.mean()) if there.size else float("nan")


def category_iou(matrix: np.ndarray | Tensor, categories: Sequence[str | None]) -> dict[str, float]:
    """IoU of the groups of classes named in `categories` (one name or None per class), in order of first appearance; {} without names.

    A pixel is right when label and prediction share the category (the Cityscapes category score, RELEASE 5.3). Classes without a category
    still count as mistakes of the others.
    """
    counts = matrix.cpu().numpy() if isinstance(matrix, Tensor) else np.asarray(matrix)
    assert counts.shape == (len(categories), len(categories)), f"{counts.shape} for {len(categories)} classes"
    scores = {}
    for name in dict.fromkeys(category for category in categories if category is not None):
        member = np.array([category == name for category in categories])
        hit = counts[np.ix_(member, member)].sum()
        scores[name] = float(_divide(hit, counts[member].sum() + counts[:, member].sum() - hit))
    return scores
