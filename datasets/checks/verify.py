"""Checking the files of a split before they cost a training: every fault is named, one sentence for each kind."""

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

from ..errors import DataError
from ..files import Files
from ..layouts.listing import some
from ..reading.decoding import image_size
from ..spec import DatasetSpec

SMALL_FILES, SMALL_BYTES = (
    5_000,
    128_000_000,
)  # a split below both is checked whole even where a sample was asked for: it takes seconds


@dataclass
class Verification:
    """What was found: `counts` int64 [C] pixels and `images_with` int64 [C] images of each class, `ignored` pixels, image `sizes` (height, width).

    `problems` are faults, one sentence for each kind; `notes` are what a person may want to know. `checked` of `total` files were looked at.
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
        return tuple(
            name for name, count in zip(self.spec.names, self.counts, strict=True) if not count
        )

    def raise_for_problems(self) -> None:
        """DataError with the first fault, if any, and how to see the others."""
        if self.problems:
            more = len(self.problems) - 1
            rest = (
                f" (and {more} more kind{'s' if more > 1 else ''} of fault; scripts/check_dataset.py lists them)"
                if more
                else ""
            )
            raise DataError(f"split '{self.split}': {self.problems[0]}{rest}", kind="verify")


@dataclass
class _Outcome:
    """What one file pair showed."""

    size: tuple[int, int] | None = None
    counts: np.ndarray | None = None
    faults: dict[str, DataError] = field(default_factory=dict)  # under "image" and "label"


def verify_files(
    files: Files, *, sample: int | None = None, workers: int = 4, progress: bool = False
) -> Verification:
    """Decode images and labels of a split and say what is wrong with them.

    `sample`: None looks at all files; a number at that many, evenly spread, unless the split is small enough to be checked whole in seconds.
    Threads do the work: decoding, which is nearly all of it, runs outside Python's lock, and nothing has to be forked beside torch.
    """
    indices = _chosen(files, sample)
    result = Verification(
        files.spec,
        files.split,
        total=len(files),
        counts=np.zeros(files.spec.num_classes, dtype=np.int64),
        images_with=np.zeros(files.spec.num_classes, dtype=np.int64),
    )
    faults: dict[tuple[str, str], list[tuple[int, DataError]]] = {}
    for index, outcome in zip(
        indices, _outcomes(files, indices, workers=workers, progress=progress), strict=True
    ):
        result.checked += 1
        if outcome.size is not None:
            result.sizes[outcome.size] = result.sizes.get(outcome.size, 0) + 1
        if outcome.counts is not None:
            own = outcome.counts[: files.spec.num_classes]
            result.counts += own
            result.images_with += own > 0
            result.ignored += int(outcome.counts.sum() - own.sum())
        for what, fault in outcome.faults.items():
            faults.setdefault((what, fault.kind), []).append((int(index), fault))
    result.problems = [_sentence(files, found) for found in faults.values()]
    _judge_whole(files, result)
    return result


def _chosen(files: Files, sample: int | None) -> np.ndarray:
    everything = np.arange(len(files))
    if sample is None or len(files) <= sample or _is_small(files):
        return everything
    return everything[:: -(-len(files) // sample)]


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
) -> Iterator[_Outcome]:
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


def _look_at(files: Files, index: int) -> _Outcome:
    outcome = _Outcome()
    expected = None
    try:
        height, width = files.read_image(index).shape[:2]
        outcome.size = expected = (height, width)
    except DataError as fault:
        outcome.faults["image"] = fault
        expected = _declared_size(files.image_path(index), files.max_pixels)
    if files.labels is not None:
        try:
            outcome.counts = histogram(files.read_label(index, image_size=expected))
        except DataError as fault:
            outcome.faults["label"] = fault
    return outcome


def _declared_size(path: Path, max_pixels: int) -> tuple[int, int] | None:
    """Size of an image that could not be decoded, where its header tells a credible one: its label is compared all the same."""
    try:
        height, width = image_size(path)
    except DataError:
        return None
    return (height, width) if height * width <= max_pixels else None


def count_pixels(files: Files, *, workers: int = 4, progress: bool = False) -> np.ndarray:
    """Pixels of each class over all labels of a split, int64 [C], without opening an image; DataError at the first label that is at fault."""
    files.require_labels()
    counts = np.zeros(files.spec.num_classes, dtype=np.int64)
    with ThreadPoolExecutor(max_workers=max(1, workers)) as pool:
        labels = pool.map(lambda index: histogram(files.read_label(index)), range(len(files)))
        for own in tqdm(
            labels,
            total=len(files),
            desc=f"count {files.split}",
            unit="label",
            disable=not progress,
            leave=False,
            dynamic_ncols=True,
        ):
            counts += own[: files.spec.num_classes]
    return counts


def histogram(label: np.ndarray) -> np.ndarray:
    """Pixels of each value of a uint8 array, int64 [256]; opencv's counter, in strips, since it counts in float32."""
    counts = np.zeros(256, dtype=np.int64)
    rows = max(1, 2**24 // max(1, label.shape[1]))
    for top in range(0, label.shape[0], rows):
        counts += (
            cv2.calcHist(
                [np.ascontiguousarray(label[top : top + rows])], [0], None, [256], [0, 256]
            )
            .reshape(-1)
            .astype(np.int64)
        )
    return counts


def _sentence(files: Files, found: Sequence[tuple[int, DataError]]) -> str:
    """The first fault of a kind in full, the others by name."""
    _, first = found[0]
    if len(found) == 1:
        return str(first)
    others = some([files.name(index) for index, _ in found[1:]])
    return f"{first} (the same kind of fault in {len(found) - 1} more: {others})"


def _judge_whole(files: Files, result: Verification) -> None:
    """What no single file shows: binary masks whose 255 would be taken for ignore, absent classes, labels that are mostly ignored."""
    spec = files.spec
    if files.labels is None:
        result.notes.append(
            f"split '{files.split}' has no labels: it can be predicted, but neither trained on nor scored"
        )
        return
    pixels = int(result.counts.sum())
    binary = (
        spec.num_classes > 1
        and 255 in spec.ignored_raw_ids
        and 0 in spec.classes[0].raw_ids
        and files.label_ids == "raw"
    )
    if binary and result.ignored and pixels and result.counts[0] == pixels:
        result.problems.append(
            f"{files.label_path(0)}: all {result.checked} labels looked at hold only 0 and 255, and 255 means ignore here: binary masks? "
            f"save their 255 as the id of the class ({spec.classes[1].raw_ids[0]} is '{spec.classes[1].name}'), or list 255 among its ids"
        )
    elif result.checked and not pixels and not result.problems:
        all_of = f"all pixels of the {result.checked} labels looked at"
        result.problems.append(
            f"{files.label_path(0)}: {all_of} are ignored, so there is nothing to learn or to score; check the class list's ids"
        )
    elif result.ignored > pixels:
        result.notes.append(
            f"{100 * result.ignored / (pixels + result.ignored):.0f} % of the label pixels looked at are ignored"
        )
    if result.absent and pixels:
        where = (
            ""
            if result.checked == result.total
            else f" among the {result.checked} labels looked at"
        )
        result.notes.append(
            f"{len(result.absent)} of {spec.num_classes} classes do not occur{where}: {', '.join(result.absent)}"
        )


def find_duplicates(first: Files, second: Files, *, workers: int = 4) -> list[tuple[Path, Path]]:
    """Pairs of images with equal bytes in two splits: what is trained on must not be scored on. Only files of equal length are read."""
    lengths = [
        {path: _length(path) for path in map(files.image_path, range(len(files)))}
        for files in (first, second)
    ]
    shared = set(lengths[0].values()) & set(lengths[1].values()) - {None}
    candidates = [[path for path, length in side.items() if length in shared] for side in lengths]
    with ThreadPoolExecutor(max_workers=max(1, workers)) as pool:
        digests = [dict(zip(side, pool.map(_digest, side), strict=True)) for side in candidates]
    by_digest = {digest: path for path, digest in digests[0].items() if digest is not None}
    return [(by_digest[digest], path) for path, digest in digests[1].items() if digest in by_digest]


def _length(path: Path) -> int | None:
    try:
        return os.stat(path).st_size or None
    except OSError:
        return None


def _digest(path: Path) -> bytes | None:
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
    except OSError:
        return None
