"""Hard labels: which pixels are kept, what their files say, how they are compiled and checked."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import re
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
from hmsa.utils.files.image_places import ImagePlace
from hmsa.utils.files.png import encode_png
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
    empty_classes,
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
from hmsa.utils.labelling.label_record import file_sha256, is_label_of
from hmsa.utils.labelling.thresholds import (
    BINS,
    confidence_histogram,
    hard_label,
    quantile_thresholds,
)
from hmsa.utils.labelling.work_tree import (
    alone,
    claim,
    one_at_a_time,
    read_thresholds,
    require_not_drawn,
    sweep,
    write_once,
    write_thresholds,
)

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


# Kind: files of ours that were damaged, or made by others, are named in one sentence.


@pytest.mark.parametrize(
    "content", [b"", b"{", b'{"thresh', b"[]", b"null", b"\xff", b"[" * 100_000], ids=repr
)
def test_a_damaged_settings_file_is_the_only_file_to_delete(tmp_path: Path, content: bytes) -> None:
    """A5: what a power cut leaves of settings.json does not cost the labels."""
    entries = fill(tmp_path / "tree")
    folder = tmp_path / "tree"
    targets = [folder / entry.label for entry in entries]
    labels = {path.name: path.read_bytes() for path in targets}
    (folder / "settings.json").write_bytes(content)
    with pytest.raises(AutolabelError, match=r"settings\.json: is damaged or cut off") as caught:
        claim(folder, SETTINGS, targets)
    assert "delete this one file" in str(caught.value) and "delete the folder" not in str(caught)
    with pytest.raises(AutolabelError, match=r"settings\.json: is damaged or cut off"):
        problems_of(folder)

    (folder / "settings.json").unlink()
    claim(folder, SETTINGS, targets)
    assert problems_of(folder) == (3, [])
    assert {path.name: path.read_bytes() for path in targets} == labels

    # Without the note, labels of other settings and pictures of people are no labels of ours.
    (folder / "settings.json").unlink()
    with pytest.raises(AutolabelError, match=r"0\.png: is there already and was not made"):
        claim(folder, {**SETTINGS, "threshold": 0.7}, targets)
    Image.fromarray(np.zeros((1, 3), np.uint8)).save(targets[1])
    with pytest.raises(AutolabelError, match=r"1\.png: is there already and was not made"):
        claim(folder, SETTINGS, targets)
    assert not (folder / "settings.json").exists()


def test_what_decides_over_all_labels_is_on_the_disk_before_it_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A5: a file that took its name before its bytes were on the disk is cut off by a power cut."""
    synced: list[str] = []
    fsync = os.fsync

    def noted(descriptor: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", noted)
    write_once(tmp_path / "settings.json", b"{}")
    write_thresholds(tmp_path / "thresholds.json", {"a": 0.5}, made_with="x", images=1)
    assert [Path(path).suffix for path in synced] == [".tmp", "", ".tmp", ""]
    assert synced[1] == synced[3] == str(tmp_path)


def test_thresholds_are_read_as_they_were_written(tmp_path: Path) -> None:
    path = tmp_path / "thresholds.json"
    write_thresholds(path, {"a": 0.1, "b": 1.0}, made_with="x", images=7)
    write_thresholds(path, {"a": 0.9, "b": 0.9}, made_with="x", images=7)  # the second job
    assert read_thresholds(path, made_with="x", names=NAMES).tolist() == [0.1, 1.0]
    assert json.loads(path.read_text())["images"] == 7
    with pytest.raises(AutolabelError, match="was measured with other settings"):
        read_thresholds(path, made_with="y", names=NAMES)


@pytest.mark.parametrize(
    "content",
    [
        "",
        '{"made_with": "x", "thresh',
        "[]",
        "{}",
        '{"made_with": "x", "thresholds": 3}',
        '{"made_with": "x", "thresholds": {"a": 0.5}}',
        '{"made_with": "x", "thresholds": {"a": 0.5, "b": "0.5"}}',
        '{"made_with": "x", "thresholds": {"a": 0.5, "b": NaN}}',
        '{"made_with": "x", "thresholds": {"a": 0.5, "b": 2}}',
        '{"made_with": "x", "thresholds": {"a": 0.5, "b": true}}',
    ],
)
def test_damaged_thresholds_are_one_file_to_delete(tmp_path: Path, content: str) -> None:
    path = tmp_path / "thresholds.json"
    path.write_text(content)
    with pytest.raises(AutolabelError, match=r"thresholds\.json: is damaged or cut off; delete"):
        read_thresholds(path, made_with="x", names=NAMES)


def test_an_image_that_was_replaced_by_one_of_the_same_size_shows(tmp_path: Path) -> None:
    """A4: a label says which bytes it is the label of."""
    folder = tmp_path / "tree"
    image = tmp_path / "0.jpg"
    image.write_bytes(b"one photograph")
    hashed = file_sha256(image)
    assert hashed == hashlib.sha256(b"one photograph").hexdigest()
    entries = fill(folder)
    _rewrite("0.png", [4, 9, 0], image_sha256=hashed)(folder)
    tree = compile_tree(folder, SETTINGS, entries, NAMES)
    tree.write(
        folder, images={"0.jpg": ImagePlace(image), "1.jpg": ImagePlace(tmp_path / "gone.jpg")}
    )
    assert problems_of(folder) == (3, []), "images that are elsewhere are no problem"
    assert (
        json.loads((folder / "images.jsonl").read_text().splitlines()[0])["image_sha256"] == hashed
    )

    record = read_record(folder / "0.png")
    asked = {"made_with": fingerprint(SETTINGS), "image": "0.jpg"}
    assert is_label_of(record, **asked, image_sha256=str(hashed))

    times = image.stat()
    image.write_bytes(b"two photograph")
    os.utime(image, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert not is_label_of(record, **asked, image_sha256=str(file_sha256(image)))
    assert problems_of(folder)[1] == [
        f"0.png: is the label of another image than {image} holds now; start the same autolabel.py "
        "command again"
    ]
    assert not is_label_of(None, **asked, image_sha256="x")
    assert not is_label_of({**(record or {}), "made_with": "y"}, **asked, image_sha256=str(hashed))
    assert file_sha256(tmp_path / "none") is None


BAD_RECORDS: list[Any] = [
    3,
    [],
    None,
    {},
    {"made_with": 3},
    {"made_with": None},
    {"predicted": "many"},
    {"predicted": [1, 2.5]},
    {"predicted": [True, 2]},
    {"predicted": [-1, 4]},
    {"predicted": [1, 1 << 70]},
    {"predicted": [3]},
    {"predicted": [0, 0]},
    {"counts": {"a": 1}},
    {"counts": None},
    {"counts": [1, 1, 1]},
    {"mean_confidence": "high"},
    {"mean_confidence": float("nan")},
    {"mean_confidence": 7},
    {"image": ["a"]},
    {"human": "none"},
    {"human": [1, 0], "agreement": [[0, 9, 1]]},
    {"human": [1, 0], "agreement": [[0, 1]]},
    {"human": [1, 0], "agreement": 3},
    {"kept": [1]},
]


@pytest.mark.parametrize("changes", BAD_RECORDS, ids=str)
def test_records_of_wrong_types_are_no_records(tmp_path: Path, changes: Any) -> None:
    """B9: such a file has no label, so that its image is labelled anew; a check names it."""
    folder = tmp_path / "tree"
    entries = fill(folder)
    record = changes
    if isinstance(changes, dict) and changes:
        record = {**(read_record(folder / "0.png") or {}), **changes}
    ids = np.array([[4, 9, 0]], np.uint8)
    (folder / "0.png").write_bytes(encode_label(ids, record))

    tree = compile_tree(folder, SETTINGS, entries, NAMES)
    assert tree.manifest["failures"] == [{"image": "0.jpg", "why": NOT_YET}]
    _, problems = problems_of(folder)
    assert any(problem.startswith("0.png: ") for problem in problems), problems


BAD_FILES = {
    "settings.json": [
        {"classes": 3},
        {"classes": {}},
        {"classes": {"classes": []}},
        {"classes": {**CLASSES, "classes": [{"name": "a"}]}},
        {"classes": {**CLASSES, "classes": ["a", "b"]}},
        {"classes": {**CLASSES, "classes": [{"name": "a", "raw_ids": [-1]}]}},
        {"classes": {**CLASSES, "classes": [{"name": "a", "raw_ids": [1 << 70]}]}},
        {"classes": {**CLASSES, "classes": [{"name": ["a"], "raw_ids": [4]}]}},
        {"classes": {**CLASSES, "raw_ignore": "none"}},
        {"class_thresholds": []},
        {"class_thresholds": {"a": "high", "b": 0.1}},
        {"class_thresholds": {"a": float("nan"), "b": 0.1}},
    ],
    "manifest.json": [
        {"failures": None},
        {"failures": "none"},
        {"failures": [3]},
        {"failures": [{"image": 3, "why": "x"}]},
        {"failures": [{"image": "a"}]},
    ],
    "images.jsonl": [
        {"image": 3},
        {"label": None},
        {"label": "../../outside.png"},
        {"label": "/etc/passwd"},
        {"label": "a\0b"},
        {"label": ""},
        {"confidence": 3},
        {"confidence": "../x.png"},
    ],
}


@pytest.mark.parametrize(
    ("name", "changes"),
    [(name, changes) for name, listed in BAD_FILES.items() for changes in listed],
    ids=str,
)
def test_files_of_wrong_types_are_one_sentence(
    tmp_path: Path, name: str, changes: dict[str, Any]
) -> None:
    """B9: manifests with wrong types."""
    folder = tmp_path / "tree"
    fill(folder)
    first, *others = (folder / name).read_text().splitlines(keepends=True)
    if name != "images.jsonl":
        first, others = first + "".join(others), []
    text = json.dumps({**json.loads(first), **changes}) + "\n" + "".join(others)
    (folder / name).write_text(text)
    with pytest.raises(AutolabelError, match=re.escape(str(folder / name))) as caught:
        problems_of(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["settings.json", "manifest.json", "images.jsonl"])
@pytest.mark.parametrize("content", [b"", b"[]", b"3", b"{", b"\xff\xfe", b"[" * 100_000], ids=repr)
def test_files_that_are_no_json_objects_are_one_sentence(
    tmp_path: Path, name: str, content: bytes
) -> None:
    fill(tmp_path / "tree")
    (tmp_path / "tree" / name).write_bytes(content)
    if name == "images.jsonl" and not content:
        assert problems_of(tmp_path / "tree")[1], "no line is a line for each label missing"
        return
    with pytest.raises(AutolabelError, match=f"{name}: is damaged or cut off") as caught:
        problems_of(tmp_path / "tree")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["0.png", "0_confidence.png"])
def test_pictures_of_other_kinds_under_a_valid_record(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "tree"
    fill(folder)
    record = read_record(folder / name) or {}
    text = {"hmsa-autolabel": json.dumps(record)}
    colour = np.zeros((1, 3, 3), np.uint8)
    (folder / name).write_bytes(encode_png(colour, text=text))
    assert any("8-bit grey picture" in problem for problem in problems_of(folder)[1])


def test_a_label_that_somebody_corrected_is_not_replaced(tmp_path: Path) -> None:
    """A1: writing over what the command did not make, in a folder that it did make."""
    folder = tmp_path / "tree"
    fill(folder)
    require_not_drawn(folder / "0.png")
    require_not_drawn(folder / "none.png")
    _cut(folder)
    require_not_drawn(folder / "0.png")
    (folder / "1.png").write_bytes(b"damaged")
    require_not_drawn(folder / "1.png")
    Image.fromarray(np.zeros((2, 2), np.uint8)).save(folder / "2.png")
    with pytest.raises(AutolabelError, match=r"2\.png: was not made by autolabel\.py"):
        require_not_drawn(folder / "2.png")


def test_names_that_are_not_utf8_go_through_all_files(tmp_path: Path) -> None:
    """B8: text that an encoding cannot hold."""
    name = os.fsdecode(b"caf\xe9")
    entry = Entry(f"{name}.jpg", f"{name}.png", None)
    record = {
        "made_with": fingerprint(SETTINGS),
        "image": entry.image,
        "mean_confidence": 0.5,
        "predicted": [1, 2],
        "counts": [1, 1],
    }
    claim(tmp_path, SETTINGS, [tmp_path / entry.label])
    ids = np.array([[4, 9, 0]], np.uint8)
    (tmp_path / entry.label).write_bytes(encode_label(ids, record))
    failed = Entry("b.jpg", "b.png", None)
    write_failure(tmp_path / "b.png", made_with=record["made_with"], why=f"{name} is broken")
    tree = compile_tree(tmp_path, SETTINGS, [entry, failed], NAMES)
    tree.write(tmp_path, images={entry.image: ImagePlace(tmp_path / entry.image)})
    assert tree.manifest["failures"] == [{"image": "b.jpg", "why": f"{name} is broken"}]
    count, problems = problems_of(tmp_path)
    assert count == 1 and len(problems) == 2, "not complete, and b.jpg has no label"


# Kind: a result that is hardly ever wanted, and says nothing of itself.


def test_classes_of_which_nothing_is_kept_are_said() -> None:
    """C15."""
    names = ["road", "fence", "train", "sky"]
    records = [
        {
            "predicted": [60, 30, 0, 10],
            "kept": [50, 0, 0, 5],
            "counts": [50, 0, 0, 0],
            "mean_confidence": 0.5,
        }
    ]
    said = empty_classes(manifest({"threshold": 0.9}, records, [], names))
    assert len(said) == 3
    assert said[0].startswith("nothing is kept of fence: predicted, but never") and (
        "autolabel.class_thresholds" in said[0]
    )
    assert said[1] == "never predicted, and so without any label: train"
    assert said[2].startswith("nothing is left of sky: autolabel.policy takes it")

    records[0] |= {"kept": [0] * 4, "counts": [0] * 4}
    said = empty_classes(manifest({"threshold": 0.9}, records, [], names))
    assert said == [
        "no pixel of 1 images has a label: nothing reaches the threshold 0.9; choose a lower "
        "--threshold, or set autolabel.keep_share"
    ]
    records[0] |= {"kept": [1] * 4, "counts": [1] * 4}
    assert empty_classes(manifest({"threshold": 0.9}, records, [], names)) == []
    assert empty_classes(manifest({"threshold": 0.9}, [], [], names)) == []


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


def _hold_part(folder: str, order: Any) -> None:
    with alone(Path(folder), 0, 1):
        order.put("inside")
        threading.Event().wait(120)


def test_the_lock_of_a_killed_job_frees_itself(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    order = context.Queue()
    other = context.Process(target=_hold_part, args=(str(tmp_path), order))
    other.start()
    assert order.get(timeout=120) == "inside"
    with pytest.raises(AutolabelError, match="another job"), alone(tmp_path, 1, 4):
        pass
    other.kill()
    other.join(60)
    with alone(tmp_path, 1, 4):
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
