"""Building the class index, PNG decoding included: seconds an image on one core.

The baseline takes the centre of mass class by class and tile by tile, as the authors' release does.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from hmsa.datasets import Files
from hmsa.datasets.sampling.class_uniform import class_places
from hmsa.engine.command_line import at_least
from scripts.measuring.drawn_images import draw_files
from scripts.measuring.harness import Disagreement, numbers_of, row, size_text, time_alternately

AUTHORS = "the authors' build: 0.11 s an image, on another machine"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Sizes, and how much is drawn."""
    parser.add_argument(
        "--image",
        type=size_text("HxW"),
        default="1024x2048",
        metavar="HxW",
        help="size of the labels (default: %(default)s)",
    )
    parser.add_argument(
        "--images",
        type=at_least(1),
        default=6,
        help="labels drawn, all of them a round (default: %(default)s)",
    )
    parser.add_argument(
        "--tile", type=at_least(1), default=1024, help="side of the tiles (default: %(default)s)"
    )


def run(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """A row with our places, which are pixels of the class, and one with the release's centroids.

    The centroids must equal the baseline's.
    """
    cv2.setNumThreads(0)
    height, width = numbers_of(arguments.image)
    tile = (arguments.tile, arguments.tile)

    with tempfile.TemporaryDirectory() as folder:
        files = draw_files(Path(folder), size=(height, width), count=arguments.images)
        require_equal(files, tile)

        def index_all(point: str) -> None:
            for index in range(len(files)):
                _places(files, index, tile, point)

        # Reading alone is timed as well: it is the part that no index avoids.
        workloads = (
            lambda: index_all("pixel"),
            lambda: index_all("centroid"),
            lambda: [centroids_by_loop(files, index, tile) for index in range(len(files))],
            lambda: [files.read_label(index) for index in range(len(files))],
        )
        medians = time_alternately(workloads, rounds=arguments.rounds)
        pixel_s, centroid_s, loop_s, decoding_s = (seconds / len(files) for seconds in medians)

    size = f"{arguments.image} tile {arguments.tile}"
    rows = [
        row(name=f"index {point}", size=size, device="cpu", ours_s=ours_s, baseline_s=loop_s)
        for point, ours_s in (("pixel", pixel_s), ("centroid", centroid_s))
    ]
    rows[0]["note"] = (
        f"reading and checking the label takes {1e3 * decoding_s:.1f} ms, "
        f"{decoding_s / pixel_s:.0%} of ours; {AUTHORS}"
    )
    return rows


def _places(files: Files, index: int, tile: tuple[int, int], point: str) -> np.ndarray:
    label = files.read_label(index)
    return class_places(label, tile=tile, point=point, num_classes=files.spec.num_classes)


def centroids_by_loop(
    files: Files, index: int, tile: tuple[int, int]
) -> list[tuple[int, int, int]]:
    """(class, y, x) of every class in every whole tile.

    A mask and its mean row and column, for one class after another.
    """
    label = files.spec.to_train[np.array(Image.open(str(files.label_path(index))))]
    found = []
    for top in range(0, label.shape[0] - tile[0] + 1, tile[0]):
        for left in range(0, label.shape[1] - tile[1] + 1, tile[1]):
            part = label[top : top + tile[0], left : left + tile[1]]

            for class_id in range(files.spec.num_classes):
                y, x = np.nonzero(part == class_id)
                if len(y):
                    found.append((class_id, top + int(y.mean()), left + int(x.mean())))
    return found


def require_equal(files: Files, tile: tuple[int, int]) -> None:
    """Raise Disagreement unless our centroids are the loop's and our pixels are of their class."""
    for index in range(len(files)):
        centroids = _places(files, index, tile, "centroid")
        ours = [(int(place["class"]), int(place["y"]), int(place["x"])) for place in centroids]
        if ours != centroids_by_loop(files, index, tile):
            raise Disagreement(f"index: the centroids of label {index} differ from the loop's.")

        label = files.read_label(index)
        pixels = _places(files, index, tile, "pixel")
        if not np.array_equal(label[pixels["y"], pixels["x"]], pixels["class"]):
            raise Disagreement(f"index: a place of label {index} is no pixel of its class.")
