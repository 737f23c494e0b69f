"""Where each class occurs, so that crops can be drawn class by class.

One place for each image, tile and class, found once and kept. The rule is that of the authors' code
(docs/release_notes.md, class-uniform sampling).
"""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from ..errors import DataError
from ..files import Files
from ..reading.builders import spread
from ..reading.stored import built_whole, cache_folder, identity, sole_builder

_VERSION = 1  # raise it when the same labels would give another index

PLACE = np.dtype([("image", np.int32), ("class", np.int16), ("y", np.int32), ("x", np.int32)])
POINTS = ("pixel", "centroid")


@dataclass(frozen=True)
class ClassIndex:
    """Places of every class.

    Attributes:
        places: PLACE [P], sorted by class, image and tile.
        bounds: int64 [C + 1]; class c has places[bounds[c] : bounds[c + 1]].
    """

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
    """The class index of `files`, from `cache_dir` if it was built of just these sources.

    Ignored pixels, also those that a confidence threshold or policy ignores, give no place.

    Args:
        files: the images and labels.
        tile: side of a tile in pixels, or height and width. What remains at the right and the
            bottom are tiles, too, and an image smaller than a tile is one.
        point: "pixel": the place is the pixel of the class nearest to the class's centre of mass in
            the tile. "centroid" is the rule of the authors' code instead: the truncated centre of
            mass, which may lie outside the class, of whole tiles only.
        cache_dir: where the index is kept; by default as in `cache_folder`.
        workers: processes that read labels.

    Raises:
        DataError: faulty label, bad parameter, cache folder that cannot be written.
    """
    size = tile
    if isinstance(size, int):
        size = (size, size)
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
    name = f"class_index-{identity(files, images=False, settings=settings)}.npz"
    path = cache_folder(cache_dir, root=files.root) / name
    # Ranks that start together build it once.
    with sole_builder(path):
        found = _load(path)
        if found is None:
            found = _index_files(files, size, point, workers)
            with built_whole(path) as temporary, open(temporary, "wb") as file:
                np.savez(file, places=found.places, bounds=found.bounds)
    return found


def _load(path: Path) -> ClassIndex | None:
    """The index in `path`, None if there is none or it is damaged."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            return ClassIndex(places=stored["places"], bounds=stored["bounds"])
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def _index_files(files: Files, tile: tuple[int, int], point: str, workers: int) -> ClassIndex:
    task = partial(_places_of_file, files, tile, point)
    found = spread(task, range(len(files)), workers=workers, title="class index")
    places = np.concatenate([np.empty(0, dtype=PLACE), *found])

    # A stable sort keeps images and tiles in order within each class.
    places = places[np.argsort(places["class"], kind="stable")]
    bounds = np.searchsorted(places["class"], np.arange(files.spec.num_classes + 1))
    return ClassIndex(places=places, bounds=bounds)


def _places_of_file(files: Files, tile: tuple[int, int], point: str, index: int) -> np.ndarray:
    places = class_places(
        files.read_label(index), tile=tile, point=point, num_classes=files.spec.num_classes
    )
    places["image"] = index
    return places


def class_places(
    label: np.ndarray, *, tile: tuple[int, int], point: str, num_classes: int
) -> np.ndarray:
    """Places of the classes in one label.

    Works on runs, stretches of equal label in a row of a tile: some ten thousand in a street scene
    of two million pixels, each of which gives its count and its sums of coordinates in closed form.
    Sums of integers in float64 are exact here.

    Args:
        label: train ids, uint8 [H, W].
        tile: height and width of a tile in pixels.
        point: as in `build_class_index`.
        num_classes: C; values from C on are ignored.

    Returns:
        PLACE [P] by tile (row by row), then class; `image` is left 0.
    """
    if point == "centroid":
        label = label[: label.shape[0] // tile[0] * tile[0], : label.shape[1] // tile[1] * tile[1]]
    if not label.size:
        return np.empty(0, dtype=PLACE)

    # A group is a class in a tile; `found` are those that occur.
    y, x, length, value = _runs(label, tile[1], num_classes)
    tiles_per_row = (label.shape[1] + tile[1] - 1) // tile[1]
    tile_y, tile_x = y // tile[0], x // tile[1]
    group = (tile_y * tiles_per_row + tile_x) * num_classes + value
    pixels = np.bincount(group, weights=length)
    found = np.flatnonzero(pixels)
    tiles, classes = np.divmod(found, num_classes)

    # Centre of mass of each group, from the top left of its tile. The columns of a run from x sum
    # up to length * (2 x + length - 1) / 2.
    row_sums = np.bincount(group, weights=length * (y - tile_y * tile[0]))
    column_sums = np.bincount(group, weights=length * (2 * (x - tile_x * tile[1]) + length - 1))
    centre_y = row_sums[found] / pixels[found]
    centre_x = column_sums[found] / (2 * pixels[found])
    top, left = (tiles // tiles_per_row) * tile[0], (tiles % tiles_per_row) * tile[1]

    places = np.zeros(len(found), dtype=PLACE)
    places["class"] = classes
    if point == "centroid":
        places["y"] = top + centre_y.astype(np.int64)
        places["x"] = left + centre_x.astype(np.int64)
        return places

    # The pixel of each run that is nearest to the centre of the run's group.
    number_of_group = np.empty(len(pixels), dtype=np.int64)
    number_of_group[found] = np.arange(len(found))
    number = number_of_group[group]
    aim_y, aim_x = (top + centre_y)[number], (left + centre_x)[number]
    nearest_x = np.clip(np.rint(aim_x).astype(np.int64), x, x + length - 1)
    distance = (y - aim_y) ** 2 + (nearest_x - aim_x) ** 2

    # The nearest run of each group; of equally near ones the first in reading order, which stays
    # because it is written last.
    least = np.full(len(found), np.inf)
    np.minimum.at(least, number, distance)
    nearest = np.flatnonzero(distance == least[number])[::-1]
    chosen = np.empty(len(found), dtype=np.int64)
    chosen[number[nearest]] = nearest
    places["y"], places["x"] = y[chosen], nearest_x[chosen]
    return places


def _runs(
    label: np.ndarray, tile_width: int, num_classes: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Row, first column, length and class of every run, int64 [R] each, in reading order.

    Runs end at tile borders; those of ignored pixels are left out.
    """
    # A run begins where the value changes, and at every tile border.
    height, width = label.shape
    begins = np.ones((height, width), dtype=bool)
    np.not_equal(label[:, 1:], label[:, :-1], out=begins[:, 1:])
    begins[:, ::tile_width] = True

    first = np.flatnonzero(begins)
    length = np.diff(first, append=label.size)
    value = label.reshape(-1)[first].astype(np.int64)
    is_class = value < num_classes
    first, length, value = first[is_class], length[is_class], value[is_class]
    y, x = np.divmod(first, width)
    return y, x, length, value
