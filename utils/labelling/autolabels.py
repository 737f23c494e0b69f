"""Hard labels as files: their names, a record inside each, and the manifest (paper, section 4).

Each label file carries in a PNG text chunk what it was made with and what is in it. Whether an
image is done can therefore be seen from its own files: jobs need no coordination, may be killed at
any moment, and the manifest is compiled from the files alone, the same bytes whoever made them. An
image that could not be labelled leaves a small file that says why in the place of its label.

A record holds

- `made_with`, the fingerprint of the settings;
- `image`, the name of the image, `image_bytes`, the size of its file, and `image_sha256`, the hash
  of the bytes that were labelled;
- `mean_confidence`;
- pixels per class: `predicted` (before the threshold) and `counts` (in the label); with a policy
  also `kept` (after the threshold, before the policy);
- with labels drawn by people: `human` (their pixels per class, null where the label cannot be read)
  and `agreement` ([human class, automatic class, pixels] of each pair that occurs).
"""

from __future__ import annotations

import hashlib
import json
import os
import time
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from ..files.image_places import ImagePlace, write_image_places
from ..files.label_format import (
    CITYSCAPES_CONFIDENCE_SUFFIX,
    CITYSCAPES_SUFFIX,
    CONFIDENCE_SUFFIX,
    FORMAT,
    IMAGES,
    MANIFEST,
    RAW_LABEL_SUFFIX,
    TRAIN_LABEL_SUFFIX,
    VERSION,
)
from ..files.png import encode_png
from ..files.png_chunks import iterate_chunks
from ..files.regular import open_regular
from ..files.writing import temporary_beside, write_file
from ..words import UserError
from .label_record import is_label_record, is_record

NOT_YET = "not labelled yet"
# A class that keeps less than this share of its pixels hardly teaches a student.
STARVED_SHARE = 0.2
# The share that the remedy keeps, and the threshold below which a class is more likely another one.
REMEDY_SHARE = 0.5
DOUBTFUL_THRESHOLD = 0.5
_KEYWORD = FORMAT.encode() + b"\0"
_LARGEST_LABEL = 1 << 30  # bytes; ids of a gigapixel image compress to far less
_MOST_VALUES_TIMED = 1 << 24  # 64 MiB of float32


class AutolabelError(UserError, ValueError):
    """A folder of labels cannot be used; the message says why and what to do."""


def fingerprint(settings: Mapping[str, Any]) -> str:
    """A hash of everything the labels depend on: equal settings, equal fingerprint."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:32]


def encode_label(ids: np.ndarray, record: Mapping[str, Any]) -> bytes:
    """PNG bytes of uint8 ids [H, W] with `record` (plain values) as a text chunk."""
    return encode_png(ids, text={FORMAT: json.dumps(record, sort_keys=True)})


def read_record(path: Path) -> dict[str, Any] | None:
    """The record inside a label file.

    None when the file is missing, is not ours, any of its chunks is damaged or cut off, or what it
    holds has not the form of a record.
    """
    # What cannot be read, or is no label by its size alone, is not done either.
    try:
        with open_regular(path) as file:
            if os.fstat(file.fileno()).st_size > _LARGEST_LABEL:
                return None
            data = file.read()
    except OSError:
        return None

    record = None
    for name, start, length in iterate_chunks(data):
        end = start + length
        # The checksum of a chunk is over its name and its data.
        checksum = zlib.crc32(data[start - 4 : end]).to_bytes(4, "big")
        if data[end : end + 4] != checksum:
            return None
        if name == b"tEXt" and data.startswith(_KEYWORD, start, end):
            record = _parsed(data[start + len(_KEYWORD) : end])
        if name == b"IEND":
            return record
    return None


def _parsed(text: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not is_record(record):
        return None
    found: dict[str, Any] = record
    return found


def label_name(name: str, *, label_ids: str) -> str:
    """File name of the label of image `name`.

    Cityscapes names become *_gtAuto_labelIds, or *_gtAuto_labelTrainIds where `label_ids` is not
    "raw"; others keep theirs.
    """
    if not name.endswith(CITYSCAPES_SUFFIX):
        return f"{name}.png"

    suffix = TRAIN_LABEL_SUFFIX
    if label_ids == "raw":
        suffix = RAW_LABEL_SUFFIX
    return f"{name.removesuffix(CITYSCAPES_SUFFIX)}{suffix}.png"


def confidence_name(name: str) -> str:
    """File name of the confidence image of image `name`.

    It holds 8 bits: floor(255 x the largest probability), before any threshold.
    """
    if not name.endswith(CITYSCAPES_SUFFIX):
        return f"{name}{CONFIDENCE_SUFFIX}.png"
    return f"{name.removesuffix(CITYSCAPES_SUFFIX)}{CITYSCAPES_CONFIDENCE_SUFFIX}.png"


def failure_path(label: Path) -> Path:
    """Where it is noted why an image has no label."""
    return label.with_suffix(".failed")


def write_failure(label: Path, *, made_with: str, why: str) -> None:
    """Note why an image has no label; the next run tries it again."""
    content = json.dumps({"made_with": made_with, "why": why}, sort_keys=True)
    write_file(failure_path(label), content + "\n")


def read_failure(label: Path, *, made_with: str) -> str:
    """Why an image has no label, as far as is known."""
    try:
        noted = json.loads(failure_path(label).read_text(encoding="utf-8"))
        if noted["made_with"] == made_with:
            return str(noted["why"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return NOT_YET


def agreement_of(human: np.ndarray, label: np.ndarray, *, classes: int) -> list[list[int]]:
    """[human class, automatic class, pixels] of each pair that occurs, in order.

    Only pixels count where both train ids, uint8 [H, W], are those of a class.
    """
    both = (human < classes) & (label < classes)
    pairs = human[both].astype(np.int32) * classes + label[both]
    counts = np.bincount(pairs, minlength=classes**2)
    return [
        [int(pair) // classes, int(pair) % classes, int(counts[pair])]
        for pair in np.flatnonzero(counts)
    ]


@dataclass(frozen=True)
class Entry:
    """One image of a folder of labels: its name with suffix, and its files, relative to it."""

    image: str
    label: str
    confidence: str | None


@dataclass(frozen=True)
class LabelTree:
    """What was found in a folder of labels, and the sums over all of them."""

    manifest: dict[str, Any]
    """What manifest.json says."""
    lines: list[dict[str, Any]]
    """A line of images.jsonl for each label."""
    predicted: np.ndarray
    """int64 [C], pixels of each class before the threshold."""
    counts: np.ndarray
    """int64 [C], pixels of each class in the labels."""
    human: np.ndarray | None
    """int64 [C], pixels of each class in the labels that people drew, where there are any."""
    agreement: np.ndarray | None
    """int64 [C, C], pixels that both have: rows the human class, columns the automatic one."""

    def write(self, folder: Path, *, images: Mapping[str, ImagePlace] | None = None) -> None:
        """Write images.jsonl, then manifest.json, which so never names lines that are not there.

        Args:
            folder: of the labels.
            images: where the images lie, by the names that `Entry.image` gives them. With them a
                training finds the images, and a later check those that were replaced since.
        """
        if images is not None:
            write_image_places(folder, images)

        lines = "".join(json.dumps(line) + "\n" for line in self.lines)
        write_file(folder / IMAGES, lines, durable=True)
        write_file(folder / MANIFEST, json.dumps(self.manifest, indent=2) + "\n", durable=True)


def compile_tree(
    folder: Path, settings: Mapping[str, Any], entries: Sequence[Entry], names: Sequence[str]
) -> LabelTree:
    """Read what the label files of `entries` say of themselves; `names` are the classes."""
    made_with = fingerprint(settings)
    records: list[dict[str, Any]] = []
    lines: list[dict[str, Any]] = []
    missing: list[dict[str, str]] = []
    sizes = {"labels": 0, "confidence": 0}

    # Whatever is not whole, or was made with other settings, has no label yet.
    for entry in entries:
        path = folder / entry.label
        record = read_record(path)
        confidence = None
        if entry.confidence is not None:
            confidence = folder / entry.confidence

        done = (
            record is not None
            and record["made_with"] == made_with
            and is_label_record(record, classes=len(names))
        )
        if not done or (confidence is not None and not confidence.is_file()):
            missing.append({"image": entry.image, "why": read_failure(path, made_with=made_with)})
            continue

        assert record is not None
        records.append(record)
        lines.append(_line_of(entry, record, names))
        sizes["labels"] += path.stat().st_size
        if confidence is not None:
            sizes["confidence"] += confidence.stat().st_size

    human, agreement = _compared_with_people(records, len(names))
    return LabelTree(
        manifest=manifest(settings, records, missing, names, sizes=sizes, agreement=agreement),
        lines=lines,
        predicted=_sums([record["predicted"] for record in records], len(names)),
        counts=_sums([record["counts"] for record in records], len(names)),
        human=human,
        agreement=agreement,
    )


def _line_of(entry: Entry, record: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """What images.jsonl says of one label."""
    line = {
        "image": entry.image,
        "label": entry.label,
        "confidence": entry.confidence,
        "kept": round(sum(_kept(record)) / sum(record["predicted"]), 6),
        "mean_confidence": record["mean_confidence"],
        "counts": dict(zip(names, record["counts"], strict=True)),
    }
    if "image_sha256" in record:
        line["image_sha256"] = record["image_sha256"]
    return line


def _compared_with_people(
    records: Sequence[Mapping[str, Any]], classes: int
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """(`human`, `agreement`) of `LabelTree`; both None where no image could have such a label."""
    if not any("human" in record for record in records):
        return None, None

    compared = [record for record in records if record.get("human") is not None]
    # Records hold only the pairs that occur: most of C x C never do.
    agreement = np.zeros((classes, classes), dtype=np.int64)
    for record in compared:
        for human, automatic, pixels in record["agreement"]:
            agreement[human, automatic] += pixels
    return _sums([record["human"] for record in compared], classes), agreement


def _kept(record: Mapping[str, Any]) -> list[int]:
    """Pixels per class that the threshold kept, before any policy."""
    kept: list[int] = record.get("kept", record["counts"])
    return kept


def _sums(rows: Sequence[Sequence[int]], classes: int) -> np.ndarray:
    return np.array(rows, dtype=np.int64).reshape(-1, classes).sum(0)


def manifest(
    settings: Mapping[str, Any],
    records: Sequence[Mapping[str, Any]],
    failures: Sequence[Mapping[str, str]],
    names: Sequence[str],
    *,
    sizes: Mapping[str, int] | None = None,
    agreement: np.ndarray | None = None,
) -> dict[str, Any]:
    """What manifest.json says of a folder of labels.

    Args:
        settings: with which the labels were made; all of them are repeated.
        records: of every label file.
        failures: `image` and `why` of each image that has no label.
        names: of the classes.
        sizes: bytes of the files, by kind.
        agreement: int64 [C, C], how the labels compare with those drawn by people.
    """
    classes = len(names)
    kept = _sums([_kept(record) for record in records], classes)
    predicted = _sums([record["predicted"] for record in records], classes)
    written = _sums([record["counts"] for record in records], classes)
    pixels = int(predicted.sum())

    # How much of each class survived the threshold, and how much of it is in the files.
    per_class = {}
    for index, name in enumerate(names):
        before, after = int(predicted[index]), int(kept[index])
        kept_share = None
        if before:
            kept_share = round(after / before, 6)
        per_class[name] = {
            "predicted": before,
            "kept": after,
            "kept_share": kept_share,
            "labels": int(written[index]),
        }

    confidences = [record["mean_confidence"] * sum(record["predicted"]) for record in records]
    content = {
        "format": FORMAT,
        "version": VERSION,
        **settings,
        "complete": not failures,
        "images": IMAGES,
        "labelled": len(records),
        "failures": list(failures),
        "pixels": pixels,
        "kept_share": round(int(kept.sum()) / max(pixels, 1), 6),
        "mean_confidence": round(sum(confidences) / max(pixels, 1), 6),
        "per_class": per_class,
    }

    if sizes is not None:
        # Soft labels would hold a float32 for each pixel and class.
        content["bytes"] = {**sizes, "soft_labels": pixels * classes * 4}

    if agreement is not None:
        drawn = [record["human"] for record in records if record.get("human") is not None]
        content["human"] = {
            "images": len(drawn),
            "labels": dict(zip(names, _sums(drawn, classes).tolist(), strict=True)),
            "agreement": agreement.tolist(),
        }
    return content


def starvation_remedy(names: Sequence[str], thresholds: Mapping[str, float]) -> str:
    """What to do about classes of which too little is kept, as commands to copy.

    Args:
        names: of the classes.
        thresholds: by class name, those that would keep `REMEDY_SHARE` of it, where they are known.
    """
    share = f"keep half of every class with autolabel.keep_share={REMEDY_SHARE:g}"
    known = {name: thresholds[name] for name in names if name in thresholds}
    if not known:
        return (
            f"{share}, or lower its threshold in autolabel.class_thresholds (with "
            "autolabel.keep_answers=true this sentence names the threshold that keeps half)"
        )

    chosen = ", ".join(f"{name}: {threshold:.3g}" for name, threshold in known.items())
    remedy = f'{share}, or of these alone with "autolabel.class_thresholds={{{chosen}}}"'
    doubtful = [name for name, threshold in known.items() if threshold < DOUBTFUL_THRESHOLD]
    if doubtful:
        remedy += (
            f"; half of {', '.join(doubtful)} is less sure than {DOUBTFUL_THRESHOLD:g}, so look at "
            "the examples first, or label some by hand"
        )
    return remedy


def empty_classes(
    content: Mapping[str, Any], thresholds: Mapping[str, float] = MappingProxyType({})
) -> list[str]:
    """Sentences about classes, or whole sets of labels, of which nothing is left to train with.

    For the log and the page of an auto-labelling, which is no failure but hardly ever wanted.

    Args:
        content: of manifest.json.
        thresholds: see `starvation_remedy`.
    """
    per_class = content["per_class"]
    without_label = {name: row for name, row in per_class.items() if row["labels"] == 0}
    if not content["labelled"]:
        return []
    if len(without_label) == len(per_class):
        return [
            f"no pixel of {content['labelled']} images has a label: nothing reaches the threshold "
            f"{content['threshold']:g}; choose a lower --threshold, or set autolabel.keep_share"
        ]

    never, below, taken = [], [], []
    for name, row in without_label.items():
        if not row["predicted"]:
            never.append(name)
        elif not row["kept"]:
            below.append(name)
        else:
            taken.append(name)

    sentences = []
    if below:
        sentences.append(
            f"nothing is kept of {', '.join(below)}: predicted, but never with the probability of "
            f"the threshold; {starvation_remedy(below, thresholds)}"
        )
    if never:
        sentences.append(f"never predicted, and so without any label: {', '.join(never)}")
    if taken:
        sentences.append(
            f"nothing is left of {', '.join(taken)}: autolabel.policy takes it from labels drawn "
            "by people, which have none of it"
        )
    return sentences


def starved_classes(
    content: Mapping[str, Any], thresholds: Mapping[str, float] = MappingProxyType({})
) -> list[str]:
    """A sentence about classes of which almost nothing is kept, with the remedy.

    Args:
        content: of manifest.json.
        thresholds: see `starvation_remedy`.
    """
    shares = {
        name: row["kept_share"]
        for name, row in content["per_class"].items()
        if row["kept"] and row["kept_share"] < STARVED_SHARE
    }
    if not shares:
        return []
    named = ", ".join(f"{name} ({100 * share:.1f} %)" for name, share in shares.items())
    return [
        f"little is kept of {named}, of which a student would see hardly anything: "
        f"{starvation_remedy(list(shares), thresholds)}"
    ]


def soft_label_seconds(folder: Path, *, values: int) -> float | None:
    """Seconds to read `values` float32, a soft label, that were just written to `folder`.

    Measured on at most 64 MiB, without any decoding and from the page cache: the least that soft
    labels can take. None where there is no room for them.
    """
    numbers = np.random.default_rng(0).random(min(values, _MOST_VALUES_TIMED), dtype=np.float32)
    temporary = temporary_beside(folder / "soft")
    try:
        numbers.tofile(temporary)
        # The fastest of three, since other work on the machine only ever adds time.
        taken = []
        for _ in range(3):
            begin = time.perf_counter()
            np.fromfile(temporary, dtype=np.float32)
            taken.append(time.perf_counter() - begin)
        return min(taken) * values / len(numbers)
    except OSError:
        return None
    finally:
        temporary.unlink(missing_ok=True)
