"""Few fine and many coarse labels out of a finely labelled data set, and how wrong labels are."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from hmsa.datasets import DataError, build_files
from hmsa.utils.words import UserError
from scripts import table2
from scripts.label_errors import judge
from scripts.make_coarse_data import make_coarse_data, parse
from scripts.make_demo_data import main as draw
from scripts.tables.program import describe_drawing
from scripts.tables.runs import Run

ROOT = Path(__file__).resolve().parents[2]
COLORS = {"road": [128, 64, 128], "car": [0, 0, 142], "pole": [153, 153, 153]}


def scene(number: int) -> np.ndarray:
    """A label [128, 192]: road, two cars of 40 x 50, a pole two pixels wide, and a void strip."""
    label = np.zeros((128, 192), np.uint8)
    left = 10 + 5 * number
    label[30:70, left : left + 50] = label[80:120, left + 60 : left + 110] = 1
    label[:, 180:182] = 2
    label[:6] = 255
    return label


@pytest.fixture
def fine(tmp_path: Path) -> Path:
    """A folder data set of eight training and two validation images, with labels of colours."""
    root = tmp_path / "fine"
    table = np.array([*COLORS.values()], np.uint8)
    for split, count in (("train", 8), ("val", 2)):
        for kind in ("images", "labels"):
            (root / kind / split).mkdir(parents=True)
        for number in range(count):
            label = scene(number)
            colors = np.where(label[..., None] == 255, 0, table[np.minimum(label, 2)])
            name = f"drive_{number}"
            cv2.imwrite(str(root / "labels" / split / f"{name}.png"), colors[..., ::-1])
            image = np.full((128, 192, 3), 20 * number, np.uint8)
            cv2.imwrite(str(root / "images" / split / f"{name}.jpg"), image)
    classes = [{"name": name, "color": color} for name, color in COLORS.items()]
    content = {"classes": classes, "ignore": [255, [0, 0, 0]]}
    (root / "classes.yaml").write_text(json.dumps(content))
    return root


def options(fine: Path, output: Path, *words: str) -> argparse.Namespace:
    config = ROOT / "configs" / "camvid" / "efficientnet_hierarchical.yaml"
    return parse([str(config), str(output), f"data.root={fine}", "data.classes=null", *words])


def bytes_of(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_quarter_stays_fine_and_the_others_become_coarse(fine: Path, tmp_path: Path) -> None:
    output = tmp_path / "coarse"
    assert make_coarse_data(options(fine, output)) == 0
    place: dict[str, Any] = {"dataset": "folder", "root": output}
    train = build_files(**place, split="train")
    extra = build_files(**place, split="train_extra", labels="coarse")
    assert (len(train), len(extra), len(build_files(**place, split="val"))) == (2, 6, 2)
    names = [files.name(index) for files in (train, extra) for index in range(len(files))]
    assert sorted(names) == [f"drive_{number}" for number in range(8)]
    assert train.spec.names == tuple(COLORS)

    # Fine labels and images are those there were.
    for files in (train, extra):
        for index in range(len(files)):
            number = int(files.name(index)[-1])
            assert (files.read_image(index) == 20 * number).all()
            if files is train:
                np.testing.assert_array_equal(files.read_label(index), scene(number))

    # Coarse ones leave borders and what is thin out, and are mostly right where somebody drew.
    found = judge(output, None)
    assert 0.3 < found["covered"] < 0.95 and found["wrong"] < 0.2
    for index in range(len(extra)):
        label = extra.read_label(index)
        assert not (label == 2).any() and (label[:2] == 255).all()

    # The same arguments make the same bytes, others are another data set.
    before = bytes_of(output)
    assert make_coarse_data(options(fine, output)) == 0 and bytes_of(output) == before
    with pytest.raises(UserError, match=r"coarse: holds something else.*new or empty folder"):
        make_coarse_data(options(fine, output, "--seed", "1"))
    make_coarse_data(options(fine, tmp_path / "other", "--seed", "1"))
    recipes = {describe_drawing(str(folder)) for folder in (output, tmp_path / "other", fine)}
    assert len(recipes) == 3


def test_a_confused_class_is_drawn_as_the_other_now_and_then(fine: Path, tmp_path: Path) -> None:
    output = tmp_path / "coarse"
    make_coarse_data(options(fine, output, "--fine", "0.1", "--confused", "car=pole"))
    wrong = judge(output, None)["classes"]["pole"]
    assert wrong["wrong"] == 1.0 and wrong["covered"] < 0.2
    for words, said in (
        ("car=pol", r"'car=pol' names no class .did you mean 'pole'.*CLASS=OTHER"),
        ("car", "'car' is not CLASS=OTHER"),
    ):
        with pytest.raises(UserError, match=said):
            make_coarse_data(options(fine, tmp_path / "third", "--confused", words))


def test_errors_of_labels_are_counted_where_the_truth_has_a_class(
    fine: Path, tmp_path: Path
) -> None:
    output = tmp_path / "coarse"
    make_coarse_data(options(fine, output))
    extra = build_files(dataset="folder", root=output, split="train_extra")

    # Automatic labels: everything above row 64 is left out, and cars are called road.
    labels = tmp_path / "labels"
    labels.mkdir()
    for index in range(len(extra)):
        label = scene(int(extra.name(index)[-1]))
        label[label == 1] = 0
        label[:64] = 255
        cv2.imwrite(str(labels / f"{extra.name(index)}.png"), label)

    found = judge(output, labels)
    truths = [scene(int(extra.name(index)[-1])) for index in range(len(extra))]
    below, above = (
        {value: sum(int((truth[rows] == value).sum()) for truth in truths) for value in range(3)}
        for rows in (slice(64, None), slice(0, 64))
    )
    cars = found["classes"]["car"]
    assert cars == {"covered": below[1] / (below[1] + above[1]), "wrong": None}
    assert found["classes"]["road"]["wrong"] == below[1] / (below[0] + below[1])
    assert found["classes"]["pole"] == {"covered": 64 / 122, "wrong": 0.0}
    assert found["covered"] == sum(below.values()) / (sum(below.values()) + sum(above.values()))
    assert found["wrong"] == below[1] / sum(below.values())


def test_drawn_scenes_can_keep_what_is_true_of_their_coarse_labels(tmp_path: Path) -> None:
    words = [str(tmp_path), "--size", "64", "128", "--train=1", "--val=1", "--test=1", "--extra=3"]
    assert draw([*words, "--workers=1"]) == 0
    before = bytes_of(tmp_path)
    with pytest.raises(DataError, match="coarse labels only"):
        judge(tmp_path, None)

    # Fine labels are added to what is there, which stays as it was.
    assert draw([*words, "--workers=1", "--fine-extra"]) == 0
    after = bytes_of(tmp_path)
    assert after.items() >= before.items() and len(after) == len(before) + 6
    found = judge(tmp_path, None)
    assert 0.3 < found["covered"] < 0.95 and 0 < found["wrong"] < 0.2


def test_table2_lowers_thresholds_only_where_it_is_asked_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[str, ...]] = []

    def program(name: str, *words: str, threads: int, log: Path) -> None:
        calls.append(words)
        folder = Path(words[words.index("--output") + 1])
        folder.mkdir(parents=True)
        (folder / "manifest.json").write_text('{"kept_share": 0.5}')

    monkeypatch.setattr(table2, "run_program", program)
    teachers: list[Run] = []
    for words in ([], ["--keep-share", "0.7"]):
        given = table2.parse(["--output", str(tmp_path), "--runs", str(tmp_path), *words])
        teachers.append(table2.run_of(given, "attention", 0, ""))
        table2.label_coarse_images(given, teachers[-1])
    assert teachers[0].recipe() == teachers[1].recipe()  # one teacher serves both
    assert "autolabel.keep_share=0.7" in calls[1] and not any("keep" in word for word in calls[0])


def test_one_command_makes_data_tables_and_judgements(tmp_path: Path) -> None:
    """The programs are replaced by one that notes how it was called."""
    programs, calls = tmp_path / "programs", tmp_path / "calls"
    programs.mkdir()
    (programs / "python").write_text('#!/bin/sh\necho "$*" >> "$CALLS"\n')
    (programs / "python").chmod(0o755)
    (tmp_path / "camvid" / "images" / "train").mkdir(parents=True)
    (tmp_path / "runs" / "labels-attention-0").mkdir(parents=True)
    environment = {
        **os.environ,
        "PATH": f"{programs}:{os.environ['PATH']}",
        "CALLS": str(calls),
        "RUNS": "runs",
        "RESULTS": "results",
    }

    def start(*words: str) -> subprocess.CompletedProcess[str]:
        script = str(ROOT / "scripts" / "camvid_table2.sh")
        return subprocess.run(
            [script, *words], cwd=tmp_path, env=environment, capture_output=True, text=True
        )

    assert start("camvid", "--seeds", "1").returncode == 0
    made = calls.read_text().splitlines()
    data = f"{tmp_path}/runs/data"
    assert f"make_coarse_data.py configs/camvid/efficientnet_hierarchical.yaml {data} " in made[0]
    assert made[0].endswith(f" data.root={tmp_path}/camvid")
    tables = [call for call in made if "table2.py" in call]
    assert [("--keep-share 0.7" in call) for call in tables] == [False, True]
    assert all(call.endswith(f"data.root={data} --seeds 1") for call in tables)
    assert f"--labels {tmp_path}/runs/labels-attention-0" in made[-1] and len(made) == 5

    failed = start("nowhere")
    assert failed.returncode == 2 and "nowhere has no images/train" in failed.stderr
