"""What to do with a step whose loss or gradient is not finite: skip it on all ranks together, name its images, give up in the end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .logbook import logger
from .processes import Processes
from .run_folder import RunError


class SkippedSteps:
    """Counts skipped steps in a row. Every method that takes part in a skipped step is called on all ranks."""

    def __init__(self, processes: Processes, folder: Path, *, limit: int) -> None:
        self.processes = processes
        self.folder = folder
        self.limit = limit
        self.in_a_row = 0

    def clear(self) -> None:
        """A good step ends the row."""
        self.in_a_row = 0

    def note(self, step: int, batches: Sequence[Mapping[str, Any]], terms: Mapping[str, Tensor], *, own: bool) -> None:
        """Log the images of the ranks whose numbers were bad (`own`); after `limit` steps in a row write the batch and raise RunError."""
        self.in_a_row += 1
        names = [name for batch in batches for name in batch["names"]] if own else []
        found = ", ".join(name for of_rank in self.processes.gather(names) for name in of_rank)
        logger.warning("step %d skipped on all ranks, the loss or its gradient is not finite; images: %s", step, found)
        if self.in_a_row < self.limit:
            return
        dump = self.folder / f"not-finite-rank{self.processes.rank}.pt"
        if own:
            self.folder.mkdir(parents=True, exist_ok=True)
            torch.save({"step": step, "terms": dict(terms), "batches": list(batches)}, dump)
        with self.processes.agreement(RunError):
            raise RunError(f"the loss was not finite in {self.in_a_row} steps in a row (images: {found}); the batch is in {self.folder}/"
                           "not-finite-rank*.pt and the checkpoints are intact: lower optim.lr, set optim.clip_norm or "
                           "runtime.precision=fp32, and go on with --resume")
