"""Where the numbers of a run are shown beside metrics.jsonl: TensorBoard, Weights & Biases, MLflow.

metrics.jsonl is the source of truth. A logger is a view of it that may fail without harm; what a
user asked for by name and cannot begin at all is said before the training.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import yaml

from ..files.writing import write_file
from ..words import UserError, reason_of

logger = logging.getLogger("hmsa")

# The project of Weights & Biases and the experiment of MLflow, unless their own variables of the
# environment name another one.
PROJECT = "hmsa"


class LoggerError(UserError, RuntimeError):
    """A logger that runtime.loggers names cannot begin; the message says what to do."""


class RunLogger(Protocol):
    """What `Logbook` shows a run through."""

    title: str

    def begin(self, folder: Path, *, name: str, configuration: str, first_step: int) -> None:
        """The training begins, or goes on after `first_step`; `configuration` is YAML."""

    def numbers(self, step: int, values: Mapping[str, float]) -> None:
        """The numbers of one row of metrics.jsonl, by names such as train/loss."""

    def picture(self, name: str, step: int, picture: np.ndarray) -> None:
        """A picture, uint8 RGB [H, W, 3]."""

    def close(self) -> None:
        """The training has ended."""


class TensorBoard:
    """Writes event files into the run's folder `tensorboard`."""

    title = "TensorBoard"

    def __init__(self) -> None:
        self.board: Any = None

    def begin(self, folder: Path, *, name: str, configuration: str, first_step: int) -> None:
        """Open the event file."""
        from torch.utils.tensorboard import SummaryWriter

        threading.excepthook = _warn_only_of(OSError, threading.excepthook)
        # TensorBoard hides what an interrupted run wrote beyond the step it goes on from.
        purge_step = None
        if first_step:
            purge_step = first_step + 1
        self.board = SummaryWriter(str(folder / "tensorboard"), purge_step=purge_step)
        self.board.add_text("config", f"```yaml\n{configuration}\n```")

    def numbers(self, step: int, values: Mapping[str, float]) -> None:
        """One point on each curve."""
        for name, number in values.items():
            self.board.add_scalar(name, number, step)

    def picture(self, name: str, step: int, picture: np.ndarray) -> None:
        """A picture uint8 [H, W, 3]."""
        self.board.add_image(name, picture, step, dataformats="HWC")

    def close(self) -> None:
        """Flush the files."""
        self.board.close()


class _ServiceRun:
    """A run that a service shows; each service has a class, and `start` begins or finds the run.

    The id that the service gives it is kept in the run's folder, so that a resumed training goes on
    with the same run.
    """

    title: str  # of the package, too
    advice: str  # for whoever cannot reach the service

    def __init__(self) -> None:
        if importlib.util.find_spec(self.title) is None:
            raise LoggerError(
                f"runtime.loggers: {self.title!r} needs the package of that name, which is not "
                f"installed: pip install {self.title}, or take it out of runtime.loggers"
            )

    def begin(self, folder: Path, *, name: str, configuration: str, first_step: int) -> None:
        """Start the run, or go on with it."""
        file = folder / f"{self.title}_id"
        known = None
        if first_step and file.is_file():
            known = file.read_text(encoding="utf-8").strip() or None

        # Such libraries pass on whatever their connection met.
        try:
            run_id = self.start(folder, name=name, configuration=configuration, known=known)
        except Exception as error:
            raise LoggerError(
                f"runtime.loggers: {self.title!r} cannot begin ({type(error).__name__}: "
                f"{reason_of(error)}); {self.advice}, or take it out of runtime.loggers"
            ) from error
        write_file(file, f"{run_id}\n")

    def start(self, folder: Path, *, name: str, configuration: str, known: str | None) -> str:
        """Begin a run, or go on with the one of id `known`; returns its id."""
        raise NotImplementedError


class WeightsAndBiases(_ServiceRun):
    """A run of Weights & Biases; WANDB_PROJECT, WANDB_MODE and the like work as always."""

    title = "wandb"
    advice = "log in by `wandb login`, set WANDB_MODE=offline"

    def start(self, folder: Path, *, name: str, configuration: str, known: str | None) -> str:
        """See the base class."""
        import wandb

        self.run: Any = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or PROJECT,
            name=name,
            dir=str(folder),
            config=yaml.safe_load(configuration),
            id=known,
            resume="allow" if known else None,
        )
        return str(self.run.id)

    def numbers(self, step: int, values: Mapping[str, float]) -> None:
        """One point on each curve."""
        self.run.log(dict(values), step=step)

    def picture(self, name: str, step: int, picture: np.ndarray) -> None:
        """A picture uint8 [H, W, 3]."""
        import wandb

        self.run.log({name: wandb.Image(picture)}, step=step)

    def close(self) -> None:
        """Send what is left."""
        self.run.finish()


class MLflow(_ServiceRun):
    """A run of MLflow; MLFLOW_TRACKING_URI and MLFLOW_EXPERIMENT_NAME work as always."""

    title = "mlflow"
    advice = "set MLFLOW_TRACKING_URI"

    def start(self, folder: Path, *, name: str, configuration: str, known: str | None) -> str:
        """See the base class."""
        import mlflow

        self.client: Any = mlflow
        mlflow.set_experiment(os.environ.get("MLFLOW_EXPERIMENT_NAME") or PROJECT)
        run = mlflow.start_run(run_id=known, run_name=name)
        mlflow.log_text(configuration, "config.yaml")
        return str(run.info.run_id)

    def numbers(self, step: int, values: Mapping[str, float]) -> None:
        """One point on each curve."""
        self.client.log_metrics(dict(values), step=step)

    def picture(self, name: str, step: int, picture: np.ndarray) -> None:
        """A picture uint8 [H, W, 3]."""
        self.client.log_image(picture, f"{name}/{step:08d}.png")

    def close(self) -> None:
        """End the run."""
        self.client.end_run()


LOGGERS: dict[str, Callable[[], RunLogger]] = {
    "tensorboard": TensorBoard,
    "wandb": WeightsAndBiases,
    "mlflow": MLflow,
}


class Shown:
    """The loggers of a run; one that fails is off from there on, and the training goes on."""

    def __init__(self, loggers: Sequence[RunLogger]) -> None:
        self.loggers = list(loggers)

    def begin(self, folder: Path, *, name: str, configuration: str, first_step: int) -> None:
        """Begin every logger.

        Raises:
            UserError: one that the user asked for by name cannot begin.
        """
        for one in list(self.loggers):
            # TensorBoard, which is the default, may be missing, broken or unable to write.
            try:
                one.begin(folder, name=name, configuration=configuration, first_step=first_step)
            except UserError:
                raise
            except Exception as error:
                self.loggers.remove(one)
                logger.warning("%s is off for this run (%s)", one.title, error)

    def numbers(self, step: int, values: Mapping[str, float]) -> None:
        """Hand a row's numbers to all."""
        self._each(lambda one: one.numbers(step, values))

    def picture(self, name: str, step: int, draw: Callable[[], np.ndarray]) -> None:
        """Draw a picture, where there is anyone to show it, and hand it to all."""
        if self.loggers:
            picture = draw()
            self._each(lambda one: one.picture(name, step, picture))

    def close(self) -> None:
        """Close all."""
        self._each(lambda one: one.close())

    def _each(self, use: Callable[[RunLogger], None]) -> None:
        for one in list(self.loggers):
            # Such libraries pass on whatever exception their threads met, of any kind.
            try:
                use(one)
            except Exception as error:
                self.loggers.remove(one)
                logger.warning("%s is off from here on (%s)", one.title, error)


def _warn_only_of(kind: type[Exception], other_hook: Callable[[Any], Any]) -> Callable[[Any], None]:
    """A threading.excepthook that warns of exceptions of `kind` and passes on all others.

    TensorBoard's writer thread ends with such an exception on a full disk.
    """

    def hook(ended: Any) -> None:
        if issubclass(ended.exc_type, kind):
            logger.warning("a writer in the background has ended (%s)", ended.exc_value)
        else:
            other_hook(ended)

    return hook
