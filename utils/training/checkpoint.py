"""Checkpoints that survive anything: written whole or not at all, hashed, read without running code.

A checkpoint is a dict of tensors and plain values: format, version, model, spec, config, and for resuming optimizer, scaler, ema, progress.
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

FORMAT = "hmsa-checkpoint"
VERSION = 1
_STEP_FILE = re.compile(r"step-(\d+)\.pt$")


class CheckpointError(ValueError):
    """A checkpoint cannot be written or read; the message names the file and what to do."""


class _HashingFile:
    """A file to write to that keeps the sha256 of all that went through, so that the file need not be read again."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.digest = hashlib.sha256()
        self.failure: OSError | None = None  # torch turns it into a RuntimeError about positions

    def write(self, data: bytes) -> int:
        self.digest.update(data)
        try:
            return self.file.write(data)
        except OSError as error:
            self.failure = error
            raise

    def flush(self) -> None:
        self.file.flush()


def write_atomically(path: Path, data: bytes) -> None:
    """Write `data` under a temporary name in the same folder, flush it to the disk, then rename: the old file or the new one, never a half."""
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise CheckpointError(
            f"{path}: cannot be written ({error.strerror or error}); nothing that was there is lost"
        ) from error
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def save_checkpoint(path: Path, content: Mapping[str, Any], *, sidecar: bool = True) -> str:
    """Write `content` (tensors and plain values) atomically and return its sha256; with `sidecar` PATH.sha256 holds it too.

    The sidecar is written before the rename: a hash without its file is harmless, a file without its hash would not count as valid.
    Raises CheckpointError (full disk, no permission); the files that were there stay as they were.
    """
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    file: _HashingFile | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as raw:
            file = _HashingFile(raw)
            torch.save({"format": FORMAT, "version": VERSION, **content}, file)  # type: ignore[arg-type]
            raw.flush()
            os.fsync(raw.fileno())
        digest = file.digest.hexdigest()
        if sidecar:
            write_atomically(
                path.with_name(path.name + ".sha256"), f"{digest}  {path.name}\n".encode()
            )
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:
        temporary.unlink(missing_ok=True)
        cause = error if isinstance(error, OSError) else file.failure if file is not None else None
        if cause is None:
            raise
        raise CheckpointError(
            f"{path}: the checkpoint cannot be written ({cause.strerror or cause}); the earlier checkpoints are untouched: "
            "free some space or choose another experiment.output, then start again with --resume"
        ) from error
    _sync_folder(path.parent)
    return digest


def sha256_of(path: Path) -> str:
    """sha256 of a file's bytes as 64 hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint of ours with `weights_only` (no code is run), tensors on the CPU.

    Raises CheckpointError when the file is missing, damaged, would run code, or is not of this project (see network.load_weights for those).
    """
    if path.is_dir():
        raise CheckpointError(
            f"{path}: is a folder; name the file in it, such as checkpoints/best.pt of a run"
        )
    if not path.is_file():
        raise CheckpointError(f"{path}: no such checkpoint file")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # bytes that are no pickle raise whatever they happen to spell
        if isinstance(error, pickle.UnpicklingError) and _is_pickle(path):
            raise CheckpointError(
                f"{path}: refused, since it holds more than tensors and plain values and could run code when read"
            ) from error
        raise CheckpointError(
            f"{path}: damaged or not a PyTorch checkpoint; take another one of the run's checkpoints"
        ) from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise CheckpointError(
            f"{path}: carries no hmsa configuration; name one with --config so that the network can be built for these weights"
        )
    return content


def _is_pickle(path: Path) -> bool:
    """Whether the file begins like a pickle or like a zip archive with one inside."""
    with open(path, "rb") as file:
        return file.read(1) in (b"\x80", b"P")


def is_ours(path: Path) -> bool:
    """Whether the file is one of this project's checkpoints (with a configuration inside)."""
    try:
        load_checkpoint(path)
    except CheckpointError:
        return False
    return True


class CheckpointFolder:
    """A run's `checkpoints/`: step-*.pt with their sha256, the last `keep` of them, `last` naming the newest, and best.pt."""

    def __init__(self, folder: Path, *, keep: int = 2) -> None:
        self.folder = folder
        self.keep = keep

    @property
    def best(self) -> Path:
        """Where the weights of the best validation go."""
        return self.folder / "best.pt"

    def steps(self) -> list[Path]:
        """The step checkpoints, oldest first (whether valid or not)."""
        files = self.folder.glob("step-*.pt") if self.folder.is_dir() else []
        return sorted((file for file in files if _STEP_FILE.search(file.name)), key=_step_of)

    def save(self, step: int, content: Mapping[str, Any]) -> Path:
        """Write step-STEP.pt and `last`, then delete what is older than the last `keep`; never before the new one is safe."""
        path = self.folder / f"step-{step:08d}.pt"
        save_checkpoint(path, content)
        write_atomically(self.folder / "last", f"{path.name}\n".encode())
        for old in self.steps()[: -self.keep]:
            old.unlink(missing_ok=True)
            old.with_name(old.name + ".sha256").unlink(missing_ok=True)
        return path

    def save_best(self, content: Mapping[str, Any]) -> Path:
        """Write best.pt in place of the one before."""
        save_checkpoint(self.best, content, sidecar=False)
        return self.best

    def newest_valid(self) -> tuple[Path | None, list[str]]:
        """The newest step checkpoint whose bytes have the sha256 noted for them, and a sentence for each newer one that was passed over."""
        passed: list[str] = []
        for path in reversed(self.steps()):
            problem = _problem(path)
            if problem is None:
                return path, passed
            passed.append(f"{path}: {problem}; going back to the checkpoint before it")
        return None, passed

    def remove_leftovers(self) -> None:
        """Delete the temporary files of a run that was killed while writing."""
        for path in self.folder.glob(".*.tmp-*"):
            path.unlink(missing_ok=True)


def _step_of(path: Path) -> int:
    found = _STEP_FILE.search(path.name)
    assert found is not None
    return int(found.group(1))


def _problem(path: Path) -> str | None:
    sidecar = path.with_name(path.name + ".sha256")
    if not sidecar.is_file():
        return "its .sha256 file is missing"
    noted = sidecar.read_text(encoding="ascii", errors="replace").split()
    if not noted or noted[0] != sha256_of(path):
        return "its bytes do not have the sha256 noted for them (cut off or damaged)"
    return None
