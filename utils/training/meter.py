"""The progress line of a training: loss terms, learning rate, images/s, share of time waiting for data, peak memory, time left."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

import torch
from torch import Tensor

from ..processes import Processes
from .cost import peak_memory_mib
from .progress import progress_bar

Item = TypeVar("Item")


class Meter:
    """Counts steps on a progress bar (main rank) and averages the loss terms since the last reading, over steps and ranks.

    Loss terms stay on the device between readings, so that a step costs no synchronisation for its display.
    """

    def __init__(
        self, processes: Processes, *, steps_left: int, first_step: int = 0, every: int = 10
    ) -> None:
        self.processes = processes
        self.every = every
        self.done = first_step
        self.bar = progress_bar(
            total=first_step + steps_left, initial=first_step, unit="step", show=processes.is_main
        )
        self.begun = time.monotonic()
        self.images_in_all = 0
        self.waited_in_all = 0.0
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
            waited = time.monotonic() - start
            self.waited += waited
            self.waited_in_all += waited
            yield item

    def step(
        self,
        terms: Mapping[str, Tensor],
        others: Mapping[str, Tensor],
        *,
        images: int,
        lr: float,
        epoch: int,
    ) -> dict[str, float] | None:
        """Count one step of `images` images on this rank; after each multiple of `every` return the readings (equal on all ranks up to times).

        `terms` add up to the loss; `others` are averaged beside them under their own names.
        """
        self.bar.update()
        for name, term in [
            *((f"loss_{name}", term) for name, term in terms.items()),
            *others.items(),
        ]:
            self.sums[name] = self.sums[name] + term if name in self.sums else term.clone()
        self.steps += 1
        self.done += 1
        self.images += images
        self.images_in_all += images
        if self.done % self.every:  # a resumed run has its readings at the same steps
            return None
        stacked = self.processes.sum(
            torch.stack([value.double() for value in self.sums.values()])
        ) / (self.processes.world_size * self.steps)
        means = dict(zip(self.sums, stacked.tolist(), strict=True))
        losses = {name: means[f"loss_{name}"] for name in terms}
        seconds = max(time.monotonic() - self.since, 1e-9)
        reading = {
            "loss": sum(losses.values()),
            **means,
            "lr": lr,
            "images_per_second": self.images * self.processes.world_size / seconds,
            "data_wait": self.waited / seconds,
            "peak_memory_mib": peak_memory_mib(self.processes.device),
        }
        terms_text = " ".join(f"{name} {value:.3f}" for name, value in losses.items())
        self.bar.set_description(f"epoch {epoch}", refresh=False)
        self.bar.set_postfix_str(
            f"loss {reading['loss']:.3f} ({terms_text}), lr {lr:.2g}, {reading['images_per_second']:.1f} images/s, "
            f"waiting {reading['data_wait']:.0%}, {reading['peak_memory_mib'] / 1024:.1f} GiB",
            refresh=False,
        )
        self._restart()
        return reading

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave what is done inside the block, validation and saving, out of the times."""
        start = time.monotonic()
        yield
        taken = time.monotonic() - start
        self.since += taken
        self.begun += taken

    def close(self) -> str:
        """End the progress line; what the steps of this run took, in one line."""
        self.bar.close()
        seconds = max(time.monotonic() - self.begun, 1e-9)
        return (
            f"trained for {timedelta(seconds=round(seconds))} h at {self.images_in_all * self.processes.world_size / seconds:.1f} images/s, "
            f"{self.waited_in_all / seconds:.0%} of the time waiting for data, {peak_memory_mib(self.processes.device) / 1024:.1f} GiB at most"
        )
