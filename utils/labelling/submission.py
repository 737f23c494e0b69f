"""Predictions as a benchmark wants them handed in: raw ids, official names, checked, zipped.

Cityscapes (https://www.cityscapes-dataset.com/submit/): 8-bit grey PNG of raw ids, one for each
image, CITY_SEQUENCE_FRAME*.png, at the size of the image; 1525 images in test, 500 in val.
Mapillary Vistas: 8-bit grey PNG of the ids of its configuration, named as the image. Any other data
set: raw ids under the name and the folders of the image.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from ..files.outputs import inside
from ..files.writing import WriteError, is_temporary, write_file_with
from ..words import UserError

# Images of the official splits; another number is a part of the split, which the server refuses.
OFFICIAL_COUNTS = {
    ("cityscapes", "test"): 1525,
    ("cityscapes", "val"): 500,
    ("mapillary", "test"): 5000,
}
_CITYSCAPES_NAME = re.compile(r"[^_/]+_\d{6}_\d{6}")
_TIMESTAMP = (1980, 1, 1, 0, 0, 0)  # the same predictions make the same bytes
_PROBLEMS_SHOWN = 20


class SubmissionError(UserError, ValueError):
    """Predictions cannot be handed in; the message names the file and what is wrong with it."""


@dataclass(frozen=True)
class Submission:
    """The folder of predictions for one split of a benchmark."""

    folder: Path
    benchmark: str
    """"cityscapes", "mapillary", or another name."""
    split: str
    to_raw: np.ndarray
    """uint8 [256], from train ids to what the files hold."""
    raw_ids: Sequence[int]
    """The only values that the files may hold."""

    def file_name(self, name: str) -> str:
        """The official file name for an image.

        Args:
            name: of the image, with its folders, without its suffix.

        Raises:
            SubmissionError: the benchmark has no such name.
        """
        stem = PurePosixPath(name).name
        if self.benchmark == "cityscapes":
            found = _CITYSCAPES_NAME.match(stem)
            if found is None:
                raise SubmissionError(
                    f"{name}: is no Cityscapes name; expected CITY_123456_123456, as the server "
                    "does"
                )
            return f"{found.group()}_labelIds.png"

        if self.benchmark == "mapillary":
            return f"{stem}.png"
        return f"{name}.png"

    def path(self, name: str) -> Path:
        """Where the prediction for the image called `name` lies, surely inside the folder."""
        return inside(self.folder, self.file_name(name))

    def encode(self, predicted: np.ndarray) -> np.ndarray:
        """Raw ids uint8 [H, W] of predicted train ids [H, W], to be written as grey PNG."""
        return np.asarray(self.to_raw, dtype=np.uint8)[predicted]

    def problems(
        self, images: Mapping[str, Path | tuple[int, int]], *, archive: Path | None = None
    ) -> list[str]:
        """One sentence for everything that the server would refuse, sorted by file.

        Args:
            images: the name of every image of the split, with its file or its (height, width).
            archive: the zip file, which may lie in the folder and is no prediction.
        """
        # The server reads one file for each official name.
        expected: dict[str, str] = {}
        problems: list[str] = []
        for name in images:
            file = self.file_name(name)
            if file in expected:
                problems.append(f"{file}: stands for both '{expected[file]}' and '{name}'")
            expected[file] = name

        # Anything else in the folder would be handed in with the rest.
        files = [file for file in self.folder.rglob("*") if file.is_file() and file != archive]
        present = {
            file.relative_to(self.folder).as_posix() for file in files if not is_temporary(file)
        }
        for file in present - set(expected):
            problems.append(f"{file}: is not the prediction of any of the {len(images)} images")

        for file, name in expected.items():
            if file not in present:
                problems.append(f"{file}: is missing (image '{name}')")
                continue
            faults = self._faults(self.folder / file, images[name])
            problems += [f"{file}: {fault}" for fault in faults]
        return sorted(problems)

    def _faults(self, path: Path, image: Path | tuple[int, int]) -> list[str]:
        """What is wrong with one prediction."""
        try:
            with Image.open(path) as picture:
                kind = f"{picture.format} of mode {picture.mode}"
                if kind != "PNG of mode L":
                    return [f"is {kind} where 8-bit grey PNG is wanted"]
                ids = np.array(picture)
        except (OSError, SyntaxError) as error:
            return [f"cannot be read ({error})"]

        # A wrong size or a wrong id is what people get wrong most: train ids instead of raw ids.
        faults = []
        rows, columns = ids.shape
        height, width = image if isinstance(image, tuple) else _size_of(image)
        if (rows, columns) != (height, width):
            faults.append(
                f"is {rows} x {columns} where the image is {height} x {width} (height x width)"
            )

        strange = np.setdiff1d(np.unique(ids), np.asarray(list(self.raw_ids)))
        if strange.size:
            named = ", ".join(str(value) for value in strange[:5])
            faults.append(f"holds the value {named}, which is the raw id of no scored class")
        return faults

    def note(self, count: int) -> str | None:
        """A sentence when `count` images are not the whole official split.

        Such a submission is refused by the server, or cannot be compared.
        """
        official = OFFICIAL_COUNTS.get((self.benchmark, self.split))
        if official is None or official == count:
            return None
        return (
            f"{count} images, where the official {self.benchmark} {self.split} split has {official}"
        )

    def zip(self, target: Path, images: Mapping[str, Path | tuple[int, int]]) -> str | None:
        """Check everything, then write `target`, whole or not at all.

        Outside `folder` or inside, `target` is not part of what is checked or packed. A zip file of
        an earlier run stays until the new one is whole and checked.

        Args:
            target: the zip file.
            images: as `problems` takes them.

        Returns:
            What `note` says.

        Raises:
            SubmissionError: a prediction is not as the server wants it, or `target` is a file that
                is no submission.
        """
        require_replaceable(target)
        problems = self.problems(images, archive=target)
        if problems:
            shown = "; ".join(problems[:_PROBLEMS_SHOWN])
            if len(problems) > _PROBLEMS_SHOWN:
                shown += f"; and {len(problems) - _PROBLEMS_SHOWN} more"
            if target.exists():
                shown += f". {target} is still that of an earlier run"
            raise SubmissionError(f"{self.folder}: cannot be handed in: {shown}")

        files = sorted(self.file_name(name) for name in images)

        def pack(temporary: Path) -> None:
            # PNG is compressed already.
            with zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
                for file in files:
                    content = (self.folder / file).read_bytes()
                    archive.writestr(zipfile.ZipInfo(file, _TIMESTAMP), content)

            # Read back from the disk, checksums and all, before it takes the place of an old one.
            with zipfile.ZipFile(temporary) as archive:
                if archive.testzip() is not None or archive.namelist() != files:
                    raise OSError("what was written cannot be read back")

        try:
            write_file_with(target, pack, durable=True)
        except WriteError as error:
            raise SubmissionError(str(error)) from error
        return self.note(len(images))


def require_replaceable(target: Path) -> None:
    """Refuse to write a submission over a file that is none.

    Raises:
        SubmissionError: there is a file, and it was not made here.
    """
    if not target.exists() or _is_submission(target):
        return
    raise SubmissionError(
        f"{target}: is there already and is no submission of eval.py; choose another name"
    )


def _is_submission(path: Path) -> bool:
    """Whether a file is a zip of predictions as `Submission.zip` writes them, or is empty."""
    try:
        if path.stat().st_size == 0:
            return True
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile):
        return False
    return bool(entries) and all(
        entry.date_time == _TIMESTAMP and entry.filename.endswith(".png") for entry in entries
    )


def _size_of(path: Path) -> tuple[int, int]:
    """(height, width) from the header of an image file."""
    try:
        with Image.open(path) as picture:
            return picture.height, picture.width
    except (OSError, SyntaxError) as error:
        raise SubmissionError(f"{path}: cannot be read ({error})") from error
