"""A few small pictures of an evaluation, of the same images for every run on a split.

`hmsa compare` puts those of several runs beside each other.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from torch import Tensor

from hmsa.datasets import Files
from hmsa.utils.files.image_writer import ImageWriter
from hmsa.utils.files.outputs import OutputFolder
from hmsa.utils.report.page import Picture
from hmsa.utils.report.visualise import colorize

from .pictures import ImageResult

EXAMPLES = 4  # images, evenly spread over the split


def example_indices(files: Files) -> list[int]:
    """Which images of a split with labels are kept as examples."""
    if files.labels is None:
        return []
    count = min(EXAMPLES, len(files))
    return [position * len(files) // count for position in range(count)]


def example_names(files: Files, index: int) -> dict[str, str]:
    """What a picture shows -> its file, of one image."""
    start = f"examples/{files.output_name(index)}"
    return {
        "image": f"{start}_image.jpg",
        "label": f"{start}_label.png",
        "prediction": f"{start}_prediction.png",
    }


def example_files(files: Files) -> Iterator[tuple[str, str]]:
    """(file, image) for all pictures."""
    for index in example_indices(files):
        for name in example_names(files, index).values():
            yield name, str(files.image_path(index))


class ExampleWriter:
    """Writes the pictures of those images that are examples, in the background."""

    def __init__(self, output: OutputFolder, files: Files, writer: ImageWriter) -> None:
        self.output = output
        self.files = files
        self.writer = writer
        self.indices = set(example_indices(files))

    def add(self, index: int, image: Tensor, result: ImageResult) -> None:
        """Queue one image, uint8 [3, h, w], and its result [1, H, W]; most are passed over."""
        if index in self.indices:
            self.writer.call(self._write, index, image, result.label[0].cpu().numpy())

    def _write(self, index: int, image: Tensor, predicted: np.ndarray) -> None:
        palette = self.files.spec.palette
        label = self.files.read_label(index)
        pictures = {
            "image": Picture.photo("image", image.permute(1, 2, 0).contiguous().numpy()),
            "label": Picture.drawing("label", colorize(label, palette)),
            "prediction": Picture.drawing("prediction", colorize(predicted, palette)),
        }
        for kind, name in example_names(self.files, index).items():
            self.output.write(name, pictures[kind].data)
