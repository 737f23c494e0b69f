"""Coarse labels as people draw them.

Polygons of few corners inside objects, thin things left out, now and then a mistake.
"""

from __future__ import annotations

from collections.abc import Mapping

import cv2
import numpy as np
from numpy.typing import NDArray

from scripts.demo_scenes import ids

CONFUSED = {  # what an annotator in a hurry takes for what
    ids.BUS: ids.TRAIN,
    ids.TRAIN: ids.BUS,
    ids.TRUCK: ids.BUS,
    ids.WALL: ids.BUILDING,
    ids.FENCE: ids.WALL,
    ids.TERRAIN: ids.VEGETATION,
    ids.SIDEWALK: ids.ROAD,
    ids.RIDER: ids.PERSON,
    ids.MOTORCYCLE: ids.BICYCLE,
}
CONFUSION, FORGOTTEN = 0.1, 0.18  # probability per polygon

AreaPolygon = tuple[float, int, NDArray[np.int32]]  # area in pixels, value to draw, corners


def draw_coarse(scene_ids: NDArray[np.uint16], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Coarse raw label ids [h, w] of a scene's ids [h, w]; 0 where nobody drew."""
    height, width = scene_ids.shape
    unit = height / 256
    coarse = np.zeros((height, width), np.uint8)

    # The polygons of every object or surface.
    polygons: list[AreaPolygon] = []
    for value in np.unique(scene_ids):
        raw_id = int(value)
        if value >= 1000:
            raw_id = int(value) // 1000
        if raw_id in ids.TRAIN_IDS:
            mask = np.asarray(scene_ids == value, np.uint8)
            polygons += [(area, raw_id, polygon) for area, polygon in _polygons(mask, unit, rng)]

    _fill(coarse, polygons, rng, CONFUSED)
    return coarse


def coarsened(
    label: NDArray[np.uint8],
    rng: np.random.Generator,
    *,
    num_classes: int,
    ignore: int,
    confused: Mapping[int, int],
) -> NDArray[np.uint8]:
    """A coarse label [h, w] made of a fine one of any data set; `ignore` where nobody drew.

    Where objects touch others of their class, they are drawn as one. `confused` says what each
    class is taken for now and then.
    """
    unit = label.shape[0] / 256
    coarse = np.full(label.shape, ignore, np.uint8)

    polygons: list[AreaPolygon] = []
    for value in range(num_classes):
        mask = np.asarray(label == value, np.uint8)
        if mask.any():
            polygons += [(area, value, polygon) for area, polygon in _polygons(mask, unit, rng)]

    _fill(coarse, polygons, rng, confused)
    return coarse


def _fill(
    coarse: NDArray[np.uint8],
    polygons: list[AreaPolygon],
    rng: np.random.Generator,
    confused: Mapping[int, int],
) -> None:
    """Draw polygons into `coarse`, but for the forgotten ones."""
    # Large ones first, so that small ones lie on top; some are forgotten, some confused.
    for _, value, polygon in sorted(polygons, key=lambda item: -item[0]):
        if rng.random() < FORGOTTEN:
            continue
        drawn = value
        if rng.random() < CONFUSION:
            drawn = confused.get(value, value)
        cv2.fillPoly(coarse, [polygon], drawn)


def _polygons(
    mask: NDArray[np.uint8], unit: float, rng: np.random.Generator
) -> list[tuple[float, NDArray[np.int32]]]:
    """Area and polygon of each part of a mask worth drawing, shrunk away from its border."""
    padded = cv2.copyMakeBorder(mask, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    depth = cv2.distanceTransform(padded, cv2.DIST_L2, 3)[1:-1, 1:-1]
    margin = unit * float(rng.uniform(2.0, 4.0))
    inner = np.asarray(depth > min(margin, 0.5 * float(depth.max())), np.uint8)

    found: list[tuple[float, NDArray[np.int32]]] = []
    for contour in cv2.findContours(inner, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)[0]:
        area = float(cv2.contourArea(contour))
        # The side of a square with this area and outline.
        thick = 4 * area / (cv2.arcLength(contour, True) + 1e-6)
        if area < 60 * unit**2 or (thick < 5 * unit and rng.random() < 0.9):
            continue

        corners = cv2.approxPolyDP(contour, unit * float(rng.uniform(2.0, 4.0)), True)[:, 0]
        if len(corners) >= 3:
            shaken = corners + rng.normal(0, 0.8 * unit, corners.shape)
            found.append((area, np.round(shaken).astype(np.int32)))
    return found
