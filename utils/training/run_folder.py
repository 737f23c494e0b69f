"""A run's folder: config.yaml, checkpoints/, metrics.jsonl, tensorboard/, train.log."""

from __future__ import annotations

import os
from pathlib import Path

from .checkpoint import CheckpointFolder


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
            raise RunError(
                f"{self.folder}: holds a run already; add --resume to go on with it, or choose another folder with experiment.output=DIR"
            )
        make_writable(self.checkpoints.folder, setting="experiment.output=DIR")
        self.checkpoints.remove_leftovers()

    def next_commands(self) -> str:
        """What to do with a finished training, as a command to copy."""
        newest = self.checkpoints.steps()
        weights = (
            self.checkpoints.best
            if self.checkpoints.best.is_file()
            else newest[-1]
            if newest
            else None
        )
        return (
            ""
            if weights is None
            else f"evaluate it: python eval.py --checkpoint {weights} --output {self.folder / 'eval'}"
        )


def make_writable(folder: Path, *, setting: str) -> None:
    """Make `folder`, with its parents, and prove that a file can be written there; RunError names `setting` as what to change otherwise."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".writable-{os.getpid()}"
        probe.write_bytes(b"x")
        probe.unlink()
    except OSError as error:
        raise RunError(
            f"{folder}: cannot be written ({error.strerror or error}); choose another folder with {setting}"
        ) from error
