"""Hard labels as files: thresholding, a record inside each PNG, and the manifest of a finished tree (paper, section 4).

Each label file carries in a PNG text chunk what it was made with and what is in it. A file is therefore done, or not, by itself: jobs need no
coordination, may be killed at any moment, and the manifest is compiled from the files alone, the same bytes whoever made them.
"""

from __future__ import annotations

import hashlib
import json
import struct
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .png import encode_png

KEYWORD = b"hmsa-autolabel"
CITYSCAPES_SUFFIX = "_leftImg8bit"
_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_HEADER_END = 33  # signature and the IHDR chunk, after which the text chunk lies


class AutolabelError(ValueError):
    """An output tree cannot be used; the message says why and what to do."""


def apply_thresholds(label: np.ndarray, confidence: np.ndarray, *, thresholds: np.ndarray, ignore_label: int) -> np.ndarray:
    """`label` uint8 [H, W] with `ignore_label` wherever `confidence` (largest soft-max probability, [H, W]) is below its class's threshold.

    `thresholds` is float [C]. At least the threshold is kept (METHOD section 5).
    """
    kept = confidence >= thresholds.astype(confidence.dtype)[label]
    return np.where(kept, label, np.uint8(ignore_label)).astype(np.uint8)


def fingerprint(settings: Mapping[str, Any]) -> str:
    """A hash of everything the labels depend on; equal settings, equal fingerprint."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:32]


def encode_label(ids: np.ndarray, record: Mapping[str, Any]) -> bytes:
    """PNG bytes of uint8 ids [H, W] with `record` (plain values) as a text chunk."""
    data = encode_png(ids)
    text = KEYWORD + b"\0" + json.dumps(record, sort_keys=True).encode("latin-1")
    chunk = struct.pack(">I", len(text)) + b"tEXt" + text + struct.pack(">I", zlib.crc32(b"tEXt" + text))
    return data[:_HEADER_END] + chunk + data[_HEADER_END:]


def read_record(path: Path, *, whole: bool = True) -> dict[str, Any] | None:
    """The record inside a label file; None when the file is missing, not ours, or (`whole`) any of its chunks is damaged or cut off."""
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
        if end > len(data) or struct.unpack(">I", data[end - 4 : end])[0] != zlib.crc32(kind + body):
            return None
        if kind == b"tEXt" and body.startswith(KEYWORD + b"\0"):
            record = json.loads(body[len(KEYWORD) + 1 :])
            if not whole:
                return record
        if kind == b"IEND":
            return record
        position = end
    return None


def label_name(name: str, *, label_ids: str) -> str:
    """File name of the label of image `name`: Cityscapes names become *_gtAuto_labelIds (or *_labelTrainIds), others keep theirs."""
    kind = "labelIds" if label_ids == "raw" else "labelTrainIds"
    return f"{name.removesuffix(CITYSCAPES_SUFFIX)}_gtAuto_{kind}.png" if name.endswith(CITYSCAPES_SUFFIX) else f"{name}.png"


def confidence_name(name: str) -> str:
    """File name of the confidence image of image `name`: 8 bits, floor(255 x the largest probability), before any threshold."""
    return f"{name.removesuffix(CITYSCAPES_SUFFIX)}_gtAuto_confidence.png" if name.endswith(CITYSCAPES_SUFFIX) else f"{name}_confidence.png"


def manifest(settings: Mapping[str, Any], records: Sequence[Mapping[str, Any]], failures: Sequence[Mapping[str, str]],
             names: Sequence[str]) -> dict[str, Any]:
    """What manifest.json says of a tree: settings, whether it is complete, failures, per-class pixels and kept shares, mean confidence."""
    kept = np.array([record["counts"] for record in records], dtype=np.int64).reshape(-1, len(names)).sum(0)
    predicted = np.array([record["predicted"] for record in records], dtype=np.int64).reshape(-1, len(names)).sum(0)
    total = int(predicted.sum())
    confidence = sum(record["mean_confidence"] * sum(record["predicted"]) for record in records) / max(total, 1)
    per_class = {name: {"predicted": int(before), "kept": int(after), "kept_share": round(int(after) / int(before), 6) if before else None}
                 for name, before, after in zip(names, predicted, kept, strict=True)}
    return {"format": "hmsa-autolabel", "version": 1, **settings, "complete": not failures, "images": "images.jsonl", "labelled": len(records),
            "failures": list(failures), "pixels": total, "kept_share": round(int(kept.sum()) / max(total, 1), 6),
            "mean_confidence": round(confidence, 6), "per_class": per_class}
