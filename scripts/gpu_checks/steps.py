"""Training steps: what waits for the GPU, how many kernels, how busy it is, how much memory."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import nn

from hmsa.engine import train
from hmsa.utils.config import Config, load_config
from hmsa.utils.training.cost import MemoryShortage
from hmsa.utils.training.optimizer import build_optimizer
from hmsa.utils.training.training_state import TrainingState
from scripts.benchmarks.train import training_step
from scripts.measuring.harness import Workload

from .findings import (
    Finding,
    GpuSetup,
    each_of,
    is_so,
    not_above,
    relative_difference,
    says,
    wait_for,
)
from .runs import DEMO, small_training

SYNCHRONISATIONS_OF_A_STEP = 3
# Trunk, decoder, classes, crop, activation checkpointing, and the most memory a step may take, GiB.
PEAKS = (
    ("hrnet_w48", "ocr", (1024, 2048), False, 12.0),
    ("hrnet_w48", "ocr", (1024, 2048), True, 7.0),
    ("resnet50", "deeplabv3plus", (1024, 1856), False, 9.0),
)


def check_steps(setup: GpuSetup) -> Iterator[Finding]:
    """All of it; what only CUDA can count is left out on a CPU."""
    yield from each_of(
        setup,
        _synchronisations,
        _kernels,
        _peaks,
        _optimisers,
        _first_overflow,
        _full_memory,
    )


@contextmanager
def counted_synchronisations() -> Iterator[list[warnings.WarningMessage]]:
    """Within the block the list grows by one whenever the host waits for the GPU."""
    with warnings.catch_warnings(record=True) as record:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield record
        finally:
            torch.cuda.set_sync_debug_mode("default")


def synchronisations_in(record: list[warnings.WarningMessage]) -> int:
    """How many of the warnings are of waiting."""
    return sum("synchronizing CUDA operation" in str(entry.message) for entry in record)


def _synchronisations(setup: GpuSetup) -> Iterator[Finding]:
    """Of every step of a real training, counted from the end of one update to that of the next."""
    if setup.device.type != "cuda":
        return
    config = load_config(DEMO, small_training(setup, "synchronisations", epochs=1))
    counts: list[int] = []
    update = TrainingState.step

    with counted_synchronisations() as record:

        def step(state: TrainingState) -> None:
            update(state)
            counts.append(synchronisations_in(record))

        with mock.patch.object(TrainingState, "step", step):
            train.main(config)

    # The first steps pay for what is made once.
    steps = [after - before for before, after in zip(counts[2:], counts[3:], strict=False)]
    yield not_above(
        "times a training step waits for the GPU", max(steps), SYNCHRONISATIONS_OF_A_STEP
    )


def _kernels(setup: GpuSetup) -> Iterator[Finding]:
    """Kernels of a step and the share of the time in which the GPU works, by torch's profiler."""
    if setup.device.type != "cuda":
        return
    height, width = setup.size(512, 1024)
    work = step_of(setup, "hrnet_w48", "ocr", (height, width))
    for _ in range(3):
        work()
    wait_for(setup.device)

    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    steps = 5
    with torch.profiler.profile(activities=activities) as profile:
        for _ in range(steps):
            work()
        wait_for(setup.device)

    on_gpu = torch.autograd.DeviceType.CUDA
    # Ranges that somebody named, such as an optimiser's step, are no work of the GPU's.
    spans = sorted(
        (event.time_range.start, event.time_range.end)
        for event in profile.events()
        if event.device_type == on_gpu and not event.is_user_annotation
    )
    if not spans:
        yield says("kernels of a step", "not counted: the driver lets only root profile the GPU")
        return
    busy, whole = covered(spans), spans[-1][1] - spans[0][0]
    size = f"HRNet-W48 + OCR at {height} x {width}"
    yield says(f"kernels of a step, {size}", f"{len(spans) / steps:.0f}")
    yield says(f"share of the step in which the GPU works, {size}", f"{busy / whole:.0%}")


def covered(spans: list[tuple[float, float]]) -> float:
    """The length that sorted spans (start, end) cover together; they may overlap."""
    total, reached = 0.0, float("-inf")
    for start, end in spans:
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total


def step_of(
    setup: GpuSetup,
    trunk: str,
    decoder: str,
    size: tuple[int, int],
    *,
    checkpointing: bool = False,
    batch: int = 1,
) -> Workload:
    """One bf16 training step of a network, as the training loop takes it."""
    sections: dict[str, Any] = {
        "data": {"crop": list(size), "batch_size": batch},
        # Weights change no speed, and a machine with a GPU need not reach the network.
        "model": {
            **setup.network(trunk, decoder),
            "multiscale": "hierarchical",
            "trunk_weights": None,
        },
        "loss": {"main": "rmi"},
        "runtime": {"precision": "bf16", "activation_checkpointing": checkpointing},
    }
    return training_step(sections, str(setup.device))


def _peaks(setup: GpuSetup) -> Iterator[Finding]:
    for trunk, decoder, crop, checkpointing, limit in PEAKS:
        size = setup.size(*crop)
        work = step_of(setup, trunk, decoder, size, checkpointing=checkpointing)
        work()
        name = f"peak of a step, {trunk} {decoder} {size[0]} x {size[1]}, bf16"
        if checkpointing:
            name += ", activation checkpointing"

        if setup.device.type != "cuda":
            yield says(name, "not measured on the CPU")
            continue
        torch.cuda.reset_peak_memory_stats(setup.device)
        work()
        wait_for(setup.device)
        peak = torch.cuda.max_memory_allocated(setup.device) / 2**30
        yield not_above(name, peak, limit, unit=" GiB")

        # The next network finds the memory as this one did.
        del work
        torch.cuda.empty_cache()


def _optimisers(setup: GpuSetup) -> Iterator[Finding]:
    """Five updates of the fused optimisers against five of the foreach ones."""
    for optimizer in ("sgd", "adamw"):
        weights = []
        for backend in ("foreach", "fused"):
            torch.manual_seed(3)
            layer = nn.Conv2d(16, 16, 3).to(setup.device)
            groups = [
                {
                    "params": list(layer.parameters()),
                    "lr": 0.01,
                    "base_lr": 0.01,
                    "weight_decay": 0.1,
                }
            ]
            update = build_optimizer(groups, optimizer=optimizer, momentum=0.9, backend=backend)
            for number in range(5):
                torch.manual_seed(number)
                for parameter in layer.parameters():
                    parameter.grad = torch.randn(parameter.shape).to(setup.device)
                update.step()
            weights.append(layer.weight)
        difference = relative_difference(weights[1], weights[0])
        yield not_above(f"{optimizer}: fused against foreach", difference, 1e-6)


def _first_overflow(setup: GpuSetup) -> Iterator[Finding]:
    """An fp16 step whose loss scale is far too large changes no weight and lowers the scale."""
    layer = nn.Linear(8, 8).to(setup.device)
    groups = [{"params": list(layer.parameters()), "lr": 0.1, "base_lr": 0.1, "weight_decay": 0.0}]
    made = build_optimizer(groups, optimizer="sgd", momentum=0.9, scaled=True)
    scaler = torch.amp.GradScaler(setup.device.type, init_scale=2.0**100, growth_interval=1000)
    state = TrainingState(layer, made, scaler, None)
    before = layer.weight.detach().clone()

    scaler.scale(layer(torch.full((4, 8), 1e30, device=setup.device)).sum()).backward()
    state.gradient_norm()
    state.step()
    unchanged = bool(torch.equal(layer.weight, before)) and scaler.get_scale() < 2.0**100
    yield is_so("fp16: a first step that overflows changes nothing", unchanged, otherwise="no")


def _full_memory(setup: GpuSetup) -> Iterator[Finding]:
    """A training that does not fit ends in one sentence that says what to change."""
    if setup.device.type != "cuda":
        return
    torch.cuda.empty_cache()
    whole = torch.cuda.get_device_properties(setup.device).total_memory
    allowed = torch.cuda.memory_reserved(setup.device) + 64 * 2**20
    torch.cuda.set_per_process_memory_fraction(allowed / whole, setup.device)
    try:
        overrides = small_training(setup, "memory", epochs=1)
        config: Config = load_config(DEMO, [*overrides, "data.batch_size=8"])
        train.main(config)
        answer = "it fitted into 64 MiB"
    except MemoryShortage as error:
        answer = str(error)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, setup.device)
    yield is_so(
        "a training that does not fit says what to change",
        "try runtime" in answer,
        otherwise=answer,
    )
