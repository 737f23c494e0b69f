"""A profile of a few training steps, for a browser (chrome://tracing, ui.perfetto.dev)."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from ..files.writing import write_file_with
from .logbook import logger

# In steps. The first steps allocate memory and choose kernels, and would mislead.
SKIPPED, RECORDED = 3, 4


class Trace:
    """Records the steps after the first `SKIPPED` into `folder`/trace.json, when `enabled`."""

    def __init__(self, folder: Path, *, enabled: bool) -> None:
        self.file = folder / "trace.json"
        self.profiler: Any = None
        if enabled:
            plan = torch.profiler.schedule(wait=SKIPPED - 1, warmup=1, active=RECORDED, repeat=1)
            self.profiler = torch.profiler.profile(schedule=plan, on_trace_ready=self._write)

    def __enter__(self) -> Trace:
        if self.profiler is not None:
            self.profiler.start()
        return self

    def step(self) -> None:
        """Note that a step has ended."""
        if self.profiler is not None:
            self.profiler.step()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End; a training shorter than the record leaves what there is of it."""
        if self.profiler is not None:
            self.profiler.stop()

    def _write(self, profiler: Any) -> None:
        write_file_with(self.file, lambda path: profiler.export_chrome_trace(str(path)))

        # What took longest, on the device where there is one.
        column = "self_cpu_time_total"
        if torch.cuda.is_available():
            column = "self_device_time_total"
        logger.info(
            "profile of %d steps: %s (open it at ui.perfetto.dev)\n%s",
            RECORDED,
            self.file,
            profiler.key_averages().table(sort_by=column, row_limit=15),
        )
