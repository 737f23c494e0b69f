"""Small arithmetic that all scores share: 0 / 0 is nan, and a mean leaves nan out."""

from __future__ import annotations

import numpy as np

from ..words import UserError


class MetricsError(UserError, ValueError):
    """A label, a prediction or an instance map cannot be counted; the message names the value."""


def divide(
    part: np.ndarray | np.integer | float, whole: np.ndarray | np.integer | float
) -> np.ndarray:
    """part / whole in float64, nan where `whole` is not positive."""
    parts, wholes = np.asarray(part, dtype=np.float64), np.asarray(whole, dtype=np.float64)
    # The second `where` keeps numpy from warning of the divisions that are not used.
    positive = wholes > 0
    return np.where(positive, parts / np.where(positive, wholes, 1.0), np.nan)


def mean_of(values: np.ndarray) -> float:
    """Mean of the values that are not nan; nan when all are, without a warning."""
    scores = np.asarray(values, dtype=np.float64)
    scores = scores[~np.isnan(scores)]
    if not scores.size:
        return float("nan")
    return float(scores.mean())


def iou_of(matrix: np.ndarray) -> np.ndarray:
    """IoU per class of a confusion matrix int64 [C, C] with labels as rows, float64 [C].

    It is diagonal / (row + column - diagonal), and nan where that is 0 / 0.
    """
    hit = np.diag(matrix)
    return divide(hit, matrix.sum(axis=0) + matrix.sum(axis=1) - hit)
