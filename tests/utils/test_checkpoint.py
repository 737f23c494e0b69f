"""Checkpoints are whole or absent, and none is believed without its hash."""

from __future__ import annotations

import pickle
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from hmsa.utils.files.writing import is_temporary, temporary_beside
from hmsa.utils.training.checkpoint import (
    FORMAT,
    CheckpointError,
    CheckpointFolder,
    load_checkpoint,
    save_checkpoint,
    sha256_of,
)

WHOLE: dict[str, Any] = {"model": {"w": torch.arange(5.0)}, "config": {}, "spec": {}}


def test_a_checkpoint_comes_back_and_its_hash_is_the_files(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    digest = save_checkpoint(
        path, {**WHOLE, "model": {"w": torch.arange(5.0)}, "progress": {"step": 3}}
    )
    content, loaded_digest = load_checkpoint(path)
    assert loaded_digest == digest
    assert torch.equal(content["model"]["w"], torch.arange(5.0))
    assert content["progress"] == {"step": 3}
    assert digest == sha256_of(path) == (tmp_path / "a.pt.sha256").read_text().split()[0]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.pt", "a.pt.sha256"]


def test_only_the_last_are_kept_and_last_names_the_newest(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path, keep=2)
    for step in (5, 100, 20_000):
        folder.save(step, {"step": step})
    assert [path.name for path in folder.steps()] == ["step-00000100.pt", "step-00020000.pt"]
    assert (tmp_path / "last").read_text().strip() == "step-00020000.pt"
    assert folder.newest_valid() == (tmp_path / "step-00020000.pt", [])


@pytest.mark.parametrize("damage", ["truncate", "flip a bit", "no hash"])
def test_a_damaged_newest_checkpoint_is_passed_over_and_named(tmp_path: Path, damage: str) -> None:
    folder = CheckpointFolder(tmp_path, keep=3)
    good, bad = (
        folder.save(1, {"model": {"w": torch.zeros(100)}}),
        folder.save(2, {"model": {"w": torch.ones(100)}}),
    )
    if damage == "truncate":
        bad.write_bytes(bad.read_bytes()[:-200])
    elif damage == "flip a bit":
        data = bytearray(bad.read_bytes())
        data[len(data) // 2] ^= 1
        bad.write_bytes(data)
    else:
        bad.with_name(bad.name + ".sha256").unlink()
    path, passed = folder.newest_valid()
    assert path == good
    assert len(passed) == 1 and str(bad) in passed[0]


def test_a_file_that_would_run_code_is_refused_unrun(tmp_path: Path) -> None:
    path, trace = tmp_path / "evil.pt", tmp_path / "ran"

    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (open, (str(trace), "w")) if False else (exec, (f"open({str(trace)!r}, 'w')",))

    torch.save({"format": "hmsa-checkpoint", "x": Evil()}, path)
    with pytest.raises(CheckpointError, match="could run code"):
        load_checkpoint(path)
    assert not trace.exists()


@pytest.mark.parametrize(
    "content",
    [b"", b"not a checkpoint", b"text of a file", b"GLOBAL", pickle.dumps([1], protocol=2)],
)
def test_what_is_no_checkpoint_is_one_sentence(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.pt"
    path.write_bytes(content)
    with pytest.raises(
        CheckpointError,
        match="x.pt: (damaged or not a PyTorch checkpoint|carries no hmsa configuration)",
    ):
        load_checkpoint(path)
    with pytest.raises(CheckpointError, match="is a folder"):
        load_checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match="no such"):
        load_checkpoint(tmp_path / "missing.pt")


def test_foreign_weights_ask_for_a_configuration(tmp_path: Path) -> None:
    torch.save({"state_dict": {}}, tmp_path / "authors.pt")
    with pytest.raises(CheckpointError, match="--config"):
        load_checkpoint(tmp_path / "authors.pt")


FULL_DISK = """
import resource, signal, sys, torch
from pathlib import Path
from hmsa.utils.files.writing import WriteError
from hmsa.utils.training.checkpoint import CheckpointFolder
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
folder = CheckpointFolder(Path(sys.argv[1]), keep=2)
folder.save(1, {"model": {"w": torch.zeros(1000)}})
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
try:
    folder.save(2, {"model": {"w": torch.zeros(100_000)}})
except WriteError as error:
    print("sentence:", error)
"""


def test_a_full_disk_loses_nothing(tmp_path: Path, root: Path) -> None:
    """A limit on the size of files stands for a disk that fills up during a save."""
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path)],
        cwd=root,
        capture_output=True,
        text=True,
        check=True,
    )
    assert (
        "sentence:" in done.stdout
        and "step-00000002.pt" in done.stdout
        and "untouched" in done.stdout
    )
    folder = CheckpointFolder(tmp_path)
    assert folder.newest_valid() == (tmp_path / "step-00000001.pt", [])
    assert not [path for path in tmp_path.iterdir() if is_temporary(path)]


def test_leftovers_of_a_killed_writer_are_removed(tmp_path: Path) -> None:
    temporary_beside(tmp_path / "step-00000009.pt").write_bytes(b"half")
    (tmp_path / "step-00000009.pt.new").write_bytes(b"without its hash")
    folder = CheckpointFolder(tmp_path)
    assert folder.steps() == []
    folder.remove_leftovers()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["step-00000001.pt", "best.pt"])
@pytest.mark.parametrize("part", [0.3, 0.5, 0.9])
def test_flipped_bytes_are_noticed_by_the_hash_beside_the_file(
    tmp_path: Path, name: str, part: float
) -> None:
    """Bytes are read once and hashed: what is used is what was hashed."""
    folder = CheckpointFolder(tmp_path)
    content = {**WHOLE, "model": {"w": torch.zeros(10_000)}}
    folder.save(1, content)
    folder.save_best(content)
    data = bytearray((tmp_path / name).read_bytes())
    data[int(part * len(data))] ^= 4
    (tmp_path / name).write_bytes(data)
    with pytest.raises(CheckpointError, match=f"{name}: its bytes do not have the sha256"):
        load_checkpoint(tmp_path / name)

    # A copy without its hash is still read: users pass best.pt on by itself.
    folder.save_best(content)
    (tmp_path / "best.pt.sha256").unlink()
    assert load_checkpoint(tmp_path / "best.pt").sha256 == sha256_of(tmp_path / "best.pt")


KILLED = """
import os, signal, sys, torch
from pathlib import Path
from hmsa.utils.training.checkpoint import CheckpointFolder
folder = CheckpointFolder(Path(sys.argv[1]))
content = {"model": {"w": torch.zeros(9)}, "config": {}, "spec": {}}
folder.save_best(content)
calls, replace = [], os.replace
def killed_at(*arguments):
    calls.append(arguments)
    if len(calls) == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)
    replace(*arguments)
os.replace = killed_at
folder.save_best({**content, "model": {"w": torch.ones(9)}})
"""


@pytest.mark.parametrize("number", [1, 2, 3, 4, 5])
def test_best_is_whole_and_has_its_hash_whenever_its_writer_is_killed(
    tmp_path: Path, root: Path, number: int
) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path), str(number)], cwd=root)
    assert done.returncode == -signal.SIGKILL
    values = load_checkpoint(tmp_path / "best.pt").content["model"]["w"]
    assert torch.equal(values, torch.full((9,), float(number == 5)))


def _with_itself() -> dict[str, Any]:
    inner: dict[str, Any] = {}
    inner["inner"] = inner
    return inner


def _shared_often() -> list[Any]:
    value: list[Any] = [0]
    for _ in range(50):
        value = [value, value]
    return value


DAMAGED: dict[str, tuple[dict[str, Any], str]] = {
    "no config": ({"config": None}, "has no config"),
    "no spec": ({"spec": None}, "has no spec"),
    "newer": ({"version": 999}, "format version 999"),
    "odd version": ({"version": "one"}, "format version 'one'"),
    "holds itself": ({"config": _with_itself()}, "hold themselves"),
    "without end": ({"config": {"a": _shared_often()}}, "values"),
    "sparse": ({"model": {"w": torch.eye(3).to_sparse()}}, "model.w is no plain dense tensor"),
    "complex": ({"model": {"w": torch.zeros(3, dtype=torch.complex64)}}, "model.w .* complex"),
    "nan": ({"model": {"w": torch.tensor([0.0, float("nan")])}}, "model.w .* not finite"),
    "infinite momentum": (
        {"optimizer": {"state": {0: {"m": torch.tensor([float("inf")])}}}},
        "optimizer.state.0.m holds numbers that are not finite",
    ),
    "eight bits": ({"model": {"w": torch.zeros(3).to(torch.float8_e4m3fn)}}, "dtype"),
    "no tensor": ({"model": {"w": [1.0]}}, "model.w is no tensor"),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_damaged_contents_are_one_sentence_each(tmp_path: Path, damage: str) -> None:
    """Nothing hangs, nothing is a traceback, and the sentence names file and section."""
    change, sentence = DAMAGED[damage]
    torch.save({"format": FORMAT, "version": 1, **WHOLE, **change}, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match=f"x.pt: .*{sentence}") as caught:
        load_checkpoint(tmp_path / "x.pt")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["a" * 300 + ".pt", "a\0b.pt"])
def test_names_that_no_file_can_have_are_one_sentence(tmp_path: Path, name: str) -> None:
    with pytest.raises(CheckpointError, match="no such|cannot be read"):
        load_checkpoint(tmp_path / name)


def test_memory_that_runs_out_is_not_called_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_checkpoint(tmp_path / "a.pt", WHOLE)

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(torch, "load", fail)
    with pytest.raises(CheckpointError, match="memory ran out"):
        load_checkpoint(tmp_path / "a.pt")


@pytest.mark.parametrize("section", ["model", "ema"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_none_are_never_saved(tmp_path: Path, section: str, value: float) -> None:
    """Neither as best nor as the last; what was there stays."""
    folder = CheckpointFolder(tmp_path)
    folder.save_best(WHOLE)
    bad = {**WHOLE, section: {"norm.running_var": torch.tensor([1.0, value])}}
    for save in (lambda: folder.save_best(bad), lambda: folder.save(1, bad)):
        with pytest.raises(CheckpointError, match=f"{section}.norm.running_var is not finite"):
            save()
    assert folder.steps() == []
    assert torch.equal(load_checkpoint(folder.best).content["model"]["w"], WHOLE["model"]["w"])


def test_a_new_checkpoint_outlives_later_ones_that_were_passed_over(tmp_path: Path) -> None:
    """Pruning by step number alone would delete what was just written."""
    folder = CheckpointFolder(tmp_path, keep=1)
    for step in (8, 9):
        folder.save(step, WHOLE)
        folder.steps()[-1].with_name(f"step-0000000{step}.pt.sha256").unlink()
    for step in (1, 2):
        path = folder.save(step, WHOLE)
        assert path.exists() and folder.newest_valid()[0] == path
    assert folder.steps()[0] == path


def test_what_is_set_aside_is_never_overwritten(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path)
    names = []
    for content in (b"one", b"two"):
        (tmp_path / "best.pt").write_bytes(content)
        (tmp_path / "best.pt.sha256").write_text("hash")
        names.append(folder.set_aside(folder.best).name)
    assert [(tmp_path / name).read_bytes() for name in names] == [b"one", b"two"]
    assert all((tmp_path / f"{name}.sha256").exists() for name in names)
    assert not folder.best.exists() and folder.steps() == []


INTERRUPTED = """
import os, signal, sys, threading, torch
from pathlib import Path
from hmsa.utils import runtime
from hmsa.utils.training import checkpoint
# Tests that were started in the background inherit that Ctrl-C is ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
folder = checkpoint.CheckpointFolder(Path(sys.argv[1]))
write = checkpoint._HashingFile.write
def slow(self, data):
    if sys.argv[2] == "ctrl-c":
        os.kill(os.getpid(), signal.SIGINT)
    elif sys.argv[2] == "timer":
        timer = threading.Thread(target=runtime.exit_when_possible, args=(143,))
        timer.start()
        timer.join()
    else:
        signal.signal(signal.SIGTERM, lambda *_: runtime.exit_when_possible(143))
        os.kill(os.getpid(), signal.SIGTERM)
    return write(self, data)
checkpoint._HashingFile.write = slow
try:
    folder.save(1, {"model": {"w": torch.zeros(9)}, "config": {}, "spec": {}})
except KeyboardInterrupt:
    print("interrupted")
print("went on")
"""


@pytest.mark.parametrize(("how", "status"), [("ctrl-c", 0), ("timer", 143), ("signal", 143)])
def test_a_save_in_progress_is_finished_before_the_process_ends(
    tmp_path: Path, root: Path, how: str, status: int
) -> None:
    """Ctrl-C, the end of the time to stop in, and a second SIGTERM all wait for it."""
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED, str(tmp_path), how],
        cwd=root,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (status, "")
    assert done.stdout == ("interrupted\nwent on\n" if how == "ctrl-c" else "")
    assert CheckpointFolder(tmp_path).newest_valid()[0] == tmp_path / "step-00000001.pt"
    assert load_checkpoint(tmp_path / "step-00000001.pt").content["model"]["w"].shape == (9,)
