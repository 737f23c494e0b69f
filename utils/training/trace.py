"""A profile of a few training steps, to be looked at in a browser (chrome://tracing, ui.perfetto.dev)."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from .logbook import logger

SKIPPED, RECORDED = 3, 4  # steps: the first ones allocate and choose kernels


class Trace:
    """Records the steps after the first `SKIPPED` into `folder`/trace.json; does nothing when not `enabled`."""

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
        profiler.export_chrome_trace(str(self.file))
        logger.info(
            "profile of %d steps: %s (open it at ui.perfetto.dev)\n%s",
            RECORDED,
            self.file,
            profiler.key_averages().table(
                sort_by="self_device_time_total"
                if torch.cuda.is_available()
                else "self_cpu_time_total",
                row_limit=15,
            ),
        )
