"""How fast a configuration trains on this machine: what `hmsa benchmark` does.

Two loops of steps are timed, of the steps that a training takes. The first runs as a training does
and gives images/s and the peak of memory. The second waits for the device after each part of a
step, and gives the share of each.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import cycle, islice
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from hmsa.utils.config import Config, load_config
from hmsa.utils.files.writing import write_file
from hmsa.utils.processes import Processes, join
from hmsa.utils.runtime import prepare_runtime
from hmsa.utils.training.cost import peak_memory_mib
from hmsa.utils.training.logbook import start_logging

from . import build
from .step import PARTS, TrainingStep, groups_of

WARM_UP = 3  # steps that are not timed: kernels are chosen and memory is taken in them
BLOCK = 32  # side of a block of equal labels in drawn images, in pixels
IGNORED_ROWS = 4  # without a label, at the top of drawn images


def main(arguments: argparse.Namespace) -> int:
    """Time the configuration that the command line names; returns the exit status."""
    config = load_config(arguments.config, arguments.overrides)
    runtime = config.runtime
    with (
        join(device=runtime.device, timeout_minutes=runtime.timeout_minutes) as processes,
        build.explained(config, "training"),
    ):
        start_logging(main=processes.is_main)
        prepare_runtime(
            threads=runtime.threads,
            deterministic=runtime.deterministic,
            tf32=runtime.tf32,
            seed=config.experiment.seed,
        )
        figures = measure(config, processes, steps=arguments.steps, reads_data=arguments.data)

        if processes.is_main:
            print(table_of(figures))
            if arguments.json is not None:
                write_file(arguments.json, json.dumps(figures, indent=1) + "\n")
    return 0


def measure(
    config: Config, processes: Processes, *, steps: int, reads_data: bool
) -> dict[str, Any]:
    """Figures of `steps` training steps; with `reads_data` of the data set, else of noise.

    No file of weights is read, for weights change no speed.
    """
    config = build.without_initial_weights(config)
    pixels = None
    if reads_data:
        files: Any = build.split_files(config, config.data.train_split)
        batches = endless(build.train_loader(config, files, processes))
    else:
        files = SimpleNamespace(spec=build.named_classes(config))
        # A loss that weighs classes costs the same whatever it weighs them by.
        pixels = np.ones(files.spec.num_classes, dtype=np.int64)
        batches = cycle([noise(config, files.spec)])
    groups = groups_of(batches, config.optim.accumulate)

    # A clock that is not running lets the step run through.
    clock = PartClock(processes.device)
    state = build.training_state(config, files, processes)
    criterion = build.criterion(config, files, pixels=pixels).to(processes.device)
    step = TrainingStep(config, state, criterion, processes, timed=clock.part)
    for group in islice(groups, WARM_UP):
        step.update(step.gradients(group))

    # As a training runs: nothing waits for the device but what a step itself waits for.
    if processes.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(processes.device)
    wait_for_device(processes.device)
    began = time.perf_counter()
    for group in islice(groups, steps):
        step.update(step.gradients(group))
    wait_for_device(processes.device)
    seconds = time.perf_counter() - began
    peak_mib = peak_memory_mib(processes.device)

    # And once more part by part.
    clock.runs = True
    for _ in range(steps):
        with clock.part("data"):
            group = next(groups)
        step.update(step.gradients(group))

    images = config.data.batch_size * config.optim.accumulate * processes.world_size
    return {
        "network": f"{config.model.trunk} {config.model.decoder} {config.model.multiscale}",
        "loss": config.loss.main,
        "crop": list(config.data.crop),
        "images_per_step": images,
        "processes": processes.world_size,
        "precision": config.runtime.precision,
        "device": described_device(processes.device),
        "torch": str(torch.__version__),
        "images": "the data set's" if reads_data else "noise",
        "steps": steps,
        "images_per_second": steps * images / seconds,
        "step_s": seconds / steps,
        "peak_memory_mib": peak_mib,
        "shares": clock.shares(),
    }


class PartClock:
    """Adds up the seconds of each part of a step, waiting for the device at its end.

    Before `runs` is set it neither times nor waits.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.runs = False
        self.seconds = dict.fromkeys(PARTS, 0.0)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count the time within the block to `name`."""
        began = time.perf_counter()
        yield
        if self.runs:
            wait_for_device(self.device)
            self.seconds[name] += time.perf_counter() - began

    def shares(self) -> dict[str, float]:
        """The share of each part; together they are 1."""
        whole = sum(self.seconds.values())
        return {name: seconds / whole for name, seconds in self.seconds.items()}


def endless(loader: Any) -> Iterator[dict[str, Any]]:
    """The batches of one epoch after the other."""
    epoch = 0
    while True:
        yield from loader.epoch(epoch)
        epoch += 1


def noise(config: Config, spec: Any) -> dict[str, Any]:
    """A batch of noise, uint8 [N, 3, H, W], with labels uint8 [N, H, W] in blocks.

    The first rows are ignored. `spec` is that of a data set, or has the numbers num_classes and
    ignore_label.
    """
    count, (height, width) = config.data.batch_size, config.data.crop
    generator = torch.Generator().manual_seed(1)
    image = torch.randint(
        256, (count, height, width, 3), dtype=torch.uint8, generator=generator
    ).permute(0, 3, 1, 2)

    blocks = (count, math.ceil(height / BLOCK), math.ceil(width / BLOCK))
    coarse = torch.randint(spec.num_classes, blocks, dtype=torch.uint8, generator=generator)
    label = coarse.repeat_interleave(BLOCK, 1).repeat_interleave(BLOCK, 2)
    label = label[:, :height, :width].contiguous()
    label[:, :IGNORED_ROWS] = spec.ignore_label
    # Batches of a loader lie in pinned memory where there is a GPU.
    if torch.cuda.is_available():
        image, label = image.pin_memory(), label.pin_memory()
    # None of the pixels is padding, for augmentation on the device.
    return {
        "image": image,
        "label": label,
        "region": torch.tensor([[0, height, 0, width]]).expand(count, 4),
        "position": torch.arange(count),
    }


def described_device(device: torch.device) -> str:
    """The product name of a GPU, or the device's type with the number of threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type}, {torch.get_num_threads()} threads"


def wait_for_device(device: torch.device) -> None:
    """Wait until the device has done what was queued; nothing on the CPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def table_of(figures: dict[str, Any]) -> str:
    """The figures as lines to read."""
    height, width = figures["crop"]
    shares = "  ".join(f"{name} {share:.0%}" for name, share in figures["shares"].items())
    return "\n".join(
        [
            f"network       {figures['network']}, loss {figures['loss']}",
            f"step          {figures['images_per_step']} images of {height} x {width} "
            f"({figures['images']}), {figures['precision']}, {figures['processes']} processes",
            f"device        {figures['device']}, torch {figures['torch']}",
            f"speed         {figures['images_per_second']:.2f} images/s, "
            f"{figures['step_s']:.3f} s a step, over {figures['steps']} steps",
            f"peak memory   {figures['peak_memory_mib']:.0f} MiB",
            f"of a step     {shares}",
        ]
    )
