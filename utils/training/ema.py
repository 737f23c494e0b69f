"""Exponential moving average of a model's weights and batch-norm statistics."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class WeightAverage:
    """Keeps average <- decay * average + (1 - decay) * weights for every floating-point entry of the state dict."""

    def __init__(self, model: nn.Module, *, decay: float) -> None:
        self.decay = decay
        self.values = {key: value.detach().clone() for key, value in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take one step towards the model's present weights; integer entries (counters) are copied."""
        for key, value in model.state_dict().items():
            if value.is_floating_point():
                self.values[key].lerp_(value, 1.0 - self.decay)
            else:
                self.values[key].copy_(value)

    @contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        """Inside the block the model holds the averaged weights; afterwards its own again, bit for bit."""
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
        """Take over saved values; the keys must be the model's."""
        if values.keys() != self.values.keys():
            raise ValueError(
                "the checkpoint's averaged weights belong to another model; start anew or set optim.ema_decay to null"
            )
        for key, value in values.items():
            self.values[key].copy_(value)
