"""Building the class index: seconds an image on one core, PNG decoding included, ours against a centre of mass class by class and tile by tile."""

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
from scripts.benchmarks.data import draw_files
from scripts.benchmarks.harness import Disagreement, row, size_text, time_alternately

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
        type=int,
        default=6,
        help="labels drawn, all of them a round (default: %(default)s)",
    )
    parser.add_argument(
        "--tile", type=int, default=1024, help="side of the tiles (default: %(default)s)"
    )


def run(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """A row with our places (pixels of the class) and one with the release's (centroids), which must equal the baseline's."""
    cv2.setNumThreads(0)
    height, width = map(int, arguments.image.split("x"))
    with tempfile.TemporaryDirectory() as folder:
        files = draw_files(Path(folder), size=(height, width), count=arguments.images)
        tile = (arguments.tile, arguments.tile)
        require_equal(files, tile)

        def ours(point: str) -> None:
            for index in range(len(files)):
                class_places(
                    files.read_label(index),
                    tile=tile,
                    point=point,
                    num_classes=files.spec.num_classes,
                )

        workloads = (
            lambda: ours("pixel"),
            lambda: ours("centroid"),
            lambda: [centroids_by_loop(files, index, tile) for index in range(len(files))],
            lambda: [files.read_label(index) for index in range(len(files))],
        )
        pixel_s, centroid_s, loop_s, decoding_s = (
            s / len(files) for s in time_alternately(workloads, rounds=arguments.rounds)
        )
    size = f"{arguments.image} tile {arguments.tile}"
    rows = [
        row(name=f"index {point}", size=size, device="cpu", ours_s=ours_s, baseline_s=loop_s)
        for point, ours_s in (("pixel", pixel_s), ("centroid", centroid_s))
    ]
    rows[0]["note"] = (
        f"reading and checking the label takes {1e3 * decoding_s:.1f} ms, {decoding_s / pixel_s:.0%} of ours; {AUTHORS}"
    )
    return rows


def centroids_by_loop(
    files: Files, index: int, tile: tuple[int, int]
) -> list[tuple[int, int, int]]:
    """(class, y, x) of every class in every whole tile: a mask and its mean row and column for one class after another."""
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
    """Our centroids are the loop's, and our pixels belong to the same classes."""
    for index in range(len(files)):
        label = files.read_label(index)
        places = class_places(
            label, tile=tile, point="centroid", num_classes=files.spec.num_classes
        )
        loop = centroids_by_loop(files, index, tile)
        if [(int(p["class"]), int(p["y"]), int(p["x"])) for p in places] != loop:
            raise Disagreement(f"index: the centroids of label {index} differ from the loop's.")
        pixels = class_places(label, tile=tile, point="pixel", num_classes=files.spec.num_classes)
        if not np.array_equal(label[pixels["y"], pixels["x"]], pixels["class"]):
            raise Disagreement(f"index: a place of label {index} is no pixel of its class.")
