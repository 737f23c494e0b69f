"""Train a network as a YAML configuration says.

python train.py configs/demo.yaml [section.key=value ...] [--resume] [--dry-run]
torchrun --nproc-per-node 8 train.py configs/cityscapes/hrnet_ocr_hierarchical.yaml data.root=/data/cityscapes
"""

from __future__ import annotations

import argparse
import sys

from hmsa.utils.config import Config, dump

from .command_line import parse_with_overrides, resolve_or_exit, run_door


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line; needs no torch, so that --help answers at once."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", help="YAML configuration file")
    parser.add_argument(
        "overrides", nargs="*", metavar="section.key=value", help="change it, e.g. optim.lr=0.02"
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="go on from the newest valid checkpoint in experiment.output",
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="one step of training and validation; print what they cost",
    )
    parser.add_argument(
        "--print-config", action="store_true", help="print the resolved configuration and stop"
    )
    return parse_with_overrides(parser, argv)


import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from hmsa.datasets import Files, TrainLoader
from hmsa.utils.processes import Processes, join, no_sync, recorded, restarted
from hmsa.utils.runtime import autocast_dtype, parameter_dtype, prepare_runtime, seed_step
from hmsa.utils.training.cost import describe_network, describe_step
from hmsa.utils.training.logbook import Logbook, logger, start_logging
from hmsa.utils.training.meter import Meter
from hmsa.utils.training.nonfinite import SkippedSteps
from hmsa.utils.training.optimizer import set_learning_rate
from hmsa.utils.training.run_folder import RunFolder
from hmsa.utils.training.trace import Trace
from hmsa.utils.training.training_state import TrainingState, restore

from . import build as assemble
from .command_line import StopSignal
from .evaluate import Evaluation, evaluate, example_panel, per_class


@dataclass
class Job:
    """Everything one training joins."""

    config: Config
    processes: Processes
    run: RunFolder
    loader: TrainLoader
    validation: Files
    model: Any
    parallel: Any
    criterion: Any
    state: TrainingState
    skipped: SkippedSteps
    logbook: Logbook
    stop: StopSignal = field(default_factory=StopSignal)
    saved_at: float = field(default_factory=time.monotonic)


def set_up(config: Config, processes: Processes, *, resume: bool, write: bool) -> Job:
    """Build every part from the configuration; what one rank finds wrong, one rank says and all end."""
    runtime, write = config.runtime, write and processes.is_main
    prepare_runtime(
        threads=runtime.threads,
        deterministic=runtime.deterministic,
        tf32=runtime.tf32,
        seed=config.experiment.seed,
    )
    run = RunFolder(config.experiment.output, keep_checkpoints=runtime.keep_checkpoints)
    with processes.agreement(*assemble.USER_ERRORS):
        if write:
            run.claim(resume=resume)
        start_logging(main=processes.is_main, file=run.folder / "train.log" if write else None)
        files = assemble.split_files(config, config.data.train_split)
        validation = assemble.split_files(config, config.data.val_split)
        if processes.is_main:
            assemble.verify(config, files, validation)
        loader = assemble.train_loader(config, files, processes)
        state = assemble.training_state(config, files, processes)
        criterion = assemble.criterion(config, files)
    parallel = processes.wrap(
        state.model, static_graph=not assemble.lazily(config) and config.optim.accumulate == 1
    )
    skipped = SkippedSteps(processes, run.folder, limit=runtime.max_bad_steps)
    return Job(
        config,
        processes,
        run,
        loader,
        validation,
        state.model,
        parallel,
        criterion,
        state,
        skipped,
        Logbook(run.folder, write=write),
    )


def forward_backward(
    job: Job, batches: Sequence[dict[str, Any]]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Gradients of a step over its micro-batches: the model predicts, the loss judges, this joins. Returns loss terms and mean attention."""
    processes, device = job.processes, job.processes.device
    half = autocast_dtype(job.config.runtime.precision)
    options = {"keep_scales": job.criterion.needs_scales, "lazy": assemble.lazily(job.config)}
    own_pixels = torch.stack(
        [(batch["label"] != job.validation.spec.ignore_label).sum() for batch in batches]
    ).sum()
    valid_pixels = processes.sum(own_pixels.to(device))
    totals: dict[str, Tensor] = {}
    for number, batch in enumerate(batches, start=1):
        image, label = assemble.prepared(
            job.config, batch, epoch=job.state.progress.epoch, device=device
        )
        with no_sync(job.parallel, last=number == len(batches)):
            with torch.autocast(device.type, dtype=half, enabled=half is not None):
                prediction = job.parallel(image, **options)
            terms = job.criterion(
                prediction,
                label,
                valid_pixels=valid_pixels,
                parts=processes.world_size * len(batches),
            )
            job.state.scaler.scale(
                torch.stack(list(terms.values())).sum() / len(batches)
            ).backward()
        for name, term in terms.items():
            totals[name] = totals.get(name, 0) + term.detach() / len(batches)
    return totals, assemble.attention_means(prediction, job.model.train_scales)


def take_step(
    job: Job, batches: Sequence[dict[str, Any]]
) -> tuple[dict[str, Tensor], dict[str, Tensor], bool, bool]:
    """One optimiser step, or none on all ranks where one met a number that is not finite: loss terms, attention, whether to stop, to save."""
    state, progress, clip = job.state, job.state.progress, job.config.optim.clip_norm
    seed_step(seed=job.config.experiment.seed, step=progress.step, rank=job.processes.rank)
    state.keep_buffers()
    totals, attention = forward_backward(job, batches)
    norm = state.gradient_norm()
    own_loss_bad = ~torch.isfinite(torch.stack(list(totals.values())).sum())
    due = (
        job.processes.is_main
        and time.monotonic() - job.saved_at > 60 * job.config.runtime.checkpoint_minutes
    )
    bad_loss, bad_gradient, stop, save_now = job.processes.any(
        own_loss_bad, ~torch.isfinite(norm), job.stop.asked, due
    )
    if bad_loss or (bad_gradient and not state.overflow_is_usual()):
        state.skip_step()
        job.skipped.note(progress.step, batches, totals, own=bool(own_loss_bad))
    else:
        job.skipped.clear()
        if clip is not None:
            torch.nn.utils.clip_grads_with_norm_(job.model.parameters(), clip, norm)
        state.step()
    job.model.zero_grad(
        set_to_none=True
    )  # the optimiser's own: apex's FusedSGD knows no set_to_none
    progress.step += 1
    progress.step_in_epoch += 1
    return totals, attention, stop, save_now


def save(job: Job) -> None:
    """Write a checkpoint from which training goes on as if it had not stopped."""
    if job.processes.is_main:
        job.run.checkpoints.save(
            job.state.progress.step,
            {**job.state.content(), **assemble.identity(job.config, job.validation)},
        )
    job.saved_at = time.monotonic()


def score(job: Job, loader: Iterable[dict[str, Any]], *, images: int, show: bool) -> Evaluation:
    """Evaluate `images` images of the validation split, counted over all ranks, with the weights that count."""
    options: Any = {
        "inference": assemble.Inference.of(job.config.eval),
        "processes": job.processes,
        "criterion": job.criterion.main,
    }
    with job.state.evaluated_weights(), assemble.explained(job.config, "validation"):
        return evaluate(
            job.model, loader, spec=job.validation.spec, images=images, show=show, **options
        )


def validate(job: Job) -> None:
    """Score the validation split, note the result, keep the best weights."""
    config, progress, spec, inference = (
        job.config,
        job.state.progress,
        job.validation.spec,
        assemble.Inference.of(job.config.eval),
    )
    result = score(
        job,
        assemble.split_loader(config, job.validation, job.processes),
        images=len(job.validation),
        show=True,
    )
    if progress.epoch % config.runtime.image_every == 0 or progress.epoch == config.optim.epochs:
        with job.state.evaluated_weights():
            job.logbook.picture(
                "val", progress.step, lambda: example_panel(job.model, job.validation, inference)
            )
    progress.to_validate, miou = False, result.matrix.miou()
    logger.info(
        "epoch %d: val mIoU %.1f %% at %s, %d images",
        progress.epoch,
        100 * miou,
        inference.describe(),
        result.images,
    )
    row = {
        "epoch": progress.epoch,
        "miou": miou,
        "loss": result.loss,
        "iou": per_class(spec, result.matrix),
    }
    job.logbook.row("val", progress.step, row)
    if miou > progress.best_miou:
        progress.best_miou, progress.best_epoch = miou, progress.epoch
        if job.processes.is_main:
            job.run.checkpoints.save_best(
                {"model": job.state.weights(), **row, **assemble.identity(config, job.validation)}
            )


def rehearse(job: Job) -> None:
    """Evaluate one batch before training begins: what validation lacks, memory above all, shows now and not after an epoch."""
    batches = [
        next(
            iter(assemble.split_loader(job.config, job.validation, job.processes, workers=0)), None
        )
    ]
    own = [batch for batch in batches if batch is not None]  # a rank may have no image
    images = job.processes.sum(
        torch.tensor(sum(len(batch["names"]) for batch in own), device=job.processes.device)
    )
    score(job, own, images=int(images), show=False)


def micro_batches(job: Job) -> Iterable[tuple[dict[str, Any], ...]]:
    """What is left of the present epoch, optim.accumulate batches at a time; beginning in mid-epoch is arithmetic."""
    accumulate, progress = job.config.optim.accumulate, job.state.progress
    batches = iter(job.loader.epoch(progress.epoch, start_step=progress.step_in_epoch * accumulate))
    return zip(*[batches] * accumulate, strict=False)


def train(job: Job, trace: Trace) -> int:
    """Epochs of steps. A checkpoint is written before each validation, so that nothing failing there loses what was learnt."""
    config, progress, steps = (
        job.config,
        job.state.progress,
        len(job.loader) // job.config.optim.accumulate,
    )
    factor = assemble.schedule(config, steps_per_epoch=steps)
    meter = Meter(
        job.processes,
        steps_left=progress.steps_left(config.optim.epochs, steps),
        first_step=progress.step,
        every=config.runtime.log_every,
    )
    validate(job) if progress.to_validate else rehearse(job)
    while progress.epoch < config.optim.epochs:
        for batches in meter.timed(micro_batches(job)):
            lr = set_learning_rate(
                job.state.optimizer, factor(progress.epoch * steps + progress.step_in_epoch)
            )
            totals, attention, stop, save_now = take_step(job, batches)
            trace.step()
            reading = meter.step(
                totals,
                attention,
                images=sum(len(batch["names"]) for batch in batches),
                lr=lr,
                epoch=progress.epoch,
            )
            if reading is not None:
                job.logbook.row("train", progress.step, {"epoch": progress.epoch, **reading})
            if stop or save_now:
                save(job)
            if stop:
                logger.warning(
                    "stopped by a signal after step %d; go on with --resume", progress.step
                )
                return job.stop.status
        progress.epoch, progress.step_in_epoch = progress.epoch + 1, 0
        progress.to_validate = (
            progress.epoch % config.runtime.val_every == 0 or progress.epoch == config.optim.epochs
        )
        with meter.paused():
            save(job)
            if progress.to_validate:
                validate(job)
    logger.info("%s\n%s\n%s", meter.close(), progress.summary(), job.run.next_commands())
    return 0


def dry_run(job: Job) -> int:
    """One training step and one validation batch, and what they cost; nothing is written."""
    dtype, device = parameter_dtype(job.config.runtime.precision), job.processes.device
    lines = describe_network(
        job.model, torch.zeros(1, 3, *job.config.data.crop, device=device, dtype=dtype)
    )
    start, batches = time.monotonic(), next(iter(micro_batches(job)))
    loaded = time.monotonic()
    totals, *_ = take_step(job, batches)
    seconds, images = (
        time.monotonic() - loaded,
        job.processes.world_size * sum(len(batch["names"]) for batch in batches),
    )
    rehearse(job)
    lines += describe_step(
        totals, seconds=seconds, images=images, loading_s=loaded - start, device=device
    )
    logger.info("%s", "\n".join(lines))
    return 0


def main(arguments: argparse.Namespace) -> int:
    """Join the processes, build, then train or only try one step of each kind."""
    config: Config = arguments.resolved
    resume = arguments.resume or restarted()
    with join(
        device=config.runtime.device, timeout_minutes=config.runtime.timeout_minutes
    ) as processes:
        job = set_up(config, processes, resume=resume, write=not arguments.dry_run)
        if resume:
            restore(job.state, job.run.checkpoints, processes)
        job.state.progress.fit_batch(
            config.data.batch_size * processes.world_size * config.optim.accumulate
        )
        with (
            assemble.explained(config, "training"),
            Trace(job.run.folder, enabled=config.runtime.profile and processes.is_main) as trace,
        ):
            if arguments.dry_run:
                return dry_run(job)
            job.logbook.begin(
                dump(config),
                first_step=job.state.progress.step,
                to_validate=job.state.progress.to_validate,
            )
            job.stop.listen()
            status = train(job, trace)
            job.logbook.close()
        return status


def command(argv: list[str] | None = None) -> int:
    """The command line: parse, run, and end with one sentence and status 2 where the user is mistaken."""
    arguments = parse_arguments(argv)
    arguments.resolved = resolve_or_exit(
        arguments.config, arguments.overrides, only_print=arguments.print_config
    )
    return run_door(recorded(lambda: main(arguments)), user_errors=lambda: assemble.USER_ERRORS)
