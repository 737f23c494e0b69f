"""Boundary F-score: how well predicted outlines follow those of the label. Written from the definition, RELEASE 5.6."""

from __future__ import annotations

import math
from collections.abc import Iterable

import cv2
import numpy as np

from .scores import divide


def outline(mask: np.ndarray) -> np.ndarray:
    """bool [H, W]: pixels whose right, lower or lower right neighbour is on the other side of the bool `mask`."""
    edge = np.zeros(mask.shape, dtype=bool)
    edge[:, :-1] |= mask[:, :-1] != mask[:, 1:]
    edge[:-1] |= mask[:-1] != mask[1:]
    edge[:-1, :-1] |= mask[:-1, :-1] != mask[1:, 1:]
    return edge


def boundary_f(found: np.ndarray, wanted: np.ndarray, *, radius: int) -> float:
    """F of the outlines of two bool masks [H, W]; an outline pixel matches when the other outline is within `radius`.

    Precision is the matched share of the outline of `found`, recall that of `wanted`, F = 2PR / (P + R). Without any
    outline on both sides 1, on one side 0.
    """
    found_edge, wanted_edge = outline(found), outline(wanted)
    if not found_edge.any() or not wanted_edge.any():
        return float(found_edge.any() == wanted_edge.any())
    disk = _disk(radius)  # faster than a distance transform up to a radius of about 30 pixels
    precision = cv2.dilate(wanted_edge.astype(np.uint8), disk)[found_edge].mean()
    recall = cv2.dilate(found_edge.astype(np.uint8), disk)[wanted_edge].mean()
    return float(2 * precision * recall / (precision + recall)) if precision + recall else 0.0


def _disk(radius: int) -> np.ndarray:
    y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    return (y * y + x * x <= radius * radius).astype(np.uint8)


class BoundaryF:
    """Mean boundary F-score per class over the images that show it.

    The tolerance is ceil(threshold * image diagonal) pixels. Ignored pixels belong to no class, in the label and in
    the prediction. An image where neither label nor prediction has the class is skipped (RELEASE 5.6 recommends it over
    counting it as perfect).
    """

    def __init__(
        self, num_classes: int, *, ignore_label: int = 255, threshold: float = 0.008
    ) -> None:
        assert 0 < threshold < 1
        self.num_classes = num_classes
        self.ignore_label = ignore_label
        self.threshold = threshold
        self._rows: list[np.ndarray] = []

    def update(self, predicted: np.ndarray, label: np.ndarray) -> None:
        """Add one image: class ids [H, W] of prediction and label."""
        assert predicted.shape == label.shape and label.ndim == 2
        radius = math.ceil(self.threshold * math.hypot(*label.shape))
        found = np.where(label == self.ignore_label, self.ignore_label, predicted)
        row = np.full(self.num_classes, np.nan)
        for index in range(self.num_classes):
            masks = (found == index, label == index)
            box = _box(masks[0] | masks[1])
            if box is not None:
                row[index] = boundary_f(masks[0][box], masks[1][box], radius=radius)
        self._rows.append(row)

    def scores(self) -> np.ndarray:
        """Mean F per class over its images, float64 [C]; nan for a class in no image."""
        rows = self.state()
        there = ~np.isnan(rows)
        sums = [math.fsum(rows[there[:, index], index]) for index in range(self.num_classes)]
        return divide(np.array(sums), there.sum(axis=0))

    def state(self) -> np.ndarray:
        """float64 [images, C]: F per image and class, nan where skipped."""
        return np.concatenate([np.zeros((0, self.num_classes)), *(row[None] for row in self._rows)])

    def load(self, states: Iterable[np.ndarray]) -> None:
        """Replace what was added by the `state()` of all processes; sums are exact, so their order does not matter."""
        self._rows = [row for state in states for row in np.asarray(state)]


def _box(mask: np.ndarray) -> tuple[slice, slice] | None:
    """The part of the image around a class, one pixel wider so that its outline is complete; None for an empty mask."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not rows.size:
        return None
    return slice(max(rows[0] - 1, 0), rows[-1] + 2), slice(max(columns[0] - 1, 0), columns[-1] + 2)
