"""Which files of a folder are images, which are their labels, and which split they are of.

Labels are known by folders (`labels/` beside `images/`, `trainannot/` beside `train/`), by endings
(`a_mask.png` beside `a.jpg`), by lists (`train.txt` with "image label" lines, and Pascal VOC's), or
by equal names in two folders. No file is opened for it but lists.
"""

from __future__ import annotations

import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from hmsa.datasets import DataError
from hmsa.datasets.layouts.folder import NAME_FOLDERS, read_list
from hmsa.datasets.layouts.listing import IMAGE_SUFFIXES, LABEL_SUFFIXES, has_suffix, scan

# Words of folders, without case, by what lies in them.
LABEL_WORDS = frozenset(
    (
        *("label", "labels", "labelids", "mask", "masks", "gt", "groundtruth", "ground_truth"),
        *("annot", "annotation", "annotations", "seg", "segs", "segmentation", "segmentations"),
        *("segmentationclass", "target", "targets"),
    )
)
IMAGE_WORDS = frozenset(
    (
        *("image", "images", "img", "imgs", "photo", "photos", "picture", "pictures"),
        *("jpegimages", "rgb", "input", "inputs"),
    )
)
SPLIT_WORDS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
LABEL_ENDING = re.compile(
    r"[-_. ](masks?|labels?|labelids|gt|seg|segmentation|annotation|groundtruth|l)$", re.IGNORECASE
)
IMAGE_ENDING = re.compile(r"[-_. ](image|img|rgb|photo|leftimg8bit)$", re.IGNORECASE)
FOLDER_ENDING = re.compile(r"(?<=.)[-_ ]?(annot|masks?|labels?)$", re.IGNORECASE)
# What hmsa itself writes below a folder of images.
OWN_FOLDERS = ("polygon_labels",)


@dataclass(frozen=True)
class LabelledImage:
    """An image with its label, paths relative to the folder, and the split its folder names."""

    image: str
    label: str
    split: str | None = None


@dataclass
class FoundImages:
    """What was found in a folder.

    Attributes:
        pairs: images with labels, sorted.
        unlabelled: images without.
        how: how labels were found, for people.
        is_standard: whether the files lie as images/SPLIT and labels/SPLIT, which needs no lists.
    """

    pairs: list[LabelledImage] = field(default_factory=list)
    unlabelled: list[str] = field(default_factory=list)
    how: str = ""
    is_standard: bool = False

    @property
    def splits(self) -> dict[str | None, int]:
        """How many images with labels each split has."""
        return dict(Counter(pair.split for pair in self.pairs))


@dataclass(frozen=True)
class _Named:
    """What the name of a file tells."""

    path: str
    key: tuple[str, ...]  # equal for an image and its label
    is_label: bool
    split: str | None


def find_pairs(folder: Path) -> FoundImages:
    """Images and labels of a folder.

    Raises:
        DataError: there is no image.
    """
    paths = [
        path
        for path in scan(folder, accept=has_suffix(IMAGE_SUFFIXES))
        if path.split("/")[0] not in OWN_FOLDERS
    ]
    if not paths:
        raise DataError(
            f"{folder}: no image ({' '.join(IMAGE_SUFFIXES)}) in this folder or below it; name "
            "the folder that holds the photographs"
        )

    for find in (_by_lists, _by_names, _by_equal_names):
        found = find(folder, paths)
        if found.pairs:
            used = {path for pair in found.pairs for path in (pair.image, pair.label)}
            labels = _label_folders(found)
            found.unlabelled = [
                path for path in paths if path not in used and os.path.dirname(path) not in labels
            ]
            return found
    return FoundImages(unlabelled=paths)


def _label_folders(found: FoundImages) -> set[str]:
    """Folders that hold labels alone."""
    images = {os.path.dirname(pair.image) for pair in found.pairs}
    return {os.path.dirname(pair.label) for pair in found.pairs} - images


def _by_lists(folder: Path, paths: list[str]) -> FoundImages:
    """`train.txt` and `val.txt` with pairs, or Pascal VOC's lists of names."""
    found = FoundImages()
    places = (("", "list files"), ("ImageSets/Segmentation", "the lists of Pascal VOC"))
    for place, how in places:
        lists = sorted((folder / place).glob("*.txt"))
        names = {path.stem.lower(): path for path in lists}
        # `trainval` holds both again.
        for name, split in SPLIT_WORDS.items():
            if name in names:
                found.pairs += _listed(folder, names[name], split)
        if not found.pairs and "default" in names:  # what CVAT exports
            found.pairs = _listed(folder, names["default"], None)
        if found.pairs:
            found.how = how
            return found
    return found


def _listed(folder: Path, path: Path, split: str | None) -> list[LabelledImage]:
    """The pairs of one list; none where it is a list of something else."""
    try:
        images, labels = read_list(path, root=folder, folders=NAME_FOLDERS)
    except DataError:
        return []
    pairs = zip(images, labels or (), strict=False)
    return [LabelledImage(image, label, split) for image, label in pairs]


def _by_names(folder: Path, paths: list[str]) -> FoundImages:
    """By words of folders and endings of names."""
    named = [_read_name(path) for path in paths]
    images = {item.key: item for item in named if not item.is_label}
    pairs = [
        LabelledImage(images[item.key].path, item.path, images[item.key].split or item.split)
        for item in named
        if item.is_label and item.key in images
    ]
    return FoundImages(
        sorted(pairs, key=lambda pair: pair.image),
        how=_described(pairs),
        is_standard=all(map(_is_standard, pairs)),
    )


def _is_standard(pair: LabelledImage) -> bool:
    """Whether a pair lies as the defaults of a class list say."""
    image, label = PurePosixPath(pair.image), PurePosixPath(pair.label)
    return (
        pair.split is not None
        and image.parts[:2] == ("images", pair.split)
        and label.parts[:2] == ("labels", pair.split)
        and image.with_suffix("").parts[2:] == label.with_suffix("").parts[2:]
    )


def _read_name(path: str) -> _Named:
    """What the words of a path tell about the file."""
    parts = path.split("/")
    stem, suffix = os.path.splitext(parts[-1])
    is_label, split, key = False, None, []
    for part in parts[:-1]:
        word = part.lower()
        if word in LABEL_WORDS:
            is_label = True
            continue
        if word in IMAGE_WORDS:
            continue
        shortened = FOLDER_ENDING.sub("", part)
        if shortened != part:
            is_label, word, part = True, shortened.lower(), shortened
        split = split or SPLIT_WORDS.get(word)
        key.append(SPLIT_WORDS.get(word, part))

    # The ending of the name itself.
    if LABEL_ENDING.search(stem):
        is_label, stem = True, LABEL_ENDING.sub("", stem)
    else:
        stem = IMAGE_ENDING.sub("", stem)
    is_label = is_label and suffix.lower() in LABEL_SUFFIXES
    return _Named(path, (*key, stem), is_label, split)


def _by_equal_names(folder: Path, paths: list[str]) -> FoundImages:
    """By equal names in two folders, of which the one with PNG files alone holds the labels."""
    by_folder: dict[str, dict[str, str]] = defaultdict(dict)
    for path in paths:
        place, _, name = path.rpartition("/")
        by_folder[place][os.path.splitext(name)[0]] = path

    best = FoundImages()
    for images in by_folder:
        for labels, names in by_folder.items():
            if images == labels or not _all_end(names.values(), LABEL_SUFFIXES):
                continue
            shared = sorted(by_folder[images].keys() & names.keys())
            # Both folders may hold PNG files: the name that comes first is taken for the images.
            if _all_end(by_folder[images].values(), LABEL_SUFFIXES) and images > labels:
                continue
            if len(shared) > len(best.pairs):
                pairs = [LabelledImage(by_folder[images][name], names[name]) for name in shared]
                best = FoundImages(pairs, how=_described(pairs))
    return best


def _all_end(paths: Iterable[str], suffixes: tuple[str, ...]) -> bool:
    return all(path.lower().endswith(suffixes) for path in paths)


def _described(pairs: list[LabelledImage]) -> str:
    """Where the labels are, by the first pair."""
    if not pairs:
        return ""
    return f"{pairs[0].label} belongs to {pairs[0].image}"
