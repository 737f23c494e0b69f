"""What is no file is never waited for: pipes, devices and links to them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from hmsa.utils.files.regular import NotRegularError, open_regular
from hmsa.utils.labelling.autolabels import read_record
from hmsa.utils.labelling.label_record import file_sha256
from hmsa.utils.training.checkpoint import CheckpointError, CheckpointFolder, load_checkpoint
from hmsa.utils.training.run_folder import RunError, RunFolder


def pipe(path: Path) -> None:
    os.mkfifo(path)


def device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def folder(path: Path) -> None:
    path.mkdir()


KINDS = pytest.mark.parametrize("make", [pipe, device, folder])


@KINDS
def test_only_files_are_opened(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "x")
    with pytest.raises(NotRegularError, match="not a file"):
        open_regular(tmp_path / "x")
    (tmp_path / "y").write_bytes(b"content")
    with open_regular(tmp_path / "y") as file:
        assert file.read() == b"content"


@KINDS
def test_a_label_that_is_no_file_is_not_done(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "label.png")
    assert read_record(tmp_path / "label.png") is None


@KINDS
def test_a_checkpoint_that_is_no_file_is_said(tmp_path: Path, make: Callable[[Path], None]) -> None:
    checkpoints = CheckpointFolder(tmp_path)
    make(tmp_path / "step-00000002.pt")
    (tmp_path / "step-00000002.pt.sha256").write_text(f"{'0' * 64}  step-00000002.pt\n")
    newest, passed = checkpoints.newest_valid()
    assert newest is None and all("not a file" in sentence for sentence in passed)
    with pytest.raises(CheckpointError, match="is a"):
        load_checkpoint(tmp_path / "step-00000002.pt")


@KINDS
def test_what_is_no_file_has_no_hash(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "image.png")
    assert file_sha256(tmp_path / "image.png") is None


@KINDS
@pytest.mark.parametrize("name", ["config.yaml", "metrics.jsonl", "train.log"])
def test_a_run_whose_log_is_no_file_is_refused(
    tmp_path: Path, make: Callable[[Path], None], name: str
) -> None:
    make(tmp_path / name)
    with pytest.raises(RunError, match=f"{name}: is no file"):
        RunFolder(tmp_path).claim(resume=True)
