"""What a run writes about itself: train.log, metrics.jsonl, and what loggers show of it.

metrics.jsonl is the source of truth; TensorBoard and its like are views of it (`loggers.py`).
"""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ..files.writing import write_file
from .checkpoint import unused_name
from .loggers import RunLogger, Shown
from .run_folder import RunError

logger = logging.getLogger("hmsa")

# Mean attention from which one scale has all of it, so that the others are no longer trained.
ALL_ATTENTION = 0.999


class _AboveProgressBar(logging.Handler):
    """Prints log lines above tqdm's progress bar instead of through it."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record))


class _LogFile(logging.FileHandler):
    """Writes train.log; lines that a full disk does not take are left out without a traceback."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        return


def start_logging(*, main: bool, file: Path | None = None) -> None:
    """Log to the terminal and, when given, to `file`; on other ranks than `main` only warnings.

    Raises:
        RunError: `file` cannot be written.
    """
    logger.setLevel(logging.WARNING)
    if main:
        logger.setLevel(logging.INFO)
    logger.propagate = False

    # A second training in the same process must not write into the first one's file.
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        handler.close()

    screen = _AboveProgressBar()
    screen.setFormatter(logging.Formatter("%(message)s"))
    logger.addHandler(screen)

    if file is not None:
        try:
            log_file = _LogFile(file, encoding="utf-8")
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise RunError(
                f"{file}: cannot be written ({reason}); remove it or choose another folder with "
                "experiment.output=DIR"
            ) from error
        log_file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        logger.addHandler(log_file)


class Logbook:
    """Writes metrics.jsonl and config.yaml, and hands all to loggers.

    Without `write` every call does nothing: one rank writes and the others do not, so that all
    ranks can run the same code.
    """

    def __init__(
        self,
        folder: Path,
        *,
        write: bool = True,
        loggers: Sequence[RunLogger] = (),
        name: str = "run",
    ) -> None:
        """Args:
        folder: of the run.
        loggers: who shows it beside; see `loggers.LOGGERS`.
        name: what the run is called there.
        """
        self.folder = folder
        self.path = folder / "metrics.jsonl"
        self.write = write
        self.name = name
        self.shown = Shown(loggers if write else ())
        self.warned_of_lone_scale = False

    def begin(
        self,
        configuration: str,
        *,
        first_step: int = 0,
        to_validate: bool = False,
        every: int | None = None,
    ) -> None:
        """Write the resolved configuration and begin the loggers.

        Rows that a resumed run writes again are dropped: those beyond `first_step` and, with
        `to_validate`, the validation at that step. With a row after every `every` steps it is known
        whether the file must hold one.

        Raises:
            RunError: nothing can be written.
            UserError: a logger that was asked for cannot begin.
        """
        if not self.write:
            return
        with self._explained("config.yaml"):
            write_file(self.folder / "config.yaml", configuration, durable=True)
            self._drop_rows_after(first_step, to_validate, every=every or first_step + 1)

        self.shown.begin(
            self.folder, name=self.name, configuration=configuration, first_step=first_step
        )

    def last_row(self, kind: str) -> dict[str, Any] | None:
        """The last whole row of a kind that metrics.jsonl holds; None without one."""
        try:
            lines = self.path.read_bytes().splitlines()
        except OSError:
            return None
        rows = [row for row in map(_row_of, lines) if row is not None and row["kind"] == kind]
        return rows[-1] if rows else None

    def row(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        """One line of metrics.jsonl {"kind", "step", **values}; not-a-number becomes null.

        Numbers go to the loggers as KIND/name.
        """
        if not self.write:
            return
        plain = {name: _plain(value) for name, value in values.items()}

        # Opened anew for each row: the folder may have been moved, or the disk cleared, meanwhile.
        with self._explained(self.path.name), open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps({"kind": kind, "step": step, **plain}) + "\n")
            file.flush()
            os.fsync(file.fileno())

        self.shown.numbers(step, dict(_numbers(kind, plain)))
        self._warn_of_lone_scale(step, plain)

    def _warn_of_lone_scale(self, step: int, values: Mapping[str, Any]) -> None:
        """Warn once when one scale has all attention: the others cost time and learn nothing."""
        lone = [
            name.removeprefix("attention_")
            for name, value in values.items()
            if name.startswith("attention_") and (value or 0) > ALL_ATTENTION
        ]
        if not lone or self.warned_of_lone_scale:
            return

        self.warned_of_lone_scale = True
        logger.warning(
            "attention: by step %d scale %s has all of it (over %g on average) and the other "
            "scales are computed in vain; if it stays so, try a lower optim.lr, a longer "
            "optim.warmup_steps, or model.explicit_batchnorm=true",
            step,
            lone[0],
            ALL_ATTENTION,
        )

    def picture(self, name: str, step: int, draw: Callable[[], np.ndarray]) -> None:
        """A uint8 RGB picture [H, W, 3] for the loggers, drawn only where one shows it."""
        self.shown.picture(name, step, draw)

    def close(self) -> None:
        """Let every logger write what it holds."""
        self.shown.close()

    @contextmanager
    def _explained(self, name: str) -> Iterator[None]:
        """Raise what the system says about writing the file `name` as a RunError."""
        try:
            yield
        except OSError as error:
            # A WriteError is a sentence already; its cause has the system's reason alone.
            reason = error.strerror or str(error)
            if isinstance(error.__cause__, OSError):
                reason = error.__cause__.strerror or reason
            raise RunError(
                f"{self.folder / name}: cannot be written ({reason}); the checkpoints are "
                "untouched: free some space or choose another experiment.output, then start "
                "again with --resume"
            ) from error

    def _drop_rows_after(self, step: int, to_validate: bool, *, every: int) -> None:
        what = None
        if not self.path.is_file():
            what = "missing"
        elif step >= every and not self.path.stat().st_size:
            what = "empty"
        if what is not None:
            if step > 0:
                logger.warning(
                    "%s: is %s, so the rows up to step %d are lost; new ones follow",
                    self.path,
                    what,
                    step,
                )
            return

        # Rows are kept as they are, byte for byte, so that an uninterrupted run has the same file.
        content = self.path.read_bytes()
        lines = content.split(b"\n")
        rows = [_row_of(line) for line in lines]
        kept = [
            line
            for line, row in zip(lines, rows, strict=True)
            if row is not None and _is_before(row, step, to_validate)
        ]

        # A kill may cut off the last row. Anything else that is no row is damage from elsewhere,
        # and so is a file without any row.
        damaged = sum(row is None for row in rows[:-1])
        if content and not any(rows):
            damaged = len(lines)
        if damaged:
            copy = unused_name(self.path)
            write_file(copy, content, durable=True)
            logger.warning(
                "%s: %d lines are no rows and are left out; the file as it was is kept in %s",
                self.path,
                damaged,
                copy.name,
            )
        write_file(self.path, b"".join(line + b"\n" for line in kept), durable=True)


def _row_of(line: bytes) -> dict[str, Any] | None:
    """The row in a line of metrics.jsonl, or None when there is none."""
    try:
        row = json.loads(line)
        is_row = isinstance(row["step"], int) and isinstance(row["kind"], str)
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return row if is_row else None


def _is_before(row: Mapping[str, Any], step: int, to_validate: bool) -> bool:
    """Whether a row was written before a checkpoint of `step` that is still `to_validate`."""
    # A checkpoint is written before the validation of its step, so that one comes again.
    if row["step"] == step:
        return not (to_validate and row["kind"] == "val")
    return row["step"] < step


def _numbers(kind: str, values: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _numbers(f"{kind}_{name}", value)
        elif isinstance(value, (int, float)):
            yield f"{kind}/{name}", value


def _plain(value: Any) -> Any:
    """`value` as JSON can hold it: tensors and numpy numbers become Python's, nan becomes None."""
    if isinstance(value, Mapping):
        return {str(name): _plain(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    if isinstance(value, float):
        # JSON has no nan, and readers other than Python's refuse the file for it.
        return value if math.isfinite(value) else None
    if hasattr(value, "item"):
        return _plain(value.item())
    return value
