"""What a training step of each model costs beside single scale's, measured in this process."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from hmsa.engine import build
from hmsa.utils.config import load_config
from hmsa.utils.runtime import autocast_dtype
from hmsa.utils.training.cost import count_flops
from scripts.measuring.harness import peak_extra_mib, time_alternately


def measure_costs(
    config: Path, overrides_of: Mapping[str, Sequence[str]], *, rounds: int = 7
) -> dict[str, dict[str, float]]:
    """Model -> FLOPs, seconds and peak memory of a training step, relative to the first model's.

    All take the same crops, alternately.
    """
    arguments: dict[str, dict[str, Any]] = {
        model: {"config": str(config), "overrides": list(overrides)}
        for model, overrides in overrides_of.items()
    }

    # FLOPs are counted after the timing: counting slows a step down.
    steps = [counted_step(**arguments[model]) for model in arguments]
    seconds = time_alternately(tuple(steps), device="cpu", rounds=rounds, warm_up=2)
    operations = [count_flops(step) for step in steps]
    del steps
    memory = [peak_extra_mib(counted_step, arguments=arguments[model]) for model in arguments]

    return {
        model: {
            "flops": operations[number] / operations[0],
            "step_s": seconds[number],
            "step": seconds[number] / seconds[0],
            "memory_mib": memory[number],
            "memory": memory[number] / memory[0],
        }
        for number, model in enumerate(arguments)
    }


def counted_step(*, config: str, overrides: list[str]) -> Callable[[], None]:
    """Forward, loss and backward of one batch of noise on the CPU, as a training does them."""
    settings = load_config(Path(config), overrides)
    files = build.split_files(settings, settings.data.train_split)
    classes = files.spec.num_classes
    built = build.model_from(settings, num_classes=classes, trunk_weights=False)
    model: Any = build.place(built, settings, torch.device("cpu"))
    criterion = build.criterion(settings, files)
    dtype = autocast_dtype(settings.runtime.precision)

    # Every model gets the same noise.
    generator = torch.Generator().manual_seed(0)
    count, (height, width) = settings.data.batch_size, settings.data.crop
    image = torch.randn(count, 3, height, width, generator=generator)
    image = image.contiguous(memory_format=torch.channels_last)
    label = torch.randint(
        0, classes, (count, height, width), generator=generator, dtype=torch.uint8
    )

    def step() -> None:
        model.zero_grad(set_to_none=True)
        with torch.autocast("cpu", dtype=dtype, enabled=dtype is not None):
            prediction = model(image, keep_scales=criterion.needs_scales)
        terms = criterion(prediction, label, valid_pixels=label.numel(), parts=1)
        torch.stack(list(terms.values())).sum().backward()

    return step
