"""Checkpoints are whole or absent, and none is believed without its hash."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hmsa.utils.files.writing import is_temporary, temporary_beside
from hmsa.utils.training.checkpoint import (
    CheckpointError,
    CheckpointFolder,
    load_checkpoint,
    save_checkpoint,
    sha256_of,
)


def test_a_checkpoint_comes_back_and_its_hash_is_the_files(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    digest = save_checkpoint(path, {"model": {"w": torch.arange(5.0)}, "progress": {"step": 3}})
    content = load_checkpoint(path)
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
