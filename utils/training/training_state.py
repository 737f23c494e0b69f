"""All that a training must remember to go on as if it had not stopped."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..processes import Processes, copy_from_main, first_line
from ..words import counted
from .checkpoint import CheckpointError, CheckpointFolder, load_checkpoint
from .ema import WeightAverage
from .logbook import logger

# What a checkpoint must hold for a training to go on from it.
RESUMED = ("model", "optimizer", "scaler", "ema", "progress")


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

    @classmethod
    def from_dict(cls, values: Any) -> Progress:
        """Inverse of `asdict`.

        Raises:
            CheckpointError: the values are not those of a progress, such as a newer version's.
        """
        kinds = {field.name: type(field.default) for field in fields(cls)}
        if not isinstance(values, dict) or values.keys() != kinds.keys():
            raise CheckpointError(
                "its progress is not one of this version of hmsa; resume with the version that "
                "wrote it"
            )
        for name, value in values.items():
            if type(value) is not kinds[name]:
                raise CheckpointError(f"its progress has {name} {value!r}")
        return cls(**values)

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
        steps = f"{counted(self.epoch, 'epoch')}, {self.step} steps"
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
        self.counting = [part for part in model.modules() if hasattr(part, "batches_to_count")]

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
        """Norm of all gradients, a scalar on the device; nan when a statistic is not finite.

        A GradScaler's factor is divided out of the gradients first. Batch-norm statistics that
        overflow make neither loss nor gradients bad, but would stay infinite for ever: nan makes
        the step one to skip, which puts them back.
        """
        self.scaler.unscale_(self.optimizer)
        # Parameters that took no part in this step, such as frozen ones, have no gradient.
        gradients = [parameter.grad for parameter in self.model.parameters()]
        norm = torch.nn.utils.get_total_norm([grad for grad in gradients if grad is not None])
        return norm + 0.0 * self.guard.largest_statistic().to(norm)

    def overflow_is_usual(self) -> bool:
        """Whether a gradient may be infinite only because a GradScaler tries a larger factor.

        The scaler then skips the step itself.
        """
        return self.scaler.is_enabled() and self.scaler.get_scale() > 1.0

    def keep_buffers(self) -> None:
        """Remember the batch-norm statistics in case the coming step must be skipped."""
        self.guard.keep()

    @torch.no_grad()
    def count_batches(self) -> None:
        """Add what batch norms have counted by themselves to their `num_batches_tracked`."""
        norms: list[Any] = [norm for norm in self.counting if norm.batches_to_count]
        if not norms:
            return
        counters = [norm.num_batches_tracked for norm in norms]
        torch._foreach_add_(counters, [norm.batches_to_count for norm in norms])
        for norm in norms:
            norm.batches_to_count = 0

    def skip_step(self) -> None:
        """Leave everything as it was before the step, and count it."""
        self.count_batches()
        self.guard.restore()

        # A GradScaler accepts no second unscale_ without an update, which also lowers its factor.
        self.scaler.update()
        self.progress.skipped_steps += 1

    def step(self) -> None:
        """Update the weights from the gradients (through the scaler), then the averaged ones."""
        self.count_batches()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.average is not None:
            self.average.update(self.model)

    @contextmanager
    def evaluated_weights(self) -> Iterator[None]:
        """Inside the block the model holds the weights to evaluate with, on all ranks the same.

        All ranks must enter it together. Without synchronised batch norm the ranks have different
        running statistics; rank 0 writes the checkpoints, so its statistics are scored on all of
        them, or the score would belong to no checkpoint.
        """
        copy_from_main(self.model.buffers())
        if self.average is None:
            yield
            return

        statistics = [name for name, _ in self.model.named_buffers()]
        averaged = self.average.state_dict()
        copy_from_main(averaged[name] for name in statistics if name in averaged)
        with self.average.applied(self.model):
            yield

    def load(self, content: Mapping[str, Any]) -> None:
        """Take over what `content` saved.

        Raises:
            ValueError, RuntimeError, KeyError, TypeError: it belongs to another model or optimiser.
        """
        missing = [name for name in RESUMED if name not in content]
        if missing:
            raise CheckpointError(f"it has no {', '.join(missing)} to go on from")
        self.model.load_state_dict(content["model"])

        # The configuration decides on rates and decay, also when they were changed since.
        kept = [(group["base_lr"], group["weight_decay"]) for group in self.optimizer.param_groups]
        self.optimizer.load_state_dict(content["optimizer"])
        self._lay_out_optimizer_state()
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
        self.progress = Progress.from_dict(content["progress"])

    def _lay_out_optimizer_state(self) -> None:
        """Give momentum and the like the memory layout of their parameters.

        It differs when runtime.channels_last has changed, and fused optimisers then refuse.
        """
        for parameter, state in self.optimizer.state.items():
            for name, value in state.items():
                if not isinstance(value, Tensor) or value.shape != parameter.shape:
                    continue
                if value.stride() != parameter.stride():
                    state[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def restore(
    state: TrainingState,
    checkpoints: CheckpointFolder,
    processes: Processes,
    *,
    class_names: Sequence[str] | None = None,
) -> None:
    """Load the newest valid checkpoint on every rank; in an empty folder begin at the beginning.

    Damaged checkpoints are renamed and named. Where there are only such, nothing is begun: it would
    overwrite what may still be mended. `class_names` are the classes to train, in order.

    Raises:
        CheckpointError: no checkpoint is valid, or it belongs to another network, configuration or
            list of classes.
    """
    # Rank 0 chooses for all: ranks that hashed the files one after the other could choose
    # different ones, and would then train different networks together.
    chosen = None
    with processes.agreement(CheckpointError):
        if processes.is_main:
            chosen = _choose(checkpoints)
    path: Path | None = processes.gather(chosen)[0]
    if path is None:
        logger.info("%s holds no checkpoint: training from the beginning", checkpoints.folder)
        return

    # A rank that cannot load it ends all of them, instead of leaving the others waiting for it.
    with processes.agreement(CheckpointError):
        content = load_checkpoint(path).content
        _require_classes(path, content, class_names)
        try:
            state.load(content)
        except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"{path}: does not fit this configuration ({first_line(error)}); resume with the "
                "run's own config.yaml, or train into another experiment.output"
            ) from error

    best = None
    if processes.is_main:
        best = _best_so_far(state.progress, checkpoints)
    state.progress.best_miou, state.progress.best_epoch = processes.gather(best)[0]
    progress = state.progress
    where = f"epoch {progress.epoch}, step {progress.step} done"
    if progress.step_in_epoch:
        where = f"within epoch {progress.epoch + 1}, step {progress.step} done"
    logger.info("going on from %s: %s", path, where)


def _choose(checkpoints: CheckpointFolder) -> Path | None:
    """The newest valid step checkpoint; newer ones are set aside. None in an empty folder."""
    path, passed = checkpoints.newest_valid()
    if path is None:
        if not passed:
            return None
        raise CheckpointError(
            f"{'; '.join(passed)}; no checkpoint is left to go on from, and nothing was changed: "
            "copy the files here again, each with its .sha256 (for a file that you trust, "
            "sha256sum makes one), or begin anew in another folder with experiment.output=DIR"
        )

    steps = checkpoints.steps()
    for newer, problem in zip(reversed(steps), passed, strict=False):
        logger.warning("%s; going back to the checkpoint before it", problem)
        if checkpoints.owned:
            logger.warning("%s: renamed to %s", newer, checkpoints.set_aside(newer).name)
    return path


def _require_classes(
    path: Path, content: Mapping[str, Any], class_names: Sequence[str] | None
) -> None:
    """Refuse to go on with other classes: every channel of the head would mean another one."""
    if class_names is None:
        return
    try:
        saved = [str(item["name"]) for item in content["spec"]["classes"]]
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: damaged, its list of classes cannot be read") from error
    if saved == list(class_names):
        return

    difference = "other classes"
    if sorted(saved) == sorted(class_names):
        difference = "the same classes in another order"
    raise CheckpointError(
        f"{path}: was trained for {difference} ({', '.join(saved[:4])}, ...) than the data set has "
        f"now ({', '.join(class_names[:4])}, ...); restore the class list to resume, or begin anew "
        "in another experiment.output, with model.init_from for its weights"
    )


def _best_so_far(progress: Progress, checkpoints: CheckpointFolder) -> tuple[float, int]:
    """mIoU and epoch of best.pt, which nothing worse may replace.

    best.pt may be from a later epoch than the checkpoint that training goes on from. When it is
    damaged or gone, the next validation is the best again.
    """
    best = checkpoints.best
    if not best.exists():
        if progress.best_epoch >= 0:
            logger.warning("%s: is gone; the next validation writes a new one", best)
        return -1.0, -1

    try:
        content = load_checkpoint(best).content
    except CheckpointError as error:
        logger.warning("%s", error)
        if checkpoints.owned:
            logger.warning("%s: renamed to %s", best, checkpoints.set_aside(best).name)
        return -1.0, -1

    miou, epoch = content.get("miou"), content.get("epoch")
    if isinstance(miou, float) and isinstance(epoch, int) and miou > progress.best_miou:
        return miou, epoch
    return progress.best_miou, progress.best_epoch


class BufferGuard:
    """Keeps the batch-norm statistics of before a step.

    They are put back when the step met a number that is not finite: such a number would stay in a
    running mean for ever.
    """

    def __init__(self, model: nn.Module) -> None:
        self.live = [buffer for buffer in model.buffers() if buffer.is_floating_point()]
        self.statistics = [
            buffer
            for name, buffer in model.named_buffers()
            if name.endswith(("running_mean", "running_var"))
        ]
        self.kept = [buffer.detach().clone() for buffer in self.live]

    @torch.no_grad()
    def largest_statistic(self) -> Tensor:
        """The largest absolute value of all running statistics, a scalar; nan if one is nan."""
        if not self.statistics:
            return torch.zeros(())
        return torch.cat(self.statistics).abs().amax()

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
