"""All that a training must remember to go on as if it had not stopped."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..processes import Processes
from .checkpoint import CheckpointError, CheckpointFolder, load_checkpoint
from .ema import WeightAverage
from .logbook import logger


@dataclass
class Progress:
    """Where a training stands.

    Attributes:
        epoch: epochs done.
        step_in_epoch: optimiser steps done of the present epoch.
        step: optimiser steps done in all, skipped ones included.
        to_validate: an epoch has ended and its validation is still to be done.
        best_miou: mIoU of the best validation, a fraction; -1 before there is one.
        best_epoch: epoch of the best validation; -1 before there is one.
        skipped_steps: steps left out because a loss or gradient was not finite.
        batch: images of all processes together in one optimiser step; 0 before that is known.
    """

    epoch: int = 0
    step_in_epoch: int = 0
    step: int = 0
    to_validate: bool = False
    best_miou: float = -1.0
    best_epoch: int = -1
    skipped_steps: int = 0
    batch: int = 0

    def fit_batch(self, batch: int) -> None:
        """Go on with `batch` images a step; with another number, find the place in the epoch anew.

        With an equal number a resumed run takes the same images in the same steps, for any number
        of processes. With another one at most batch - 1 images are seen twice, the learning rate
        goes on from the same part of the training, and a step averages over other images.
        """
        if self.batch not in (0, batch):
            logger.info(
                "this run took %d images a step and now takes %d: it goes on at the same place, "
                "but not as if it had not stopped (set data.batch_size or optim.accumulate so that "
                "their product with the number of processes is %d)",
                self.batch,
                batch,
                self.batch,
            )
            # Rounded down: an image may be seen twice, but none is left out.
            self.step_in_epoch = self.step_in_epoch * self.batch // batch
        self.batch = batch

    def steps_left(self, epochs: int, steps_per_epoch: int) -> int:
        """Optimiser steps until `epochs` epochs are done."""
        return max(0, (epochs - self.epoch) * steps_per_epoch - self.step_in_epoch)

    def summary(self) -> str:
        """What was done and how good the best of it was, in one line."""
        steps = f"{self.epoch} epochs, {self.step} steps"
        if self.skipped_steps:
            steps += f", {self.skipped_steps} of them skipped"
        if self.best_epoch < 0:
            return f"{steps}; no validation gave an mIoU"
        best = 100 * self.best_miou
        return f"{steps}; best val mIoU {best:.1f} % after epoch {self.best_epoch}"


class TrainingState:
    """Model, optimiser, scaler, averaged weights and progress, saved and loaded together.

    Random numbers need no state: `runtime.seed_step` makes them a function of seed, step and rank.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        scaler: torch.amp.GradScaler,
        average: WeightAverage | None,
    ) -> None:
        self.model = model
        self.optimizer = optimizer
        self.scaler = scaler
        self.average = average
        self.progress = Progress()

        # Made here, once: its copies are as large as the buffers and are used in every step.
        self.guard = BufferGuard(model)

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
        if self.average is not None:
            return self.average.state_dict()
        return self.model.state_dict()

    def gradient_norm(self) -> Tensor:
        """Norm of all gradients, a scalar on the device.

        A GradScaler's factor is divided out of the gradients first.
        """
        self.scaler.unscale_(self.optimizer)
        # Parameters that took no part in this step, such as frozen ones, have no gradient.
        gradients = [parameter.grad for parameter in self.model.parameters()]
        return torch.nn.utils.get_total_norm([grad for grad in gradients if grad is not None])

    def overflow_is_usual(self) -> bool:
        """Whether a gradient may be infinite only because a GradScaler tries a larger factor.

        The scaler then skips the step itself.
        """
        return self.scaler.is_enabled() and self.scaler.get_scale() > 1.0

    def keep_buffers(self) -> None:
        """Remember the batch-norm statistics in case the coming step must be skipped."""
        self.guard.keep()

    def skip_step(self) -> None:
        """Leave everything as it was before the step, and count it."""
        self.guard.restore()

        # A GradScaler accepts no second unscale_ without an update, which also lowers its factor.
        self.scaler.update()
        self.progress.skipped_steps += 1

    def step(self) -> None:
        """Update the weights from the gradients (through the scaler), then the averaged ones."""
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.average is not None:
            self.average.update(self.model)

    @contextmanager
    def evaluated_weights(self) -> Iterator[None]:
        """Inside the block the model holds the weights to evaluate with."""
        if self.average is None:
            yield
            return
        with self.average.applied(self.model):
            yield

    def load(self, content: dict[str, Any]) -> None:
        """Take over what `content` saved.

        Raises:
            ValueError, RuntimeError, KeyError: it belongs to another model or optimiser.
        """
        self.model.load_state_dict(content["model"])

        # The configuration decides on rates and decay, also when they were changed since.
        kept = [(group["base_lr"], group["weight_decay"]) for group in self.optimizer.param_groups]
        self.optimizer.load_state_dict(content["optimizer"])
        for group, (base_lr, weight_decay) in zip(self.optimizer.param_groups, kept, strict=True):
            group["base_lr"] = base_lr
            group["weight_decay"] = weight_decay

        # The state of a disabled scaler is empty.
        if content["scaler"]:
            self.scaler.load_state_dict(content["scaler"])

        if self.average is not None:
            if content["ema"] is None:
                raise CheckpointError(
                    "the checkpoint has no averaged weights; set optim.ema_decay to null or start "
                    "anew"
                )
            self.average.load_state_dict(content["ema"])
        self.progress = Progress(**content["progress"])


def restore(state: TrainingState, checkpoints: CheckpointFolder, processes: Processes) -> None:
    """Load the newest valid checkpoint on every rank; with none, begin at the beginning.

    Raises:
        CheckpointError: it belongs to another network or configuration.
    """
    # Rank 0 chooses for all: ranks that hashed the files one after the other could choose
    # different ones, and would then train different networks together.
    chosen = None
    if processes.is_main:
        chosen = checkpoints.newest_valid()
    path, passed = processes.gather(chosen)[0]

    if processes.is_main:
        for sentence in passed:
            logger.warning("%s", sentence)
    if path is None:
        logger.info("%s holds no valid checkpoint: training from the beginning", checkpoints.folder)
        return

    # A rank that cannot load it ends all of them, instead of leaving the others waiting for it.
    with processes.agreement(CheckpointError):
        try:
            state.load(load_checkpoint(path))
        except (KeyError, RuntimeError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise CheckpointError(
                f"{path}: does not fit this configuration ({reason}); resume with the run's own "
                "config.yaml, or train into another experiment.output"
            ) from error
    logger.info(
        "going on from %s: epoch %d, step %d", path, state.progress.epoch, state.progress.step
    )


class BufferGuard:
    """Keeps the batch-norm statistics of before a step.

    They are put back when the step met a number that is not finite: such a number would stay in a
    running mean for ever.
    """

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
