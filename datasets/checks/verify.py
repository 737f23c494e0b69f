"""Checking the files of a split before they cost a training.

Every fault is named, one sentence for each kind.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from hmsa.utils.files.regular import open_regular

from ..errors import DataError
from ..exhaustion import exhaustion_explained
from ..files import Files
from ..layouts.listing import some
from ..reading.decoding import image_size
from ..spec import DatasetSpec

# A split below both is checked whole even where a sample was asked for: it takes seconds.
SMALL_FILES = 5_000
SMALL_BYTES = 128_000_000


@dataclass
class Verification:
    """What was found in a split.

    Attributes:
        spec: classes of the data set.
        split: name of the split.
        total: how many images it has.
        checked: how many of them were looked at.
        counts: pixels of each class, int64 [C].
        images_with: images that show each class, int64 [C].
        ignored: pixels that are ignored.
        sizes: number of images of each size (height, width).
        problems: faults, one sentence for each kind.
        notes: what a person may want to know.
    """

    spec: DatasetSpec
    split: str
    total: int
    checked: int = 0
    counts: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    images_with: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    ignored: int = 0
    sizes: dict[tuple[int, int], int] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def absent(self) -> tuple[str, ...]:
        """Names of classes without a single pixel among the labels looked at."""
        named_counts = zip(self.spec.names, self.counts, strict=True)
        return tuple(name for name, count in named_counts if not count)

    def raise_for_problems(self) -> None:
        """Refuse a split with faults.

        Raises:
            DataError: the first fault, and how to see the others.
        """
        if not self.problems:
            return
        message = f"split '{self.split}': {self.problems[0]}"
        more = len(self.problems) - 1
        if more:
            kinds = "kind" + "s" * (more > 1)
            message += f" (and {more} more {kinds} of fault; `hmsa check` lists them)"
        raise DataError(message, kind="verify")


@dataclass
class _PairOutcome:
    """What one image with its label showed."""

    size: tuple[int, int] | None = None
    counts: np.ndarray | None = None
    faults: dict[str, DataError] = field(default_factory=dict)  # under "image" and "label"


@exhaustion_explained(advice="or look at files with fewer workers")
def verify_files(
    files: Files, *, sample: int | None = None, workers: int = 4, progress: bool = False
) -> Verification:
    """Decode images and labels of a split and say what is wrong with them.

    Threads do the work: decoding, which is nearly all of it, runs outside Python's lock, and
    nothing has to be forked beside torch.

    Args:
        files: the split.
        sample: None looks at all files; a number at that many, evenly spread, unless the split is
            small enough to be checked whole in seconds.
        workers: threads.
        progress: whether a progress bar is shown.
    """
    result = Verification(
        files.spec,
        files.split,
        total=len(files),
        counts=np.zeros(files.spec.num_classes, dtype=np.int64),
        images_with=np.zeros(files.spec.num_classes, dtype=np.int64),
    )

    indices = _chosen(files, sample)
    outcomes = _outcomes(files, indices, workers=workers, progress=progress)
    faults: dict[tuple[str, str], list[tuple[int, DataError]]] = {}
    for index, outcome in zip(indices, outcomes, strict=True):
        result.checked += 1
        if outcome.size is not None:
            result.sizes[outcome.size] = result.sizes.get(outcome.size, 0) + 1
        if outcome.counts is not None:
            of_classes = outcome.counts[: files.spec.num_classes]
            result.counts += of_classes
            result.images_with += of_classes > 0
            result.ignored += int(outcome.counts.sum() - of_classes.sum())
        for what, fault in outcome.faults.items():
            faults.setdefault((what, fault.kind), []).append((int(index), fault))

    # Faults of one kind are one sentence, however many files have them.
    result.problems = [_sentence(files, found) for found in faults.values()]
    _judge_whole(files, result)
    return result


def _chosen(files: Files, sample: int | None) -> np.ndarray:
    """Indices of the files to look at, int64."""
    everything = np.arange(len(files))
    if sample is None or len(files) <= sample or _is_small(files):
        return everything
    step = (len(files) + sample - 1) // sample
    return everything[::step]


def _is_small(files: Files) -> bool:
    if len(files) > SMALL_FILES:
        return False
    total = 0
    for index in range(len(files)):
        for path in (files.image_path(index), *files.label_sources(index)):
            try:
                total += os.stat(path).st_size
            except OSError:
                continue  # a missing file is found, and named, when it is read
        if total > SMALL_BYTES:
            return False
    return True


def _outcomes(
    files: Files, indices: np.ndarray, *, workers: int, progress: bool
) -> Iterator[_PairOutcome]:
    """Outcome of every index, in order."""
    with (
        ThreadPoolExecutor(max_workers=max(1, workers)) as pool,
        tqdm(
            total=len(indices),
            desc=f"check {files.split}",
            unit="image",
            disable=not progress,
            leave=False,
            dynamic_ncols=True,
        ) as bar,
    ):
        for outcome in pool.map(lambda index: _look_at(files, int(index)), indices):
            bar.update()
            yield outcome


def _look_at(files: Files, index: int) -> _PairOutcome:
    outcome = _PairOutcome()
    expected: tuple[int, int] | None
    try:
        height, width = files.read_image(index).shape[:2]
        expected = outcome.size = (height, width)
    except DataError as fault:
        outcome.faults["image"] = fault
        # Its label is compared all the same, where the header tells a size.
        expected = _declared_size(files.image_path(index), files.max_pixels)

    if files.labels is not None:
        try:
            outcome.counts = histogram(files.read_label(index, image_size=expected))
        except DataError as fault:
            outcome.faults["label"] = fault
    return outcome


def _declared_size(path: Path, max_pixels: int) -> tuple[int, int] | None:
    """Size of an image that could not be decoded, where its header tells a credible one."""
    try:
        height, width = image_size(path)
    except DataError:
        return None
    if height * width > max_pixels:
        return None
    return height, width


@exhaustion_explained(advice="or look at files with fewer workers")
def count_pixels(files: Files, *, workers: int = 4, progress: bool = False) -> np.ndarray:
    """Pixels of each class over all labels of a split, int64 [C], without opening an image.

    Raises:
        DataError: the first label that is at fault.
    """
    files.require_labels()
    counts = np.zeros(files.spec.num_classes, dtype=np.int64)
    with ThreadPoolExecutor(max_workers=max(1, workers)) as pool:
        histograms = pool.map(lambda index: histogram(files.read_label(index)), range(len(files)))
        for of_label in tqdm(
            histograms,
            total=len(files),
            desc=f"count {files.split}",
            unit="label",
            disable=not progress,
            leave=False,
            dynamic_ncols=True,
        ):
            counts += of_label[: files.spec.num_classes]
    return counts


def histogram(label: np.ndarray) -> np.ndarray:
    """Pixels of each value of a uint8 array [H, W], int64 [256]."""
    # opencv counts in float32, which is exact up to 2^24 pixels: larger labels come in strips.
    counts = np.zeros(256, dtype=np.int64)
    rows = max(1, 2**24 // max(1, label.shape[1]))
    for top in range(0, label.shape[0], rows):
        strip = np.ascontiguousarray(label[top : top + rows])
        found = cv2.calcHist([strip], [0], None, [256], [0, 256])
        counts += found.reshape(-1).astype(np.int64)
    return counts


def _sentence(files: Files, found: Sequence[tuple[int, DataError]]) -> str:
    """The first fault of a kind in full, the others by name."""
    _, first = found[0]
    if len(found) == 1:
        return str(first)
    others = some([files.name(index) for index, _ in found[1:]])
    return f"{first} (the same kind of fault in {len(found) - 1} more: {others})"


def _judge_whole(files: Files, result: Verification) -> None:
    """Add what no single file shows.

    Binary masks whose 255 would be taken for ignore, absent classes, labels that are mostly
    ignored.
    """
    if files.labels is None:
        result.notes.append(
            f"split '{files.split}' has no labels: it can be predicted, but neither trained on nor "
            "scored"
        )
        return

    pixels = int(result.counts.sum())
    where = f"{files.label_path(0)}: all"
    if _are_binary_masks(files, result):
        other = files.spec.classes[1]
        result.problems.append(
            f"{where} {result.checked} labels looked at hold only 0 and 255, and 255 means ignore "
            f"here: binary masks? write 'id: 255' for '{other.name}' into the class list, in the "
            f"place of {other.raw_ids[0]}"
        )
    elif result.checked and not pixels and not result.problems:
        result.problems.append(
            f"{where} pixels of the {result.checked} labels looked at are ignored, so there is "
            "nothing to learn or to score; check the class list's ids"
        )
    elif result.ignored > pixels:
        share = 100 * result.ignored / (pixels + result.ignored)
        result.notes.append(f"{share:.0f} % of the label pixels looked at are ignored")

    if result.absent and pixels:
        among = ""
        if result.checked < result.total:
            among = f" among the {result.checked} labels looked at"
        result.notes.append(
            f"{len(result.absent)} of {files.spec.num_classes} classes do not occur{among}: "
            f"{', '.join(result.absent)}"
        )


def _are_binary_masks(files: Files, result: Verification) -> bool:
    """Whether all labels hold 0, the first of several classes, and 255, which means ignore."""
    spec = files.spec
    may_be = (
        spec.num_classes > 1
        and 255 in spec.ignored_raw_ids
        and 0 in spec.classes[0].raw_ids
        and files.label_ids == "raw"
    )
    pixels = int(result.counts.sum())
    return bool(may_be and result.ignored and pixels and result.counts[0] == pixels)


@exhaustion_explained(advice="or look at files with fewer workers")
def find_duplicates(first: Files, second: Files, *, workers: int = 4) -> list[tuple[Path, Path]]:
    """Pairs of images with equal bytes in two splits: what is trained on must not be scored on.

    Only files of equal length are read.
    """
    lengths = [
        {path: _length(path) for path in map(files.image_path, range(len(files)))}
        for files in (first, second)
    ]
    # Files of different lengths cannot be equal, so most are never read.
    shared = set(lengths[0].values()) & set(lengths[1].values()) - {None}
    candidates = [[path for path, length in side.items() if length in shared] for side in lengths]

    with ThreadPoolExecutor(max_workers=max(1, workers)) as pool:
        digests = [dict(zip(side, pool.map(_digest, side), strict=True)) for side in candidates]
    by_digest = {digest: path for path, digest in digests[0].items() if digest is not None}
    return [(by_digest[digest], path) for path, digest in digests[1].items() if digest in by_digest]


def _length(path: Path) -> int | None:
    """Bytes of a file; None if there are none, or they cannot be told."""
    try:
        return os.stat(path).st_size or None
    except OSError:
        return None


def _digest(path: Path) -> bytes | None:
    try:
        with open_regular(path) as file:
            return hashlib.file_digest(file, "sha256").digest()
    except OSError:
        return None
