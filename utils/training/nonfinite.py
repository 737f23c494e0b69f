"""What to do with a step whose loss or gradient is not finite.

All ranks skip it together, its images are named, and after too many of them the training ends.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..files.writing import write_file_with
from ..processes import Processes
from .logbook import logger
from .run_folder import RunError


class SkippedSteps:
    """Counts the steps skipped in a row.

    All ranks must call `note` for the same steps, since it gathers from all of them: a rank that
    left it out would let the others wait until the timeout.
    """

    def __init__(self, processes: Processes, folder: Path, *, limit: int) -> None:
        self.processes = processes
        self.folder = folder
        self.limit = limit
        self.in_a_row = 0

    def clear(self) -> None:
        """Begin to count anew, after a good step."""
        self.in_a_row = 0

    def note(
        self,
        step: int,
        batches: Sequence[Mapping[str, Any]],
        terms: Mapping[str, Tensor],
        *,
        loss_is_bad: bool,
    ) -> None:
        """Log the images of a skipped step; `loss_is_bad` is whether this rank's was not finite.

        Where every loss was finite and only the gradient was not, the images of all ranks are
        named.

        Raises:
            RunError: this was the last of `limit` such steps in a row; the batches are kept.
        """
        self.in_a_row += 1

        # Name the images of the ranks whose loss was bad; with none, it may be anybody's.
        names = [name for batch in batches for name in batch["names"]]
        gathered = self.processes.gather((loss_is_bad, names))
        suspects = [names for was_bad, names in gathered if was_bad]
        culprit = "loss"
        if not suspects:
            culprit = "gradient or a running statistic"
            suspects = [names for _, names in gathered]
        images = ", ".join(name for names in suspects for name in names)

        # Every rank has the same sentence; one is enough.
        if self.processes.is_main:
            logger.warning(
                "step %d skipped on all ranks, the %s is not finite; images: %s",
                step,
                culprit,
                images,
            )
        if self.in_a_row < self.limit:
            return

        # Each rank keeps its own batches; one may have had room on its disk and another none.
        kept = ""
        if loss_is_bad or culprit != "loss":
            kept = self._keep(step, batches, terms)
        where = max(self.processes.gather(kept))

        # All ranks are here with the same error; this makes one of them print it.
        with self.processes.agreement(RunError):
            raise RunError(
                f"the loss or its gradient was not finite in {self.in_a_row} steps in a row "
                f"(images: {images}); {where}the checkpoints are intact: lower optim.lr, set "
                "optim.clip_norm or runtime.precision=fp32, and go on with --resume"
            )

    def _keep(
        self, step: int, batches: Sequence[Mapping[str, Any]], terms: Mapping[str, Tensor]
    ) -> str:
        """Save this rank's batches for a later look; returns where, or "" when the disk is full."""
        file = self.folder / f"not-finite-rank{self.processes.rank}.pt"
        content = {"step": step, "terms": dict(terms), "batches": list(batches)}
        try:
            write_file_with(file, partial(torch.save, content))
        except (OSError, RuntimeError):
            return ""
        return f"the batches are in {self.folder}/not-finite-rank*.pt and "
