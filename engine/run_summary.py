"""What a training says of itself before its first step, and how much of it is validation."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from pathlib import Path

import torch

from hmsa.datasets import Files
from hmsa.utils.config import Config
from hmsa.utils.processes import Processes
from hmsa.utils.training.cost import Outlook, validation_cost, validation_interval
from hmsa.utils.training.logbook import logger
from hmsa.utils.training.meter import Meter
from hmsa.utils.training.training_state import Progress, TrainingState
from hmsa.utils.words import counted

from . import build

SHOWN_CLASSES = 6
MEASURED_IMAGES = 8  # validation images whose sizes stand for all
LARGEST_INITIAL_SHARE = 0.1  # of the first weights in an average of all
FORESEEN_AFTER = 20  # steps after the first, from which the time of a training is foreseen


def cost_of_validation(config: Config, validation_files: Files, *, epoch_images: int) -> float:
    """Computing of one validation as a share of that of an epoch of `epoch_images` images.

    Raises:
        DataError: an image cannot be read.
    """
    step = max(1, len(validation_files) // MEASURED_IMAGES)
    pixels = []
    for index in range(0, len(validation_files), step):
        height, width = validation_files.image_size(index)
        shrink = 1.0
        if config.data.long_edge is not None:
            shrink = config.data.long_edge / max(height, width)
        pixels.append(height * width * shrink**2)

    crop_height, crop_width = config.data.crop
    return validation_cost(
        images=len(validation_files),
        image_pixels=sum(pixels) / len(pixels),
        scales=config.eval.scales,
        flip=config.eval.flip,
        epoch_images=epoch_images,
        crop_pixels=crop_height * crop_width,
        train_scales=config.model.train_scales,
    )


def validation_every(config: Config, cost: float) -> int:
    """Epochs between validations, as runtime.val_every says; `cost` is `cost_of_validation`."""
    chosen = config.runtime.val_every
    if isinstance(chosen, int):
        return chosen
    return validation_interval(cost, epochs=config.optim.epochs)


class Forecast:
    """Says once how long a training takes, as soon as that is known."""

    def __init__(self, outlook: Outlook) -> None:
        self.outlook = outlook
        self.was_said = False

    def after_step(self, meter: Meter, progress: Progress) -> None:
        """Say it within a long first epoch."""
        if meter.steps_timed >= FORESEEN_AFTER:
            self._say(meter, progress, None)

    def after_epoch(self, meter: Meter, progress: Progress, validation_s: float | None) -> None:
        """Say it after a short first epoch; `validation_s` is what a validation took."""
        if meter.steps_timed and progress.epoch < self.outlook.epochs:
            self._say(meter, progress, validation_s)

    def _say(self, meter: Meter, progress: Progress, validation_s: float | None) -> None:
        if self.was_said:
            return
        self.was_said = True
        sentence = self.outlook.describe(
            step_s=meter.step_seconds,
            epoch=progress.epoch,
            step_in_epoch=progress.step_in_epoch,
            validation_s=validation_s,
        )
        logger.info("%s", sentence)


def log_run(
    config: Config,
    files: Files,
    validation_files: Files,
    state: TrainingState,
    processes: Processes,
    *,
    steps_per_epoch: int,
    val_every: int,
    cost: float,
    writes: bool,
) -> None:
    """Log the lines that a training begins with, on the main rank.

    Args:
        config: of the run.
        files: to train on.
        validation_files: to validate on.
        state: network and progress; a progress beyond the beginning means a resumed training.
        processes: all of the training.
        steps_per_epoch: optimiser steps of an epoch.
        val_every: epochs between validations.
        cost: of a validation, as a share of an epoch.
        writes: whether there is a run folder; a dry run has none.
    """
    # Listing the extra images takes a moment, for nothing on the other ranks.
    if not processes.is_main:
        return
    model, optim, data = config.model, config.optim, config.data
    parameters = sum(parameter.numel() for parameter in state.model.parameters())
    batch = data.batch_size * processes.world_size * optim.accumulate

    images = f"{len(files)} training and {len(validation_files)} validation images of {data.root}"
    lines = [("data", f"{images}, {_classes(files.spec.names)}")]
    extra = build.extra_source(config)
    if extra is not None and data.extra is not None:
        kinds = {"auto": "automatic", "coarse": "coarse"}
        kind = kinds[data.extra.labels]
        lines.append(("", f"{len(extra.files)} more with {kind} labels ({extra.files.split})"))

    scales = ", ".join(f"{scale:g}" for scale in model.train_scales)
    parts = f"{model.trunk}, {model.decoder}"
    if model.wrap is not None:
        parts = model.wrap.builder
    network = f"{parts}, {model.multiscale} at {{{scales}}}"
    lines.append(("network", f"{network}, {parameters / 1e6:.1f} M parameters"))
    lines.append(("weights", _weights(config, state)))

    device = _device(processes)
    lines.append(("device", f"{device}, {config.runtime.precision}"))
    crop = f"{data.crop[0]} x {data.crop[1]}"
    steps = f"{optim.epochs} epochs of {steps_per_epoch} steps with {batch} crops of {crop}"
    lines.append(("training", steps))
    outlook = Outlook(optim.epochs, steps_per_epoch, val_every, cost)
    how = build.inference_options(config.eval).describe()
    lines.append(("validation", outlook.describe_validations(how)))
    folder = "none: a dry run writes nothing"
    if writes:
        folder = str(Path(config.experiment.output))
    lines.append(("run folder", folder))
    logger.info("%s", "\n".join(f"{name:<12}{text}" for name, text in lines))
    for doubt in too_short_for(config, steps=optim.epochs * steps_per_epoch):
        logger.warning("%s", doubt)


def too_short_for(config: Config, *, steps: int) -> list[str]:
    """Sentences on settings that a training of so few steps does not bear."""
    optim = config.optim
    doubts = []
    if optim.warmup_steps >= steps:
        doubts.append(
            f"the learning rate is warmed up for {optim.warmup_steps} steps and the training has "
            f"{steps}, so that it never reaches optim.lr: set optim.warmup_steps=0"
        )

    # What is scored and saved as the model is the average.
    initial = 0.0 if optim.ema_decay is None else optim.ema_decay**steps
    if initial > LARGEST_INITIAL_SHARE:
        doubts.append(
            f"after {steps} steps the average of the weights, which is scored, still holds "
            f"{100 * initial:.0f} % of the initial ones: set optim.ema_decay=null"
        )
    return doubts


def _classes(names: Sequence[str]) -> str:
    text = ", ".join(names[:SHOWN_CLASSES])
    if len(names) > SHOWN_CLASSES:
        text += ", ..."
    return f"{len(names)} classes ({text})"


def _weights(config: Config, state: TrainingState) -> str:
    """Where the weights come from with which the training begins or goes on."""
    model = config.model
    if state.progress.step:
        return "those of the run itself, which goes on"
    if model.init_from is not None:
        return f"of the whole network from {model.init_from}"
    if model.wrap is not None:
        return model.wrap.weights or f"those that {model.wrap.builder} gives it"
    if model.trunk_weights is not None:
        return (
            f"of the trunk as said above (model.trunk_weights={model.trunk_weights}), else random"
        )
    return "random; model.trunk_weights=auto begins with a pre-trained trunk"


def _device(processes: Processes) -> str:
    """The device by its name, and on how many of them the training runs."""
    threads = torch.get_num_threads()
    name = f"CPU ({platform.machine()}, {counted(threads, 'thread')})"
    if processes.device.type == "cuda":
        name = torch.cuda.get_device_name(processes.device)
    if processes.world_size > 1:
        return f"{processes.world_size} x {name}"
    return name
