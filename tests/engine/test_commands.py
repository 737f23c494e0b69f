"""The three commands, started as a person starts them."""

from __future__ import annotations

import json
import os
from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.engine.conftest import CLASSES, Command, configuration, draw
from tests.programs import run_ranks_of


def test_a_run_folder_holds_everything(trained: Path) -> None:
    names = {path.name for path in trained.iterdir()}
    assert {"config.yaml", "metrics.jsonl", "tensorboard", "checkpoints", "train.log"} <= names
    checkpoints = {path.name for path in (trained / "checkpoints").iterdir()}
    assert checkpoints == {
        "best.pt",
        "best.pt.sha256",
        "last",
        "step-00000003.pt",
        "step-00000003.pt.sha256",
        "step-00000006.pt",
        "step-00000006.pt.sha256",
    }
    rows = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if row["kind"] == "val"] == [3, 6]
    first = next(row for row in rows if row["kind"] == "train")
    assert {
        "loss",
        "loss_cross_entropy",
        "lr",
        "images_per_second",
        "data_wait",
        "attention_0.5",
        "attention_1",
    } <= set(first)
    assert 0 < first["attention_0.5"] < 1 and first["attention_0.5"] + first[
        "attention_1"
    ] == pytest.approx(1)
    log = (trained / "train.log").read_text()
    assert (
        "2 epochs, 6 steps; best val mIoU" in log
        and f"evaluate it: python eval.py --checkpoint {trained}/checkpoints/best.pt" in log
    )


def test_tensorboard_shows_every_term_class_scale_and_the_speed(trained: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(trained / "tensorboard"))
    board.Reload()
    wanted = {
        f"train/{name}"
        for name in (
            "loss",
            "loss_cross_entropy",
            "lr",
            "images_per_second",
            "attention_0.5",
            "attention_1",
        )
    }
    wanted |= {"val/miou", "val/loss", *(f"val_iou/{name}" for name, _ in CLASSES)}
    assert wanted <= set(board.Tags()["scalars"]) and board.Tags()["images"] == ["val"]
    assert [event.step for event in board.Scalars("train/loss")] == [1, 2, 3, 4, 5, 6]
    (text,) = board.Tensors("config/text_summary")
    assert b"trunk: resnet18" in text.tensor_proto.string_val[0]


def test_evaluation_needs_the_checkpoint_alone(
    trained: Path, command: Command, tmp_path: Path
) -> None:
    done = command(
        "eval.py",
        "--checkpoint",
        trained / "checkpoints" / "best.pt",
        "--output",
        tmp_path / "out",
        "--compare",
        "1",
        "0.5,1,2",
        "--save",
        "labels",
        "overlay",
    )
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert (
        metrics["images"] == 3
        and metrics["scales"] == [0.5, 1.0]
        and metrics["flip"] is False
        and metrics["split"] == "val"
    )
    assert list(metrics["per_class"]) == [name for name, _ in CLASSES]
    assert metrics["miou"] == pytest.approx(
        np.mean([value for value in metrics["per_class"].values() if value is not None])
    )
    best = max(
        json.loads(line)["miou"]
        for line in (trained / "metrics.jsonl").read_text().splitlines()
        if '"val"' in line
    )
    assert metrics["miou"] == best  # what training called its best is what evaluation finds
    assert [row["scales"] for row in metrics["compared"]] == [[0.5, 1.0], [1.0], [0.5, 1.0, 2.0]]
    assert f"{100 * metrics['miou']:.1f}" in done.stdout
    assert sorted(path.name for path in (tmp_path / "out" / "labels").iterdir()) == [
        "val_0.png",
        "val_1.png",
        "val_2.png",
    ]


def test_any_images_are_predicted_at_their_own_names_and_sizes(
    trained: Path, command: Command, tmp_path: Path
) -> None:
    sizes = {"a": (64, 96), "deep/b": (33, 57), "deep/c": (120, 40)}
    for name, (height, width) in sizes.items():
        path = tmp_path / "in" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(
            str(path), np.random.default_rng(1).integers(0, 255, (height, width, 3), dtype=np.uint8)
        )
    command(
        "eval.py",
        "--checkpoint",
        trained / "checkpoints" / "best.pt",
        "--images",
        tmp_path / "in",
        "--output",
        tmp_path / "out",
        "data.root=/nowhere",
        processes=2,
    )
    for kind in ("labels", "colour", "overlay"):
        found = {
            path.relative_to(tmp_path / "out" / kind).with_suffix("").as_posix(): cv2.imread(
                str(path)
            ).shape[:2]
            for path in (tmp_path / "out" / kind).rglob("*.png")
        }
        assert found == sizes


def test_autolabels_are_the_same_bytes_for_any_number_of_processes(
    trained: Path, street: Path, tmp_path: Path
) -> None:
    checkpoint, images = trained / "checkpoints" / "best.pt", street / "images"
    trees = []
    for processes in (1, 2):
        output = tmp_path / str(processes)
        words = ["autolabel.py", "--checkpoint", checkpoint, "--images", images]
        ended = run_ranks_of(
            [*words, "--output", output, "--threshold", "0.5"],
            processes=processes,
            environment=os.environ,
        )
        assert [rank.returncode for rank in ended] == [0] * processes, ended
        trees.append(
            {
                path.relative_to(output).as_posix(): path.read_bytes()
                for path in sorted(output.rglob("*"))
                if path.is_file()
            }
        )
    for tree in trees:
        for lock in [
            name for name in tree if name.startswith(".lock") or name == "report.html"
        ]:  # the page tells times
            del tree[lock]
    assert trees[0] == trees[1]
    assert len([name for name in trees[0] if name.endswith(".png")]) == 9
    manifest = json.loads(trees[0]["manifest.json"])
    assert (
        manifest["labelled"] == 9
        and manifest["threshold"] == 0.5
        and 0 < manifest["kept_share"] <= 1
    )
    values = {
        int(value)
        for name, data in trees[0].items()
        if name.endswith(".png")
        for value in np.unique(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED))
    }
    assert values <= {0, 1, 2, 255}


def test_autolabelling_goes_on_where_it_was_killed_and_refuses_other_settings(
    trained: Path, street: Path, command: Command, tmp_path: Path
) -> None:
    words = [
        "autolabel.py",
        "--checkpoint",
        trained / "checkpoints" / "best.pt",
        "--images",
        street / "images" / "train",
        "--output",
        tmp_path,
    ]
    command(*words)
    labels = sorted(tmp_path.rglob("train_*.png"))
    before = {path: path.read_bytes() for path in labels}
    labels[0].unlink()
    labels[1].write_bytes(before[labels[1]][:-5])
    kept = labels[2].stat().st_mtime_ns
    command(*words)
    assert {path: path.read_bytes() for path in labels} == before
    assert labels[2].stat().st_mtime_ns == kept
    done = command(*words, "--threshold", "0.7", check=2)
    assert "threshold" in done.stderr and done.stderr.count("\n") == 1
    assert {path: path.read_bytes() for path in labels} == before


def test_one_unreadable_image_leaves_the_others_done(
    trained: Path, command: Command, tmp_path: Path
) -> None:
    data = draw(tmp_path / "data")
    path = data / "images" / "train" / "train_3.png"
    path.write_bytes(path.read_bytes()[:500])
    done = command(
        "autolabel.py",
        "--checkpoint",
        trained / "checkpoints" / "best.pt",
        "--images",
        data / "images" / "train",
        "--output",
        tmp_path / "out",
        check=1,
    )
    assert "train_3" in done.stderr + done.stdout and "Traceback" not in done.stderr
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["labelled"] == 5 and len(manifest["failures"]) == 1 and not manifest["complete"]


def test_a_dry_run_prints_costs_and_writes_nothing(
    street: Path, command: Command, tmp_path: Path
) -> None:
    done = command("train.py", configuration(tmp_path, street), "--dry-run")
    output = done.stdout + done.stderr
    for word in ("parameters", "x one scale", "images/s", "peak memory"):
        assert word in output
    assert not (tmp_path / "run").exists()
