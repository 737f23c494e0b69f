"""Checkpoints: written whole or not at all, hashed, and read without running code.

A checkpoint is a dict of tensors and plain values: `format`, `version`, `model`, `spec` (classes)
and `config`; for resuming also `optimizer`, `scaler`, `ema` and `progress`.
"""

from __future__ import annotations

import hashlib
import io
import math
import os
import pickle
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch
from torch import Tensor

from ..files.regular import open_regular, read_regular
from ..files.writing import is_temporary, remove, write_file, written_whole
from ..runtime import uninterrupted
from ..words import UserError

FORMAT = "hmsa-checkpoint"
VERSION = 1

_STEP_FILE = re.compile(r"step-(\d+)\.pt$")

# A finished checkpoint whose hash is not noted yet.
_STAGED = ".pt.new"

# Far beyond what a checkpoint of ours holds: some thousand tensors, nested a few deep.
_DEEPEST, _MOST_VALUES = 64, 5_000_000

# In which weights and optimiser state are kept.
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

# What torch says when memory or threads are limited.
_MEMORY_SIGNS = ("not enough memory", "allocate memory", "can't start new thread")
_WRITE_ADVICE = (
    "the earlier checkpoints are untouched: free some space or choose another experiment.output, "
    "then start again with --resume"
)


class CheckpointError(UserError, ValueError):
    """A checkpoint cannot be read or used; the message names the file and what to do."""


class ForeignCheckpointError(CheckpointError):
    """A file can be read and is not one of ours: weights from elsewhere."""


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
        CheckpointError: a weight or statistic is not finite; nothing is written.
        WriteError: a full disk or a missing permission; what was there before stays as it was.
    """
    _require_finite(path, content)
    staged = path.with_suffix(_STAGED)
    try:
        with written_whole(staged, durable=True, advice=_WRITE_ADVICE) as temporary:
            digest = _write(temporary, {"format": FORMAT, "version": VERSION, **content})

        # The hash is noted before the checkpoint takes its name: a hash without its file does no
        # harm, but a checkpoint without its hash would not count as valid. A file that is replaced
        # keeps its own hash beside the new one until then.
        replaced = _noted_hashes(path)
        if sidecar:
            _note_hashes(path, [digest, *replaced])
        with written_whole(path, durable=True, advice=_WRITE_ADVICE) as temporary:
            os.replace(staged, temporary)
        if sidecar and replaced:
            _note_hashes(path, [digest])
    finally:
        remove(staged)
    return digest


def _require_finite(path: Path, content: Mapping[str, Any]) -> None:
    """Refuse weights and batch-norm statistics that are nan or infinite: they never recover."""
    name = _first_not_finite(content)
    if name is not None:
        raise CheckpointError(
            f"{path}: not written, because {name} is not finite; the earlier checkpoints are "
            "untouched: lower optim.lr, set optim.clip_norm or runtime.precision=fp32, and go on "
            "with --resume"
        )


def _first_not_finite(content: Mapping[str, Any]) -> str | None:
    for name, tensor in _tensors(content):
        if not _is_finite(tensor):
            return name
    return None


def _is_finite(tensor: Tensor) -> bool:
    """Whether all values are finite; integers always are."""
    if not tensor.is_floating_point() or tensor.numel() == 0:
        return True

    # Both ends are nan where any value is. Ten times as fast as a mask of isfinite on a CPU.
    low, high = tensor.detach().aminmax()
    return math.isfinite(low) and math.isfinite(high)


def _tensors(value: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """All tensors in a tree of dicts and lists, with the keys that lead to each."""
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _tensors(inner, f"{name}.{key}" if name else str(key))
    elif isinstance(value, (list, tuple)):
        for number, inner in enumerate(value):
            yield from _tensors(inner, f"{name}.{number}")


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


def unused_name(path: Path) -> Path:
    """A name for a damaged file beside `path` that no file has yet."""
    number = 1
    while (target := path.with_name(f"{path.name}.damaged-{number}")).exists():
        number += 1
    return target


def sidecar_of(path: Path) -> Path:
    """The file beside a checkpoint that holds its sha256."""
    return path.with_name(path.name + ".sha256")


def _note_hashes(path: Path, digests: list[str]) -> None:
    lines = "".join(f"{digest}  {path.name}\n" for digest in dict.fromkeys(digests))
    with written_whole(sidecar_of(path), durable=True, advice=_WRITE_ADVICE) as temporary:
        temporary.write_text(lines, encoding="ascii")


def _noted_hashes(path: Path) -> list[str]:
    """The hashes noted for a checkpoint; two while it is replaced, none without a sidecar."""
    try:
        text = read_regular(sidecar_of(path)).decode("ascii", "replace")
    except OSError:
        return []
    return [line.split()[0] for line in text.splitlines() if line.strip()]


def sha256_of(path: Path) -> str:
    """sha256 of a file's bytes as 64 hexadecimal digits; OSError for what is no regular file."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class LoadedCheckpoint(NamedTuple):
    """What a checkpoint file holds, and the sha256 of the very bytes that it was read from."""

    content: dict[str, Any]
    sha256: str


def load_checkpoint(path: Path) -> LoadedCheckpoint:
    """Read one of this project's checkpoints, tensors on the CPU, without running any code in it.

    The bytes are read once: what is hashed is what is used. Where PATH.sha256 lies beside the file,
    the hash must be in it.

    Raises:
        CheckpointError: the file is missing or damaged, could run code, was written by a newer
            version, or is not of this project (`network.load_weights` reads weights of others).
    """
    data = _read_bytes(path)
    digest = hashlib.sha256(data).hexdigest()
    noted = _noted_hashes(path)
    if noted and digest not in noted:
        raise CheckpointError(
            f"{path}: its bytes do not have the sha256 noted in {sidecar_of(path).name} (cut off "
            "or damaged); take another one of the run's checkpoints, or copy the file again"
        )

    content = _unpickled(path, data)
    _require_plain_tree(path, content)
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        # Weights from elsewhere are fine, but they do not say which network they belong to.
        raise ForeignCheckpointError(
            f"{path}: carries no hmsa configuration; name the one it was trained with by --config, "
            "so that the network can be built for these weights"
        )
    _require_known(path, content)
    return LoadedCheckpoint(content, digest)


def _read_bytes(path: Path) -> bytes:
    try:
        if path.is_dir():
            raise CheckpointError(
                f"{path}: is a folder; name the file in it, such as checkpoints/best.pt of a run"
            )
        if not path.exists():
            raise CheckpointError(f"{path}: no such checkpoint file")
        return read_regular(path)
    except OSError as error:
        reason = error.strerror or str(error)
        raise CheckpointError(
            f"{path}: cannot be read ({reason}); name another checkpoint"
        ) from error
    except MemoryError as error:
        raise CheckpointError(
            f"{path}: too large for the memory there is; allow this process more of it"
        ) from error


def _unpickled(path: Path, data: bytes) -> Any:
    """What torch reads from the bytes of a checkpoint."""
    # Bytes that are no pickle make torch.load raise almost any kind of exception.
    try:
        return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:
        text = str(error)
        if isinstance(error, MemoryError) or any(sign in text for sign in _MEMORY_SIGNS):
            raise CheckpointError(
                f"{path}: memory ran out while it was read; allow this process more of it"
            ) from error
        # Only what begins like a pickle, or like a zip archive with one inside, can hold code.
        if isinstance(error, pickle.UnpicklingError) and data[:1] in (b"\x80", b"P"):
            raise CheckpointError(
                f"{path}: refused, since it holds more than tensors and plain values and could "
                "run code when read"
            ) from error
        raise CheckpointError(
            f"{path}: damaged or not a PyTorch checkpoint; take another one of the run's "
            "checkpoints"
        ) from error


def _require_plain_tree(path: Path, content: Any) -> None:
    """Refuse what others could not walk through: values that hold themselves, or are too many.

    A pickle of a few bytes can hold a list of itself, or lists that share each other so often that
    they never end when they are walked through.
    """
    sizes: dict[int, int | None] = {}

    def size_of(value: Any, depth: int) -> int:
        """How many values one meets in walking through `value`; each object is visited once."""
        if isinstance(value, Mapping):
            inner = list(value.values())
        elif isinstance(value, (list, tuple, set)):
            inner = list(value)
        else:
            return 1

        known = sizes.get(id(value), 0)
        if known is None or depth > _DEEPEST:
            raise CheckpointError(
                f"{path}: damaged, it holds values that hold themselves or are nested more than "
                f"{_DEEPEST} deep; take another one of the run's checkpoints"
            )
        if not known:
            # None marks what is being visited: meeting it again is a circle.
            sizes[id(value)] = None
            known = 1 + sum(size_of(item, depth + 1) for item in inner)
            sizes[id(value)] = known
        return known

    if size_of(content, 0) > _MOST_VALUES:
        raise CheckpointError(
            f"{path}: damaged, it holds more than {_MOST_VALUES:,} values; take another one of the "
            "run's checkpoints"
        )


def _require_known(path: Path, content: dict[str, Any]) -> None:
    """Refuse content that this version would misunderstand."""
    version = content.get("version", VERSION)
    if not isinstance(version, int) or version > VERSION:
        raise CheckpointError(
            f"{path}: has format version {version!r} where this hmsa reads up to {VERSION}; "
            "update hmsa, or take a checkpoint that this version has written"
        )
    for section in ("model", "config", "spec"):
        if not isinstance(content.get(section), dict):
            raise CheckpointError(
                f"{path}: damaged, it has no {section}; take another one of the run's checkpoints"
            )

    for name, value in content["model"].items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise CheckpointError(
                f"{path}: damaged, model.{name} is no tensor; take another one of the run's "
                "checkpoints"
            )

    # Other kinds of tensors fail late and in strange ways, and not-a-number would become scores.
    for name, tensor in _tensors(content):
        problem = _problem_of_tensor(tensor)
        if problem is not None:
            raise CheckpointError(
                f"{path}: {name} {problem}; take another one of the run's checkpoints"
            )


def _problem_of_tensor(value: Tensor) -> str | None:
    """What is wrong with a tensor of a checkpoint, or None."""
    if value.layout is not torch.strided or value.is_quantized or value.device.type != "cpu":
        return "is no plain dense tensor"
    if value.is_complex():
        return "holds complex numbers"
    if value.is_floating_point() and value.dtype not in _FLOATS:
        return f"has the dtype {value.dtype}, which no checkpoint of hmsa has"
    if not _is_finite(value):
        return "holds numbers that are not finite"
    return None


class CheckpointFolder:
    """A run's `checkpoints/` folder.

    It holds the last `keep` of the step-*.pt with their hashes, `last` with the name of the newest
    of them, and best.pt.
    """

    def __init__(self, folder: Path, *, keep: int = 2) -> None:
        self.folder = folder
        self.keep = keep

        # Whether this process owns the run (see RunFolder.claim), and may rename files in it.
        self.owned = False

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
        """Write step-STEP.pt and `last`, then delete what is older than the last `keep`.

        A signal to stop, or Ctrl-C, takes effect when it is done.
        """
        path = self.folder / f"step-{step:08d}.pt"
        with uninterrupted():
            save_checkpoint(path, content)
            write_file(self.folder / "last", f"{path.name}\n", durable=True)

            # Only now, with the new one safe on the disk, may an older one go. A later step that
            # was passed over is nothing that the new one replaces.
            older = [other for other in self.steps() if _step_of(other) < step]
            for old in older[: max(0, len(older) - self.keep + 1)]:
                old.unlink(missing_ok=True)
                sidecar_of(old).unlink(missing_ok=True)
        return path

    def save_best(self, content: Mapping[str, Any]) -> Path:
        """Write best.pt in place of the one before; see `save` for signals."""
        with uninterrupted():
            save_checkpoint(self.best, content)
        return self.best

    def set_aside(self, path: Path) -> Path:
        """Rename a damaged checkpoint and its hash, so that nothing overwrites or deletes it."""
        target = unused_name(path)
        try:
            os.replace(path, target)
            if sidecar_of(path).exists():
                os.replace(sidecar_of(path), sidecar_of(target))
        except OSError as error:
            raise CheckpointError(
                f"{path}: damaged, and cannot be renamed ({error.strerror or error}); move it away"
            ) from error
        return target

    def newest_valid(self) -> tuple[Path | None, list[str]]:
        """The newest step checkpoint whose bytes have the sha256 noted for them.

        Beside it a sentence for each newer checkpoint that was passed over.
        """
        passed: list[str] = []
        for path in reversed(self.steps()):
            problem = _problem(path)
            if problem is None:
                return path, passed
            passed.append(f"{path}: {problem}")
        return None, passed

    def remove_leftovers(self) -> None:
        """Delete the temporary files of a run that was killed while writing."""
        if self.folder.is_dir():
            for path in self.folder.iterdir():
                if is_temporary(path) or path.name.endswith(_STAGED):
                    path.unlink(missing_ok=True)


def _step_of(path: Path) -> int:
    found = _STEP_FILE.match(path.name)
    assert found is not None
    return int(found.group(1))


def _problem(path: Path) -> str | None:
    """Why a step checkpoint does not count as valid, or None when it does."""
    noted = _noted_hashes(path)
    if not noted:
        return "its .sha256 file is missing"
    try:
        digest = sha256_of(path)
    except OSError as error:
        return f"it cannot be read ({error.strerror or error})"
    if digest not in noted:
        return "its bytes do not have the sha256 noted for them (cut off or damaged)"
    return None
