"""Hard labels: which pixels are kept, what their files say, how they are compiled and checked."""

from __future__ import annotations

import json
import multiprocessing
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from hmsa.network.inference.predict import label_and_confidence
from hmsa.utils.files.prefetch import prefetch
from hmsa.utils.files.writing import WriteError
from hmsa.utils.labelling.autolabel_check import problems_of
from hmsa.utils.labelling.autolabels import (
    NOT_YET,
    AutolabelError,
    Entry,
    agreement_of,
    compile_tree,
    confidence_name,
    encode_label,
    failure_path,
    fingerprint,
    label_name,
    manifest,
    read_failure,
    read_record,
    soft_label_seconds,
    write_failure,
)
from hmsa.utils.labelling.thresholds import (
    BINS,
    confidence_histogram,
    hard_label,
    quantile_thresholds,
)
from hmsa.utils.labelling.work_tree import alone, claim, one_at_a_time, sweep, write_once

THRESHOLDS = st.lists(st.sampled_from([0.0, 0.4, 0.5, 0.9, 0.97, 1.0]), min_size=5, max_size=5)


@given(st.integers(0, 2**32 - 1), st.sampled_from([1.0, 4.0, 12.0]), THRESHOLDS)
def test_a_pixel_is_ignored_exactly_when_its_largest_probability_is_below_its_threshold(
    seed: int, spread: float, chosen: list[float]
) -> None:
    logits = spread * torch.randn(1, 5, 9, 11, generator=torch.Generator().manual_seed(seed))
    label, confidence = (part[0] for part in label_and_confidence(logits))
    thresholds = torch.tensor(chosen)
    hard = hard_label(label, confidence, thresholds=thresholds, ignore_label=255)
    below = confidence < thresholds[label.long()]
    assert torch.equal(hard.label == 255, below) and torch.equal(hard.label[~below], label[~below])
    largest, winner = (
        logits.double().softmax(1)[0].max(0)
    )  # and so says a soft-max of all classes, but where float32 cannot tell
    limit = torch.tensor(chosen, dtype=torch.float64)[winner]
    clear = (largest - limit).abs() > 1e-6
    assert torch.equal((hard.label == 255)[clear], (largest < limit)[clear])
    assert torch.equal(hard.predicted, torch.bincount(label.reshape(-1), minlength=5))
    assert torch.equal(hard.kept, torch.bincount(label[~below], minlength=5))
    assert torch.equal(hard.confidence, (confidence * 255).floor().to(torch.uint8))
    assert hard.to_host().mean_confidence == pytest.approx(float(largest.mean()), abs=3e-5)


@pytest.mark.parametrize("value", [0.9, 0.5, 1.0, 0.25])
def test_at_the_threshold_is_kept_and_a_hair_below_is_not(value: float) -> None:
    """Paper, section 4: at least the threshold."""
    at = torch.tensor(value)
    confidence = torch.stack([torch.nextafter(at, torch.tensor(0.0)), at]).view(1, 2)
    hard = hard_label(
        torch.zeros(1, 2, dtype=torch.uint8), confidence, thresholds=at.view(1), ignore_label=7
    )
    assert hard.label.tolist() == [[7, 0]]


def test_what_is_not_a_number_is_ignored_and_counted() -> None:
    logits = torch.zeros(1, 2, 1, 3)
    logits[0, 0, 0, 0], logits[0, 1, 0, 1] = float("nan"), float("inf")
    label, confidence = (part[0] for part in label_and_confidence(logits))
    hard = hard_label(label, confidence, thresholds=torch.tensor([0.0, 0.0]), ignore_label=255)
    assert hard.label.tolist() == [[255, 255, 0]] and int(hard.not_numbers) == 2
    assert hard.confidence.tolist() == [[0, 0, 127]] and int(hard.kept.sum()) == 1


@given(st.integers(0, 2**32 - 1), st.floats(0.01, 1.0), st.sampled_from([0.3, 0.9, 1.0]))
def test_thresholds_by_share_are_the_largest_that_keep_the_share(
    seed: int, keep_share: float, at_most: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    label = torch.randint(0, 3, (20, 30), generator=generator).to(
        torch.uint8
    )  # a fourth class never occurs
    confidence = torch.rand(20, 30, generator=generator) ** 0.3
    halves = [
        confidence_histogram(label[rows], confidence[rows], classes=4)
        for rows in (slice(0, 7), slice(7, 20))
    ]
    histogram = sum(halves[1:], halves[0])
    assert (
        torch.equal(histogram, confidence_histogram(label, confidence, classes=4))
        and int(histogram.sum()) == 600
    )
    thresholds = quantile_thresholds(
        histogram.numpy(), keep_share=keep_share, at_most=np.full(4, at_most)
    )
    hard = hard_label(
        label, confidence, thresholds=torch.from_numpy(thresholds).float(), ignore_label=255
    )
    assert thresholds[3] == at_most
    for number in range(3):
        pixels, kept = int(hard.predicted[number]), int(hard.kept[number])
        assert kept >= keep_share * pixels - 1e-6
        if thresholds[number] < at_most:  # one step up would keep too few
            above = int((confidence[label == number] >= thresholds[number] + 1 / BINS).sum())
            assert above < keep_share * pixels


def test_certain_pixels_fall_into_the_last_bin() -> None:
    histogram = confidence_histogram(
        torch.zeros(1, 2, dtype=torch.uint8), torch.tensor([[1.0, float("nan")]]), classes=1
    )
    assert histogram[0, BINS - 1] == 1 and histogram[0, 0] == 1


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
    assert (
        label_name("train_extra/ulm/ulm_000_000_leftImg8bit", label_ids="raw")
        == "train_extra/ulm/ulm_000_000_gtAuto_labelIds.png"
    )
    assert (
        label_name("ulm_000_000_leftImg8bit", label_ids="train")
        == "ulm_000_000_gtAuto_labelTrainIds.png"
    )
    assert confidence_name("ulm_000_000_leftImg8bit") == "ulm_000_000_gtAuto_confidence.png"
    assert label_name("a/b", label_ids="train") == "a/b.png"


def test_the_fingerprint_depends_on_every_setting() -> None:
    assert (
        fingerprint({"a": 1, "b": 2})
        == fingerprint({"b": 2, "a": 1})
        != fingerprint({"a": 1, "b": 3})
    )


def test_the_manifest_adds_up() -> None:
    records = [
        {"predicted": [6, 4], "counts": [3, 4], "mean_confidence": 0.8},
        {"predicted": [10, 0], "counts": [5, 0], "mean_confidence": 0.6},
    ]
    found = manifest({"threshold": 0.9}, records, [], ["a", "b"])
    assert (
        found["kept_share"] == 0.6
        and found["pixels"] == 20
        and found["labelled"] == 2
        and found["complete"]
    )
    assert found["mean_confidence"] == 0.7
    assert found["per_class"] == {
        "a": {"predicted": 16, "kept": 8, "kept_share": 0.5, "labels": 8},
        "b": {"predicted": 4, "kept": 4, "kept_share": 1.0, "labels": 4},
    }


def test_prefetch_keeps_order_and_puts_a_failure_in_its_place() -> None:
    found = list(prefetch(lambda number: 10 // number, [5, 0, 2], workers=3, depth=2))
    assert found[0] == (5, 2) and found[2] == (2, 5)
    assert found[1][0] == 0 and isinstance(found[1][1], ZeroDivisionError)


def test_agreement_counts_pixels_that_both_have() -> None:
    human, automatic = (
        np.array([[0, 1, 255, 2, 2]], np.uint8),
        np.array([[0, 2, 1, 255, 2]], np.uint8),
    )
    assert agreement_of(human, automatic, classes=3) == [[0, 0, 1], [1, 2, 1], [2, 2, 1]]
    assert agreement_of(human[:, :0], automatic[:, :0], classes=3) == []


def test_soft_labels_take_time_to_read_and_leave_nothing(tmp_path: Path) -> None:
    assert (soft_label_seconds(tmp_path, values=1000) or 0) > 0 and not list(tmp_path.iterdir())
    assert soft_label_seconds(tmp_path / "nowhere", values=10) is None


NAMES = ("a", "b")
CLASSES = {
    "classes": [{"name": "a", "raw_ids": [4]}, {"name": "b", "raw_ids": [9]}],
    "raw_ignore": 0,
    "ignore_label": 255,
}
SETTINGS: dict[str, Any] = {
    "threshold": 0.5,
    "class_thresholds": {"a": 0.5, "b": 0.25},
    "label_ids": "raw",
    "classes": CLASSES,
    "policy": {},
}


def fill(folder: Path, count: int = 3, settings: dict[str, Any] = SETTINGS) -> list[Entry]:
    """A tree as autolabel.py writes it: label and confidence of each image.

    The last image also has a label that people drew.
    """
    folder.mkdir()
    entries = [
        Entry(f"{number}.jpg", f"{number}.png", f"{number}_confidence.png")
        for number in range(count)
    ]
    made_with = fingerprint(settings)
    claim(folder, settings, [folder / entry.label for entry in entries])
    for number, entry in enumerate(entries):
        ids, confidence = np.array([[4, 9, 0]], np.uint8), np.array([[200, 63, 10]], np.uint8)
        record: dict[str, Any] = {
            "made_with": made_with,
            "image": entry.image,
            "mean_confidence": 0.5,
            "predicted": [1, 2],
            "counts": [1, 1],
        }
        record["human"], record["agreement"] = (
            ([1, 0], [[0, 0, 1]]) if number == count - 1 else (None, [])
        )
        (folder / entry.label).write_bytes(encode_label(ids, record))
        (folder / str(entry.confidence)).write_bytes(
            encode_label(confidence, {"made_with": made_with})
        )
    compile_tree(folder, settings, entries, NAMES).write(folder)
    return entries


def test_a_tree_adds_up(tmp_path: Path) -> None:
    entries = fill(tmp_path / "tree")
    found = json.loads((tmp_path / "tree" / "manifest.json").read_text())
    assert (
        found["complete"]
        and found["labelled"] == 3
        and found["pixels"] == 9
        and found["kept_share"] == pytest.approx(6 / 9, abs=1e-6)
    )
    assert found["per_class"]["b"] == {"predicted": 6, "kept": 3, "kept_share": 0.5, "labels": 3}
    assert found["human"] == {
        "images": 1,
        "labels": {"a": 1, "b": 0},
        "agreement": [[1, 0], [0, 0]],
    }
    labels = sum((tmp_path / "tree" / entry.label).stat().st_size for entry in entries)
    assert (
        found["bytes"]["labels"] == labels
        and found["bytes"]["confidence"] > 0
        and found["bytes"]["soft_labels"] == 9 * 2 * 4
    )
    lines = [
        json.loads(line) for line in (tmp_path / "tree" / "images.jsonl").read_text().splitlines()
    ]
    assert [line["image"] for line in lines] == ["0.jpg", "1.jpg", "2.jpg"] and lines[0][
        "counts"
    ] == {"a": 1, "b": 1}


def test_failures_are_told_with_their_reasons(tmp_path: Path) -> None:
    entries = fill(tmp_path / "tree")
    made_with = fingerprint(SETTINGS)
    for entry in entries[:2]:
        (tmp_path / "tree" / entry.label).unlink()
    write_failure(tmp_path / "tree" / "1.png", made_with=made_with, why="it is broken")
    found = compile_tree(tmp_path / "tree", SETTINGS, entries, NAMES).manifest
    assert not found["complete"] and found["failures"] == [
        {"image": "0.jpg", "why": NOT_YET},
        {"image": "1.jpg", "why": "it is broken"},
    ]
    assert (
        read_failure(tmp_path / "tree" / "1.png", made_with="other") == NOT_YET
    )  # a reason of other settings tells nothing
    failure_path(tmp_path / "tree" / "1.png").write_text("[]")
    assert read_failure(tmp_path / "tree" / "1.png", made_with=made_with) == NOT_YET


def _cut(folder: Path) -> None:
    (folder / "0.png").write_bytes((folder / "0.png").read_bytes()[:-3])


def _rewrite(name: str, ids: list[int], **changes: Any) -> Any:
    def damage(folder: Path) -> None:
        record = {**(read_record(folder / name) or {}), **changes}
        (folder / name).write_bytes(encode_label(np.array([ids], np.uint8), record))

    return damage


def _edit(name: str, old: str, new: str) -> Any:
    return lambda folder: (folder / name).write_text(
        (folder / name).read_text().replace(old, new, 1)
    )


DAMAGES = {
    "0.png: is missing, damaged or cut off": _cut,
    "1.png: was made with other settings": _rewrite("1.png", [4, 9, 0], made_with="other"),
    "1.png: is the label of x.jpg": _rewrite("1.png", [4, 9, 0], image="x.jpg"),
    "1.png: does not hold the pixels": _rewrite("1.png", [4, 4, 0]),
    "2.png: does not hold the pixels": _rewrite("2.png", [4, 9, 77]),
    "2.png: has 3 pixels": _rewrite("2.png", [4, 9, 0], predicted=[1, 1]),
    "0.png: its confidence image is missing": lambda folder: (folder / "0_confidence.png").unlink(),
    "0.png: its confidence image has another size": _rewrite("0_confidence.png", [200, 63]),
    "0.png: keeps pixels whose confidence is below": _rewrite("0_confidence.png", [126, 63, 10]),
    "0.png: ignores pixels whose confidence is above": _rewrite("0_confidence.png", [200, 63, 128]),
    "more.png: is listed nowhere": lambda folder: (folder / "more.png").write_bytes(b""),
    "left half written": lambda folder: (folder / ".hmsa-1-2.tmp").write_bytes(b""),
    "manifest.json: does not say what the label files say (labelled)": _edit(
        "manifest.json", '"labelled": 3', '"labelled": 4'
    ),
    "images.jsonl: does not say": _edit("images.jsonl", '"kept": 0.6', '"kept": 0.7'),
    "the labelling is not complete": _edit(
        "manifest.json", '"complete": true', '"complete": false'
    ),
}


@pytest.mark.parametrize("said", DAMAGES)
def test_verifying_finds(said: str, tmp_path: Path) -> None:
    fill(tmp_path / "tree")
    assert problems_of(tmp_path / "tree") == (3, [])
    DAMAGES[said](tmp_path / "tree")
    _, problems = problems_of(tmp_path / "tree")
    assert any(said in problem for problem in problems), problems


def test_what_is_no_tree_is_not_verified(tmp_path: Path) -> None:
    with pytest.raises(AutolabelError, match="is no finished tree of automatic labels"):
        problems_of(tmp_path)


def test_a_folder_is_claimed_once(tmp_path: Path) -> None:
    targets = [tmp_path / "0.png"]
    claim(tmp_path, SETTINGS, targets)
    targets[0].write_bytes(b"ours")
    claim(tmp_path, SETTINGS, targets)
    with pytest.raises(AutolabelError, match=r"made with other settings \(more, threshold\)"):
        claim(tmp_path, {**SETTINGS, "threshold": 0.7, "more": 1}, targets)
    (tmp_path / "settings.json").unlink()
    with pytest.raises(
        AutolabelError, match=r"0\.png: is there already and was not made by autolabel\.py"
    ):
        claim(tmp_path, SETTINGS, targets)
    assert targets[0].read_bytes() == b"ours" and not (tmp_path / "settings.json").exists()


def test_of_many_writers_one_wins_and_all_see_it(tmp_path: Path) -> None:
    seen: list[bytes] = []
    gate = threading.Barrier(8)

    def write(number: int) -> None:
        gate.wait()
        seen.append(write_once(tmp_path / "deep" / "file", bytes([number]) * 1000))

    threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (
        len(seen) == 8
        and len(set(seen)) == 1
        and [path.name for path in (tmp_path / "deep").iterdir()] == ["file"]
    )


def test_parts_that_share_files_exclude_each_other(tmp_path: Path) -> None:
    with alone(tmp_path, 1, 4):
        for part, parts in ((1, 4), (0, 1), (1, 2), (3, 6), (1, 3)):
            with (
                pytest.raises(AutolabelError, match="another job is writing here"),
                alone(tmp_path, part, parts),
            ):
                pass
        for part, parts in ((0, 4), (3, 4), (0, 2), (2, 6)):
            with alone(tmp_path, part, parts):
                pass
    with alone(tmp_path, 0, 1):
        pass


def _wait_inside(folder: str, order: Any) -> None:
    order.put("started")
    with one_at_a_time(Path(folder)):
        order.put("inside")


def test_finishing_jobs_take_turns(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    order = context.Queue()
    other = context.Process(target=_wait_inside, args=(str(tmp_path), order))
    with one_at_a_time(tmp_path):
        other.start()
        assert order.get(timeout=120) == "started"
        other.join(0.3)
        assert order.empty()
    assert order.get(timeout=60) == "inside"
    other.join(60)


def test_sweeping_takes_half_written_files_alone(tmp_path: Path) -> None:
    for name in (".hmsa-1-2.tmp", "deep/.hmsa-3-4.tmp", "deep/a.png", ".hmsa-kept"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    sweep(tmp_path)
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == [
        ".hmsa-kept",
        "a.png",
    ]


def test_a_folder_that_takes_no_lock_is_a_sentence(tmp_path: Path) -> None:
    for enter in (
        lambda: alone(tmp_path / "nowhere", 0, 1),
        lambda: one_at_a_time(tmp_path / "nowhere"),
    ):
        with (
            pytest.raises(
                WriteError,
                match=r"nowhere/\.lock-.*: cannot be written \(No such file or directory\)",
            ),
            enter(),
        ):
            pass
