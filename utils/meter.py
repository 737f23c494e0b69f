"""The progress line of a training: loss terms, learning rate, images/s, share of time waiting for data, peak memory, time left."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from typing import TypeVar

import torch
from torch import Tensor

from .cost import peak_memory_mib
from .processes import Processes
from .progress import progress_bar

Item = TypeVar("Item")


class Meter:
    """Counts steps on a progress bar (main rank) and averages the loss terms since the last reading, over steps and ranks.

    Loss terms stay on the device between readings, so that a step costs no synchronisation for its display.
    """

    def __init__(self, processes: Processes, *, total_steps: int, first_step: int = 0, every: int = 10) -> None:
        self.processes = processes
        self.every = every
        self.bar = progress_bar(total=total_steps, initial=first_step, unit="step", show=processes.is_main)
        self._restart()

    def _restart(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.steps = self.images = 0
        self.waited = 0.0
        self.since = time.monotonic()

    def timed(self, items: Iterable[Item]) -> Iterator[Item]:
        """`items`, with the time spent waiting for each noted."""
        iterator = iter(items)
        while True:
            start = time.monotonic()
            try:
                item = next(iterator)
            except StopIteration:
                return
            self.waited += time.monotonic() - start
            yield item

    def step(self, terms: Mapping[str, Tensor], *, images: int, lr: float, epoch: int) -> dict[str, float] | None:
        """Count one step of `images` images on this rank; every `every` steps return the readings (equal on all ranks up to times)."""
        self.bar.update()
        for name, term in terms.items():
            self.sums[name] = self.sums[name] + term if name in self.sums else term.clone()
        self.steps += 1
        self.images += images
        if self.steps < self.every:
            return None
        stacked = self.processes.sum(torch.stack(list(self.sums.values()))) / (self.processes.world_size * self.steps)
        losses = dict(zip(self.sums, stacked.tolist(), strict=True))
        seconds = max(time.monotonic() - self.since, 1e-9)
        reading = {"loss": sum(losses.values()), **{f"loss_{name}": value for name, value in losses.items()}, "lr": lr,
                   "images_per_second": self.images * self.processes.world_size / seconds, "data_wait": self.waited / seconds,
                   "peak_memory_mib": peak_memory_mib(self.processes.device)}
        terms_text = " ".join(f"{name} {value:.3f}" for name, value in losses.items())
        self.bar.set_description(f"epoch {epoch}", refresh=False)
        self.bar.set_postfix_str(f"loss {reading['loss']:.3f} ({terms_text}), lr {lr:.2g}, {reading['images_per_second']:.1f} images/s, "
                                 f"waiting {reading['data_wait']:.0%}, {reading['peak_memory_mib'] / 1024:.1f} GiB", refresh=False)
        self._restart()
        return reading

    def pause(self) -> None:
        """Leave validation and saving out of the times."""
        self._restart()

    def close(self) -> None:
        """End the progress line."""
        self.bar.close()
