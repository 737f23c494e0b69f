"""Where each class occurs: one place per image, tile and class, found once, so that crops can be drawn class by class (RELEASE 1.4)."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from ..errors import DataError
from ..files import Files
from ..reading.stored import cache_folder, identity, sole_builder, spread, written_whole

_VERSION = 1  # raise it when the same labels would give another index

PLACE = np.dtype([("image", np.int32), ("class", np.int16), ("y", np.int32), ("x", np.int32)])
POINTS = ("pixel", "centroid")


@dataclass(frozen=True)
class ClassIndex:
    """Places of every class: `places` PLACE [P] sorted by class, image, tile; class c has places[bounds[c] : bounds[c + 1]]."""

    places: np.ndarray
    bounds: np.ndarray

    @property
    def num_classes(self) -> int:
        """How many classes there are, those without a place included."""
        return len(self.bounds) - 1

    def pool(self, class_id: int) -> np.ndarray:
        """The places of one class, PLACE [P]; empty where the class does not occur."""
        return self.places[self.bounds[class_id] : self.bounds[class_id + 1]]

    def counts(self) -> np.ndarray:
        """Number of places of each class, int64 [C]."""
        return np.diff(self.bounds)


def build_class_index(
    files: Files,
    *,
    tile: int | tuple[int, int] = 1024,
    point: str = "pixel",
    cache_dir: str | Path | None = None,
    workers: int = 1,
) -> ClassIndex:
    """The class index of `files`, from `cache_dir` if labels, reading and parameters are those it was built with.

    Images are cut into tiles of `tile` pixels (or height and width); what remains at the right and the bottom are tiles too, and an image smaller
    than a tile is one. `point="pixel"`: the place is the pixel of the class nearest to the class's centre of mass in the tile. `point="centroid"`
    is the release's rule instead: the truncated centre of mass, which may lie outside the class, of whole tiles only. Ignored pixels (also those
    that a confidence threshold or policy ignores) give no place. DataError: faulty label, bad parameter, cache folder that cannot be written.
    """
    size = (tile, tile) if isinstance(tile, int) else (tile[0], tile[1])
    if min(size) < 1:
        raise DataError(f"data.class_uniform.tile must be at least 1 pixel, not {tile}")
    if point not in POINTS:
        raise DataError(f"data.class_uniform.point must be {' or '.join(POINTS)}, not '{point}'")
    files.require_labels()
    settings = {
        "version": _VERSION,
        "kind": "class_index",
        "tile": size,
        "point": point,
        "classes": files.spec.num_classes,
    }
    path = (
        cache_folder(cache_dir, root=files.root)
        / f"class_index-{identity(files, images=False, settings=settings)}.npz"
    )
    with sole_builder(path):
        found = _load(path)
        if found is None:
            found = _join(files, size, point, workers)
            with written_whole(path) as temporary, open(temporary, "wb") as file:
                np.savez(file, places=found.places, bounds=found.bounds)
    return found


def _load(path: Path) -> ClassIndex | None:
    """The index in `path`, None if there is none or it is damaged."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            return ClassIndex(places=stored["places"], bounds=stored["bounds"])
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def _join(files: Files, tile: tuple[int, int], point: str, workers: int) -> ClassIndex:
    task = partial(_places_of_file, files, tile, point)
    places = np.concatenate(
        [
            np.empty(0, dtype=PLACE),
            *spread(task, range(len(files)), workers=workers, title="class index"),
        ]
    )
    order = np.argsort(places["class"], kind="stable")
    bounds = np.searchsorted(places["class"][order], np.arange(files.spec.num_classes + 1))
    return ClassIndex(places=places[order], bounds=bounds)


def _places_of_file(files: Files, tile: tuple[int, int], point: str, index: int) -> np.ndarray:
    places = class_places(
        files.read_label(index), tile=tile, point=point, num_classes=files.spec.num_classes
    )
    places["image"] = index
    return places


def class_places(
    label: np.ndarray, *, tile: tuple[int, int], point: str, num_classes: int
) -> np.ndarray:
    """Places of the classes in one label uint8 [H, W], PLACE [P] in tile order (row by row), then class order; `image` is left 0.

    Works on runs, stretches of equal label in a row of a tile: some ten thousand in a street scene of two million pixels, each of which gives its
    count and its sums of coordinates in closed form. Sums of integers in float64 are exact here.
    """
    if point == "centroid":
        label = label[: label.shape[0] // tile[0] * tile[0], : label.shape[1] // tile[1] * tile[1]]
    if not label.size:
        return np.empty(0, dtype=PLACE)
    y, x, length, value = _runs(label, tile[1], num_classes)
    tiles_per_row = -(-label.shape[1] // tile[1])
    tile_y, tile_x = y // tile[0], x // tile[1]
    group = (tile_y * tiles_per_row + tile_x) * num_classes + value
    pixels = np.bincount(group, weights=length)
    found = np.flatnonzero(pixels)
    counted = pixels[found]
    tiles, classes = np.divmod(found, num_classes)
    top, left = (tiles // tiles_per_row) * tile[0], (tiles % tiles_per_row) * tile[1]
    centre_y = np.bincount(group, weights=length * (y - tile_y * tile[0]))[found] / counted
    centre_x = np.bincount(group, weights=length * (2 * (x - tile_x * tile[1]) + length - 1))[
        found
    ] / (2 * counted)
    places = np.zeros(len(found), dtype=PLACE)
    places["class"] = classes
    if point == "centroid":
        places["y"], places["x"] = top + centre_y.astype(np.int64), left + centre_x.astype(np.int64)
        return places
    order = np.empty(len(pixels), dtype=np.int64)
    order[found] = np.arange(len(found))
    place = order[group]  # of each run
    aim_y, aim_x = (top + centre_y)[place], (left + centre_x)[place]
    nearest_x = np.clip(np.rint(aim_x).astype(np.int64), x, x + length - 1)
    distance = (y - aim_y) ** 2 + (nearest_x - aim_x) ** 2
    least = np.full(len(found), np.inf)
    np.minimum.at(least, place, distance)
    nearest = np.flatnonzero(distance == least[place])
    chosen = np.empty(len(found), dtype=np.int64)
    chosen[place[nearest[::-1]]] = nearest[
        ::-1
    ]  # of equally near runs the first in reading order, as it is written last
    places["y"], places["x"] = y[chosen], nearest_x[chosen]
    return places


def _runs(
    label: np.ndarray, tile_width: int, num_classes: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Row, first column, length and class of every run, int64 [R] each, in reading order; runs end at tile borders; ignored ones left out."""
    height, width = label.shape
    begins = np.ones((height, width), dtype=bool)
    np.not_equal(label[:, 1:], label[:, :-1], out=begins[:, 1:])
    begins[:, ::tile_width] = True
    first = np.flatnonzero(begins)
    length = np.diff(first, append=label.size)
    value = label.reshape(-1)[first].astype(np.int64)
    classes = value < num_classes
    first, length, value = first[classes], length[classes], value[classes]
    y, x = np.divmod(first, width)
    return y, x, length, value
