"""Predictions as a benchmark wants them handed in: raw ids, official names, checked, zipped.

Cityscapes (RELEASE 5.3): 8-bit grey PNG of raw ids, one per image, CITY_SEQUENCE_FRAME*.png, at the image's size; 1525
images in test, 500 in val. Mapillary Vistas: 8-bit grey PNG of the ids of its configuration, named as the image. Any
other data set: raw ids under the image's own name and folders.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from ..files.png import ImageWriteError, is_temporary, write_file_with

# Images of the official splits; another number is a part, which the server refuses.
OFFICIAL_COUNTS = {
    ("cityscapes", "test"): 1525,
    ("cityscapes", "val"): 500,
    ("mapillary", "test"): 5000,
}
_CITYSCAPES_NAME = re.compile(r"[^_/]+_\d{6}_\d{6}")
_TIMESTAMP = (1980, 1, 1, 0, 0, 0)  # the same predictions make the same bytes
_PROBLEMS_SHOWN = 20


class SubmissionError(ValueError):
    """Predictions cannot be handed in; the message names the file and what is wrong with it."""


@dataclass(frozen=True)
class Submission:
    """The folder of predictions for one split of `benchmark`: "cityscapes", "mapillary", or another name."""

    folder: Path
    benchmark: str
    split: str
    to_raw: np.ndarray
    raw_ids: Sequence[int]
    """`to_raw` uint8 [256] maps train ids to what the files hold; `raw_ids` are the only values they may hold."""

    def file_name(self, name: str) -> str:
        """The official file name for the image called `name` (with its folders, without suffix). SubmissionError."""
        stem = PurePosixPath(name).name
        if self.benchmark == "cityscapes":
            found = _CITYSCAPES_NAME.match(stem)
            if found is None:
                raise SubmissionError(
                    f"{name}: is no Cityscapes name; expected CITY_123456_123456, as the server does"
                )
            return f"{found.group()}_labelIds.png"
        if self.benchmark == "mapillary":
            return f"{stem}.png"
        return f"{name}.png"

    def path(self, name: str) -> Path:
        """Where the prediction for the image called `name` lies."""
        return self.folder / self.file_name(name)

    def encode(self, predicted: np.ndarray) -> np.ndarray:
        """Raw ids uint8 [H, W] of predicted train ids [H, W], to be written as grey PNG."""
        return np.asarray(self.to_raw, dtype=np.uint8)[predicted]

    def problems(self, images: Mapping[str, Path | tuple[int, int]]) -> list[str]:
        """One sentence for everything the server would refuse, sorted by file; empty when all is well.

        `images` maps the name of every image of the split to its file, or to its (height, width).
        """
        expected: dict[str, str] = {}
        found: list[str] = []
        for name in images:
            file = self.file_name(name)
            if file in expected:
                found.append(f"{file}: stands for both '{expected[file]}' and '{name}'")
            expected[file] = name
        files = [
            path for path in self.folder.rglob("*") if path.is_file() and not is_temporary(path)
        ]
        there = {path.relative_to(self.folder).as_posix() for path in files}
        found += [
            f"{file}: is not the prediction of any of the {len(images)} images"
            for file in there - set(expected)
        ]
        for file, name in expected.items():
            if file not in there:
                found.append(f"{file}: is missing (image '{name}')")
            else:
                found += [
                    f"{file}: {fault}" for fault in self._faults(self.folder / file, images[name])
                ]
        return sorted(found)

    def _faults(self, path: Path, image: Path | tuple[int, int]) -> list[str]:
        try:
            with Image.open(path) as picture:
                if picture.format != "PNG" or picture.mode != "L":
                    return [
                        f"is {picture.format} of mode {picture.mode} where 8-bit grey PNG is wanted"
                    ]
                ids = np.array(picture)
        except (OSError, SyntaxError) as error:
            return [f"cannot be read ({error})"]
        faults = []
        height, width = image if isinstance(image, tuple) else _size_of(image)
        if ids.shape != (height, width):
            faults.append(
                f"is {ids.shape[0]} x {ids.shape[1]} where the image is {height} x {width} (height x width)"
            )
        strange = np.setdiff1d(np.unique(ids), np.asarray(list(self.raw_ids)))
        if strange.size:
            named = ", ".join(str(value) for value in strange[:5])
            faults.append(f"holds the value {named}, which is the raw id of no scored class")
        return faults

    def note(self, count: int) -> str | None:
        """A sentence when `count` images are not the whole official split: such a file is refused, or not comparable."""
        official = OFFICIAL_COUNTS.get((self.benchmark, self.split))
        if official is None or official == count:
            return None
        return (
            f"{count} images, where the official {self.benchmark} {self.split} split has {official}"
        )

    def zip(self, target: Path, images: Mapping[str, Path | tuple[int, int]]) -> str | None:
        """Check everything, then write `target` whole or not at all; returns `note`, raises SubmissionError.

        Outside `folder` or inside, `target` is not part of what is checked or packed.
        """
        target.unlink(missing_ok=True)
        problems = self.problems(images)
        if problems:
            shown = "; ".join(problems[:_PROBLEMS_SHOWN])
            more = (
                f"; and {len(problems) - _PROBLEMS_SHOWN} more"
                if len(problems) > _PROBLEMS_SHOWN
                else ""
            )
            raise SubmissionError(f"{self.folder}: cannot be handed in: {shown}{more}")
        files = sorted(self.file_name(name) for name in images)

        def pack(temporary: Path) -> None:
            with zipfile.ZipFile(
                temporary, "w", zipfile.ZIP_STORED
            ) as archive:  # PNG is compressed already
                for file in files:
                    archive.writestr(
                        zipfile.ZipInfo(file, _TIMESTAMP), (self.folder / file).read_bytes()
                    )

        try:
            write_file_with(target, pack)
        except ImageWriteError as error:
            raise SubmissionError(str(error)) from error
        return self.note(len(images))


def _size_of(path: Path) -> tuple[int, int]:
    """(height, width) from the header of an image file."""
    try:
        with Image.open(path) as picture:
            return picture.height, picture.width
    except (OSError, SyntaxError) as error:
        raise SubmissionError(f"{path}: cannot be read ({error})") from error
