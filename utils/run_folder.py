"""A run's folder: config.yaml, checkpoints/, metrics.jsonl, tensorboard/, train.log."""

from __future__ import annotations

import os
from pathlib import Path

from .checkpoint import CheckpointError, CheckpointFolder


class RunError(ValueError):
    """The run folder cannot be used; the message says why and what to do."""


class RunFolder:
    """The folder of one training."""

    def __init__(self, folder: str | Path, *, keep_checkpoints: int = 2) -> None:
        self.folder = Path(folder)
        self.checkpoints = CheckpointFolder(self.folder / "checkpoints", keep=keep_checkpoints)

    def holds_a_run(self) -> bool:
        """Whether a training has been here."""
        return bool(self.checkpoints.steps()) or (self.folder / "metrics.jsonl").exists()

    def claim(self, *, resume: bool) -> None:
        """Make the folder ready for writing.

        Raises RunError when it cannot be written, or when it holds a run and `resume` is false: nothing is ever overwritten unasked.
        """
        if self.holds_a_run() and not resume:
            raise RunError(f"{self.folder}: holds a run already; add --resume to go on with it, or choose another folder with experiment.output=DIR")
        try:
            self.checkpoints.folder.mkdir(parents=True, exist_ok=True)
            probe = self.folder / f".writable-{os.getpid()}"
            probe.write_bytes(b"x")
            probe.unlink()
        except OSError as error:
            raise RunError(f"{self.folder}: cannot be written ({error.strerror or error}); choose another folder with experiment.output=DIR") from error
        self.checkpoints.remove_leftovers()

    def check_free_space(self, needed_bytes: int) -> None:
        """Raise CheckpointError when a checkpoint of `needed_bytes` would not fit."""
        stats = os.statvfs(self.folder)
        free = stats.f_bavail * stats.f_frsize
        if free < needed_bytes:
            raise CheckpointError(f"{self.folder}: {free / 2**20:.0f} MiB are free where one checkpoint needs {needed_bytes / 2**20:.0f} MiB; "
                                  "free some space or choose another experiment.output")
