"""One owner per run folder, and nothing good in it is lost by damage or by a second training."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from hmsa.utils.processes import Processes
from hmsa.utils.training import run_folder
from hmsa.utils.training.checkpoint import CheckpointError
from hmsa.utils.training.logbook import Logbook, start_logging
from hmsa.utils.training.optimizer import build_optimizer, parameter_groups
from hmsa.utils.training.run_folder import RunError, RunFolder
from hmsa.utils.training.training_state import TrainingState, restore

ALONE = Processes(rank=0, world_size=1, local_rank=0, device=torch.device("cpu"))
SPEC = {"classes": [{"name": "sky"}, {"name": "road"}, {"name": "pole"}]}


def _state() -> TrainingState:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    optimizer = build_optimizer(parameter_groups(model, lr=0.1, weight_decay=0.0))
    return TrainingState(model, optimizer, torch.amp.GradScaler("cpu", enabled=False), None)


def _content(state: TrainingState, **more: Any) -> dict[str, Any]:
    return {**state.content(), "config": {}, "spec": SPEC, **more}


def _trained(folder: Path, *, steps: int = 3) -> RunFolder:
    """A run of `steps` saved steps, of which the second gave the best validation."""
    run = RunFolder(folder, keep_checkpoints=steps)
    run.claim(resume=False)
    state = _state()
    book = Logbook(folder)
    book.begin("a: 1\n")
    for step in range(1, steps + 1):
        state.progress.step = state.progress.epoch = step
        if step == 2:
            state.progress.best_miou, state.progress.best_epoch = 0.5, 2
            run.checkpoints.save_best(_content(state, miou=0.5, epoch=2))
        run.checkpoints.save(step, _content(state))
        book.row("train", step, {"epoch": step - 1, "loss": 1.0})
    book.close()
    run.release()
    return run


def _contents(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path.name: path.read_bytes() for path in files if path.name not in (".lock", ".owner")}


def _damage(path: Path, how: str) -> None:
    if how == "no hash":
        path.with_name(path.name + ".sha256").unlink()
    elif how == "cut off":
        path.write_bytes(path.read_bytes()[:-100])
    else:
        path.unlink()


@pytest.mark.parametrize("how", ["no hash", "cut off"])
def test_without_a_valid_checkpoint_nothing_is_begun_and_nothing_is_lost(
    tmp_path: Path, how: str
) -> None:
    run = _trained(tmp_path)
    for path in run.checkpoints.steps():
        _damage(path, how)
    before = _contents(tmp_path)
    run.claim(resume=True)
    with pytest.raises(CheckpointError, match="no checkpoint is left to go on from.*sha256.*DIR"):
        restore(_state(), run.checkpoints, ALONE)
    assert _contents(tmp_path) == before


@pytest.mark.parametrize("kept", ["best.pt", "metrics.jsonl", "last"])
def test_a_run_without_its_step_checkpoints_is_not_begun_anew(tmp_path: Path, kept: str) -> None:
    """Whatever else of it shows that there was more."""
    run = _trained(tmp_path)
    for path in [*tmp_path.glob("checkpoints/*"), tmp_path / "metrics.jsonl"]:
        if path.name != kept:
            path.unlink()
    before = _contents(tmp_path)
    for resume, sentence in ((False, "holds a run already"), (True, "no step-")):
        with pytest.raises(RunError, match=sentence):
            run.claim(resume=resume)
    assert _contents(tmp_path) == before


def test_a_run_killed_before_its_first_checkpoint_begins_again(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.claim(resume=True)
    (tmp_path / "metrics.jsonl").write_text('{"kind": "train", "step": 1, "epoch": 0}\n')
    (tmp_path / "checkpoints" / "step-00000001.pt.new").write_bytes(b"half")
    (tmp_path / "checkpoints" / "step-00000001.pt.sha256").write_text("hash")
    run.release()
    run.claim(resume=True)
    restore(_state(), run.checkpoints, ALONE)


@pytest.mark.parametrize("how", ["no hash", "cut off"])
def test_damaged_newest_checkpoints_are_renamed_and_named(
    tmp_path: Path, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    run = _trained(tmp_path)
    for path in run.checkpoints.steps()[1:]:
        _damage(path, how)
    damaged = {path.name: path.read_bytes() for path in run.checkpoints.steps()[1:]}

    # A dry run owns nothing and renames nothing.
    state = _state()
    restore(state, run.checkpoints, ALONE)
    assert state.progress.step == 1 and len(run.checkpoints.steps()) == 3

    run.claim(resume=True)
    restore(state, run.checkpoints, ALONE)
    assert [path.name for path in run.checkpoints.steps()] == ["step-00000001.pt"]
    for name, content in damaged.items():
        assert (run.checkpoints.folder / f"{name}.damaged-1").read_bytes() == content
        assert f"renamed to {name}.damaged-1" in caplog.text and "going back" in caplog.text

    # best.pt is of a later epoch than this checkpoint: nothing worse may replace it.
    assert (state.progress.best_miou, state.progress.best_epoch) == (0.5, 2)


def test_a_damaged_best_is_set_aside_and_the_next_one_is_written(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = _trained(tmp_path)
    _damage(run.checkpoints.best, "cut off")
    run.claim(resume=True)
    state = _state()
    restore(state, run.checkpoints, ALONE)
    assert state.progress.best_miou == -1.0 and not run.checkpoints.best.exists()
    assert "best.pt: renamed to best.pt.damaged-1" in caplog.text


@pytest.mark.parametrize("names", [["pole", "road", "sky"], ["sky", "road"], ["a", "b", "c"]])
def test_other_classes_are_not_resumed(tmp_path: Path, names: list[str]) -> None:
    """Also the same ones in another order: every channel would mean another class."""
    run = _trained(tmp_path)
    with pytest.raises(CheckpointError, match="step-00000003.pt: was trained for .*sky"):
        restore(_state(), run.checkpoints, ALONE, class_names=names)
    restore(_state(), run.checkpoints, ALONE, class_names=["sky", "road", "pole"])


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"progress": {"epoch": 1, "new_field": 2}}, "version of hmsa"),
        ({"progress": None}, "version of hmsa"),
        ({"optimizer": {"state": {}}}, "does not fit"),
        ({"optimizer": 3}, "does not fit"),
    ],
)
def test_a_checkpoint_of_another_version_is_one_sentence(
    tmp_path: Path, change: dict[str, Any], sentence: str
) -> None:
    run = RunFolder(tmp_path)
    run.checkpoints.save(1, {**_content(_state()), **change})
    with pytest.raises(CheckpointError, match=f"step-00000001.pt: .*{sentence}"):
        restore(_state(), run.checkpoints, ALONE)
    run.checkpoints.save(2, {"model": _state().model.state_dict(), "config": {}, "spec": SPEC})
    with pytest.raises(CheckpointError, match="has no optimizer, scaler"):
        restore(_state(), run.checkpoints, ALONE)


OWNER = """
import multiprocessing, sys, time
from hmsa.utils.training.run_folder import RunFolder
run = RunFolder(sys.argv[1])
run.claim(resume=False)
worker = multiprocessing.get_context("fork").Process(target=time.sleep, args=(300,))
worker.start()
print(worker.pid, flush=True)
time.sleep(300)
"""


@pytest.fixture
def owner(tmp_path: Path, root: Path) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A process that owns the folder, and the number of a loader worker that it has forked."""
    process = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(tmp_path)], cwd=root, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    worker = int(process.stdout.readline())
    yield process, worker
    process.kill()
    process.wait()
    os.kill(worker, signal.SIGKILL)


def test_a_folder_has_one_owner_until_that_process_ends(
    tmp_path: Path, owner: tuple[subprocess.Popen[str], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """However it ends, and whether or not its workers live on."""
    process, worker = owner
    monkeypatch.setattr(run_folder, "PATIENCE_S", 0.5)
    for resume in (False, True):
        with pytest.raises(RunError, match=f"another training works.*process {process.pid} on"):
            RunFolder(tmp_path).claim(resume=resume)

    process.kill()
    process.wait()
    os.kill(worker, 0)
    run = RunFolder(tmp_path)
    run.claim(resume=False)
    run.claim(resume=False)
    with pytest.raises(RunError, match="another training"):
        RunFolder(tmp_path).claim(resume=False)
    run.release()
    RunFolder(tmp_path).claim(resume=False)


def test_a_config_of_somebody_else_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("base: mine.yaml\n")
    with pytest.raises(RunError, match="holds a config.yaml that no training has written"):
        RunFolder(tmp_path).claim(resume=False)
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]


@pytest.mark.parametrize("name", ["a" * 300, "a\0b"])
def test_a_folder_that_cannot_exist_is_one_sentence(tmp_path: Path, name: str) -> None:
    with pytest.raises(RunError, match="experiment.output=DIR"):
        RunFolder(tmp_path / name).claim(resume=False)


def test_a_log_that_is_a_folder_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "train.log").mkdir()
    with pytest.raises(RunError, match="train.log: cannot be written"):
        start_logging(main=True, file=tmp_path / "train.log")


@pytest.mark.parametrize("end", [b'{"kind": "train", "st', b"\xff\xfe\x00"])
def test_a_last_line_that_was_cut_off_is_repaired(tmp_path: Path, end: bytes) -> None:
    run = _trained(tmp_path)
    book = Logbook(run.folder)
    with open(book.path, "ab") as file:
        file.write(end)
    book.begin("a: 1\n", first_step=3)
    book.close()
    rows = [json.loads(line) for line in book.path.read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert not list(tmp_path.glob("metrics.jsonl.damaged*"))


@pytest.mark.parametrize("line", [b"\xff\xfe not text", b"[1]", b'{"step": "two"}', b"null"])
def test_rows_damaged_from_elsewhere_are_kept_aside(
    tmp_path: Path, line: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    run = _trained(tmp_path)
    book = Logbook(run.folder)
    content = line + b"\n" + book.path.read_bytes()
    book.path.write_bytes(content)
    book.begin("a: 1\n", first_step=3)
    book.close()
    assert len(book.path.read_bytes().splitlines()) == 3
    assert (tmp_path / "metrics.jsonl.damaged-1").read_bytes() == content
    assert "1 lines are no rows" in caplog.text


def test_rows_are_on_the_disk_when_they_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: flushed.append(descriptor))
    Logbook(tmp_path).row("train", 1, {"loss": 1.0})
    assert len(flushed) == 1


def test_a_copied_run_goes_on(tmp_path: Path) -> None:
    _trained(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    run = RunFolder(tmp_path / "b")
    run.claim(resume=True)
    state = _state()
    restore(state, run.checkpoints, ALONE)
    assert state.progress.step == 3


def test_rows_that_are_gone_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    logbook = Logbook(tmp_path)
    logbook.begin("", first_step=5)
    logbook.close()
    assert "metrics.jsonl: is missing, so the rows up to step 5 are lost" in caplog.text


@pytest.mark.parametrize(("every", "said"), [(1, True), (10, False)])
def test_an_empty_file_is_said_where_it_must_have_held_rows(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, every: int, said: bool
) -> None:
    logbook = Logbook(tmp_path)
    logbook.path.touch()
    logbook.begin("", first_step=5, every=every)
    logbook.close()
    assert ("metrics.jsonl: is empty, so the rows up to step 5 are lost" in caplog.text) is said
