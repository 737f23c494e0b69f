"""Checking a finished tree of automatic labels (`autolabel.py --verify`): every file whole, every figure true, nothing too much."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import floor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..files.png import is_temporary
from .autolabels import (
    ENTRIES,
    MANIFEST,
    AutolabelError,
    Entry,
    compile_tree,
    fingerprint,
    read_record,
)
from .work_tree import SETTINGS


@dataclass(frozen=True)
class _Making:
    """What the settings of a tree say about its files."""

    names: tuple[str, ...]
    thresholds: np.ndarray
    ids: np.ndarray
    ignored: int
    made_with: str

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> _Making:
        classes = settings["classes"]
        names = tuple(item["name"] for item in classes["classes"])
        raw = settings["label_ids"] == "raw"
        ids = np.array(
            [item["raw_ids"][0] for item in classes["classes"]] if raw else range(len(names))
        )
        ignored = classes["raw_ignore"] % 256 if raw else classes["ignore_label"]
        return cls(
            names,
            np.array([settings["class_thresholds"][name] for name in names]),
            ids,
            ignored,
            fingerprint(settings),
        )


def problems_of(folder: Path) -> tuple[int, list[str]]:
    """(labels checked, a sentence for each problem) of the tree in `folder`. AutolabelError where there is none.

    Reads every pixel: labels must be whole, made with the settings of the tree, and hold the pixels their records and manifest.json speak of; a
    confidence image must not contradict the threshold. Files nobody lists and half-written ones are named too.
    """
    settings, content, lines = _read(folder)
    making = _Making.of(settings)
    found = (
        []
        if content.get("complete")
        else [
            "manifest.json: the labelling is not complete; start the same autolabel.py command again"
        ]
    )
    found += [
        f"{failure['image']}: has no label ({failure['why']})" for failure in content["failures"]
    ]
    entries = [Entry(line["image"], line["label"], line["confidence"]) for line in lines]
    for entry in entries:
        found += [
            f"{entry.label}: {problem}"
            for problem in _problems_of_label(
                folder, entry, making, policy=bool(settings.get("policy"))
            )
        ]
    found += _strangers(folder, entries)
    compiled = compile_tree(folder, settings, entries, making.names)
    own = {
        **compiled.manifest,
        "complete": content.get("complete"),
        "failures": content["failures"],
    }
    if own != content:
        differing = [
            key for key in sorted(own.keys() | content.keys()) if own.get(key) != content.get(key)
        ]
        found.append(f"{MANIFEST}: does not say what the label files say ({', '.join(differing)})")
    if [line for line in lines if line not in compiled.lines]:
        found.append(f"{ENTRIES}: does not say what the label files say")
    return len(entries), found


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, Any], list[dict[str, Any]]]:
    try:
        settings = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
        content = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        lines = [
            json.loads(line) for line in (folder / ENTRIES).read_text(encoding="utf-8").splitlines()
        ]
        _Making.of(settings)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise AutolabelError(
            f"{folder}: is no finished tree of automatic labels ({error}); name what autolabel.py wrote with --output"
        ) from error
    return settings, content, lines


def _problems_of_label(
    folder: Path, entry: Entry, making: _Making, *, policy: bool
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
    label = _pixels(folder / entry.label)
    counts = np.bincount(label.reshape(-1), minlength=256)
    if (
        counts[making.ids].tolist() != record["counts"]
        or counts[making.ids].sum() + counts[making.ignored] != label.size
    ):
        yield "does not hold the pixels that its record counts"
    if sum(record["predicted"]) != label.size:
        yield f"has {label.size} pixels where its record counts {sum(record['predicted'])}"
    if entry.confidence is not None:
        yield from _problems_of_confidence(folder / entry.confidence, label, making, policy=policy)


def _problems_of_confidence(
    path: Path, label: np.ndarray, making: _Making, *, policy: bool
) -> Iterator[str]:
    record = read_record(path)
    if record is None or record["made_with"] != making.made_with:
        yield "its confidence image is missing, damaged or made with other settings"
        return
    confidence = _pixels(path)
    if confidence.shape != label.shape:
        yield "its confidence image has another size"
        return
    if policy:  # classes drawn by people need no confidence
        return
    least = np.zeros(256, dtype=np.uint8)
    least[making.ids] = [floor(255 * np.float32(threshold)) for threshold in making.thresholds]
    kept = np.isin(label, making.ids)
    if (confidence < least[label])[kept].any():
        yield "keeps pixels whose confidence is below the threshold"
    if (
        confidence[~kept]
        > max(floor(255 * np.float32(threshold)) for threshold in making.thresholds)
    ).any():
        yield "ignores pixels whose confidence is above every threshold"


def _pixels(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.array(picture)


def _strangers(folder: Path, entries: list[Entry]) -> Iterator[str]:
    listed = {name for entry in entries for name in (entry.label, entry.confidence)}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if is_temporary(path):
            yield f"{name}: left half written by a job that was killed; it is nobody's label"
        elif path.suffix == ".png" and name not in listed:
            yield f"{name}: is listed nowhere"
