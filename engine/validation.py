"""Scoring the validation split during a training, and keeping the best weights."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

import torch

from hmsa.datasets import Files
from hmsa.network.inference import prepare_for_inference
from hmsa.utils.config import Config
from hmsa.utils.processes import Processes
from hmsa.utils.training.checkpoint import CheckpointFolder
from hmsa.utils.training.logbook import Logbook, logger
from hmsa.utils.training.training_state import Progress, TrainingState

from . import build
from .evaluate import Evaluation, evaluate, example_panel, per_class


class Validation:
    """Scores the validation split during a training.

    With optim.ema_decay the averaged weights are scored, and kept as the best.
    """

    def __init__(
        self,
        config: Config,
        files: Files,
        criterion: Any,
        processes: Processes,
        *,
        every: int,
    ) -> None:
        self.config = config
        self.every = every
        self.seconds: float | None = None  # that the last one took
        self.files = files
        self.criterion = criterion
        self.processes = processes
        self.options = build.inference_options(config.eval)

    def is_due_after(self, epoch: int) -> bool:
        """Whether the split is scored when `epoch` epochs are done; at the end it always is."""
        is_last = epoch == self.config.optim.epochs
        return is_last or epoch % self.every == 0

    def leaves_nothing_to_do(self, progress: Progress, logbook: Logbook) -> bool:
        """Whether a training that goes on has done all of its epochs, the last score included.

        The checkpoint of an epoch is older than its validation, and does not know of it.
        """
        if progress.epoch < self.config.optim.epochs:
            return False
        # One rank has the rows, and answers for all.
        is_scored = not progress.to_validate or self._was_done(progress, logbook)
        answer: bool = self.processes.gather(is_scored)[0]
        return answer

    def _was_done(self, progress: Progress, logbook: Logbook) -> bool:
        """Whether the split was scored where the training stands, and the best weights are kept."""
        row = logbook.last_row("val")
        if row is None or row["step"] != progress.step:
            return False
        # The row is written before the weights, which a kill in between has left out.
        if self.config.runtime.best_weights == "last":
            return bool(row["epoch"] == progress.best_epoch)
        return (row["miou"] or 0.0) <= progress.best_miou

    def rehearse(self, state: TrainingState) -> None:
        """Evaluate one batch on each rank and forget the result."""
        loader = build.split_loader(self.config, self.files, self.processes, workers=0)
        first = next(iter(loader), None)

        # With more ranks than images a rank has none, and takes part all the same.
        batches = [] if first is None else [first]
        own_images = sum(len(batch["names"]) for batch in batches)
        images = self.processes.sum(torch.tensor(own_images, device=self.processes.device))
        self._score(state, batches, images=int(images), show=False)

    def run_if_due(
        self, state: TrainingState, logbook: Logbook, checkpoints: CheckpointFolder
    ) -> None:
        """Score the split if an epoch ended unscored; note the result and keep the best weights."""
        config, progress = self.config, state.progress
        network: Any = state.model
        if not progress.to_validate:
            return

        began = time.monotonic()
        loader = build.split_loader(config, self.files, self.processes)
        result = self._score(state, loader, images=len(self.files), show=True)
        miou = result.matrix.miou()
        progress.to_validate = False

        # A picture at the first validation in every `image_every` epochs, and at the last one.
        is_last = progress.epoch == config.optim.epochs
        pictured = (progress.epoch - self.every) // config.runtime.image_every
        if is_last or progress.epoch // config.runtime.image_every > pictured:
            with state.evaluated_weights():
                logbook.picture(
                    "val",
                    progress.step,
                    lambda: example_panel(network, self.files, self.options),
                )
        logger.info(
            "epoch %d: val mIoU %.1f %% at %s, %d images",
            progress.epoch,
            100 * miou,
            self.options.describe(),
            result.images,
        )

        row = {
            "epoch": progress.epoch,
            "miou": miou,
            "loss": result.loss,
            "iou": per_class(self.files.spec, result.matrix),
        }
        logbook.row("val", progress.step, row)
        self.seconds = time.monotonic() - began
        # A score that is no number is not better, either.
        is_better = miou > progress.best_miou
        if not is_better and config.runtime.best_weights == "miou":
            return

        # Every rank knows the best score; one writes the weights that reached it. If it cannot,
        # all ranks end.
        progress.best_miou, progress.best_epoch = miou, progress.epoch
        with self.processes.agreement():
            if self.processes.is_main:
                origin = str(getattr(state.model, "trunk_origin", ""))
                identity = build.checkpoint_identity(config, self.files, trunk_origin=origin)
                checkpoints.save_best({"model": state.weights(), **row, **identity})

    def _score(
        self, state: TrainingState, loader: Iterable[dict[str, Any]], *, images: int, show: bool
    ) -> Evaluation:
        """Evaluate `images` images, counted over all ranks.

        A copy with its batch norms folded is scored, as `hmsa eval` scores a checkpoint.
        """
        network: Any = state.model
        with state.evaluated_weights(), build.explained(self.config, "validation"):
            return evaluate(
                prepare_for_inference(network, autocast_dtype=self.options.autocast_dtype),
                loader,
                spec=self.files.spec,
                options=self.options,
                processes=self.processes,
                images=images,
                criterion=self.criterion.main,
                show=show,
            )
