"""Automatic labels of images: found by their manifest, or by a folder that mirrors the images'; never by a substring of a path."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from ..errors import DataError
from ..spec import DatasetSpec, LabelIds
from .listing import first_entries, require_folder, scan, some, stem

MANIFEST, ENTRIES, FORMAT, VERSION = "manifest.json", "images.jsonl", "hmsa-autolabel", 1

# What follows an image's name (without an official "_leftImg8bit" where the flag says so) in label files and in their confidence images.
_LABEL_FORMS: tuple[tuple[bool, str, LabelIds], ...] = (
    (True, "_gtAuto_labelIds.png", "raw"),
    (True, "_gtAuto_labelTrainIds.png", "train"),
    (False, ".png", "raw"),
)
_CONFIDENCE_ENDS = (
    "_confidence.png",
    "_prob.png",
)  # ours; the release's. They follow the label's name without suffix and kind of ids.


@dataclass
class AutoLabels:
    """Labels of the images at `indices` of the list asked for, as absolute paths; `confidence` is None unless all have it."""

    place: Path
    indices: list[int]
    labels: list[str]
    confidence: list[str] | None
    label_ids: LabelIds


def find_auto_labels(
    place: Path, *, split: str, names: Sequence[str], spec: DatasetSpec
) -> AutoLabels:
    """Automatic labels of the images called `names` in a folder or manifest.

    A manifest decides which images are used; a folder must hold a label for each. DataError names what lacks or does not fit.
    """
    if place.is_dir() and (place / MANIFEST).is_file():
        place = place / MANIFEST
    if place.is_file():
        return _from_manifest(place, names, spec)
    require_folder(
        place,
        what="folder of automatic labels",
        hint="set data.extra.root to what autolabel.py wrote",
    )
    return _from_folder(place / split if (place / split).is_dir() else place, names)


def _from_folder(place: Path, names: Sequence[str]) -> AutoLabels:
    files = frozenset(scan(place, accept=lambda name: name.endswith(".png")))
    for short, end, label_ids in _LABEL_FORMS:
        wanted = [_base(name, short) + end for name in names]
        missing = [path for path in wanted if path not in files]
        if len(missing) == len(wanted):
            continue
        if missing:
            raise DataError(
                f"{len(missing)} of {len(wanted)} images have no automatic label in {place}: {some(missing)}",
                kind="pairs",
            )
        for confidence_end in _CONFIDENCE_ENDS:
            beside = [
                stem(path).removesuffix("_labelIds").removesuffix("_labelTrainIds") + confidence_end
                for path in wanted
            ]
            if all(path in files for path in beside):
                return AutoLabels(
                    place,
                    list(range(len(names))),
                    _below(place, wanted),
                    _below(place, beside),
                    label_ids,
                )
        return AutoLabels(place, list(range(len(names))), _below(place, wanted), None, label_ids)
    expected = " or ".join(_base(names[0], short) + end for short, end, _ in _LABEL_FORMS)
    raise DataError(
        f"no automatic labels in {place}, which holds {first_entries(place)}: expected {expected}",
        kind="missing",
    )


def _base(name: str, short: bool) -> str:
    return name.removesuffix("_leftImg8bit") if short else name


def _below(place: Path, paths: Sequence[str]) -> list[str]:
    return [f"{place}/{path}" for path in paths]


def _from_manifest(path: Path, names: Sequence[str], spec: DatasetSpec) -> AutoLabels:
    manifest = _load_manifest(path)
    own = DatasetSpec.from_dict(manifest["classes"])
    if own.names != spec.names or (
        manifest["label_ids"] == "raw" and (own.to_raw != spec.to_raw).any()
    ):
        theirs, ours = (
            f"{own.name} with {own.num_classes} classes",
            f"{spec.name} with {spec.num_classes}",
        )
        raise DataError(f"{path}: its labels are of {theirs}, not of {ours}", kind="classes")
    failures = [str(failure.get("image")) for failure in manifest.get("failures", ())]
    if failures or manifest.get("complete") is False:
        if not failures:
            raise DataError(
                f"{path}: this labelling is not finished; start the same autolabel.py command again",
                kind="pairs",
            )
        which, why = (
            f"{len(failures)} images were not labelled ({some(failures)})",
            manifest["failures"][0].get("why", "nobody knows why"),
        )
        hint = "mend or remove what cannot be read, then start the same autolabel.py command again"
        raise DataError(f"{path}: {which}, the first because: {why}; {hint}", kind="pairs")
    by_name = {name: index for index, name in enumerate(names)}
    short = _unique_last_parts(names)
    folder = path.parent
    found: dict[int, tuple[str, str | None]] = {}
    strangers: list[str] = []
    for entry in _entries(folder / ENTRIES):
        index = _index_of(stem(entry["image"]), by_name, short)
        if index is None:
            strangers.append(entry["image"])
            continue
        confidence = entry.get("confidence")
        found[index] = (
            _inside(folder, entry["label"]),
            None if confidence is None else _inside(folder, confidence),
        )
    if strangers:
        raise DataError(
            f"{path}: {len(strangers)} of its images are not in this split: {some(strangers)}",
            kind="pairs",
        )
    if not found:
        raise DataError(f"{path}: it lists no image", kind="empty split")
    indices = sorted(found)
    listed = {
        str(Path(file))
        for file in _below(folder, scan(folder, accept=lambda name: name.endswith(".png")))
    }
    missing = [
        file
        for index in indices
        for file in found[index]
        if file is not None and file not in listed
    ]
    if missing:
        raise DataError(
            f"{path}: {len(missing)} of the files it lists do not exist: {some(missing)}",
            kind="missing",
        )
    labels = [found[index][0] for index in indices]
    confidence = [item for item in (found[index][1] for index in indices) if item is not None]
    return AutoLabels(
        path,
        indices,
        labels,
        confidence if len(confidence) == len(labels) else None,
        manifest["label_ids"],
    )


def _load_manifest(path: Path) -> dict[str, Any]:
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
            raise ValueError(f"its format is not '{FORMAT}'")
        if manifest.get("version") != VERSION:
            raise ValueError(
                f"version {manifest.get('version')!r} is not {VERSION}; write it again with this version's autolabel.py"
            )
        if manifest.get("label_ids") not in ("raw", "train"):
            raise ValueError(
                f"label_ids {manifest.get('label_ids')!r} is neither 'raw' nor 'train'"
            )
        if not all(isinstance(failure, dict) for failure in manifest.get("failures", ())):
            raise ValueError("failures must be a list of objects")
        DatasetSpec.from_dict(manifest["classes"])
    except (OSError, ValueError, KeyError, TypeError, IndexError, RecursionError) as error:
        raise DataError(
            f"{path}: not a manifest of automatic labels: {error}", kind="classes"
        ) from error
    return manifest


def _entries(path: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    try:
        with open(path, encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                entry = json.loads(line)
                if (
                    not isinstance(entry, dict)
                    or not isinstance(entry.get("image"), str)
                    or not isinstance(entry.get("label"), str)
                ):
                    raise ValueError(f"line {number} names no image and label")
                found.append(entry)
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(
            f"{path}: list of automatic labels cannot be read: {error}", kind="missing"
        ) from error
    return found


def _inside(folder: Path, relative: str) -> str:
    """A path of the manifest, which must stay within its folder: it may come from elsewhere."""
    parts = PurePosixPath(relative)
    if parts.is_absolute() or ".." in parts.parts:
        raise DataError(
            f"{folder}: the manifest names '{relative}', which lies outside its folder",
            kind="missing",
        )
    return str(folder / relative)


def _index_of(image: str, by_name: dict[str, int], short: dict[str, int]) -> int | None:
    """Index of the image whose name is `image` or the end of it, of whole parts, the longest first; else of the only one with its last part."""
    parts = image.split("/")
    for start in range(len(parts)):
        index = by_name.get("/".join(parts[start:]))
        if index is not None:
            return index
    return short.get(parts[-1])


def _unique_last_parts(names: Sequence[str]) -> dict[str, int]:
    """Index of the image for each file name that only one image has: labels of a single city's folder lack the city."""
    counts: dict[str, list[int]] = {}
    for index, name in enumerate(names):
        counts.setdefault(name.rpartition("/")[2], []).append(index)
    return {last: indices[0] for last, indices in counts.items() if len(indices) == 1}
