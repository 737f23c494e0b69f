"""What a run writes about itself: train.log, metrics.jsonl (the source of truth) and TensorBoard (a view that may fail without harm)."""

from __future__ import annotations

import json
import logging
import math
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from .checkpoint import write_atomically
from .run_folder import RunError

logger = logging.getLogger("hmsa")

LONE = 0.999  # of the attention of all pixels: no other scale learns beside it


class _AboveTheBar(logging.Handler):
    """Prints log lines above tqdm's progress bar instead of through it."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record))


class _File(logging.FileHandler):
    """Writes train.log; what a full disk does not take is left out, instead of a traceback for each line."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        return


def start_logging(*, main: bool, file: Path | None = None) -> None:
    """Log to the terminal on the main rank (warnings only on the others) and, when given, to `file` as well."""
    logger.setLevel(logging.INFO if main else logging.WARNING)
    logger.propagate = False
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        handler.close()
    screen = _AboveTheBar()
    screen.setFormatter(logging.Formatter("%(message)s"))
    logger.addHandler(screen)
    if file is not None:
        record = _File(file, encoding="utf-8")
        record.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        logger.addHandler(record)


class Logbook:
    """Rows for metrics.jsonl, scalars and pictures for TensorBoard, config.yaml; on ranks that do not `write` every call does nothing."""

    def __init__(self, folder: Path, *, write: bool = True) -> None:
        self.folder = folder
        self.path = folder / "metrics.jsonl"
        self.write = write
        self.board: Any = None
        self.lone_scale_told = False

    def begin(self, configuration: str, *, first_step: int = 0, to_validate: bool = False) -> None:
        """Note the resolved configuration and open TensorBoard; rows that a resumed run writes again are dropped: those beyond `first_step`,
        and with `to_validate` the validation at that step. Raises RunError when nothing can be written."""
        if not self.write:
            return
        with self._written("config.yaml"):
            write_atomically(self.folder / "config.yaml", configuration.encode())
            self._forget_after(first_step, to_validate)
        try:
            from torch.utils.tensorboard import SummaryWriter

            threading.excepthook = _quiet_about(OSError, threading.excepthook)
            self.board = SummaryWriter(
                str(self.folder / "tensorboard"), purge_step=first_step + 1 if first_step else None
            )
            self.board.add_text("config", f"```yaml\n{configuration}\n```")
        except (ImportError, OSError, RuntimeError, AttributeError) as error:
            logger.warning("TensorBoard is off for this run (%s)", error)

    def row(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        """One line of metrics.jsonl {"kind", "step", **values}; numbers go to TensorBoard as KIND/name. Not-a-number becomes null."""
        if not self.write:
            return
        plain = {name: _plain(value) for name, value in values.items()}
        with self._written(self.path.name), open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps({"kind": kind, "step": step, **plain}) + "\n")
        for name, number in _numbers(kind, plain):
            self._show(lambda board, name=name, number=number: board.add_scalar(name, number, step))  # type: ignore[misc]
        self._tell_of_lone_scale(step, plain)

    def _tell_of_lone_scale(self, step: int, values: Mapping[str, Any]) -> None:
        """Warn once when one scale has all the attention: the model pays for scales that it no longer learns from."""
        lone = [
            name.removeprefix("attention_")
            for name, value in values.items()
            if name.startswith("attention_") and (value or 0) > LONE
        ]
        if lone and not self.lone_scale_told:
            self.lone_scale_told = True
            logger.warning(
                "attention: by step %d scale %s has all of it (over %g on average) and the other scales are computed in vain; if it stays "
                "so, try a lower optim.lr, a longer optim.warmup_steps, or model.explicit_batchnorm=true",
                step,
                lone[0],
                LONE,
            )

    def picture(self, name: str, step: int, draw: Callable[[], np.ndarray]) -> None:
        """A uint8 RGB picture [H, W, 3] for TensorBoard, drawn only where it is written."""
        if self.board is not None:
            picture = draw()
            self._show(lambda board: board.add_image(name, picture, step, dataformats="HWC"))

    def close(self) -> None:
        """Flush TensorBoard's files."""
        self._show(lambda board: board.close())

    def _show(self, do: Callable[[Any], None]) -> None:
        """Let TensorBoard do something; when it cannot (a full disk, say) it is off for the rest of the run."""
        if self.board is None:
            return
        try:
            do(self.board)
        except Exception as error:  # its writer thread hands on whatever it met
            self.board = None
            logger.warning("TensorBoard is off from here on (%s)", error)

    @contextmanager
    def _written(self, name: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise RunError(
                f"{self.folder / name}: cannot be written ({error.strerror or error}); the checkpoints are untouched: free some space or "
                "choose another experiment.output, then start again with --resume"
            ) from error

    def _forget_after(self, step: int, to_validate: bool) -> None:
        if not self.path.is_file():
            return
        kept = [
            line
            for line in self.path.read_text(encoding="utf-8").splitlines()
            if _is_before(line, step, to_validate)
        ]
        write_atomically(self.path, "".join(line + "\n" for line in kept).encode())


def _quiet_about(kind: type[Exception], inner: Callable[[Any], Any]) -> Callable[[Any], None]:
    """Of a thread that ends by such an exception (TensorBoard's writer, on a full disk) a warning is enough; the rest goes to `inner`."""

    def hook(ended: Any) -> None:
        if issubclass(ended.exc_type, kind):
            logger.warning("a writer in the background has ended (%s)", ended.exc_value)
        else:
            inner(ended)

    return hook


def _is_before(line: str, step: int, to_validate: bool) -> bool:
    """Whether a row was written before a checkpoint of `step` that is still `to_validate`; a line that a kill cut off never was."""
    try:
        row = json.loads(line)
        return (
            row["step"] < step or row["step"] == step and not (to_validate and row["kind"] == "val")
        )
    except (json.JSONDecodeError, KeyError, TypeError):
        return False


def _numbers(kind: str, values: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _numbers(f"{kind}_{name}", value)
        elif isinstance(value, (int, float)):
            yield f"{kind}/{name}", value


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _plain(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if hasattr(value, "item"):
        return _plain(value.item())
    return value
