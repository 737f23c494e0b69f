"""`hmsa check` as a user starts it: what it prints, what it draws, how it ends."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from hmsa.engine.arguments import check_command
from tests.datasets.trees import label, make_auto_labels, make_cityscapes, make_folder, save


def config_for(tmp_path: Path, **data: object) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump({"data": data}))
    return path


def run(tmp_path: Path, *arguments: str) -> int:
    words = [str(tmp_path / "config.yaml"), "--output", str(tmp_path / "out"), *arguments]
    return check_command(words)


def test_sound_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = make_folder(tmp_path / "data", {"train": ["a", "b"], "val": ["c"]})
    config_for(tmp_path, dataset="folder", root=str(root))
    assert run(tmp_path) == 0
    said = capsys.readouterr()
    assert (
        "train: 2 images; height x width: 24 x 32 (2)" in said.out
        and "no faults" in said.out
        and said.err == ""
    )
    assert [line.split()[:2] for line in said.out.splitlines() if line.strip()[:1].isdigit()] == [
        ["0", "a"],
        ["1", "b"],
        ["2", "c"],
    ]
    start = said.out.index("data:")
    suggested = yaml.safe_load(said.out[start : said.out.index("no faults")])
    assert suggested["data"]["crop"] == [32, 32]
    chart = np.asarray(Image.open(tmp_path / "out" / "classes.png"))
    assert all(
        (chart == np.array([10 * index, 100, 200])).all(axis=2).any() for index in range(3)
    )  # a bar in each class's colour


def test_suggestion_is_a_configuration(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = make_folder(tmp_path / "data", {"train": ["a", "b"], "val": ["c"]})
    config_for(tmp_path, dataset="folder", root=str(root))
    assert run(tmp_path) == 0
    out = capsys.readouterr().out
    values = yaml.safe_load(out[out.index("data:") : out.index("no faults")])
    config_for(tmp_path, dataset="folder", root=str(root), **values["data"])
    assert run(tmp_path) == 0


def test_every_kind_of_fault_and_status_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = make_folder(tmp_path / "data", {"train": ["a", "b"], "val": ["c", "d"]})
    save(root / "labels/train/a.png", label(values=(0, 1, 7)))
    save(root / "labels/val/d.png", label((9, 9)))
    shutil.copy(root / "images/train/b.jpg", root / "images/val/c.jpg")
    config_for(tmp_path, dataset="folder", root=str(root))
    assert run(tmp_path) == 2
    said = capsys.readouterr()
    errors = said.err.splitlines()
    assert len(errors) == 3 and all(line.startswith("error: ") for line in errors)
    assert (
        "a.png: label value 7" in errors[0]
        and "d.png: label has 9 x 9" in errors[1]
        and "1 images are in both 'train' and 'val'" in errors[2]
    )
    assert "3 kinds of faults" in said.out


def test_a_split_that_cannot_be_listed_does_not_hide_the_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = make_folder(tmp_path / "data", {"train": ["a"], "val": ["c"]})
    (root / "labels/train/a.png").unlink()
    config_for(tmp_path, dataset="folder", root=str(root))
    assert run(tmp_path) == 2
    said = capsys.readouterr()
    assert "1 image in" in said.err and "val: 1 images" in said.out


def test_extra_source_is_checked_with_its_policy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = make_cityscapes(
        tmp_path / "data",
        {"train": {"ulm": 2}, "val": {"lindau": 1}, "train_extra": {"bamberg": 2}},
    )
    names = [f"bamberg/bamberg_{number:06d}_000019_leftImg8bit" for number in range(2)]
    auto = make_auto_labels(tmp_path / "auto", names, form="ids", manifest=True)
    extra = {"root": str(auto), "confidence_threshold": 0.9, "policy": {"road": "human"}}
    config_for(tmp_path, dataset="cityscapes", root=str(root), extra=extra)
    status = run(tmp_path)
    said = capsys.readouterr()
    assert "train_extra: 2 images" in said.out
    # The miniature draws the same random pictures for every city: what this sentence is for.
    assert status == 2 and "'train_extra' and 'val'" in said.err


def test_command_line(root: Path, tmp_path: Path) -> None:
    data = make_folder(tmp_path / "data", {"train": ["a"], "val": ["b"]})
    config_for(tmp_path, dataset="folder")
    command = [
        sys.executable,
        str(root / "scripts" / "check_dataset.py"),
        str(tmp_path / "config.yaml"),
        f"data.root={data}",
        "--workers",
        "1",
    ]
    done = subprocess.run(
        [*command, "--output", str(tmp_path / "out")], capture_output=True, text=True, cwd=tmp_path
    )
    assert (done.returncode, done.stderr) == (0, "") and (tmp_path / "out/classes.png").is_file()
    wrong = subprocess.run([*command, "data.rooot=x"], capture_output=True, text=True, cwd=tmp_path)
    assert (
        wrong.returncode == 2
        and "did you mean 'root'" in wrong.stderr
        and "Traceback" not in wrong.stderr
    )
    (tmp_path / "file").touch()
    blocked = subprocess.run(
        [*command, "--output", str(tmp_path / "file" / "x")],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert (
        blocked.returncode == 2
        and "classes.png: cannot be written" in blocked.stderr
        and "set --output DIR" in blocked.stderr
        and "Traceback" not in blocked.stderr
    )
