"""A training of a fraction of a second, and what can happen to it: a trunk of three convolutions.

    python tests/engine/small.py [--fault ACTION:MOMENT:NUMBER[:RANK]]... CONFIG [OPTION]...

A fault is an action at the NUMBER-th time that a moment comes in this process.
"""

from __future__ import annotations

import collections
import multiprocessing
import os
import resource
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from torch import Tensor, nn

from hmsa.engine import build, step, validation
from hmsa.engine.arguments import train_command
from hmsa.network.layers import ConvNorm
from hmsa.network.trunks import TRUNKS, Features, Trunk
from hmsa.utils.processes import launched_rank
from hmsa.utils.training import checkpoint, logbook
from hmsa.utils.training.trace import Trace
from hmsa.utils.training.training_state import TrainingState


class Small(Trunk):
    """Three convolutions: `fine` at stride 4, `semantic` at stride 8."""

    fine_channels, fine_stride = 8, 4
    channels, stride = 8, 8

    def __init__(self) -> None:
        super().__init__()
        self.early = nn.Sequential(
            ConvNorm(inputs=3, outputs=8, kernel=3, stride=2),
            ConvNorm(inputs=8, outputs=8, kernel=3, stride=2),
        )
        self.late = ConvNorm(inputs=8, outputs=8, kernel=3, stride=2)

    def forward(self, image: Tensor) -> Features:
        fine = self.early(image)
        return Features(fine=fine, semantic=self.late(fine))


class Faults:
    """Counts moments and does what is asked for at some of them."""

    def __init__(self, asked: list[str]) -> None:
        self.asked: dict[tuple[str, int], str] = {}
        for text in asked:
            action, moment, number, *rank = text.split(":")
            if int((rank or ["0"])[0]) == launched_rank():
                self.asked[moment, int(number)] = action
        self.seen: collections.Counter[str] = collections.Counter()

    def at(self, moment: str) -> str | None:
        """The action due now, if any."""
        self.seen[moment] += 1
        return self.asked.get((moment, self.seen[moment]))

    def __call__(self, moment: str) -> None:
        action = self.at(moment)
        if action is not None:
            getattr(self, action)()

    @staticmethod
    def kill() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def kill_once(self) -> None:
        marker = Path(os.environ["KILLED_ONCE"])
        if not marker.exists():
            marker.touch()
            self.kill()

    @staticmethod
    def fail() -> None:
        raise AssertionError("this rank alone has failed")

    @staticmethod
    def lose_worker() -> None:
        os.kill(multiprocessing.active_children()[0].pid or 0, signal.SIGKILL)

    @staticmethod
    def fill_disk() -> None:
        # The output is a file, too, and no part of the disk that fills up: it begins anew.
        sys.stdout.flush()
        sys.stderr.flush()
        os.ftruncate(2, 0)
        os.lseek(2, 0, os.SEEK_SET)
        resource.setrlimit(resource.RLIMIT_FSIZE, (600, 600))

    @staticmethod
    def terminate_group() -> None:
        os.killpg(0, signal.SIGTERM)

    @staticmethod
    def interrupt() -> None:
        """As Ctrl-C at a terminal does."""
        os.kill(os.getpid(), signal.SIGINT)

    @staticmethod
    def terminate_all() -> None:
        """As SLURM does: the launcher and every process below it at once."""
        for number in [os.getppid(), *_below(os.getppid())]:
            os.kill(number, signal.SIGTERM)

    @staticmethod
    def out_of_memory() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


def _below(number: int) -> list[int]:
    children = Path(f"/proc/{number}/task/{number}/children").read_text().split()
    return [inner for child in map(int, children) for inner in (child, *_below(child))]


def watch(faults: Faults) -> None:
    """Put a moment before (and after) what a training does."""

    def around(owner: Any, name: str, before: str | None, after: str | None = None) -> None:
        inner: Callable[..., Any] = getattr(owner, name)

        def call(*arguments: Any, **keywords: Any) -> Any:
            if before is not None:
                faults(before)
            result = inner(*arguments, **keywords)
            if after is not None:
                faults(after)
            return result

        setattr(owner, name, call)

    # A step begins with its seed, and ends when the profile is told so.
    around(step, "seed_step", "step")
    around(TrainingState, "gradient_norm", "gradients")
    around(Trace, "step", "stepped")
    around(validation, "evaluate", "evaluate")
    around(logbook.Logbook, "row", None, "row")
    around(checkpoint.CheckpointFolder, "save_best", "best")
    around(os, "fsync", "fsync")
    around(os, "replace", "replace", "replaced")
    around(Path, "unlink", "unlink")

    def write(self: Any, data: bytes) -> int:
        if faults.at("write") == "kill":
            self.file.write(data[: len(data) // 2])
            self.file.flush()
            faults.kill()
        return whole(self, data)

    whole, checkpoint._HashingFile.write = checkpoint._HashingFile.write, write  # type: ignore[method-assign]
    build_criterion = build.criterion

    def criterion(*arguments: Any) -> Any:
        built = build_criterion(*arguments)
        judge = built.forward

        def forward(*inputs: Any, **keywords: Any) -> dict[str, Tensor]:
            terms = judge(*inputs, **keywords)
            action = faults.at("loss")
            return (
                {name: term * float("nan") for name, term in terms.items()}
                if action == "nan"
                else terms
            )

        built.forward = forward
        return built

    build.criterion = criterion


def run(words: list[str]) -> int:
    """`hmsa train`, after the faults are set."""
    asked = []
    while words and words[0] == "--fault":
        asked.append(words[1])
        words = words[2:]
    TRUNKS["resnet18"] = lambda **_: Small()
    watch(Faults(asked))
    return train_command(words)


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
