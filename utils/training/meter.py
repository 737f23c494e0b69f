"""The progress line of a training and the readings behind it.

It shows loss terms, learning rate, images/s, the share of time spent waiting for data, peak memory
and the time left.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor

from ..processes import Processes
from ..words import duration
from .cost import peak_memory_mib
from .progress import progress_bar

TRIED_SECONDS = 20.0
SHOWN_SECONDS = 0.5  # between two states of the progress line, at least

Item = TypeVar("Item")


class Meter:
    """Counts steps on a progress bar and averages loss terms over steps and ranks.

    Loss terms stay on the device between readings, so that showing them does not make the host wait
    for the device in every step.
    """

    def __init__(
        self, processes: Processes, *, steps_left: int, first_step: int = 0, every: int = 10
    ) -> None:
        self.processes = processes
        self.every = every
        self.steps_done = first_step
        self.bar = progress_bar(
            total=first_step + steps_left, initial=first_step, unit="step", show=processes.is_main
        )
        self.started_at = time.monotonic()
        self.images_in_all = 0
        self.waited_in_all = 0.0
        self.paused_s = 0.0
        self.steps_timed = 0  # after the first one, which is slower than those that follow
        self.first_step_ended_at: float | None = None
        self.losses: dict[str, float] = {}  # of the last reading
        self.shown_at = -math.inf
        self._start_reading()

    def _start_reading(self) -> None:
        """Forget what was averaged into the reading before."""
        self.sums: dict[str, Tensor] = {}
        self.steps = self.images = 0
        self.waited_s = 0.0
        self.reading_started_at = time.monotonic()

    def timed(self, items: Iterable[Item]) -> Iterator[Item]:
        """Yield `items` and count the time spent waiting for each."""
        iterator = iter(items)
        while True:
            start = time.monotonic()
            try:
                item = next(iterator)
            except StopIteration:
                return

            waited_s = time.monotonic() - start
            self.waited_s += waited_s
            self.waited_in_all += waited_s
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
        """Count one step of `images` images on this rank; after every `every` steps, a reading.

        `terms` add up to the loss; `others` are averaged beside them under their own names. The
        readings are equal on all ranks, except for times.
        """
        self.steps += 1
        self.steps_done += 1
        self.images += images
        self.images_in_all += images
        if self.first_step_ended_at is None:
            self.first_step_ended_at = time.monotonic()
        else:
            self.steps_timed += 1

        # Loss terms and others may have equal names, so the former get a prefix, as in the logs.
        losses = {f"loss_{name}": term for name, term in terms.items()}
        for name, term in (losses | dict(others)).items():
            self.sums[name] = self.sums.get(name, 0) + term

        # Counted from the beginning of the training: a resumed run reads at the same steps.
        reading = None
        if self.steps_done % self.every == 0:
            reading = self._read(list(terms), lr=lr)
            self._show(reading, list(terms), epoch=epoch)
            self._start_reading()
        elif time.monotonic() - self.shown_at > SHOWN_SECONDS:
            self._show(self._between(list(terms), lr=lr), list(terms), epoch=epoch)
        self.bar.update()
        return reading

    @property
    def step_seconds(self) -> float:
        """Seconds that a step takes, by those after the first where there are any."""
        now = time.monotonic()
        if self.first_step_ended_at is None or not self.steps_timed:
            return max(now - self.started_at, 1e-9)
        return max((now - self.first_step_ended_at) / self.steps_timed, 1e-9)

    def has_tried(self, steps: int) -> bool:
        """Whether so many steps followed the first one, or as many as fit into `TRIED_SECONDS`."""
        if self.first_step_ended_at is None:
            return False
        too_slow = time.monotonic() - self.first_step_ended_at > TRIED_SECONDS
        return too_slow or self.steps_timed >= steps

    def _read(self, loss_names: list[str], *, lr: float) -> dict[str, float]:
        """Means over the steps since the last reading and over all ranks."""
        # In fp64, one sum over ranks and one copy to the host for all terms together.
        stacked = torch.stack(list(self.sums.values()))
        # GPUs of Apple's have no fp64.
        if stacked.device.type == "mps":
            stacked = stacked.cpu()
        stacked = stacked.double()
        summed = self.processes.sum(stacked) / (self.processes.world_size * self.steps)
        means = dict(zip(self.sums, summed.tolist(), strict=True))

        self.losses = {
            "loss": sum(means[f"loss_{name}"] for name in loss_names),
            **means,
        }
        return {**self.losses, **self._figures(lr)}

    def _between(self, loss_names: list[str], *, lr: float) -> dict[str, float]:
        """What is shown between two readings, for which nothing waits for a device or a rank.

        Losses on the CPU are this rank's since the last reading; elsewhere those of that reading.
        """
        losses = self.losses
        if self.processes.device.type == "cpu":
            losses = {name: float(total) / self.steps for name, total in self.sums.items()}
            losses["loss"] = sum(losses[f"loss_{name}"] for name in loss_names)
        return {**losses, **self._figures(lr)}

    def _figures(self, lr: float) -> dict[str, float]:
        """What the host knows of the steps since the last reading."""
        # A test or a tiny network may take no measurable time.
        seconds = max(time.monotonic() - self.reading_started_at, 1e-9)
        return {
            "lr": lr,
            "images_per_second": self.images * self.processes.world_size / seconds,
            "data_wait": self.waited_s / seconds,
            "peak_memory_mib": peak_memory_mib(self.processes.device),
        }

    def _show(self, reading: Mapping[str, float], loss_names: list[str], *, epoch: int) -> None:
        """Put figures onto the progress bar; before the first reading they may lack the loss."""
        self.shown_at = time.monotonic()
        loss = ""
        if "loss" in reading:
            terms = " ".join(f"{name} {reading[f'loss_{name}']:.3f}" for name in loss_names)
            loss = f"loss {reading['loss']:.3f} ({terms}), "
        self.bar.set_description(f"epoch {epoch}", refresh=False)
        self.bar.set_postfix_str(
            f"{loss}lr {reading['lr']:.2g}, "
            f"{reading['images_per_second']:.1f} images/s, waiting {reading['data_wait']:.0%}, "
            f"{reading['peak_memory_mib'] / 1024:.1f} GiB",
            refresh=False,
        )

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave what is done inside the block, validation and saving, out of the times."""
        start = time.monotonic()
        yield
        taken = time.monotonic() - start
        self.paused_s += taken
        self.reading_started_at += taken
        self.started_at += taken
        if self.first_step_ended_at is not None:
            self.first_step_ended_at += taken

    def close(self) -> str:
        """End the progress line; returns what this run took, validations too, in one line."""
        self.bar.close()
        seconds = max(time.monotonic() - self.started_at, 1e-9)
        speed = self.images_in_all * self.processes.world_size / seconds
        memory_gib = peak_memory_mib(self.processes.device) / 1024
        return (
            f"trained for {duration(seconds + self.paused_s)}: {duration(seconds)} of steps at "
            f"{speed:.1f} images/s, {self.waited_in_all / seconds:.0%} of it waiting for data, and "
            f"{duration(self.paused_s)} of validating and saving; {memory_gib:.1f} GiB at most"
        )
