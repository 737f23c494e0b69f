"""What a run writes about itself: train.log, metrics.jsonl (the source of truth) and TensorBoard (a view that may fail without harm)."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
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
    """Rows for metrics.jsonl and scalars and pictures for TensorBoard, written by the main rank into the run folder."""

    def __init__(self, folder: Path, *, tensorboard: bool = True) -> None:
        self.path = folder / "metrics.jsonl"
        self.writer: Any = None
        if tensorboard:
            try:
                from torch.utils.tensorboard import SummaryWriter

                self.writer = SummaryWriter(str(folder / "tensorboard"))
            except (ImportError, OSError, RuntimeError, AttributeError) as error:
                logger.warning("TensorBoard is off for this run (%s)", error)

    def row(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        """One line of metrics.jsonl {"kind", "step", **values}; numbers go to TensorBoard as KIND/name. Not-a-number becomes null."""
        plain = {name: _plain(value) for name, value in values.items()}
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps({"kind": kind, "step": step, **plain}) + "\n")
        if self.writer is not None:
            for name, value in plain.items():
                if isinstance(value, (int, float)):
                    self.writer.add_scalar(f"{kind}/{name}", value, step)
                elif isinstance(value, dict):
                    for inner, number in value.items():
                        if isinstance(number, (int, float)):
                            self.writer.add_scalar(f"{kind}_{name}/{inner}", number, step)

    def picture(self, name: str, step: int, image: np.ndarray) -> None:
        """A uint8 RGB picture [H, W, 3] for TensorBoard."""
        if self.writer is not None:
            self.writer.add_image(name, image, step, dataformats="HWC")

    def text(self, name: str, text: str) -> None:
        """A text (the resolved configuration) for TensorBoard."""
        if self.writer is not None:
            self.writer.add_text(name, f"```yaml\n{text}\n```")

    def close(self) -> None:
        """Flush TensorBoard's files."""
        if self.writer is not None:
            self.writer.close()

    def forget_after(self, step: int) -> None:
        """Drop rows of steps beyond `step`, which a resumed run writes again (and a line cut off by a kill)."""
        if not self.path.is_file():
            return
        kept = []
        for line in self.path.read_text(encoding="utf-8").splitlines():
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                continue
            if row.get("step", 0) <= step:
                kept.append(line)
        self.path.write_text("".join(line + "\n" for line in kept), encoding="utf-8")


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
