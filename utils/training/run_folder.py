"""A run's folder: config.yaml, checkpoints/, metrics.jsonl, tensorboard/, train.log."""

from __future__ import annotations

import json
import os
import socket
import time
from contextlib import ExitStack
from pathlib import Path

from ..files.locking import locked
from ..files.writing import write_file
from ..words import UserError, invocation
from .checkpoint import CheckpointFolder

# How long a resumed training waits for the one before it to end.
PATIENCE_S = 10.0


class RunError(UserError, ValueError):
    """The run folder cannot be used; the message says why and what to do."""


class RunFolder:
    """The folder of one training."""

    def __init__(self, folder: str | Path, *, keep_checkpoints: int = 2) -> None:
        self.folder = Path(folder)
        self.checkpoints = CheckpointFolder(self.folder / "checkpoints", keep=keep_checkpoints)
        self._held = ExitStack()

    def holds_a_run(self) -> bool:
        """Whether a training has left something here."""
        return self._has_saved() or (self.folder / "metrics.jsonl").exists()

    def _has_saved(self) -> bool:
        """Whether a checkpoint was finished here, damaged or not, whatever became of it."""
        folder = self.checkpoints.folder
        if not folder.is_dir():
            return False
        names = [path.name for path in folder.iterdir()]
        return any(name == "last" or name.endswith(".pt") or ".damaged-" in name for name in names)

    def claim(self, *, resume: bool) -> None:
        """Make this process the owner of the folder, until it ends or calls `release`.

        Two trainings in one folder would mix their rows and overwrite each other's checkpoints.

        Raises:
            RunError: the folder cannot be written, another training works in it, it holds a run and
                `resume` is false, or it holds one with nothing to go on from. Nothing that is in
                the folder is changed then.
        """
        try:
            self._require_own_files()
            self._require_no_run(resume=resume)

            # A disk that cannot be written shows now, and not after the first epoch.
            make_writable(self.checkpoints.folder, setting="experiment.output=DIR")

            # The lock comes before the answers below: another training here may change them.
            self._lock(PATIENCE_S if resume else 0.0)
            self._require_no_run(resume=resume)
            if resume:
                self._require_checkpoint()
            self.checkpoints.remove_leftovers()
        except (OSError, ValueError) as error:
            if not self.checkpoints.owned:
                self._held.close()
            if isinstance(error, UserError):
                raise
            reason = getattr(error, "strerror", None) or str(error)
            raise RunError(
                f"{self.folder}: cannot be used ({reason}); choose another folder with "
                "experiment.output=DIR"
            ) from error
        self.checkpoints.owned = True

    def _require_no_run(self, *, resume: bool) -> None:
        if self.holds_a_run() and not resume:
            raise RunError(
                f"{self.folder}: holds a run already; add --resume to go on with it, or choose "
                "another folder with experiment.output=DIR"
            )

    def release(self) -> None:
        """Let another training have the folder."""
        self.checkpoints.owned = False
        self._held.close()

    def _lock(self, patience_s: float) -> None:
        """Hold the folder's lock, which ends with this process however it ends."""
        if self.checkpoints.owned:
            return
        deadline = time.monotonic() + patience_s
        while not self._held.enter_context(locked(self.folder / ".lock", wait=False)):
            self._held.close()
            if time.monotonic() > deadline:
                raise RunError(
                    f"{self.folder}: another training works in this folder ({self._owner()}); "
                    "wait for it or stop it, or choose another folder with experiment.output=DIR"
                )
            time.sleep(0.2)

        # For the sentence above, in another process: torchrun may be gone and its ranks not.
        write_file(self.folder / ".owner", f"process {os.getpid()} on {socket.gethostname()}\n")

    def _owner(self) -> str:
        try:
            return (self.folder / ".owner").read_text(encoding="utf-8", errors="replace").strip()
        except OSError:
            return "an unknown process"

    def _require_own_files(self) -> None:
        """Refuse a folder whose config.yaml no training wrote, or whose logs are no files."""
        # A pipe in place of a log has nobody who reads it: writing would wait for ever.
        for name in ("config.yaml", "metrics.jsonl", "train.log"):
            path = self.folder / name
            if path.exists() and not path.is_file():
                raise RunError(
                    f"{path}: is no file, and a training writes one there; remove it, or choose "
                    "another folder with experiment.output=DIR"
                )

        written_by_run = self.holds_a_run() or (self.folder / "train.log").exists()
        if (self.folder / "config.yaml").exists() and not written_by_run:
            raise RunError(
                f"{self.folder}: holds a config.yaml that no training has written, and training "
                "would replace it; choose another folder with experiment.output=DIR"
            )

    def _require_checkpoint(self) -> None:
        """Refuse to begin at the beginning where there was more.

        A run that was killed before its first checkpoint has lost nothing and begins again. Where
        an epoch has ended there was a checkpoint: without it, beginning again would replace the
        rows of metrics.jsonl and best.pt by those of a shorter training.
        """
        if self.checkpoints.steps():
            return
        if self._has_saved() or self._has_ended_epoch():
            raise RunError(
                f"{self.folder}: holds a run, but no step-*.pt in checkpoints/ to go on from; copy "
                "them here with their .sha256 files, or begin anew in another folder with "
                "experiment.output=DIR"
            )

    def _has_ended_epoch(self) -> bool:
        path = self.folder / "metrics.jsonl"
        if not path.is_file():
            return False
        for line in path.read_bytes().splitlines():
            try:
                row = json.loads(line)
                if row["kind"] == "val" or row["epoch"] > 1:
                    return True
            except (ValueError, KeyError, TypeError):
                continue
        return False

    def next_commands(self) -> str:
        """What to do with a finished training, as a command to copy; "" without a checkpoint."""
        # The best weights if there was a validation, else the last ones.
        candidates = [self.checkpoints.best, *reversed(self.checkpoints.steps())]
        for weights in candidates:
            if weights.is_file():
                output = self.folder / "eval"
                line = f"{invocation('eval')} --checkpoint {weights} --output {output}"
                return f"evaluate it: {line}"
        return ""


def make_writable(folder: Path, *, setting: str) -> None:
    """Make `folder`, with its parents, and prove that a file can be written there.

    Raises:
        RunError: it cannot; the message names `setting` as what to change.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".writable-{os.getpid()}"
        probe.write_bytes(b"x")
        probe.unlink()
    except (OSError, ValueError) as error:
        # A ValueError tells of a NUL character in the name.
        reason = getattr(error, "strerror", None) or str(error)
        raise RunError(
            f"{folder}: cannot be written ({reason}); choose another folder with {setting}"
        ) from error
