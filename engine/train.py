"""Train a network as a configuration says: build the parts, then epochs of steps.

`train` holds all of it, in the order in which it happens; what a step is made of stands in
`step.TrainingStep`. Every process (rank) that torchrun started runs it from top to bottom on its
own images; with a single process all that concerns the other ranks does nothing. The few places
where all ranks must come to the same decision say so.
"""

from __future__ import annotations

import time
from contextlib import closing
from pathlib import Path

import torch
from torch import Tensor

from hmsa.datasets import Files
from hmsa.utils.config import Config, dump
from hmsa.utils.processes import Processes, join, restarted
from hmsa.utils.runtime import parameter_dtype, prepare_runtime
from hmsa.utils.training.checkpoint import CheckpointFolder
from hmsa.utils.training.cost import Outlook, describe_network, describe_step
from hmsa.utils.training.live_memory import tensors_in
from hmsa.utils.training.logbook import Logbook, logger, start_logging
from hmsa.utils.training.meter import Meter
from hmsa.utils.training.nonfinite import SkippedSteps
from hmsa.utils.training.optimizer import set_learning_rate
from hmsa.utils.training.run_folder import RunFolder
from hmsa.utils.training.trace import Trace
from hmsa.utils.training.training_state import TrainingState, restore
from hmsa.utils.words import UserError

from . import build
from .calibrate import calibrate_run
from .command_line import StopSignal
from .run_summary import Forecast, cost_of_validation, log_run, validation_every
from .step import TrainingStep, groups_of
from .trust import remember_code
from .validation import Validation

DRY_STEPS = 3  # that a dry run takes after the first one, which is slower


def main(config: Config, *, resume: bool = False, dry_run: bool = False) -> int:
    """Join the other processes, if there are any, and train; returns the exit status."""
    # After a failure torchrun starts all ranks again with the command line of the first time.
    resume = resume or restarted()

    runtime, folder = config.runtime, Path(config.experiment.output)
    traces = runtime.profile and not dry_run
    with (
        join(device=runtime.device, timeout_minutes=runtime.timeout_minutes) as processes,
        build.explained(config, "training"),
        Trace(folder, enabled=traces and processes.is_main) as trace,
        closing(StopSignal()) as stop_signal,
    ):
        status = train(config, processes, trace, stop_signal, resume=resume, dry_run=dry_run)

    # All ranks are done. One of them calibrates, as a command of its own would.
    if runtime.calibrate and status == 0 and not dry_run and processes.is_main:
        calibrate_run(config, device=processes.device)
    return status


def train(
    config: Config,
    processes: Processes,
    trace: Trace,
    stop_signal: StopSignal,
    *,
    resume: bool,
    dry_run: bool,
) -> int:
    """Train on this rank; returns the exit status.

    With `resume` the training goes on from the newest valid checkpoint of experiment.output. A dry
    run takes a few steps, says what they cost and writes nothing.

    Raises:
        UserError: files, configuration, memory or disk do not allow it; the same on all ranks.
    """
    experiment, optim, runtime = config.experiment, config.optim, config.runtime
    device = processes.device
    writes = processes.is_main and not dry_run
    prepare_runtime(
        threads=runtime.threads,
        deterministic=runtime.deterministic,
        tf32=runtime.tf32,
        seed=experiment.seed,
    )

    # 1. The parts. A rank that cannot read a file must not leave the others waiting for it: a user
    #    error on one rank is raised on all of them at the end of this block, and one rank says it.
    run = RunFolder(experiment.output, keep_checkpoints=runtime.keep_checkpoints)
    with processes.agreement(UserError):
        if writes:
            run.claim(resume=resume)
            remember_code(config)
        log = run.folder / "train.log"
        start_logging(main=processes.is_main, file=log if writes else None)

        files = build.split_files(config, config.data.train_split)
        validation_files = build.split_files(config, config.data.val_split)
        if processes.is_main:
            build.verify(config, files, validation_files)
        loader = build.train_loader(config, files, processes)
        state = build.training_state(config, files, processes)
        criterion = build.criterion(config, files).to(device)
        loggers = build.loggers(runtime.loggers if writes else ())
        epoch_images = len(loader) * config.data.batch_size * processes.world_size
        val_cost = cost_of_validation(config, validation_files, epoch_images=epoch_images)
        val_every = validation_every(config, val_cost)

    step = TrainingStep(config, state, criterion, processes)
    validation = Validation(config, validation_files, criterion, processes, every=val_every)
    skipped = SkippedSteps(processes, run.folder, limit=runtime.max_bad_steps)

    # 2. Where the training begins: at its start, or where a checkpoint says that it stood.
    logbook = Logbook(run.folder, write=writes, loggers=loggers, name=experiment.name)
    is_finished = resume and go_on(state, run, validation, logbook)
    progress = state.progress
    # With another number of ranks or images a step, the place within the epoch is found anew.
    progress.fit_batch(config.data.batch_size * processes.world_size * optim.accumulate)
    steps_per_epoch = len(loader) // optim.accumulate
    rate_at = build.schedule(config, steps_per_epoch=steps_per_epoch)

    if is_finished:
        logger.info("%s\n%s", progress.summary(), run.next_commands())
        return 0

    log_run(
        config,
        files,
        validation_files,
        state,
        processes,
        steps_per_epoch=steps_per_epoch,
        val_every=val_every,
        cost=val_cost,
        writes=not dry_run,
    )
    forecast = Forecast(Outlook(optim.epochs, steps_per_epoch, val_every, val_cost))
    logbook.begin(
        dump(config),
        first_step=progress.step,
        to_validate=progress.to_validate,
        every=runtime.log_every,
    )
    meter = Meter(
        processes,
        steps_left=progress.steps_left(optim.epochs, steps_per_epoch),
        first_step=progress.step,
        every=runtime.log_every,
    )
    stop_signal.listen()
    saved_at = time.monotonic()

    # What validation lacks, memory above all, shows now and not after an epoch.
    # A dry run scores nothing, since that would write.
    with meter.paused(), stop_signal.at_once("interrupted before the first step"):
        validation.rehearse(state)
        progress.to_validate &= not dry_run
        validation.run_if_due(state, logbook, run.checkpoints)

    # 3. Epochs of steps. To begin in the middle of an epoch is arithmetic: which images a step
    #    takes follows from the seed, the epoch and the number of the step.
    while progress.epoch < optim.epochs:
        batches_left = loader.epoch(
            progress.epoch, start_step=progress.step_in_epoch * optim.accumulate
        )
        for batches in meter.timed(groups_of(batches_left, optim.accumulate)):
            step_of_schedule = progress.epoch * steps_per_epoch + progress.step_in_epoch
            lr = set_learning_rate(state.optimizer, rate_at(step_of_schedule))

            found = step.gradients(batches)

            # Whether to use the gradients, to save and to stop is decided by all ranks together.
            # A rank that left the loop alone would keep the others waiting until the timeout.
            minutes = (time.monotonic() - saved_at) / 60
            save_is_due = processes.is_main and minutes > runtime.checkpoint_minutes
            is_skipped, stop, save_now = step.update(found, stop_signal.asked, save_is_due)
            if is_skipped:
                is_bad = bool(found.loss_is_bad)
                skipped.note(progress.step, batches, found.terms, loss_is_bad=is_bad)
            else:
                skipped.clear()
            progress.step += 1
            progress.step_in_epoch += 1
            trace.step()

            # Epochs are counted from 1 wherever somebody reads their numbers.
            epoch = progress.epoch + 1
            images = len(batches) * config.data.batch_size
            reading = meter.step(found.terms, found.attention, images=images, lr=lr, epoch=epoch)

            # A dry run writes nothing. All ranks end it after the same step.
            is_last = progress.step_in_epoch == steps_per_epoch
            if dry_run and processes.any(stop or is_last or meter.has_tried(DRY_STEPS))[0]:
                return report_costs(config, state, processes, meter, found.terms, forecast.outlook)
            if reading is not None:
                logbook.row("train", progress.step, {"epoch": epoch, **reading})
            forecast.after_step(meter, progress)
            if stop or save_now:
                save(state, run.checkpoints, config, validation_files, processes)
                saved_at = time.monotonic()
            if stop:
                logger.warning(
                    "stopped by %s after step %d; go on with --resume (all of it is saved in %s)",
                    stop_signal.what,
                    progress.step,
                    run.checkpoints.folder,
                )
                logbook.close()
                return stop_signal.status

        # 4. The end of an epoch. The checkpoint comes before the validation, so that nothing that
        #    fails there loses what was learnt.
        progress.epoch += 1
        progress.step_in_epoch = 0
        progress.to_validate = validation.is_due_after(progress.epoch)
        with meter.paused():
            save(state, run.checkpoints, config, validation_files, processes)
            saved_at = time.monotonic()
            # A signal is answered in the next step, and Ctrl-C, which somebody waits for, now.
            message = (
                f"stopped by Ctrl-C after step {progress.step}; go on with --resume (all of it is "
                f"saved in {run.checkpoints.folder}; it will begin with this validation)"
            )
            with stop_signal.at_once(message):
                validation.run_if_due(state, logbook, run.checkpoints)
        forecast.after_epoch(meter, progress, validation.seconds)

    logger.info("%s\n%s\n%s", meter.close(), progress.summary(), run.next_commands())
    logbook.close()
    return 0


def go_on(state: TrainingState, run: RunFolder, validation: Validation, logbook: Logbook) -> bool:
    """Take up the training where its newest valid checkpoint stands.

    Returns whether nothing is left to do.
    """
    names = validation.files.spec.names
    restore(state, run.checkpoints, validation.processes, class_names=names)
    if not validation.leaves_nothing_to_do(state.progress, logbook):
        return False
    logger.info("%s: this training is finished; a larger optim.epochs goes on with it", run.folder)
    return True


def save(
    state: TrainingState,
    checkpoints: CheckpointFolder,
    config: Config,
    files: Files,
    processes: Processes,
) -> None:
    """Write a checkpoint from which training goes on as if it had not stopped."""
    # One rank writes. If it cannot, for a full disk, all ranks end.
    with processes.agreement():
        if processes.is_main:
            origin = str(getattr(state.model, "trunk_origin", ""))
            identity = build.checkpoint_identity(config, files, trunk_origin=origin)
            checkpoints.save(state.progress.step, {**state.content(), **identity})


def report_costs(
    config: Config,
    state: TrainingState,
    processes: Processes,
    meter: Meter,
    terms: dict[str, Tensor],
    outlook: Outlook,
) -> int:
    """Say what the steps of a dry run cost and what the training would; returns the exit status."""
    step_s = meter.step_seconds
    meter.close()

    device = processes.device
    crop = torch.zeros(
        1, 3, *config.data.crop, device=device, dtype=parameter_dtype(config.runtime.precision)
    )
    lines = describe_network(state.model, crop)
    lines += describe_step(
        terms,
        step_s=step_s,
        steps=meter.steps_timed,
        images=config.data.batch_size * config.optim.accumulate * processes.world_size,
        loading_s=meter.waited_in_all,
        device=device,
    )

    # What is in a checkpoint is known now that the optimiser has taken a step.
    size = sum(tensor.nbytes for tensor in tensors_in(state.content())) / 2**20
    kept = config.runtime.keep_checkpoints
    lines.append(f"checkpoints   {size:.0f} MiB each; the last {kept} are kept, and the best")
    whole = outlook.describe(step_s=step_s, epoch=0, step_in_epoch=0, validation_s=None)
    lines.append(f"time          {whole}")
    logger.info("%s", "\n".join(lines))
    return 0
