"""What a user gets wrong ends in one clear sentence and status 2: no traceback, nothing lost."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from hmsa.datasets import DataError
from hmsa.engine import build
from hmsa.utils.config import load_config
from tests.engine.conftest import Command, configuration, draw


def _says(done: object, *words: str) -> None:
    text = done.stderr  # type: ignore[attr-defined]
    errors = [line for line in text.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and "Traceback" not in text, text
    for word in words:
        assert word in text, f"'{word}' not in: {text}"


def test_misspelt_key(street: Path, command: Command, tmp_path: Path) -> None:
    _says(
        command("train.py", configuration(tmp_path, street), "optim.momentun=0.9", check=2),
        "momentun",
        "did you mean",
        "momentum",
    )


def test_missing_data_root(street: Path, command: Command, tmp_path: Path) -> None:
    _says(
        command("train.py", configuration(tmp_path, street), "data.root=/no/such/place", check=2),
        "/no/such/place",
        "data.root",
    )


def test_empty_split(street: Path, command: Command, tmp_path: Path) -> None:
    _says(
        command("train.py", configuration(tmp_path, street), "data.train_split=training", check=2),
        "training",
    )


def _label(data: Path) -> Path:
    return data / "labels" / "train" / "train_2.png"


def test_image_without_label(command: Command, tmp_path: Path) -> None:
    data = draw(tmp_path / "data")
    _label(data).unlink()
    _says(command("train.py", configuration(tmp_path, data), check=2), "train_2")


def test_label_of_another_size(command: Command, tmp_path: Path) -> None:
    data = draw(tmp_path / "data")
    cv2.imwrite(str(_label(data)), np.zeros((64, 95), np.uint8))
    _says(command("train.py", configuration(tmp_path, data), check=2), "train_2")


def test_label_value_outside_the_classes(command: Command, tmp_path: Path) -> None:
    data = draw(tmp_path / "data")
    label = cv2.imread(str(_label(data)), cv2.IMREAD_UNCHANGED)
    label[5:9, 5:9] = 7
    cv2.imwrite(str(_label(data)), label)
    _says(command("train.py", configuration(tmp_path, data), check=2), "train_2", "7")


def test_rgb_label_in_colours_of_no_class(command: Command, tmp_path: Path) -> None:
    data = draw(tmp_path / "data")
    cv2.imwrite(str(_label(data)), np.full((64, 96, 3), (3, 77, 201), np.uint8))
    _says(command("train.py", configuration(tmp_path, data), check=2), "train_2")


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_truncated_image(command: Command, tmp_path: Path, suffix: str) -> None:
    data = draw(tmp_path / "data")
    path = data / "images" / "train" / "train_2.png"
    image = cv2.imread(str(path))
    path.unlink()
    cv2.imwrite(str(path.with_suffix(suffix)), image)
    whole = path.with_suffix(suffix).read_bytes()
    path.with_suffix(suffix).write_bytes(whole[: len(whole) // 2])
    _says(command("train.py", configuration(tmp_path, data), check=2), f"train_2{suffix}")


def test_checkpoint_of_another_class_count(
    trained: Path, street: Path, command: Command, tmp_path: Path
) -> None:
    content = torch.load(trained / "checkpoints" / "best.pt", weights_only=True)
    content["spec"]["classes"].append(
        {
            "name": "tree",
            "color": [0, 255, 0],
            "raw_ids": [3],
            "category": None,
            "has_instances": False,
        }
    )
    torch.save(content, tmp_path / "four.pt")
    _says(command("eval.py", "--checkpoint", tmp_path / "four.pt", check=2), "3", "4")


def test_folder_that_cannot_be_written(
    street: Path, trained: Path, command: Command, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("in the way")
    _says(
        command(
            "train.py",
            configuration(tmp_path, street),
            f"experiment.output={tmp_path}/file/run",
            check=2,
        ),
        "file/run",
        "experiment.output",
    )
    _says(
        command(
            "eval.py",
            "--checkpoint",
            trained / "checkpoints" / "best.pt",
            "--output",
            tmp_path / "file",
            check=2,
        ),
        "--output",
    )


def test_start_without_resume_in_a_folder_that_holds_a_run(
    trained: Path, street: Path, command: Command, tmp_path: Path
) -> None:
    before = {path: path.stat().st_mtime_ns for path in trained.rglob("*")}
    _says(
        command(
            "train.py", configuration(tmp_path, street), f"experiment.output={trained}", check=2
        ),
        "--resume",
    )
    assert {path: path.stat().st_mtime_ns for path in trained.rglob("*")} == before


def test_missing_and_foreign_checkpoints(command: Command, tmp_path: Path) -> None:
    _says(command("eval.py", "--checkpoint", tmp_path / "no.pt", check=2), "no.pt")
    torch.save({"state_dict": {}}, tmp_path / "authors.pt")
    _says(command("eval.py", "--checkpoint", tmp_path / "authors.pt", check=2), "--config")


def test_only_one_rank_speaks(command: Command, street: Path, tmp_path: Path) -> None:
    done = command(
        "train.py",
        configuration(tmp_path, street),
        "data.root=/no/such/place",
        processes=2,
        check=None,
    )
    assert done.returncode != 0
    assert (
        len(
            [
                line
                for line in done.stderr.splitlines()
                if "error: /no/such/place" in line or "error: " in line and "/no/such" in line
            ]
        )
        == 1
    )


def test_a_split_without_labels_cannot_be_scored(
    trained: Path, street: Path, command: Command, tmp_path: Path
) -> None:
    images = tmp_path / "data"
    (images / "images").mkdir(parents=True)
    os.symlink(street / "images" / "val", images / "images" / "val")
    done = command(
        "eval.py",
        "--checkpoint",
        trained / "checkpoints" / "best.pt",
        f"data.root={images}",
        check=2,
    )
    _says(done, "label")


def test_classes_in_another_order_are_named(street: Path, tmp_path: Path) -> None:
    """As many classes in another order: the first that differs says more than their number."""
    config = load_config(str(configuration(tmp_path, street)), [])
    spec = build.split_files(config, "val").spec
    reordered = replace(spec, classes=tuple(reversed(spec.classes)))
    with pytest.raises(DataError, match="'sky' as class 0 where the checkpoint .* for 'pole'"):
        build.split_files(config, "val", expected=reordered)
