"""Automatic labels of images, as `hmsa autolabel` writes them.

Format: single-channel PNG files of raw or train ids, with an optional 8-bit PNG of the confidence
beside each. They are found by their manifest (`utils/files/label_format.py`), or in a folder that
mirrors the images'; never by a part of a path.

Source: paper, section 4. Labels as the authors' code wrote them are read, too
(docs/release_notes.md, automatic labels).
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from hmsa.utils.files.image_places import IMAGE_PLACES, ImagePlaces, read_image_places
from hmsa.utils.files.label_format import (
    CITYSCAPES_SUFFIX,
    CONFIDENCE_SUFFIX,
    FORMAT,
    IMAGES,
    MANIFEST,
    RAW_LABEL_SUFFIX,
    TRAIN_LABEL_SUFFIX,
    VERSION,
)

from ..errors import UNEXPECTED_FORM, DataError
from ..reading.regular import read_text
from ..spec import DatasetSpec, LabelIds
from .listing import first_entries, require_folder, scan, some, stem

# Whether the official suffix of the image's name is taken off, what follows the name in a label
# file, and what ids such a file holds.
_LABEL_FORMS: tuple[tuple[bool, str, LabelIds], ...] = (
    (True, f"{RAW_LABEL_SUFFIX}.png", "raw"),
    (True, f"{TRAIN_LABEL_SUFFIX}.png", "train"),
    (False, ".png", "raw"),
)
# What follows the label's name, without suffix and kind of ids: ours, and the authors' code's.
_CONFIDENCE_ENDS = (f"{CONFIDENCE_SUFFIX}.png", "_prob.png")


@dataclass
class AutoLabels:
    """Automatic labels that were found.

    Attributes:
        place: the folder or manifest.
        indices: which of the images asked for have a label.
        labels: absolute paths of their labels.
        confidence: absolute paths of their confidence images; None unless all have one.
        label_ids: what the label files hold.
    """

    place: Path
    indices: list[int]
    labels: list[str]
    confidence: list[str] | None
    label_ids: LabelIds


def find_auto_labels(
    place: Path, *, split: str, names: Sequence[str], spec: DatasetSpec
) -> AutoLabels:
    """Automatic labels of the images called `names`, in a folder or manifest.

    A manifest decides which images are used; a folder must hold a label for each.

    Raises:
        DataError: no such place, labels of other classes, or missing files.
    """
    if os.path.isdir(place) and os.path.isfile(place / MANIFEST):
        place = place / MANIFEST
    if os.path.isfile(place):
        return _from_manifest(place, names, spec)

    require_folder(
        place,
        what="folder of automatic labels",
        hint="set data.extra.root to what autolabel.py wrote",
    )
    if os.path.isdir(place / split):
        place = place / split
    return _from_folder(place, names)


def known_images(place: Path) -> ImagePlaces | None:
    """Where the images lie that the labels in a folder, or of a manifest, were made from.

    None where the labels do not say so.
    """
    folder = place
    if os.path.isfile(place):
        folder = place.parent
    if not os.path.isfile(folder / MANIFEST):
        return None
    return read_image_places(folder)


def require_images(place: Path, known: ImagePlaces) -> None:
    """Refuse labels whose images are gone.

    Raises:
        DataError: names the first of them, and how to say where they are now.
    """
    if not known.missing:
        return
    folder = place
    if os.path.isfile(place):
        folder = place.parent
    raise DataError(
        f"{place}: {len(known.missing)} of its images are gone "
        f"({some([str(path) for path in known.missing])}); move images and labels together, write "
        f'the images\' new place as "folder" into {folder / IMAGE_PLACES}, or name the split that '
        "holds them with data.extra.split",
        kind="missing",
    )


def _from_folder(place: Path, names: Sequence[str]) -> AutoLabels:
    files = frozenset(scan(place, accept=lambda name: name.endswith(".png")))
    for shortened, end, label_ids in _LABEL_FORMS:
        wanted = [_label_base(name, shortened) + end for name in names]
        # A form that fits no image at all is not the one in use; the next one is tried.
        missing = [path for path in wanted if path not in files]
        if len(missing) == len(wanted):
            continue
        if missing:
            raise DataError(
                f"{len(missing)} of {len(wanted)} images have no automatic label in {place}: "
                f"{some(missing)}",
                kind="pairs",
            )
        return AutoLabels(
            place=place,
            indices=list(range(len(names))),
            labels=_below(place, wanted),
            confidence=_confidence_beside(place, wanted, files),
            label_ids=label_ids,
        )

    expected = " or ".join(_label_base(names[0], form[0]) + form[1] for form in _LABEL_FORMS)
    raise DataError(
        f"no automatic labels in {place}, which holds {first_entries(place)}: expected {expected}",
        kind="missing",
    )


def _confidence_beside(
    place: Path, labels: Sequence[str], files: frozenset[str]
) -> list[str] | None:
    """Paths of the confidence images beside `labels`, None unless all are among `files`."""
    bases = [stem(path).removesuffix("_labelIds").removesuffix("_labelTrainIds") for path in labels]
    for end in _CONFIDENCE_ENDS:
        beside = [base + end for base in bases]
        if all(path in files for path in beside):
            return _below(place, beside)
    return None


def _label_base(name: str, shortened: bool) -> str:
    if shortened:
        return name.removesuffix(CITYSCAPES_SUFFIX)
    return name


def _below(place: Path, paths: Sequence[str]) -> list[str]:
    return [f"{place}/{path}" for path in paths]


def _from_manifest(path: Path, names: Sequence[str], spec: DatasetSpec) -> AutoLabels:
    manifest = _load_manifest(path)
    _require_same_classes(path, manifest, spec)
    _require_finished(path, manifest)

    found = _listed_files(path, names)
    indices = sorted(found)
    labels = [found[index][0] for index in indices]
    confidence = [item for item in (found[index][1] for index in indices) if item is not None]
    _require_files(path, [*labels, *confidence])

    # One image without confidence makes those of the others useless, since a threshold is for all.
    whole_confidence: list[str] | None = confidence
    if len(confidence) < len(labels):
        whole_confidence = None
    return AutoLabels(
        place=path,
        indices=indices,
        labels=labels,
        confidence=whole_confidence,
        label_ids=manifest["label_ids"],
    )


def _require_same_classes(path: Path, manifest: dict[str, Any], spec: DatasetSpec) -> None:
    own = DatasetSpec.from_dict(manifest["classes"])
    other_ids = manifest["label_ids"] == "raw" and (own.to_raw != spec.to_raw).any()
    if own.names != spec.names or other_ids:
        raise DataError(
            f"{path}: its labels are of {own.name} with {own.num_classes} classes, not of "
            f"{spec.name} with {spec.num_classes}",
            kind="classes",
        )


def _require_finished(path: Path, manifest: dict[str, Any]) -> None:
    failures = manifest.get("failures", ())
    if failures:
        images = some([str(failure.get("image")) for failure in failures])
        why = failures[0].get("why", "it is not known why")
        raise DataError(
            f"{path}: {len(failures)} images were not labelled ({images}), the first because: "
            f"{why}; mend or remove what cannot be read, then start the same autolabel.py command "
            "again",
            kind="pairs",
        )
    if manifest.get("complete") is False:
        raise DataError(
            f"{path}: this labelling is not finished; start the same autolabel.py command again",
            kind="pairs",
        )


def _listed_files(path: Path, names: Sequence[str]) -> dict[int, tuple[str, str | None]]:
    """Label and confidence image of each image that the manifest lists, by the image's index."""
    by_name = {name: index for index, name in enumerate(names)}
    by_last_part = _unique_last_parts(names)
    folder = path.parent

    found: dict[int, tuple[str, str | None]] = {}
    unknown: list[str] = []
    for entry in _read_entries(folder / IMAGES):
        index = _index_of(stem(entry["image"]), by_name, by_last_part)
        if index is None:
            unknown.append(entry["image"])
            continue
        confidence = entry.get("confidence")
        if confidence is not None:
            confidence = _inside(folder, confidence)
        found[index] = (_inside(folder, entry["label"]), confidence)

    if unknown:
        raise DataError(
            f"{path}: {len(unknown)} of its images are not in this split: {some(unknown)}",
            kind="pairs",
        )
    if not found:
        raise DataError(f"{path}: it lists no image", kind="empty split")
    return found


def _require_files(path: Path, files: Sequence[str]) -> None:
    folder = path.parent
    present = scan(folder, accept=lambda name: name.endswith(".png"))
    existing = {str(Path(file)) for file in _below(folder, present)}
    missing = [file for file in files if file not in existing]
    if missing:
        raise DataError(
            f"{path}: {len(missing)} of the files it lists do not exist: {some(missing)}",
            kind="missing",
        )


def _load_manifest(path: Path) -> dict[str, Any]:
    try:
        manifest = json.loads(read_text(path, "manifest"))
        if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
            raise ValueError(f"its format is not '{FORMAT}'")
        if manifest.get("version") != VERSION:
            raise ValueError(
                f"version {manifest.get('version')!r} is not {VERSION}; write it again with this "
                "version's autolabel.py"
            )
        if manifest.get("label_ids") not in ("raw", "train"):
            raise ValueError(
                f"label_ids {manifest.get('label_ids')!r} is neither 'raw' nor 'train'"
            )
        failures = manifest.get("failures", [])
        if not isinstance(failures, list) or not all(isinstance(item, dict) for item in failures):
            raise ValueError("failures must be a list of objects")
        DatasetSpec.from_dict(manifest["classes"])
    except UNEXPECTED_FORM as error:
        raise DataError(
            f"{path}: not a manifest of automatic labels: {error}", kind="classes"
        ) from error
    return manifest


def _read_entries(path: Path) -> list[dict[str, Any]]:
    """The lines of a list of labels; each names an image and a label."""
    found: list[dict[str, Any]] = []
    try:
        lines = read_text(path, "list of automatic labels").rstrip("\n").split("\n")
        for number, line in enumerate(lines, start=1):
            if not line and len(lines) == 1:
                break
            entry = json.loads(line)
            if (
                not isinstance(entry, dict)
                or not isinstance(entry.get("image"), str)
                or not isinstance(entry.get("label"), str)
                or not isinstance(entry.get("confidence"), str | None)
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


def _index_of(image: str, by_name: dict[str, int], by_last_part: dict[str, int]) -> int | None:
    """Index of the image that a manifest calls `image`, None if there is none.

    The image's name is `image` or the end of it, of whole parts, the longest first; else the image
    is the only one with this last part.
    """
    # The manifest may come from a machine where the images lay elsewhere.
    parts = image.split("/")
    for start in range(len(parts)):
        index = by_name.get("/".join(parts[start:]))
        if index is not None:
            return index
    return by_last_part.get(parts[-1])


def _unique_last_parts(names: Sequence[str]) -> dict[str, int]:
    """Index of the image for each file name that only one image has.

    Labels of a single city's folder lack the city, for instance.
    """
    indices: dict[str, list[int]] = {}
    for index, name in enumerate(names):
        indices.setdefault(name.rpartition("/")[2], []).append(index)
    return {last: found[0] for last, found in indices.items() if len(found) == 1}
