"""Boundary F-score: how well predicted outlines follow the outlines of the label (definition: RELEASE 5.6)."""

from __future__ import annotations

import math

import cv2
import numpy as np


def outline(mask: np.ndarray) -> np.ndarray:
    """bool [H, W]: pixels of which the right, lower or lower-right neighbour is on the other side of `mask`; one pixel wide."""
    edge = np.zeros(mask.shape, dtype=bool)
    edge[:, :-1] |= mask[:, :-1] != mask[:, 1:]
    edge[:-1] |= mask[:-1] != mask[1:]
    edge[:-1, :-1] |= mask[:-1, :-1] != mask[1:, 1:]
    return edge


def _disk(radius: int) -> np.ndarray:
    y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    return (y * y + x * x <= radius * radius).astype(np.uint8)


class BoundaryF:
    """Mean boundary F-score per class over the images that show it.

    Tolerance: ceil(threshold * image diagonal) pixels. Ignored pixels belong to no class, in the label and in the prediction. An image in
    which neither label nor prediction has the class is skipped; one in which only one of them has an outline of it scores 0.
    """

    def __init__(self, num_classes: int, *, ignore_label: int = 255, threshold: float = 0.008) -> None:
        assert 0 < threshold < 1
        self.num_classes = num_classes
        self.ignore_label = ignore_label
        self.threshold = threshold
        self.sums = np.zeros(num_classes)
        self.images = np.zeros(num_classes, dtype=np.int64)

    def update(self, predicted: np.ndarray, label: np.ndarray) -> None:
        """Add one image: class ids [H, W] of prediction and label."""
        assert predicted.shape == label.shape and label.ndim == 2
        disk = _disk(math.ceil(self.threshold * math.hypot(*label.shape)))
        valid = label != self.ignore_label
        for c in range(self.num_classes):
            wanted, found = label == c, (predicted == c) & valid
            if not wanted.any() and not found.any():
                continue
            self.sums[c] += boundary_f(found, wanted, disk)
            self.images[c] += 1

    def scores(self) -> np.ndarray:
        """Mean F per class over its images, float64 [C]; nan for a class in no image."""
        with np.errstate(invalid="ignore"):
            return np.where(self.images > 0, self.sums / self.images, np.nan)

    def state(self) -> np.ndarray:
        """Sums and image counts, float64 [2, C]; add those of all processes and give them to `load`."""
        return np.stack([self.sums, self.images.astype(np.float64)])

    def load(self, state: np.ndarray) -> None:
        """Continue from the sums of `state`."""
        self.sums, self.images = np.array(state[0]), np.array(state[1]).astype(np.int64)


def boundary_f(found: np.ndarray, wanted: np.ndarray, disk: np.ndarray) -> float:
    """F of two bool masks [H, W]: outline pixels match within `disk` (uint8, odd sides). Both outlines empty: 1, one empty: 0."""
    found_edge, wanted_edge = outline(found), outline(wanted)
    if not found_edge.any() or not wanted_edge.any():
        return float(found_edge.any() == wanted_edge.any())
    near_wanted = cv2.dilate(wanted_edge.astype(np.uint8), disk).astype(bool)
    near_found = cv2.dilate(found_edge.astype(np.uint8), disk).astype(bool)
    precision = (found_edge & near_wanted).sum() / found_edge.sum()
    recall = (wanted_edge & near_found).sum() / wanted_edge.sum()
    return float(2 * precision * recall / (precision + recall)) if precision + recall > 0 else 0.0
