"""Exponential moving average of a model's weights and batch-norm statistics."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from .checkpoint import CheckpointError


class WeightAverage:
    """Keeps average <- decay * average + (1 - decay) * weights, entry by entry of the state dict.

    torch.optim.swa_utils.AveragedModel does nearly the same, but it copies the whole module, puts
    "module." before every key, and copies the weights of the first step instead of averaging them
    with the initial ones. Checkpoints and the numbers of running trainings would change.
    """

    def __init__(self, model: nn.Module, *, decay: float) -> None:
        self.decay = decay
        self.values = {key: value.detach().clone() for key, value in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take one step towards the model's present weights; integer entries are copied."""
        # The only integers are counters of batches, of which an average makes no sense.
        present = model.state_dict()
        averaged = [key for key, value in present.items() if value.is_floating_point()]
        copied = [key for key, value in present.items() if not value.is_floating_point()]

        # All entries at once: on a GPU this is a few kernels instead of one for each.
        if averaged:
            torch._foreach_lerp_(
                [self.values[key] for key in averaged],
                [present[key] for key in averaged],
                1.0 - self.decay,
            )
        if copied:
            torch._foreach_copy_(
                [self.values[key] for key in copied], [present[key] for key in copied]
            )

    @contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        """Within the block the model holds the averaged weights, then again its own bits."""
        # A copy: loading the averaged values writes into the tensors that the model has.
        own = {key: value.detach().clone() for key, value in model.state_dict().items()}
        model.load_state_dict(self.values)
        try:
            yield
        finally:
            model.load_state_dict(own)

    def state_dict(self) -> dict[str, Tensor]:
        """The averaged values by the model's keys."""
        return self.values

    def load_state_dict(self, values: dict[str, Tensor]) -> None:
        """Take over saved values.

        Raises:
            CheckpointError: the keys are not the model's.
        """
        if values.keys() != self.values.keys():
            raise CheckpointError(
                "the checkpoint's averaged weights belong to another model; start anew or set "
                "optim.ema_decay to null"
            )
        for key, value in values.items():
            self.values[key].copy_(value)
