"""What to do with a step whose loss or gradient is not finite: skip it on all ranks together, name its images, give up in the end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..processes import Processes
from .logbook import logger
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

    def note(
        self,
        step: int,
        batches: Sequence[Mapping[str, Any]],
        terms: Mapping[str, Tensor],
        *,
        own: bool,
    ) -> None:
        """Log the images of the ranks whose loss was bad (`own`), of all where only the gradient was; after `limit` steps in a row write the
        batches and raise RunError."""
        self.in_a_row += 1
        gathered = self.processes.gather(
            (own, [name for batch in batches for name in batch["names"]])
        )
        guilty = [names for at_fault, names in gathered if at_fault]
        found = ", ".join(
            name for names in guilty or [names for _, names in gathered] for name in names
        )
        if self.processes.is_main:  # the others would say the same
            logger.warning(
                "step %d skipped on all ranks, the %s is not finite; images: %s",
                step,
                "loss" if guilty else "gradient",
                found,
            )
        if self.in_a_row < self.limit:
            return
        kept = max(
            self.processes.gather(self._dump(step, batches, terms) if own or not guilty else "")
        )
        with self.processes.agreement(RunError):
            raise RunError(
                f"the loss or its gradient was not finite in {self.in_a_row} steps in a row (images: {found}); {kept}the checkpoints are "
                "intact: lower optim.lr, set optim.clip_norm or runtime.precision=fp32, and go on with --resume"
            )

    def _dump(
        self, step: int, batches: Sequence[Mapping[str, Any]], terms: Mapping[str, Tensor]
    ) -> str:
        """Keep this rank's batches, as plain values, for a look at them; a full disk only leaves them out."""
        file = self.folder / f"not-finite-rank{self.processes.rank}.pt"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            torch.save({"step": step, "terms": dict(terms), "batches": list(batches)}, file)
        except (OSError, RuntimeError):
            return ""
        return f"the batches are in {self.folder}/not-finite-rank*.pt and "
