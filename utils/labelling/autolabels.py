"""Hard labels as files: their names, a record inside each PNG, and the manifest of a tree (paper, section 4).

Each label file carries in a PNG text chunk what it was made with and what is in it. A file is therefore done, or not, by itself: jobs need no
coordination, may be killed at any moment, and the manifest is compiled from the files alone, the same bytes whoever made them. An image that could
not be labelled leaves a small file that says why in the place of its label.

A record holds `made_with` (the fingerprint of the settings), `image` (name) and `image_bytes` (size of its file), `mean_confidence`, and pixels per
class: `predicted` (before the threshold), `counts` (in the label); with a policy `kept` (after the threshold, before the policy); with labels drawn
by people `human` (their pixels per class, null where unreadable) and `agreement` ([human class, automatic class, pixels], those that occur).
"""

from __future__ import annotations

import hashlib
import json
import struct
import time
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..files.png import encode_png, temporary_beside, write_file

KEYWORD = b"hmsa-autolabel"
CITYSCAPES_SUFFIX = "_leftImg8bit"
MANIFEST, ENTRIES = "manifest.json", "images.jsonl"
NOT_YET = "not labelled yet"
_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_HEADER_END = 33  # signature and the IHDR chunk, after which the text chunk lies


class AutolabelError(ValueError):
    """An output tree cannot be used; the message says why and what to do."""


def fingerprint(settings: Mapping[str, Any]) -> str:
    """A hash of everything the labels depend on; equal settings, equal fingerprint."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:32]


def encode_label(ids: np.ndarray, record: Mapping[str, Any]) -> bytes:
    """PNG bytes of uint8 ids [H, W] with `record` (plain values) as a text chunk."""
    data = encode_png(ids)
    text = KEYWORD + b"\0" + json.dumps(record, sort_keys=True).encode("latin-1")
    chunk = (
        struct.pack(">I", len(text))
        + b"tEXt"
        + text
        + struct.pack(">I", zlib.crc32(b"tEXt" + text))
    )
    return data[:_HEADER_END] + chunk + data[_HEADER_END:]


def read_record(path: Path) -> dict[str, Any] | None:
    """The record inside a label file; None when the file is missing, not ours, or any of its chunks is damaged or cut off."""
    try:
        data = path.read_bytes()
    except OSError:
        return None
    if data[:8] != _SIGNATURE:
        return None
    record, position = None, 8
    while position + 12 <= len(data):
        (length,) = struct.unpack(">I", data[position : position + 4])
        kind, body = data[position + 4 : position + 8], data[position + 8 : position + 8 + length]
        end = position + 12 + length
        if end > len(data) or struct.unpack(">I", data[end - 4 : end])[0] != zlib.crc32(
            kind + body
        ):
            return None
        if kind == b"tEXt" and body.startswith(KEYWORD + b"\0"):
            record = json.loads(body[len(KEYWORD) + 1 :])
        if kind == b"IEND":
            return record
        position = end
    return None


def label_name(name: str, *, label_ids: str) -> str:
    """File name of the label of image `name`: Cityscapes names become *_gtAuto_labelIds (or *_labelTrainIds), others keep theirs."""
    kind = "labelIds" if label_ids == "raw" else "labelTrainIds"
    return (
        f"{name.removesuffix(CITYSCAPES_SUFFIX)}_gtAuto_{kind}.png"
        if name.endswith(CITYSCAPES_SUFFIX)
        else f"{name}.png"
    )


def confidence_name(name: str) -> str:
    """File name of the confidence image of image `name`: 8 bits, floor(255 x the largest probability), before any threshold."""
    return (
        f"{name.removesuffix(CITYSCAPES_SUFFIX)}_gtAuto_confidence.png"
        if name.endswith(CITYSCAPES_SUFFIX)
        else f"{name}_confidence.png"
    )


def failure_path(label: Path) -> Path:
    """Where it is noted why an image has no label."""
    return label.with_suffix(".failed")


def write_failure(label: Path, *, made_with: str, why: str) -> None:
    """Note why an image has no label; the next run tries it again."""
    write_file(
        failure_path(label),
        (json.dumps({"made_with": made_with, "why": why}, sort_keys=True) + "\n").encode(),
    )


def read_failure(label: Path, *, made_with: str) -> str:
    """Why an image has no label, as far as is known."""
    try:
        noted = json.loads(failure_path(label).read_text(encoding="utf-8"))
        return str(noted["why"]) if noted["made_with"] == made_with else NOT_YET
    except (OSError, ValueError, KeyError, TypeError):
        return NOT_YET


def agreement_of(human: np.ndarray, label: np.ndarray, *, classes: int) -> list[list[int]]:
    """[human class, automatic class, pixels] wherever both uint8 [H, W] have a label, those that occur, in order."""
    both = (human < classes) & (label < classes)
    counts = np.bincount(human[both].astype(np.int32) * classes + label[both], minlength=classes**2)
    return [
        [int(pair) // classes, int(pair) % classes, int(counts[pair])]
        for pair in np.flatnonzero(counts)
    ]


@dataclass(frozen=True)
class Entry:
    """One image of a tree: its name with suffix, and its files, relative to the tree."""

    image: str
    label: str
    confidence: str | None


@dataclass(frozen=True)
class Tree:
    """What was found in a tree: manifest.json, a line of images.jsonl for each label, and the sums over all of them."""

    manifest: dict[str, Any]
    lines: list[dict[str, Any]]
    predicted: np.ndarray
    counts: np.ndarray
    human: np.ndarray | None
    agreement: np.ndarray | None

    def write(self, folder: Path) -> None:
        """images.jsonl, then manifest.json, which therefore never speaks of lines that are not there."""
        write_file(
            folder / ENTRIES, "".join(json.dumps(line) + "\n" for line in self.lines).encode()
        )
        write_file(folder / MANIFEST, (json.dumps(self.manifest, indent=2) + "\n").encode())


def compile_tree(
    folder: Path, settings: Mapping[str, Any], entries: Sequence[Entry], names: Sequence[str]
) -> Tree:
    """Read what the label files of `entries` say of themselves; `names` are the classes."""
    made_with = fingerprint(settings)
    records, lines, missing, sizes = [], [], [], {"labels": 0, "confidence": 0}
    for entry in entries:
        path = folder / entry.label
        record = read_record(path)
        beside = None if entry.confidence is None else folder / entry.confidence
        if (
            record is None
            or record["made_with"] != made_with
            or (beside is not None and not beside.is_file())
        ):
            missing.append({"image": entry.image, "why": read_failure(path, made_with=made_with)})
            continue
        records.append(record)
        sizes["labels"] += path.stat().st_size
        sizes["confidence"] += 0 if beside is None else beside.stat().st_size
        lines.append(
            {
                "image": entry.image,
                "label": entry.label,
                "confidence": entry.confidence,
                "kept": round(sum(_kept(record)) / sum(record["predicted"]), 6),
                "mean_confidence": record["mean_confidence"],
                "counts": dict(zip(names, record["counts"], strict=True)),
            }
        )
    compared = [record for record in records if record.get("human") is not None]
    agreement = None
    if any("human" in record for record in records):
        agreement = np.zeros((len(names), len(names)), dtype=np.int64)
        for record in compared:
            for human, automatic, pixels in record["agreement"]:
                agreement[human, automatic] += pixels
    return Tree(
        manifest=manifest(settings, records, missing, names, sizes=sizes, agreement=agreement),
        lines=lines,
        predicted=_sums([record["predicted"] for record in records], len(names)),
        counts=_sums([record["counts"] for record in records], len(names)),
        human=None
        if agreement is None
        else _sums([record["human"] for record in compared], len(names)),
        agreement=agreement,
    )


def _kept(record: Mapping[str, Any]) -> list[int]:
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
    """What manifest.json says of a tree: settings, whether it is complete, failures, per-class pixels and kept shares, mean confidence.

    `sizes` are bytes of the files. `agreement` int64 [C, C] (rows human) adds how the labels compare with those drawn by people.
    """
    kept, predicted = (
        _sums([_kept(record) for record in records], len(names)),
        _sums([record["predicted"] for record in records], len(names)),
    )
    written = _sums([record["counts"] for record in records], len(names))
    total = int(predicted.sum())
    confidence = sum(
        record["mean_confidence"] * sum(record["predicted"]) for record in records
    ) / max(total, 1)
    per_class = {
        name: {
            "predicted": int(before),
            "kept": int(after),
            "kept_share": round(int(after) / int(before), 6) if before else None,
            "labels": int(final),
        }
        for name, before, after, final in zip(names, predicted, kept, written, strict=True)
    }
    content = {
        "format": "hmsa-autolabel",
        "version": 1,
        **settings,
        "complete": not failures,
        "images": ENTRIES,
        "labelled": len(records),
        "failures": list(failures),
        "pixels": total,
        "kept_share": round(int(kept.sum()) / max(total, 1), 6),
        "mean_confidence": round(confidence, 6),
        "per_class": per_class,
    }
    if sizes is not None:
        content["bytes"] = {**sizes, "soft_labels": total * len(names) * 4}
    if agreement is not None:
        drawn = _sums(
            [record["human"] for record in records if record.get("human") is not None], len(names)
        )
        compared = sum(record.get("human") is not None for record in records)
        content["human"] = {
            "images": compared,
            "labels": dict(zip(names, drawn.tolist(), strict=True)),
            "agreement": agreement.tolist(),
        }
    return content


def soft_label_seconds(folder: Path, *, values: int) -> float | None:
    """Seconds to read so many float32 of a soft label that was just written to `folder`; None where there is no room for it.

    Measured on at most 64 MiB, without any decoding and from the page cache: the least that soft labels can take.
    """
    numbers = np.random.default_rng(0).random(min(values, 1 << 24), dtype=np.float32)
    temporary = temporary_beside(folder / "soft")
    try:
        numbers.tofile(temporary)
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
