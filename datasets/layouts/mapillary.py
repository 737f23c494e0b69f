"""Mapillary Vistas v1.x and v2.0 as they unpack; the class list comes from the data set's own configuration file.

Facts: ../shared/reference/RELEASE.md 1.6. Label files hold the position of a class in that list; the entry called "unlabeled" (the last: 65 of 66
in v1.2, 123 of 124 in v2.0) is ignored and the others are scored, "car mount" and "ego vehicle" too.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..errors import DataError
from ..spec import ClassInfo, DatasetSpec
from .listing import Found, by_key, first_entries, has_suffix, pair, require_folder, scan, stem

CONFIG_NAMES = (
    "config_v2.0.json",
    "config_v1.2.json",
    "config.json",
)  # the newest that lies there is taken
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
) -> Found:
    """List a split; `config` names the configuration JSON (in the root or elsewhere) where several versions lie side by side."""
    if split not in _FOLDERS:
        raise DataError(
            f"Mapillary Vistas has no split '{split}' (choose from {', '.join(_FOLDERS)})",
            kind="split",
        )
    spec, version = load_mapillary_spec(_config_file(root, config))
    labelled = with_labels and _FOLDERS[split] != ("testing",)
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
        found = by_key(
            scan(root / place, accept=has_suffix((".jpg", ".jpeg"))), stem, place=str(root / place)
        )
        keys = sorted(found)
        if labelled:
            label_place = _label_place(root, folder, version)
            found_labels = by_key(
                scan(root / label_place, accept=has_suffix((".png",))),
                stem,
                place=str(root / label_place),
            )
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
    return Found(spec, images, labels if labelled else None, names)


def load_mapillary_spec(path: Path) -> tuple[DatasetSpec, str]:
    """Spec and version ("1.2", "2.0", ...) from a configuration JSON of Mapillary Vistas."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        entries = content["labels"]
        read = [_entry(entry) for entry in entries]
    except (OSError, ValueError, KeyError, TypeError, IndexError, RecursionError) as error:
        raise DataError(
            f"{path}: not a configuration of Mapillary Vistas ({type(error).__name__}: {error})",
            kind="classes",
        ) from error
    version = _version(path, content, len(read))
    unlabeled = [
        position
        for position, (name, readable, *_) in enumerate(read)
        if "unlabeled" in (readable.lower(), name.split("--")[-1].lower())
    ]
    ignored = unlabeled[-1] if unlabeled else len(read) - 1
    readables = [readable.replace(" ", "_") for _, readable, *_ in read]
    classes = tuple(
        ClassInfo(
            # Two entries may read alike; their full names never do.
            name=readables[position] if readables.count(readables[position]) == 1 else name,
            color=color,
            raw_ids=(position,),
            category=name.split("--")[0],
            has_instances=has_instances,
        )
        for position, (name, _, color, has_instances) in enumerate(read)
        if position != ignored
    )
    return DatasetSpec(
        name=f"mapillary-v{version}", classes=classes, raw_ignore=ignored, known_raw_ids=(ignored,)
    ), version


def _entry(entry: dict[str, Any]) -> tuple[str, str, tuple[int, int, int], bool]:
    red, green, blue = (int(part) for part in entry["color"])
    return (
        str(entry["name"]),
        str(entry.get("readable", entry["name"])),
        (red, green, blue),
        bool(entry.get("instances", False)),
    )


def _version(path: Path, content: dict[str, Any], count: int) -> str:
    if isinstance(content.get("version"), (str, int, float)):
        return str(content["version"])
    if "_v" in path.stem:
        return path.stem.rpartition("_v")[2]
    return "2.0" if count > 66 else "1.2"


def _config_file(root: Path, config: Path | None) -> Path:
    if config is not None:
        return root / config if not config.exists() and (root / config).exists() else config
    for name in CONFIG_NAMES:
        if (root / name).is_file():
            return root / name
    names, inside = " or ".join(CONFIG_NAMES), first_entries(root)
    raise DataError(
        f"no {names} in {root}, which holds {inside}; set data.root to the folder of Mapillary Vistas",
        kind="classes",
    )


def _label_place(root: Path, folder: str, version: str) -> str:
    """Folder of the label PNGs: below the version in the v2.0 package, directly below the split in the v1.2 package."""
    versioned = f"{folder}/v{version}/labels"
    if (root / versioned).is_dir():
        return versioned
    others = sorted(path.parent.name for path in (root / folder).glob("v*/labels"))
    if others:
        hint = "set data.classes to the config JSON that matches"
        raise DataError(
            f"{root / folder}: labels of {', '.join(others)} but a class list of v{version}; {hint}",
            kind="classes",
        )
    place = f"{folder}/labels"
    require_folder(
        root / place,
        what="label folder",
        hint="unpack the labels of Mapillary Vistas beside its images",
    )
    return place
