"""Cityscapes as it unpacks, officially or as the authors' code keeps it.

Format: street scenes of 50 cities, 8-bit RGB PNG of 1024 x 2048 pixels, in folders by split and
city. Labels are 8-bit PNG files of raw ids, fine ones of 5,000 images (`*_gtFine_labelIds.png`) and
coarse ones of 20,000 more (`*_gtCoarse_labelIds.png`).

Classes: 19 are scored; the other ids are ignored. Ids, names, colours and categories are those of
https://github.com/mcordts/cityscapesScripts/blob/master/cityscapesscripts/helpers/labels.py

Source: https://www.cityscapes-dataset.com. The division by city for cross-validation is that of the
authors' code (docs/release_notes.md, cross-validation).

Citation: M. Cordts et al., "The Cityscapes Dataset for Semantic Urban Scene Understanding", CVPR
2016, https://arxiv.org/abs/1604.01685
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from ..errors import DataError
from ..reading.decoding import read_label
from ..spec import ClassInfo, DatasetSpec
from .listing import ListedSplit, first_entries, pair, require_folder, scan

CITYSCAPES = DatasetSpec(
    name="cityscapes",
    classes=(
        ClassInfo("road", (128, 64, 128), (7,), "flat"),
        ClassInfo("sidewalk", (244, 35, 232), (8,), "flat"),
        ClassInfo("building", (70, 70, 70), (11,), "construction"),
        ClassInfo("wall", (102, 102, 156), (12,), "construction"),
        ClassInfo("fence", (190, 153, 153), (13,), "construction"),
        ClassInfo("pole", (153, 153, 153), (17,), "object"),
        ClassInfo("traffic light", (250, 170, 30), (19,), "object"),
        ClassInfo("traffic sign", (220, 220, 0), (20,), "object"),
        ClassInfo("vegetation", (107, 142, 35), (21,), "nature"),
        ClassInfo("terrain", (152, 251, 152), (22,), "nature"),
        ClassInfo("sky", (70, 130, 180), (23,), "sky"),
        ClassInfo("person", (220, 20, 60), (24,), "human", has_instances=True),
        ClassInfo("rider", (255, 0, 0), (25,), "human", has_instances=True),
        ClassInfo("car", (0, 0, 142), (26,), "vehicle", has_instances=True),
        ClassInfo("truck", (0, 0, 70), (27,), "vehicle", has_instances=True),
        ClassInfo("bus", (0, 60, 100), (28,), "vehicle", has_instances=True),
        ClassInfo("train", (0, 80, 100), (31,), "vehicle", has_instances=True),
        ClassInfo("motorcycle", (0, 0, 230), (32,), "vehicle", has_instances=True),
        ClassInfo("bicycle", (119, 11, 32), (33,), "vehicle", has_instances=True),
    ),
    ignore_label=255,
    raw_ignore=0,
    # unlabeled, ego vehicle, rectification border, out of roi, static, dynamic, ground, parking,
    # rail track, guard rail, bridge, tunnel, polegroup, caravan, trailer; license plate is -1,
    # which an 8-bit file would hold as 255.
    known_raw_ids=(-1, 0, 1, 2, 3, 4, 5, 6, 9, 10, 14, 15, 16, 18, 29, 30),
)

SPLITS = ("train", "val", "test", "train_extra", "trainval")

# Cross-validation split k validates on three cities, 7k, 7k + 1 and 7k + 2 of: the cities of val,
# sorted, then those of train, sorted.
CV_STRIDE = 7
CV_CITIES = 3

_IMAGE_END = "_leftImg8bit.png"
_LABEL_ENDS = {"fine": "_gtFine_labelIds.png", "coarse": "_gtCoarse_labelIds.png"}

# Where images and labels may lie below the root: the official packages, then the authors' folders.
_IMAGE_PLACES = (
    "leftImg8bit",
    "leftImg8bit_trainvaltest/leftImg8bit",
    "leftImg8bit_trainextra/leftImg8bit",
)
_LABEL_PLACES = {
    "fine": ("gtFine", "gtFine_trainvaltest/gtFine"),
    "coarse": ("gtCoarse", "gtCoarse/gtCoarse", "gtCoarse_trainextra/gtCoarse"),
}


def find_cityscapes(
    root: Path, split: str, *, labels: str | None = None, cv: int | None = None
) -> ListedSplit:
    """List a split. Names keep the city and the official file name.

    The official labels of `test` are placeholders without a class in them: they count as none.
    Those of a test split whose labels are known are taken, and so are fine labels of `train_extra`
    where somebody has any; the official ones are coarse only.

    Args:
        root: folder of the data set.
        split: one of `SPLITS`.
        labels: "fine", "coarse" or "none" (images only); by default what the split has.
        cv: 0, 1 or 2 divides train and val by city, 0 being the official division; the other splits
            stay as they are.

    Raises:
        DataError: no such split or division, missing folders, or images and labels that do not
            pair.
    """
    if split not in SPLITS:
        raise DataError(
            f"Cityscapes has no split '{split}' (choose from {', '.join(SPLITS)})", kind="split"
        )
    kind = _label_kind(root, split, labels)

    images: list[str] = []
    label_paths: list[str] = []
    names: list[str] = []
    # Image and label pair by city and the official stem of their names.
    for folder, cities in _cities_of(root, split, cv):
        place = _image_place(root, folder)
        found = _scan(root, f"{place}/{folder}", _IMAGE_END, cities)
        keys = sorted(found)
        if kind != "none":
            label_place = _place(root, _LABEL_PLACES[kind], folder, what=f"{kind} labels")
            keys = pair(
                found,
                _scan(root, f"{label_place}/{folder}", _LABEL_ENDS[kind], cities),
                image_place=str(root / place / folder),
                label_place=str(root / label_place / folder),
            )
            label_paths += [f"{label_place}/{folder}/{key}{_LABEL_ENDS[kind]}" for key in keys]
        images += [found[key] for key in keys]
        names += [key + _IMAGE_END.removesuffix(".png") for key in keys]

    if not images:
        raise DataError(
            f"split '{split}' is empty: no <city>/*{_IMAGE_END} below {_searched(root, split)}",
            kind="empty split",
        )
    if kind == "none":
        return ListedSplit(CITYSCAPES, images, None, names)
    return ListedSplit(CITYSCAPES, images, label_paths, names)


def _label_kind(root: Path, split: str, labels: str | None) -> str:
    """Which labels are taken: "fine", "coarse" or "none"."""
    default = "fine"
    if split == "train_extra":
        default = "coarse"
    kind = labels or default

    if split == "test" and kind == "fine" and not _test_labels_are_known(root):
        return "none"
    places = [root / place / split for place in _LABEL_PLACES["fine"]]
    if split == "train_extra" and kind == "fine" and not any(map(os.path.isdir, places)):
        raise DataError(
            "split 'train_extra' of Cityscapes has coarse labels only; set its labels to coarse or "
            "auto",
            kind="split",
        )
    return kind


def _test_labels_are_known(root: Path) -> bool:
    """Whether the labels of `test` are more than the official placeholders, by the first one."""
    for place in _LABEL_PLACES["fine"]:
        folder = root / place / "test"
        if not os.path.isdir(folder):
            continue
        found = scan(folder, accept=lambda name: name.endswith(_LABEL_ENDS["fine"]))
        if not found:
            return False
        label = read_label(folder / found[0], spec=CITYSCAPES)
        return bool((label != CITYSCAPES.ignore_label).any())
    return False


def _cities_of(root: Path, split: str, cv: int | None) -> list[tuple[str, frozenset[str] | None]]:
    """Folders on disk that make up `split`, each with the cities to take from it (None: all)."""
    if split == "trainval":
        return [("train", None), ("val", None)]
    if cv is None or split not in ("train", "val"):
        return [(split, None)]
    if cv not in (0, 1, 2):
        raise DataError(f"cross-validation split {cv!r} must be 0, 1 or 2", kind="split")

    ordered = [(folder, city) for folder in ("val", "train") for city in _cities(root, folder)]
    held_out = ordered[CV_STRIDE * cv : CV_STRIDE * cv + CV_CITIES]
    if len(held_out) < CV_CITIES:
        raise DataError(
            f"cross-validation split {cv} needs {CV_STRIDE * cv + CV_CITIES} cities in train and "
            f"val of {root}, which holds {len(ordered)}",
            kind="split",
        )

    # The training part is all that is not held out.
    chosen = held_out
    if split == "train":
        chosen = [item for item in ordered if item not in held_out]
    parts = [
        (folder, frozenset(city for place, city in chosen if place == folder))
        for folder in ("train", "val")
    ]
    return [(folder, cities) for folder, cities in parts if cities]


def _cities(root: Path, folder: str) -> list[str]:
    """Cities of a folder, sorted.

    The order is the same on every machine, where the authors' code takes that of the directory.
    """
    with os.scandir(root / _image_place(root, folder) / folder) as entries:
        return sorted(
            entry.name for entry in entries if entry.is_dir() and not entry.name.startswith(".")
        )


def _scan(root: Path, place: str, end: str, cities: frozenset[str] | None) -> dict[str, str]:
    """Files `<city>/<stem><end>` of a folder, relative to root, under `<city>/<stem>`."""
    paths = scan(root / place, accept=lambda name: name.endswith(end))
    return {
        path.removesuffix(end): f"{place}/{path}"
        for path in paths
        if cities is None or path.partition("/")[0] in cities
    }


def _image_place(root: Path, folder: str) -> str:
    return _place(root, _IMAGE_PLACES, folder, what="images")


def _place(root: Path, places: Sequence[str], folder: str, *, what: str) -> str:
    """The first of `places` below the root that holds `folder`."""
    for place in places:
        if os.path.isdir(root / place / folder):
            return place

    require_folder(
        root, what="data root", hint="set data.root to the folder that holds leftImg8bit and gtFine"
    )
    looked = ", ".join(f"{place}/{folder}" for place in places)
    raise DataError(
        f"no {what} of Cityscapes '{folder}' in {root}: looked for {looked}; it holds "
        f"{first_entries(root)}",
        kind="missing",
    )


def _searched(root: Path, split: str) -> str:
    """The folders of images that were looked into, in words."""
    folders = [split]
    if split == "trainval":
        folders = ["train", "val"]
    return " and ".join(f"{root / _image_place(root, folder) / folder}" for folder in folders)
