"""Boundary F-score: how well predicted outlines follow those of the label.

Written from the definition in Csurka et al., "What is a good evaluation measure for semantic
segmentation?" (BMVC 2013); see docs/release_notes.md, boundary F-score.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import cv2
import numpy as np

from .scores import divide


def outline(mask: np.ndarray) -> np.ndarray:
    """bool [H, W]: pixels of `mask` whose right, lower or lower right neighbour differs."""
    edge = np.zeros(mask.shape, dtype=bool)
    edge[:, :-1] |= mask[:, :-1] != mask[:, 1:]
    edge[:-1] |= mask[:-1] != mask[1:]
    edge[:-1, :-1] |= mask[:-1, :-1] != mask[1:, 1:]
    return edge


def boundary_f(found: np.ndarray, wanted: np.ndarray, *, radius: int) -> float:
    """F of the outlines of two bool masks [H, W]: of the prediction and of the label.

    An outline pixel matches when the other outline is within `radius` pixels. Precision is the
    matched share of the outline of `found`, recall that of `wanted`, and F = 2PR / (P + R). It is 1
    when neither has an outline, and 0 when only one has.
    """
    # Without any outline precision and recall would be 0 / 0.
    found_edge, wanted_edge = outline(found), outline(wanted)
    if not found_edge.any() or not wanted_edge.any():
        return float(found_edge.any() == wanted_edge.any())

    # Dilation is faster than a distance transform up to a radius of about 30 pixels.
    disk = _disk(radius)
    precision = cv2.dilate(wanted_edge.astype(np.uint8), disk)[found_edge].mean()
    recall = cv2.dilate(found_edge.astype(np.uint8), disk)[wanted_edge].mean()
    if precision + recall == 0:
        return 0.0
    return float(2 * precision * recall / (precision + recall))


def _disk(radius: int) -> np.ndarray:
    y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    return (y * y + x * x <= radius * radius).astype(np.uint8)


class BoundaryF:
    """Mean boundary F-score per class over the images that show it.

    The tolerance is ceil(threshold * image diagonal) pixels. Ignored pixels belong to no class, in
    the label and in the prediction. An image where neither label nor prediction has the class is
    skipped, rather than counted as perfect.
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
            found_mask, wanted_mask = found == index, label == index
            # Most classes fill a small part of an image, and dilation costs by area.
            box = _bounding_box(found_mask | wanted_mask)
            if box is not None:
                row[index] = boundary_f(found_mask[box], wanted_mask[box], radius=radius)
        self._rows.append(row)

    def scores(self) -> np.ndarray:
        """Mean F per class over its images, float64 [C]; nan for a class in no image."""
        rows = self.state()
        # Exact sums, so that the order of the images does not show in the last bit.
        scored = ~np.isnan(rows)
        sums = [math.fsum(rows[scored[:, index], index]) for index in range(self.num_classes)]
        return divide(np.array(sums), scored.sum(axis=0))

    def state(self) -> np.ndarray:
        """float64 [images, C]: F per image and class, nan where skipped."""
        return np.concatenate([np.zeros((0, self.num_classes)), *(row[None] for row in self._rows)])

    def load(self, states: Iterable[np.ndarray]) -> None:
        """Replace what was added by the `state()` of all processes.

        Sums are exact, so that the order of the states does not matter.
        """
        self._rows = [row for state in states for row in np.asarray(state)]


def _bounding_box(mask: np.ndarray) -> tuple[slice, slice] | None:
    """The rows and columns that a mask fills, or None for an empty mask.

    The box is one pixel wider than the mask, so that the outline in it is complete.
    """
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not rows.size:
        return None
    return slice(max(rows[0] - 1, 0), rows[-1] + 2), slice(max(columns[0] - 1, 0), columns[-1] + 2)
