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

from ..files.label_format import IMAGES, MANIFEST
from ..files.writing import is_temporary
from .autolabels import AutolabelError, Entry, compile_tree, fingerprint, read_record
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
        classes = settings["classes"]
        names = tuple(item["name"] for item in classes["classes"])
        if settings["label_ids"] == "raw":
            # A class may be read from several raw ids, but is written as the first of them.
            ids = [item["raw_ids"][0] for item in classes["classes"]]
            ignored = classes["raw_ignore"] % 256
        else:
            ids = list(range(len(names)))
            ignored = classes["ignore_label"]
        thresholds = [settings["class_thresholds"][name] for name in names]
        return cls(names, np.array(thresholds), np.array(ids), ignored, fingerprint(settings))


def problems_of(folder: Path) -> tuple[int, list[str]]:
    """Check the labels in `folder`, every pixel of them.

    Labels must be whole, made with the settings of the folder, and hold the pixels that their
    records and manifest.json speak of; a confidence image must not contradict the threshold. Files
    that are listed nowhere and half-written ones are named too.

    Returns:
        How many labels were checked, and a sentence for each problem.

    Raises:
        AutolabelError: there are no finished labels in the folder.
    """
    settings, content, lines = _read(folder)
    making = _Making.of(settings)
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


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, Any], list[dict[str, Any]]]:
    """The settings, the manifest and the lines of images.jsonl."""
    try:
        settings = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
        content = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        listed = (folder / IMAGES).read_text(encoding="utf-8")
        lines = [json.loads(line) for line in listed.splitlines()]
        _Making.of(settings)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise AutolabelError(
            f"{folder}: is no finished tree of automatic labels ({error}); name what autolabel.py "
            "wrote with --output"
        ) from error
    return settings, content, lines


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
    if record["image"] != entry.image:
        yield f"is the label of {record['image']}, not of {entry.image}"

    # Every pixel must be a class or ignored, as often as the record says.
    label = _pixels(folder / entry.label)
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


def _pixels(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.array(picture)


def _unlisted(folder: Path, entries: list[Entry]) -> Iterator[str]:
    """Sentences about files that are nobody's label."""
    # Training would take such a file for a label.
    listed = {name for entry in entries for name in (entry.label, entry.confidence)}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if is_temporary(path):
            yield f"{name}: left half written by a job that was killed; it is nobody's label"
        elif path.suffix == ".png" and name not in listed:
            yield f"{name}: is listed nowhere"
