"""What a run writes about itself: train.log, metrics.jsonl (the source of truth) and TensorBoard (a view that may fail without harm)."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

logger = logging.getLogger("hmsa")


class _AboveTheBar(logging.Handler):
    """Prints log lines above tqdm's progress bar instead of through it."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record))


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
        record = logging.FileHandler(file, encoding="utf-8")
        record.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        logger.addHandler(record)


class Logbook:
    """Rows for metrics.jsonl, scalars and pictures for TensorBoard, config.yaml; on ranks that do not `write` every call does nothing."""

    def __init__(self, folder: Path, *, write: bool = True) -> None:
        self.folder = folder
        self.path = folder / "metrics.jsonl"
        self.write = write
        self.board: Any = None

    def begin(self, configuration: str, *, first_step: int = 0) -> None:
        """Note the resolved configuration and open TensorBoard; rows beyond `first_step`, which a resumed run writes again, are dropped."""
        if not self.write:
            return
        (self.folder / "config.yaml").write_text(configuration, encoding="utf-8")
        self._forget_after(first_step)
        try:
            from torch.utils.tensorboard import SummaryWriter

            self.board = SummaryWriter(str(self.folder / "tensorboard"), purge_step=first_step + 1 if first_step else None)
            self.board.add_text("config", f"```yaml\n{configuration}\n```")
        except (ImportError, OSError, RuntimeError, AttributeError) as error:
            logger.warning("TensorBoard is off for this run (%s)", error)

    def row(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        """One line of metrics.jsonl {"kind", "step", **values}; numbers go to TensorBoard as KIND/name. Not-a-number becomes null."""
        if not self.write:
            return
        plain = {name: _plain(value) for name, value in values.items()}
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps({"kind": kind, "step": step, **plain}) + "\n")
        if self.board is not None:
            for name, number in _numbers(kind, plain):
                self.board.add_scalar(name, number, step)

    def picture(self, name: str, step: int, draw: Callable[[], np.ndarray]) -> None:
        """A uint8 RGB picture [H, W, 3] for TensorBoard, drawn only where it is written."""
        if self.board is not None:
            self.board.add_image(name, draw(), step, dataformats="HWC")

    def close(self) -> None:
        """Flush TensorBoard's files."""
        if self.board is not None:
            self.board.close()

    def _forget_after(self, step: int) -> None:
        if not self.path.is_file():
            return
        kept = [line for line in self.path.read_text(encoding="utf-8").splitlines() if _step_of(line) <= step]
        self.path.write_text("".join(line + "\n" for line in kept), encoding="utf-8")


def _step_of(line: str) -> float:
    """The step of a row; infinity for a line that a kill cut off."""
    try:
        return float(json.loads(line)["step"])
    except (json.JSONDecodeError, KeyError, TypeError):
        return math.inf


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
