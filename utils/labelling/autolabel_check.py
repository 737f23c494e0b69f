"""Checking a finished folder of automatic labels (`autolabel.py --verify`), to the last pixel."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import floor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..files.image_places import read_image_places
from ..files.label_format import IMAGES, MANIFEST
from ..files.outputs import OutputError, inside
from ..files.writing import is_temporary
from .answers import ANSWERS
from .autolabels import (
    AutolabelError,
    Entry,
    compile_tree,
    fingerprint,
    read_record,
)
from .label_record import file_sha256, is_label_record
from .work_tree import SETTINGS


@dataclass(frozen=True)
class _Making:
    """What the settings of a folder say about its files."""

    names: tuple[str, ...]
    thresholds: np.ndarray
    """float64 [C], by class."""
    ids: np.ndarray
    """int64 [C], what stands for each class in the files."""
    ignored: int
    """What stands where a pixel has no class."""
    made_with: str
    """The fingerprint of the settings."""

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> _Making:
        """Raises an error of Python's where the settings are not what `claim` wrote."""
        classes = settings["classes"]
        names = tuple(item["name"] for item in classes["classes"])
        if settings["label_ids"] == "raw":
            # A class may be read from several raw ids, but is written as the first of them.
            ids = [item["raw_ids"][0] for item in classes["classes"]]
            ignored = classes["raw_ignore"] % 256
        else:
            ids = list(range(len(names)))
            ignored = classes["ignore_label"]
        thresholds = [float(settings["class_thresholds"][name]) for name in names]

        if not names or not all(
            type(value) is int and 0 <= value < 256 for value in (*ids, ignored)
        ):
            raise ValueError("its classes have ids that no label can hold")
        if not all(0 <= threshold <= 1 for threshold in thresholds):
            raise ValueError("its thresholds are no probabilities")
        return cls(names, np.array(thresholds), np.array(ids), ignored, fingerprint(settings))


def problems_of(folder: Path) -> tuple[int, list[str]]:
    """Check the labels in `folder`, every pixel of them.

    Labels must be whole, made with the settings of the folder, and hold the pixels that their
    records and manifest.json speak of; a confidence image must not contradict the threshold. An
    image must be the one that was labelled, where it is known where the images lie. Files that are
    listed nowhere and half-written ones are named too.

    Returns:
        How many labels were checked, and a sentence for each problem.

    Raises:
        AutolabelError: there are no finished labels in the folder.
    """
    settings, making = _read_settings(folder)
    content = _read_manifest(folder)
    lines = _read_lines(folder)
    image_paths = _read_image_paths(folder)
    entries = [Entry(line["image"], line["label"], line["confidence"]) for line in lines]
    problems: list[str] = []

    if not content.get("complete"):
        problems.append(
            f"{MANIFEST}: the labelling is not complete; start the same autolabel.py command again"
        )
    for failure in content["failures"]:
        problems.append(f"{failure['image']}: has no label ({failure['why']})")

    with_policy = bool(settings.get("policy"))
    for entry in entries:
        found = _problems_of_label(folder, entry, making, with_policy=with_policy)
        problems += [f"{entry.label}: {problem}" for problem in found]
        if entry.image in image_paths and _was_replaced(folder, entry, image_paths[entry.image]):
            problems.append(
                f"{entry.label}: is the label of another image than {image_paths[entry.image]} "
                "holds now; start the same autolabel.py command again"
            )
    problems += _unlisted(folder, entries)

    # What the label files say now, beside what was said of them when they were finished.
    compiled = compile_tree(folder, settings, entries, making.names)
    unchecked = {"complete": content.get("complete"), "failures": content["failures"]}
    own = {**compiled.manifest, **unchecked}
    differing = [key for key in sorted(own | content) if own.get(key) != content.get(key)]
    if differing:
        problems.append(
            f"{MANIFEST}: does not say what the label files say ({', '.join(differing)})"
        )
    said = {json.dumps(line, sort_keys=True) for line in compiled.lines}
    if any(json.dumps(line, sort_keys=True) not in said for line in lines):
        problems.append(f"{IMAGES}: does not say what the label files say")
    return len(entries), problems


def _read_settings(folder: Path) -> tuple[dict[str, Any], _Making]:
    path = folder / SETTINGS
    settings = _parsed(path, _read(path))
    try:
        return settings, _Making.of(settings)
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, OverflowError) as error:
        raise _damaged(path, f"{type(error).__name__}: {error}") from error


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    content = _parsed(path, _read(path))
    failures = content.get("failures")
    if not isinstance(failures, list) or not all(
        isinstance(failure, dict)
        and isinstance(failure.get("image"), str)
        and isinstance(failure.get("why"), str)
        for failure in failures
    ):
        raise _damaged(path, "'failures' is no list of images and reasons")
    return content


def _read_lines(folder: Path) -> list[dict[str, Any]]:
    path = folder / IMAGES
    lines = []
    for number, text in enumerate(_read(path).splitlines(), start=1):
        line = _parsed(path, text)
        names = (line.get("image"), line.get("label"), line.get("confidence", 0))
        if not isinstance(names[0], str) or not isinstance(names[1], str):
            raise _damaged(path, f"line {number} names no image and label")
        if names[2] is not None and not isinstance(names[2], str):
            raise _damaged(path, f"line {number} names no confidence image")

        # The list may come from elsewhere: what it names is read, and must be in this folder.
        try:
            for name in names[1:]:
                if name is not None:
                    inside(folder, name)
        except OutputError as error:
            raise AutolabelError(f"{path}: line {number}: {error}") from error
        lines.append(line)
    return lines


def _read_image_paths(folder: Path) -> dict[str, Path]:
    """Where the images lie, as far as is known: labels may be checked on a machine without them."""
    known = read_image_places(folder)
    if known is None:
        return {}
    return {name: place.path for name, place in known.places.items()}


def _was_replaced(folder: Path, entry: Entry, image: Path) -> bool:
    """Whether the file of an image is not the one that was labelled; False where it is missing."""
    record = read_record(folder / entry.label) or {}
    found = file_sha256(image)
    return found is not None and record.get("image_sha256", found) != found


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise AutolabelError(
            f"{path.parent}: is no finished tree of automatic labels ({error}); name what "
            "autolabel.py wrote with --output"
        ) from error
    except ValueError as error:
        raise _damaged(path, str(error)) from error


def _parsed(path: Path, text: str) -> dict[str, Any]:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _damaged(path, str(error)) from error
    if not isinstance(content, dict):
        raise _damaged(path, f"a {type(content).__name__} stands where an object is expected")
    return content


def _damaged(path: Path, reason: str) -> AutolabelError:
    return AutolabelError(
        f"{path}: is damaged or cut off ({reason}); delete this one file and start the same "
        "autolabel.py command again, which writes it anew and keeps the labels"
    )


def _problems_of_label(
    folder: Path, entry: Entry, making: _Making, *, with_policy: bool
) -> Iterator[str]:
    record = read_record(folder / entry.label)
    if record is None:
        yield "is missing, damaged or cut off"
        return
    if record["made_with"] != making.made_with:
        yield "was made with other settings"
        return
    if not is_label_record(record, classes=len(making.names)):
        yield "carries no record of a label of these classes"
        return
    if record["image"] != entry.image:
        yield f"is the label of {record['image']}, not of {entry.image}"

    # Every pixel must be a class or ignored, as often as the record says.
    label = _pixels(folder / entry.label)
    if label is None:
        yield "holds no 8-bit grey picture"
        return
    counts = np.bincount(label.reshape(-1), minlength=256)
    of_classes = counts[making.ids]
    all_known = of_classes.sum() + counts[making.ignored] == label.size
    if of_classes.tolist() != record["counts"] or not all_known:
        yield "does not hold the pixels that its record counts"
    if sum(record["predicted"]) != label.size:
        yield f"has {label.size} pixels where its record counts {sum(record['predicted'])}"

    if entry.confidence is not None:
        path = folder / entry.confidence
        yield from _problems_of_confidence(path, label, making, with_policy=with_policy)


def _problems_of_confidence(
    path: Path, label: np.ndarray, making: _Making, *, with_policy: bool
) -> Iterator[str]:
    record = read_record(path)
    if record is None or record["made_with"] != making.made_with:
        yield "its confidence image is missing, damaged or made with other settings"
        return
    confidence = _pixels(path)
    if confidence is None:
        yield "its confidence image is no 8-bit grey picture"
        return
    if confidence.shape != label.shape:
        yield "its confidence image has another size"
        return

    # Classes that a policy takes from people need no confidence.
    if with_policy:
        return

    # Thresholds as the confidence image rounds: down, in float32.
    levels = [floor(255 * np.float32(threshold)) for threshold in making.thresholds]
    least = np.zeros(256, dtype=np.uint8)
    least[making.ids] = levels
    kept = np.isin(label, making.ids)
    if (confidence < least[label])[kept].any():
        yield "keeps pixels whose confidence is below the threshold"
    if (confidence[~kept] > max(levels)).any():
        yield "ignores pixels whose confidence is above every threshold"


def _pixels(path: Path) -> np.ndarray | None:
    """uint8 [H, W]; None where the file holds no such picture."""
    try:
        with Image.open(path) as picture:
            if picture.mode != "L":
                return None
            return np.array(picture)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return None


def _unlisted(folder: Path, entries: list[Entry]) -> Iterator[str]:
    """Sentences about files that are nobody's label."""
    # Training would take such a file for a label.
    listed = {name for entry in entries for name in (entry.label, entry.confidence)}
    for path in sorted(folder.rglob("*")):
        if ANSWERS in path.relative_to(folder).parts and not is_temporary(path):
            continue
        name = path.relative_to(folder).as_posix()
        if is_temporary(path):
            yield f"{name}: left half written by a job that was killed; it is nobody's label"
        elif path.suffix == ".png" and name not in listed:
            yield f"{name}: is listed nowhere"
