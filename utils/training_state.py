"""All that a training must remember to go on as if it had not stopped."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .checkpoint import CheckpointError, CheckpointFolder, load_checkpoint
from .ema import WeightAverage
from .logbook import logger
from .processes import Processes


@dataclass
class Progress:
    """Where a training stands: `step` optimiser steps done in all, `step_in_epoch` of them in `epoch`; `to_validate` when an epoch ended unscored."""

    epoch: int = 0
    step_in_epoch: int = 0
    step: int = 0
    to_validate: bool = False
    best_miou: float = -1.0
    best_epoch: int = -1
    skipped_steps: int = 0


class TrainingState:
    """Model, optimiser, scaler, averaged weights and progress, saved and loaded together. Random numbers need no state: see seed_step."""

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler, average: WeightAverage | None) -> None:
        self.model = model
        self.optimizer = optimizer
        self.scaler = scaler
        self.average = average
        self.progress = Progress()

    def content(self) -> dict[str, Any]:
        """Tensors and plain values for a checkpoint that training can go on from."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "ema": None if self.average is None else self.average.state_dict(),
            "progress": asdict(self.progress),
            "versions": {"torch": str(torch.__version__)},
        }

    def weights(self) -> dict[str, Tensor]:
        """The weights to evaluate with: the averaged ones when there are any."""
        return self.model.state_dict() if self.average is None else self.average.state_dict()

    def step(self) -> None:
        """Let the optimiser (through the scaler) use the gradients, and the averaged weights follow."""
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.average is not None:
            self.average.update(self.model)

    @contextmanager
    def evaluated_weights(self) -> Iterator[None]:
        """Inside the block the model holds the weights to evaluate with."""
        if self.average is None:
            yield
        else:
            with self.average.applied(self.model):
                yield

    def load(self, content: dict[str, Any]) -> None:
        """Take over what `content` saved. Raises ValueError or RuntimeError when it belongs to another model or optimiser."""
        self.model.load_state_dict(content["model"])
        rates = [(group["base_lr"], group["weight_decay"]) for group in self.optimizer.param_groups]
        self.optimizer.load_state_dict(content["optimizer"])
        for group, (base_lr, weight_decay) in zip(self.optimizer.param_groups, rates, strict=True):
            group["base_lr"], group["weight_decay"] = base_lr, weight_decay  # the configuration's word counts, also when it was changed
        if content["scaler"]:
            self.scaler.load_state_dict(content["scaler"])
        if self.average is not None:
            if content["ema"] is None:
                raise ValueError("the checkpoint has no averaged weights; set optim.ema_decay to null or start anew")
            self.average.load_state_dict(content["ema"])
        self.progress = Progress(**content["progress"])


def restore(state: TrainingState, checkpoints: CheckpointFolder, processes: Processes) -> None:
    """Load the newest valid checkpoint on every rank, saying which newer ones were passed over; with none, begin at the beginning."""
    path, passed = checkpoints.newest_valid() if processes.is_main else (None, [])
    path, passed = processes.gather((path, passed))[0]
    for sentence in passed:
        logger.warning("%s", sentence)
    if path is None:
        logger.info("%s holds no valid checkpoint: training from the beginning", checkpoints.folder)
        return
    with processes.agreement(CheckpointError):
        try:
            state.load(load_checkpoint(path))
        except (KeyError, RuntimeError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise CheckpointError(f"{path}: does not fit this configuration ({reason}); resume with the run's own config.yaml, or train "
                                  "into another experiment.output") from error
    logger.info("going on from %s: epoch %d, step %d", path, state.progress.epoch, state.progress.step)


class BufferGuard:
    """Keeps the batch-norm statistics of before a step, to put them back when the step met a number that is not finite."""

    def __init__(self, model: nn.Module) -> None:
        self.live = [buffer for buffer in model.buffers() if buffer.is_floating_point()]
        self.kept = [buffer.detach().clone() for buffer in self.live]

    @torch.no_grad()
    def keep(self) -> None:
        """Remember the buffers as they are now."""
        if self.live:
            torch._foreach_copy_(self.kept, self.live)

    @torch.no_grad()
    def restore(self) -> None:
        """Put the remembered buffers back."""
        if self.live:
            torch._foreach_copy_(self.live, self.kept)
