"""Small arithmetic that all scores share: 0 / 0 is nan, and a mean leaves nan out."""

from __future__ import annotations

import numpy as np


class MetricsError(ValueError):
    """A label, a prediction or an instance map cannot be counted; the message names the value."""


def divide(
    part: np.ndarray | np.integer | float, whole: np.ndarray | np.integer | float
) -> np.ndarray:
    """part / whole in float64, nan where `whole` is not positive."""
    parts, wholes = np.asarray(part, dtype=np.float64), np.asarray(whole, dtype=np.float64)
    there = wholes > 0
    return np.where(there, parts / np.where(there, wholes, 1.0), np.nan)


def mean_of(values: np.ndarray) -> float:
    """Mean of the values that are not nan; nan when all are, without a warning."""
    there = np.asarray(values, dtype=np.float64)
    there = there[~np.isnan(there)]
    return float(there.mean()) if there.size else float("nan")


def iou_of(matrix: np.ndarray) -> np.ndarray:
    """IoU per class of int64 [C, C] (rows labels): diagonal / (row + column - diagonal); nan where that is 0 / 0."""
    hit = np.diag(matrix)
    return divide(hit, matrix.sum(axis=0) + matrix.sum(axis=1) - hit)
