"""A run's folder: config.yaml, checkpoints/, metrics.jsonl, tensorboard/, train.log."""

from __future__ import annotations

import os
from pathlib import Path

from ..words import UserError
from .checkpoint import CheckpointFolder


class RunError(UserError, ValueError):
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

        Raises:
            RunError: it cannot be written, or it holds a run and `resume` is false: a run is never
                overwritten unasked.
        """
        if self.holds_a_run() and not resume:
            raise RunError(
                f"{self.folder}: holds a run already; add --resume to go on with it, or choose "
                "another folder with experiment.output=DIR"
            )
        # A disk that cannot be written shows now, and not after the first epoch.
        make_writable(self.checkpoints.folder, setting="experiment.output=DIR")
        self.checkpoints.remove_leftovers()

    def next_commands(self) -> str:
        """What to do with a finished training, as a command to copy; "" without a checkpoint."""
        # The best weights if there was a validation, else the last ones.
        candidates = [self.checkpoints.best, *reversed(self.checkpoints.steps())]
        for weights in candidates:
            if weights.is_file():
                output = self.folder / "eval"
                return f"evaluate it: python eval.py --checkpoint {weights} --output {output}"
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
    except OSError as error:
        reason = error.strerror or str(error)
        raise RunError(
            f"{folder}: cannot be written ({reason}); choose another folder with {setting}"
        ) from error
