"""Hard labels as files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from utils.autolabels import apply_thresholds, confidence_name, encode_label, fingerprint, label_name, manifest, read_record
from utils.prefetch import prefetch


@given(st.integers(0, 2**32 - 1))
def test_ignore_exactly_below_the_threshold(seed: int) -> None:
    generator = np.random.default_rng(seed)
    label = generator.integers(0, 5, (6, 7), dtype=np.uint8)
    confidence = generator.choice(np.array([0.2, 0.5, 0.8999999, 0.9, 0.95, 1.0], dtype=np.float32), (6, 7))
    thresholds = generator.choice([0.0, 0.5, 0.9, 1.0], 5)
    hard = apply_thresholds(label, confidence, thresholds=thresholds, ignore_label=255)
    below = confidence < thresholds.astype(np.float32)[label]
    assert (hard[below] == 255).all() and (hard[~below] == label[~below]).all()


def test_a_label_file_carries_its_record_and_any_damage_shows(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    ids = np.arange(200, dtype=np.uint8).reshape(10, 20)
    data = encode_label(ids, {"made_with": "abc", "image": "ä.png"})
    path.write_bytes(data)
    assert read_record(path) == {"made_with": "abc", "image": "ä.png"}
    assert (np.asarray(Image.open(path)) == ids).all()
    for position in range(0, len(data), 7):
        damaged = bytearray(data)
        damaged[position] ^= 4
        path.write_bytes(damaged)
        assert read_record(path) is None, position
    for length in range(0, len(data), 11):
        path.write_bytes(data[:length])
        assert read_record(path) is None
    Image.fromarray(ids).save(path)
    assert read_record(path) is None
    assert read_record(tmp_path / "missing.png") is None


def test_names() -> None:
    assert label_name("train_extra/ulm/ulm_000_000_leftImg8bit", label_ids="raw") == "train_extra/ulm/ulm_000_000_gtAuto_labelIds.png"
    assert label_name("ulm_000_000_leftImg8bit", label_ids="train") == "ulm_000_000_gtAuto_labelTrainIds.png"
    assert confidence_name("ulm_000_000_leftImg8bit") == "ulm_000_000_gtAuto_confidence.png"
    assert label_name("a/b", label_ids="train") == "a/b.png"


def test_the_fingerprint_depends_on_every_setting() -> None:
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1}) != fingerprint({"a": 1, "b": 3})


def test_the_manifest_adds_up() -> None:
    records = [{"predicted": [6, 4], "counts": [3, 4], "mean_confidence": 0.8}, {"predicted": [10, 0], "counts": [5, 0], "mean_confidence": 0.6}]
    found = manifest({"threshold": 0.9}, records, [], ["a", "b"])
    assert found["kept_share"] == 0.6 and found["pixels"] == 20 and found["labelled"] == 2 and found["complete"]
    assert found["mean_confidence"] == 0.7
    assert found["per_class"] == {"a": {"predicted": 16, "kept": 8, "kept_share": 0.5}, "b": {"predicted": 4, "kept": 4, "kept_share": 1.0}}


def test_prefetch_keeps_order_and_puts_a_failure_in_its_place() -> None:
    found = list(prefetch(lambda number: 10 // number, [5, 0, 2], workers=3, depth=2))
    assert found[0] == (5, 2) and found[2] == (2, 5)
    assert found[1][0] == 0 and isinstance(found[1][1], ZeroDivisionError)
