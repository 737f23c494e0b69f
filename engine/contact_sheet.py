"""index.html beside predictions: small pictures of all images, with links to what was written."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath

import cv2
import numpy as np
from torch import Tensor

from hmsa.datasets import DatasetSpec, Files
from hmsa.utils.files.image_writer import ImageWriter
from hmsa.utils.processes import Processes
from hmsa.utils.report.contact_page import SheetReport, SheetTile
from hmsa.utils.report.page import Picture
from hmsa.utils.report.panels import to_width
from hmsa.utils.report.visualise import overlay

from .pictures import ImageResult

SHOWN = 400  # images with a small picture; of more, they are evenly spread
TILE_WIDTH = 256  # pixels
MAPS_OF_SCALES = ("scales", "attention")


class ContactSheet:
    """Collects a small overlay and the classes of each image that one rank predicts."""

    def __init__(self, files: Files, kinds: Sequence[str], writer: ImageWriter) -> None:
        self.files = files
        self.kinds = kinds
        self.writer = writer
        self.step = -(-len(files) // SHOWN)
        self.pixels = np.zeros(files.spec.num_classes, dtype=np.int64)
        self.pictures: dict[int, Picture] = {}
        self._lock = threading.Lock()

    def add(self, index: int, image: Tensor, result: ImageResult) -> None:
        """Queue one image, uint8 [3, h, w], and its result [1, H, W]."""
        label = result.label[0].cpu().numpy()
        self.writer.call(self._add, index, image, label)

    def _add(self, index: int, image: Tensor, label: np.ndarray) -> None:
        spec = self.files.spec
        pixels = np.bincount(label.reshape(-1), minlength=256)[: spec.num_classes]
        picture = None
        if index % self.step == 0:
            photograph = image.permute(1, 2, 0).contiguous().numpy()
            picture = Picture.photo("overlay", small_overlay(photograph, label, spec))
        with self._lock:
            self.pixels += pixels
            if picture is not None:
                self.pictures[index] = picture

    def report(
        self,
        processes: Processes,
        *,
        title: str,
        way: str,
        videos: Mapping[str, str],
        failures: Sequence[str],
    ) -> SheetReport:
        """What all ranks have collected.

        Args:
            title: of the page.
            way: how was inferred.
            videos: files that were written of videos, by the video's name.
            failures: a sentence for each image that could not be predicted.
        """
        gathered = processes.gather((self.pixels, self.pictures))
        pictures = {index: one for _, of_rank in gathered for index, one in of_rank.items()}
        tiles = [
            SheetTile(self.files.name(index), picture, self._links(index))
            for index, picture in sorted(pictures.items())
        ]
        return SheetReport(
            title=title,
            way=way,
            names=self.files.spec.names,
            colors=self.files.spec.palette,
            pixels=sum(pixels for pixels, _ in gathered),
            images=len(self.files),
            tiles=tiles,
            videos=videos,
            failures=failures,
        )

    def _links(self, index: int) -> dict[str, str]:
        """Kind -> the file that was written of an image, relative to the page."""
        name = self.files.output_name(index)
        links = {}
        for kind in self.kinds:
            if kind == "probabilities":
                links[kind] = f"{kind}/{name}.npy"
            elif kind in MAPS_OF_SCALES:
                # There is one for each scale; the folder shows them all.
                links[kind] = f"{PurePosixPath(kind, name).parent}/"
            elif kind != "video":
                links[kind] = f"{kind}/{name}.png"
        return links


def small_overlay(image: np.ndarray, label: np.ndarray, spec: DatasetSpec) -> np.ndarray:
    """Image uint8 [h, w, 3] and label uint8 [H, W], of any sizes, as a small overlay."""
    width = min(TILE_WIDTH, image.shape[1])
    photograph = to_width(image, width)
    height = photograph.shape[0]
    small = cv2.resize(label, (width, height), interpolation=cv2.INTER_NEAREST)
    return overlay(photograph, small, spec.palette, ignore_label=spec.ignore_label)
