"""Checkpoints: written whole or not at all, hashed, and read without running code.

A checkpoint is a dict of tensors and plain values: `format`, `version`, `model`, `spec` (classes)
and `config`; for resuming also `optimizer`, `scaler`, `ema` and `progress`.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch

from ..files.writing import is_temporary, remove, write_file, written_whole
from ..words import UserError

FORMAT = "hmsa-checkpoint"
VERSION = 1

_STEP_FILE = re.compile(r"step-(\d+)\.pt$")
_WRITE_ADVICE = (
    "the earlier checkpoints are untouched: free some space or choose another experiment.output, "
    "then start again with --resume"
)


class CheckpointError(UserError, ValueError):
    """A checkpoint cannot be read or used; the message names the file and what to do."""


class _HashingFile:
    """A file to write to that hashes what it is given, so that the file need not be read again."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.digest = hashlib.sha256()
        # torch.save turns an OSError into a RuntimeError about positions; the cause stays here.
        self.failure: OSError | None = None

    def write(self, data: bytes) -> int:
        self.digest.update(data)
        try:
            return self.file.write(data)
        except OSError as error:
            self.failure = error
            raise

    def flush(self) -> None:
        self.file.flush()


def save_checkpoint(path: Path, content: Mapping[str, Any], *, sidecar: bool = True) -> str:
    """Write `content` (tensors and plain values) and return its sha256 as 64 hexadecimal digits.

    With `sidecar` the file PATH.sha256 holds the hash too, in the format of `sha256sum`.

    Raises:
        WriteError: a full disk or a missing permission; what was there before stays as it was.
    """
    staged = path.with_name(path.name + ".new")
    try:
        with written_whole(staged, durable=True, advice=_WRITE_ADVICE) as temporary:
            digest = _write(temporary, {"format": FORMAT, "version": VERSION, **content})

        # The hash takes its name before the checkpoint does: a hash without its file does no harm,
        # but a checkpoint without its hash would not count as valid.
        if sidecar:
            write_file(_sidecar(path), f"{digest}  {path.name}\n", durable=True)
        os.replace(staged, path)
    finally:
        remove(staged)
    return digest


def _write(path: Path, content: Mapping[str, Any]) -> str:
    """Let torch write `content` to `path`; returns the sha256 of what was written."""
    with open(path, "wb") as raw:
        file = _HashingFile(raw)
        try:
            torch.save(content, file)  # type: ignore[arg-type]
        except RuntimeError:
            if file.failure is not None:
                raise file.failure from None
            raise
    return file.digest.hexdigest()


def _sidecar(path: Path) -> Path:
    return path.with_name(path.name + ".sha256")


def sha256_of(path: Path) -> str:
    """sha256 of a file's bytes as 64 hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read one of this project's checkpoints, tensors on the CPU, without running any code in it.

    Raises:
        CheckpointError: the file is missing or damaged, could run code, or is not of this project
            (`network.load_weights` reads weights of others).
    """
    if path.is_dir():
        raise CheckpointError(
            f"{path}: is a folder; name the file in it, such as checkpoints/best.pt of a run"
        )
    if not path.is_file():
        raise CheckpointError(f"{path}: no such checkpoint file")

    # Bytes that are no pickle make torch.load raise almost any kind of exception.
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        if isinstance(error, pickle.UnpicklingError) and _is_pickle(path):
            raise CheckpointError(
                f"{path}: refused, since it holds more than tensors and plain values and could "
                "run code when read"
            ) from error
        raise CheckpointError(
            f"{path}: damaged or not a PyTorch checkpoint; take another one of the run's "
            "checkpoints"
        ) from error

    # Weights from elsewhere are fine, but they do not say which network they belong to.
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise CheckpointError(
            f"{path}: carries no hmsa configuration; name one with --config so that the network "
            "can be built for these weights"
        )
    return content


def _is_pickle(path: Path) -> bool:
    """Whether the file begins like a pickle or like a zip archive with one inside."""
    with open(path, "rb") as file:
        return file.read(1) in (b"\x80", b"P")


def is_ours(path: Path) -> bool:
    """Whether the file is one of this project's checkpoints (with a configuration inside)."""
    # Whatever is wrong with the file, it is then not one to trust as ours.
    try:
        load_checkpoint(path)
    except CheckpointError:
        return False
    return True


class CheckpointFolder:
    """A run's `checkpoints/` folder.

    It holds the last `keep` of the step-*.pt with their hashes, `last` with the name of the newest
    of them, and best.pt.
    """

    def __init__(self, folder: Path, *, keep: int = 2) -> None:
        self.folder = folder
        self.keep = keep

    @property
    def best(self) -> Path:
        """Where the weights of the best validation go."""
        return self.folder / "best.pt"

    def steps(self) -> list[Path]:
        """The step checkpoints, oldest first (whether valid or not)."""
        if not self.folder.is_dir():
            return []
        files = [file for file in self.folder.iterdir() if _STEP_FILE.match(file.name)]
        return sorted(files, key=_step_of)

    def save(self, step: int, content: Mapping[str, Any]) -> Path:
        """Write step-STEP.pt and `last`, then delete what is older than the last `keep`."""
        path = self.folder / f"step-{step:08d}.pt"
        save_checkpoint(path, content)
        write_file(self.folder / "last", f"{path.name}\n", durable=True)

        # Only now, with the new one safe on the disk, may an older one go.
        for old in self.steps()[: -self.keep]:
            old.unlink(missing_ok=True)
            _sidecar(old).unlink(missing_ok=True)
        return path

    def save_best(self, content: Mapping[str, Any]) -> Path:
        """Write best.pt in place of the one before."""
        save_checkpoint(self.best, content, sidecar=False)
        return self.best

    def newest_valid(self) -> tuple[Path | None, list[str]]:
        """The newest step checkpoint whose bytes have the sha256 noted for them.

        Beside it a sentence for each newer checkpoint that was passed over.
        """
        passed: list[str] = []
        for path in reversed(self.steps()):
            problem = _problem(path)
            if problem is None:
                return path, passed
            passed.append(f"{path}: {problem}; going back to the checkpoint before it")
        return None, passed

    def remove_leftovers(self) -> None:
        """Delete the temporary files of a run that was killed while writing."""
        if self.folder.is_dir():
            for path in self.folder.iterdir():
                if is_temporary(path) or path.name.endswith(".pt.new"):
                    path.unlink(missing_ok=True)


def _step_of(path: Path) -> int:
    found = _STEP_FILE.match(path.name)
    assert found is not None
    return int(found.group(1))


def _problem(path: Path) -> str | None:
    sidecar = _sidecar(path)
    if not sidecar.is_file():
        return "its .sha256 file is missing"

    noted = sidecar.read_text(encoding="ascii", errors="replace").split()
    if not noted or noted[0] != sha256_of(path):
        return "its bytes do not have the sha256 noted for them (cut off or damaged)"
    return None
