"""Train a network as a YAML configuration says.

    python train.py configs/demo.yaml [section.key=value ...] [--resume] [--dry-run]
    torchrun --nproc-per-node 8 train.py configs/cityscapes/hrnet_ocr_hierarchical.yaml data.root=/data/cityscapes
"""

from __future__ import annotations

import argparse
import sys

from utils.cli import run_door
from utils.config import Config, ConfigError, dump, load_config


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line; needs no torch, so that --help and a misspelt key answer at once."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="YAML configuration file")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="change the configuration, e.g. optim.lr=0.02")
    parser.add_argument("--resume", action="store_true", help="go on with the run in experiment.output from its newest valid checkpoint")
    parser.add_argument("--dry-run", action="store_true", help="one training and one validation step; print parameters, FLOPs, memory, images/s")
    parser.add_argument("--print-config", action="store_true", help="print the resolved configuration and stop")
    return parser.parse_intermixed_args(argv)


def read_config(arguments: argparse.Namespace) -> int:
    """Resolve the configuration before anything slow is imported; its mistakes end here."""
    arguments.resolved = load_config(arguments.config, arguments.overrides)
    if arguments.print_config:
        print(dump(arguments.resolved), end="")
    return 0


if __name__ == "__main__":
    ARGUMENTS = parse_arguments()
    STATUS = run_door(lambda: read_config(ARGUMENTS), user_errors=lambda: (ConfigError,))
    if STATUS or ARGUMENTS.print_config:
        sys.exit(STATUS)

import os  # noqa: E402
import time  # noqa: E402
from collections.abc import Iterator  # noqa: E402
from dataclasses import dataclass, field  # noqa: E402
from itertools import islice  # noqa: E402
from typing import Any  # noqa: E402

import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from datasets import Files, TrainLoader, normalise  # noqa: E402
from eval import USER_ERRORS, Settings, criterion_from, evaluate, model_from, prediction_panel, split_files, split_loader, train_loader_from  # noqa: E402
from network import load_weights  # noqa: E402
from utils.cli import StopSignal  # noqa: E402
from utils.cost import describe_costs  # noqa: E402
from utils.ema import WeightAverage  # noqa: E402
from utils.logbook import Logbook, logger, start_logging  # noqa: E402
from utils.meter import Meter  # noqa: E402
from utils.optimizer import build_optimizer, parameter_groups, scaled_learning_rate, set_learning_rate  # noqa: E402
from utils.processes import Processes, end_after, join, lost_contact, no_sync, recorded, synchronise_batch_norm  # noqa: E402
from utils.run_folder import RunError, RunFolder  # noqa: E402
from utils.runtime import autocast_dtype, parameter_dtype, prepare_runtime, seed_step  # noqa: E402
from utils.schedule import build_schedule  # noqa: E402
from utils.training_state import BufferGuard, Progress, TrainingState, restore  # noqa: E402


@dataclass
class Job:
    """Everything one training joins."""

    config: Config
    processes: Processes
    run: RunFolder
    loader: TrainLoader
    validation: Files
    model: nn.Module
    parallel: nn.Module
    criterion: Any
    state: TrainingState
    logbook: Logbook
    stop: StopSignal = field(default_factory=StopSignal)
    bad_in_a_row: int = 0
    saved_at: float = field(default_factory=time.monotonic)

    @property
    def progress(self) -> Progress:
        return self.state.progress

    def identity(self) -> dict[str, Any]:
        """What makes a checkpoint usable alone: its configuration and its classes."""
        return {"config": self.config.to_dict(), "spec": self.validation.spec.to_dict()}


def set_up(config: Config, processes: Processes, *, resume: bool, write: bool) -> Job:
    """Build every part from the configuration; what one rank finds wrong, one rank says and all end."""
    runtime, optim = config.runtime, config.optim
    prepare_runtime(threads=runtime.threads, deterministic=runtime.deterministic, tf32=runtime.tf32, seed=config.experiment.seed)
    run = RunFolder(config.experiment.output, keep_checkpoints=runtime.keep_checkpoints)
    scaler = torch.amp.GradScaler(processes.device.type, enabled=runtime.precision == "fp16")
    with processes.agreement(*USER_ERRORS):
        if processes.is_main and write:
            run.claim(resume=resume)
        start_logging(main=processes.is_main, file=run.folder / "train.log" if processes.is_main and write else None)
        files, validation = split_files(config, config.data.train_split), split_files(config, config.data.val_split)
        loader = train_loader_from(config, files, processes)
        model = initial_model(config, num_classes=files.spec.num_classes)
        if runtime.sync_batchnorm == "auto":
            model = synchronise_batch_norm(model, processes)
        model = place(model, config, processes.device)
        optimizer = optimizer_from(config, model, processes=processes, scaled=scaler.is_enabled())
        criterion = criterion_from(config, files)
    state = TrainingState(model, optimizer, scaler, WeightAverage(model, decay=optim.ema_decay) if optim.ema_decay else None)
    parallel = processes.wrap(compiled(model, runtime.compile), find_unused_parameters=optim.find_unused_parameters)
    return Job(config, processes, run, loader, validation, model, parallel, criterion, state, Logbook(run.folder, write=processes.is_main and write))


def forward_backward(job: Job, batches: list[dict[str, Any]]) -> dict[str, Tensor]:
    """Gradients of one optimiser step over its micro-batches: the model predicts, the loss judges, this joins."""
    device, runtime, processes = job.processes.device, job.config.runtime, job.processes
    seed_step(seed=job.config.experiment.seed, step=job.progress.step, rank=processes.rank)
    own_pixels = torch.stack([(batch["label"] != job.validation.spec.ignore_label).sum() for batch in batches]).sum()
    valid_pixels = processes.sum(own_pixels.to(device))
    half, dtype = autocast_dtype(runtime.precision), parameter_dtype(runtime.precision)
    totals: dict[str, Tensor] = {}
    for number, batch in enumerate(batches, start=1):
        image = normalise(batch["image"].to(device, non_blocking=True), dtype=dtype, channels_last=runtime.channels_last)
        label = batch["label"].to(device, non_blocking=True)
        with no_sync(job.parallel, last=number == len(batches)):
            with torch.autocast(device.type, dtype=half, enabled=half is not None):
                prediction = job.parallel(image, keep_scales=job.criterion.needs_scales)
            terms = job.criterion(prediction, label, valid_pixels=valid_pixels, parts=processes.world_size * len(batches))
            loss = sum(terms.values(), torch.zeros((), device=device)) / len(batches)
            job.state.scaler.scale(loss).backward()
        for name, term in terms.items():
            totals[name] = totals.get(name, torch.zeros((), device=device)) + term.detach() / len(batches)
    return totals


def take_step(job: Job, batches: list[dict[str, Any]], guard: BufferGuard) -> tuple[dict[str, Tensor], bool, bool]:
    """One optimiser step, or none on all ranks when any met a number that is not finite. Returns loss terms, whether to stop, whether to save."""
    state, clip = job.state, job.config.optim.clip_norm
    guard.keep()
    totals = forward_backward(job, batches)
    state.scaler.unscale_(state.optimizer)
    norm = torch.nn.utils.get_total_norm([parameter.grad for parameter in job.model.parameters() if parameter.grad is not None])
    finite = torch.isfinite(torch.stack(list(totals.values())).sum())
    if not state.scaler.is_enabled():  # a GradScaler looks at the gradients itself, and an overflow now and then is its way of working
        finite = finite & torch.isfinite(norm)
    due = job.processes.is_main and time.monotonic() - job.saved_at > 60 * job.config.runtime.checkpoint_minutes
    bad, stop, save_now = job.processes.any(~finite, job.stop.asked, due)
    if bad:
        guard.restore()
        name_bad_images(job, batches, totals, own=not bool(finite))
    else:
        job.bad_in_a_row = 0
        if clip is not None:
            torch.nn.utils.clip_grads_with_norm_(job.model.parameters(), clip, norm)
        state.step()
    state.optimizer.zero_grad(set_to_none=True)
    job.progress.step += 1
    job.progress.step_in_epoch += 1
    return totals, stop, save_now


def name_bad_images(job: Job, batches: list[dict[str, Any]], totals: dict[str, Tensor], *, own: bool) -> None:
    """Say which images made a step useless; after runtime.max_bad_steps in a row write the batch to a file and end."""
    job.bad_in_a_row += 1
    job.progress.skipped_steps += 1
    names = [name for batch in batches for name in batch["names"]] if own else []
    found = ", ".join(name for of_rank in job.processes.gather(names) for name in of_rank)
    logger.warning("step %d skipped on all ranks, the loss or its gradient is not finite; images: %s", job.progress.step, found)
    if job.bad_in_a_row < job.config.runtime.max_bad_steps:
        return
    dump_file = job.run.folder / f"not-finite-rank{job.processes.rank}.pt"
    if own:
        torch.save({"terms": totals, "batches": batches}, dump_file)
    raise RunError(f"the loss was not finite in {job.bad_in_a_row} steps in a row (images: {found}); the batch is in {dump_file} and the checkpoints "
                   "are intact: lower optim.lr, set optim.clip_norm or runtime.precision=fp32, and go on with --resume")


def save(job: Job) -> None:
    """Write a checkpoint from which training goes on as if it had not stopped."""
    if job.processes.is_main:
        job.run.checkpoints.save(job.progress.step, {**job.state.content(), **job.identity()})
    job.saved_at = time.monotonic()


def validate(job: Job) -> None:
    """Score the validation split, note the result, keep the best weights."""
    config, progress, settings = job.config, job.progress, Settings.of(job.config)
    with job.state.evaluated_weights():
        result = evaluate(job.model, split_loader(config, job.validation, job.processes), spec=job.validation.spec, settings=settings,
                          processes=job.processes, images=len(job.validation), criterion=job.criterion.main)
        if progress.epoch % config.runtime.image_every == 0 or progress.epoch == config.optim.epochs:
            job.logbook.picture("val", progress.step, lambda: prediction_panel(job.model, job.validation, settings, job.processes.device))
    progress.to_validate, miou = False, result.matrix.miou()
    logger.info("epoch %d: val mIoU %.1f %% at %s, %d images, loss %.4f", progress.epoch, 100 * miou, settings.describe(), result.images, result.loss)
    per_class = dict(zip(job.validation.spec.names, result.matrix.iou().tolist(), strict=True))
    job.logbook.row("val", progress.step, {"epoch": progress.epoch, "miou": miou, "loss": result.loss, "iou": per_class})
    if miou > progress.best_miou:
        progress.best_miou, progress.best_epoch = miou, progress.epoch
        if job.processes.is_main:
            job.run.checkpoints.save_best({"model": job.state.weights(), **job.identity(), "miou": miou, "epoch": progress.epoch})


def micro_batches(job: Job) -> Iterator[list[dict[str, Any]]]:
    """What is left of the present epoch, optim.accumulate batches at a time; beginning in mid-epoch is arithmetic."""
    accumulate = job.config.optim.accumulate
    batches = iter(job.loader.epoch(job.progress.epoch, start_step=job.progress.step_in_epoch * accumulate))
    while len(group := list(islice(batches, accumulate))) == accumulate:
        yield group


def train(job: Job) -> int:
    """Epochs of steps. A checkpoint is written before each validation, so nothing that fails there can lose what was learnt."""
    config, progress, guard = job.config, job.progress, BufferGuard(job.model)
    steps_per_epoch = len(job.loader) // config.optim.accumulate
    factor = build_schedule(**config.optim.schedule_arguments(), steps_per_epoch=steps_per_epoch)
    meter = Meter(job.processes, total_steps=config.optim.epochs * steps_per_epoch, first_step=progress.step, every=config.runtime.log_every)
    if progress.to_validate:
        validate(job)
    while progress.epoch < config.optim.epochs:
        for batches in meter.timed(micro_batches(job)):
            lr = set_learning_rate(job.state.optimizer, factor(progress.step))
            totals, stop, save_now = take_step(job, batches, guard)
            reading = meter.step(totals, images=sum(len(batch["names"]) for batch in batches), lr=lr, epoch=progress.epoch)
            if reading is not None:
                job.logbook.row("train", progress.step, {"epoch": progress.epoch, **reading})
            if stop or save_now:
                save(job)
            if stop:
                logger.warning("stopped by a signal after step %d; go on with --resume", progress.step)
                return job.stop.status
        progress.epoch, progress.step_in_epoch, progress.to_validate = progress.epoch + 1, 0, True
        save(job)
        if progress.epoch % config.runtime.val_every == 0 or progress.epoch == config.optim.epochs:
            validate(job)
        meter.pause()
    meter.close()
    logger.info("done: best val mIoU %.1f %% after epoch %d; evaluate with: python eval.py --checkpoint %s", 100 * progress.best_miou,
                progress.best_epoch, job.run.checkpoints.best)
    return 0


def main(arguments: argparse.Namespace) -> int:
    """Join the processes, build, then train or only try one step of each kind."""
    config: Config = arguments.resolved
    processes = join(device=config.runtime.device, timeout_minutes=config.runtime.timeout_minutes)
    resume = arguments.resume or int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0
    try:
        job = set_up(config, processes, resume=resume, write=not arguments.dry_run)
        if arguments.dry_run:
            return dry_run(job)
        if resume:
            restore(job.state, job.run.checkpoints, processes)
        job.logbook.begin(dump(config), first_step=job.progress.step)
        job.stop.listen()
        status = train(job)
    except Exception as error:
        if processes.world_size > 1 and lost_contact(error):
            end_after(error)
        raise
    job.logbook.close()
    processes.close()
    return status


if __name__ == "__main__":
    sys.exit(run_door(recorded(lambda: main(ARGUMENTS)), user_errors=lambda: USER_ERRORS))
