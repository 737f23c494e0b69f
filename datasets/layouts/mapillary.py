"""Mapillary Vistas v1.x and v2.0 as they unpack.

Format: 25,000 street scenes from all continents, RGB JPEG of varied sizes (often 8 megapixels and
more), in `training`, `validation` and `testing`. Labels are palette PNG files that hold the
position of a class in the list of the data set's own configuration file, from which the classes
are read.

Classes: all entries but the one called "unlabeled", which is the last (65 of 66 in v1.2, 123 of 124
in v2.0). "car mount" and "ego vehicle" are scored, too, as in the authors' code
(docs/release_notes.md, Mapillary Vistas).

Source: https://www.mapillary.com/dataset/vistas

Citation: G. Neuhold et al., "The Mapillary Vistas Dataset for Semantic Understanding of Street
Scenes", ICCV 2017, https://doi.org/10.1109/ICCV.2017.534
"""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import UNEXPECTED_FORM, DataError
from ..reading.regular import read_text
from ..spec import ClassInfo, DatasetSpec
from .listing import (
    ListedSplit,
    by_key,
    first_entries,
    has_suffix,
    pair,
    require_folder,
    scan,
    stem,
)

# Several versions may lie side by side; the first of these that is there is taken.
CONFIG_NAMES = ("config_v2.0.json", "config_v1.2.json", "config.json")
_FOLDERS = {
    "train": ("training",),
    "training": ("training",),
    "val": ("validation",),
    "validation": ("validation",),
    "test": ("testing",),
    "testing": ("testing",),
    "trainval": ("training", "validation"),
}


def find_mapillary(
    root: Path, split: str, *, config: Path | None = None, with_labels: bool = True
) -> ListedSplit:
    """List a split.

    Args:
        root: folder of the data set.
        split: such as "train", "val", "test" or "trainval".
        config: the configuration JSON (in the root or elsewhere), where several versions lie side
            by side; by default the newest in the root.
        with_labels: whether labels are looked for.

    Raises:
        DataError: no such split, no configuration, missing folders, or images and labels that do
            not pair.
    """
    if split not in _FOLDERS:
        raise DataError(
            f"Mapillary Vistas has no split '{split}' (choose from {', '.join(_FOLDERS)})",
            kind="split",
        )
    spec, version = load_mapillary_spec(_config_file(root, config))
    with_labels = with_labels and _FOLDERS[split] != ("testing",)

    images: list[str] = []
    labels: list[str] = []
    names: list[str] = []
    for folder in _FOLDERS[split]:
        place = f"{folder}/images"
        require_folder(
            root / place,
            what=f"image folder of split '{split}'",
            hint="set data.root to the folder that holds training and validation",
        )
        # Image and label pair by their names without suffix.
        found = _by_stem(root / place, (".jpg", ".jpeg"))
        keys = sorted(found)
        if with_labels:
            label_place = _label_place(root, folder, version)
            found_labels = _by_stem(root / label_place, (".png",))
            keys = pair(
                found,
                found_labels,
                image_place=str(root / place),
                label_place=str(root / label_place),
            )
            labels += [f"{label_place}/{found_labels[key]}" for key in keys]
        images += [f"{place}/{found[key]}" for key in keys]
        names += keys

    if not images:
        places = " and ".join(str(root / folder / "images") for folder in _FOLDERS[split])
        raise DataError(f"split '{split}' is empty: no *.jpg in {places}", kind="empty split")
    if not with_labels:
        return ListedSplit(spec, images, None, names)
    return ListedSplit(spec, images, labels, names)


def mapillary_spec(root: Path, config: Path | None) -> DatasetSpec:
    """The classes of Mapillary Vistas, as its configuration says.

    Raises:
        DataError: it has no configuration, or one that cannot be read.
    """
    spec, _ = load_mapillary_spec(_config_file(root, config))
    return spec


def has_configuration(root: Path) -> bool:
    """Whether a folder holds a configuration of Mapillary Vistas."""
    return any(os.path.isfile(root / name) for name in CONFIG_NAMES)


def _by_stem(folder: Path, suffixes: tuple[str, ...]) -> dict[str, str]:
    """Files of a folder under their names without suffix."""
    return by_key(scan(folder, accept=has_suffix(suffixes)), stem, place=str(folder))


class _ConfigEntry(NamedTuple):
    """One class of the configuration file."""

    name: str  # with its groups: "object--vehicle--car"
    readable: str
    color: tuple[int, int, int]
    has_instances: bool


def load_mapillary_spec(path: Path) -> tuple[DatasetSpec, str]:
    """Spec and version ("1.2", "2.0", ...) from a configuration JSON of Mapillary Vistas.

    Raises:
        DataError: the file cannot be read, or is no such configuration.
    """
    try:
        content = json.loads(read_text(path, "configuration"))
        entries = [_read_entry(entry) for entry in content["labels"]]
    except UNEXPECTED_FORM as error:
        raise DataError(
            f"{path}: not a configuration of Mapillary Vistas ({type(error).__name__}: {error})",
            kind="classes",
        ) from error

    version = _version(path, content, len(entries))
    ignored = _ignored_position(entries)
    readables = [entry.readable.replace(" ", "_") for entry in entries]
    counts = Counter(readables)

    classes = []
    for position, entry in enumerate(entries):
        if position == ignored:
            continue
        # Two entries may read alike; their full names never do.
        name = readables[position]
        if counts[name] > 1:
            name = entry.name
        classes.append(
            ClassInfo(
                name=name,
                color=entry.color,
                raw_ids=(position,),
                category=entry.name.split("--")[0],
                has_instances=entry.has_instances,
            )
        )
    spec = DatasetSpec(
        name=f"mapillary-v{version}",
        classes=tuple(classes),
        raw_ignore=ignored,
        known_raw_ids=(ignored,),
    )
    return spec, version


def _read_entry(entry: dict[str, Any]) -> _ConfigEntry:
    red, green, blue = (int(part) for part in entry["color"])
    return _ConfigEntry(
        name=str(entry["name"]),
        readable=str(entry.get("readable", entry["name"])),
        color=(red, green, blue),
        has_instances=bool(entry.get("instances", False)),
    )


def _ignored_position(entries: list[_ConfigEntry]) -> int:
    """Position of the last entry called "unlabeled"; of the last entry if none is."""
    unlabeled = [
        position
        for position, entry in enumerate(entries)
        if "unlabeled" in (entry.readable.lower(), entry.name.split("--")[-1].lower())
    ]
    if unlabeled:
        return unlabeled[-1]
    return len(entries) - 1


def _version(path: Path, content: dict[str, Any], count: int) -> str:
    """The version that the file or its name says; else by the number of its classes."""
    if isinstance(content.get("version"), (str, int, float)):
        return str(content["version"])
    if "_v" in path.stem:
        return path.stem.rpartition("_v")[2]
    if count > 66:
        return "2.0"
    return "1.2"


def _config_file(root: Path, config: Path | None) -> Path:
    if config is not None:
        if not os.path.exists(config) and os.path.exists(root / config):
            return root / config
        return config

    for name in CONFIG_NAMES:
        if os.path.isfile(root / name):
            return root / name
    raise DataError(
        f"no {' or '.join(CONFIG_NAMES)} in {root}, which holds {first_entries(root)}; set "
        "data.root to the folder of Mapillary Vistas",
        kind="classes",
    )


def _label_place(root: Path, folder: str, version: str) -> str:
    """Folder of the label PNGs.

    Below the version in the v2.0 package, directly below the split in the v1.2 package.
    """
    versioned = f"{folder}/v{version}/labels"
    if os.path.isdir(root / versioned):
        return versioned

    others = sorted(path.parent.name for path in (root / folder).glob("v*/labels"))
    if others:
        raise DataError(
            f"{root / folder}: labels of {', '.join(others)} but a class list of v{version}; set "
            "data.classes to the config JSON that matches",
            kind="classes",
        )
    place = f"{folder}/labels"
    require_folder(
        root / place,
        what="label folder",
        hint="unpack the labels of Mapillary Vistas beside its images",
    )
    return place
