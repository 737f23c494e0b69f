"""One step of a training: gradients of some batches, then the update of the weights.

The model predicts, the criterion judges, `backward` makes the gradients, and the ranks decide
together whether to use them. Training, `hmsa benchmark` and scripts/benchmarks take this same step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hmsa.loss.criterion import Criterion
from hmsa.utils.config import Config
from hmsa.utils.processes import Processes, no_sync
from hmsa.utils.runtime import autocast_dtype, autocast_to, seed_step
from hmsa.utils.training.training_state import TrainingState

from . import build

PARTS = ("data", "network", "loss", "backward", "optimiser")  # of a step, as a clock sees them


def untimed(part: str) -> AbstractContextManager[None]:
    """Takes the place of a clock where the parts of a step are not timed."""
    return nullcontext()


@dataclass(frozen=True)
class StepGradients:
    """What this rank found in the batches of a step; every tensor is a scalar on the device."""

    terms: dict[str, Tensor]
    """Each loss term, detached, the mean over the batches"""
    attention: dict[str, Tensor]
    """See `build.attention_means`; of the last batch"""
    norm: Tensor
    """See `TrainingState.gradient_norm`"""
    loss_is_bad: Tensor
    """Whether the loss of this rank is not finite"""


class TrainingStep:
    """Takes the steps of a training; all ranks take each of them together.

    `timed` gives a context for each of `PARTS`, by which a benchmark times them.
    """

    def __init__(
        self,
        config: Config,
        state: TrainingState,
        criterion: Criterion,
        processes: Processes,
        *,
        timed: Callable[[str], AbstractContextManager[None]] = untimed,
    ) -> None:
        self.config = config
        self.state = state
        self.criterion = criterion
        self.processes = processes
        self.timed = timed
        self.half = autocast_dtype(config.runtime.precision)

        # With several ranks the wrapped network averages gradients over them during backward. Where
        # it is compiled as a whole, every backward must exchange the same ones (a static graph).
        static_graph = config.runtime.compile == "model" and config.optim.accumulate == 1
        self.model: Any = processes.wrap(state.model, static_graph=static_graph)

    def gradients(self, batches: Sequence[dict[str, Any]]) -> StepGradients:
        """Add up the gradients of `batches`, as the loader gives them, in the network."""
        config, state, processes = self.config, self.state, self.processes
        progress, device = state.progress, processes.device

        # Dropout follows from seed, step and rank, so that a resumed run draws the same.
        # The statistics of batch norm are remembered, for the case that the step is skipped.
        seed_step(seed=config.experiment.seed, step=progress.step, rank=processes.rank)
        state.keep_buffers()

        # A labelled pixel counts the same on whichever rank it lies: all ranks divide by the
        # number of labelled pixels of the whole step. The criterion multiplies by `parts`,
        # since backward averages over ranks, and `loss` over batches.
        with self.timed("data"):
            labelled = count_labelled(batches, ignore_label=self.criterion.ignore_label)
            valid_pixels = processes.sum(torch.full((), labelled, dtype=torch.int64, device=device))
        parts = processes.world_size * len(batches)

        # Forward and backward for each of the batches whose gradients add up to this step.
        # The ranks exchange gradients in the last backward only.
        terms_of_batches = []
        scales = build.training_scales(config, step=progress.step)
        for number, batch in enumerate(batches, start=1):
            with self.timed("data"):
                image, label = build.prepared(config, batch, epoch=progress.epoch, device=device)
            with no_sync(self.model, last=number == len(batches)):
                with self.timed("network"), autocast_to(device, self.half):
                    prediction = self.model(
                        image, scales=scales, keep_scales=self.criterion.needs_scales
                    )
                with self.timed("loss"):
                    terms = self.criterion(
                        prediction, label, valid_pixels=valid_pixels, parts=parts
                    )
                    loss = total_of(terms) / len(batches)
                with self.timed("backward"):
                    state.scaler.scale(loss).backward()
            terms_of_batches.append(terms)

        with self.timed("optimiser"):
            terms = mean_terms(terms_of_batches)
            return StepGradients(
                terms=by_configured_scale(terms, drawn=scales, scales=config.model.train_scales),
                attention=build.attention_means(prediction, config.model.train_scales),
                norm=state.gradient_norm(),
                loss_is_bad=~torch.isfinite(total_of(terms)),
            )

    def update(self, found: StepGradients, *flags: bool) -> list[bool]:
        """Move the weights by the gradients, unless those of some rank are not finite.

        Returns whether the step was skipped, and for each of `flags` whether some rank raised it:
        all ranks decide by the same answers, and wait for each other once.
        """
        state = self.state
        with self.timed("optimiser"):
            # One rank that left out the step alone would keep the others waiting in their next
            # exchange of gradients until the timeout.
            bad_loss, bad_gradient, *raised = self.processes.any(
                found.loss_is_bad, ~torch.isfinite(found.norm), *flags
            )

            # A loss scale of fp16 that proves too large is usual: `state.step` then changes no
            # weight and lowers the scale.
            is_skipped = bad_loss or (bad_gradient and not state.overflow_is_usual())
            largest = self.config.optim.clip_norm
            if is_skipped:
                state.skip_step()
            else:
                if largest is not None:
                    parameters = state.model.parameters()
                    torch.nn.utils.clip_grads_with_norm_(parameters, largest, found.norm)
                state.step()

            # The model's own method, because apex's FusedSGD knows no set_to_none.
            state.model.zero_grad(set_to_none=True)
        return [is_skipped, *raised]


def by_configured_scale(
    terms: dict[str, Tensor], *, drawn: Sequence[float], scales: Sequence[float]
) -> dict[str, Tensor]:
    """Terms of each scale's own loss under the scale of model.train_scales that it stands for.

    With model.random_ratio every step has scales of its own, and a log no two terms of one name.
    """
    names = {
        f"scale_{own}": f"scale_{scale}"
        for own, scale in zip(sorted(drawn), sorted(scales), strict=True)
    }
    return {names.get(name, name): term for name, term in terms.items()}


def groups_of(batches: Iterable[dict[str, Any]], size: int) -> Iterator[tuple[dict[str, Any], ...]]:
    """`batches`, `size` at a time; what is left at the end of an epoch makes no step."""
    group: list[dict[str, Any]] = []
    for batch in batches:
        group.append(batch)
        if len(group) == size:
            yield tuple(group)
            group = []


def count_labelled(batches: Sequence[dict[str, Any]], *, ignore_label: int) -> int:
    """Pixels of all batches that have a label."""
    # By NumPy: on one thread torch takes some hundred times as long for a batch of crops.
    labels = [batch["label"].numpy() for batch in batches]
    return sum(int(np.count_nonzero(label != ignore_label)) for label in labels)


def total_of(terms: dict[str, Tensor]) -> Tensor:
    """The loss: the sum of its terms."""
    return torch.stack(list(terms.values())).sum()


def mean_terms(terms_of_batches: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The mean of every loss term over the batches of a step, detached."""
    count = len(terms_of_batches)
    means: dict[str, Tensor] = {}
    for terms in terms_of_batches:
        for name, term in terms.items():
            means[name] = means.get(name, 0) + term.detach() / count
    return means
