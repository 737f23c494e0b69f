"""What a check of the GPU is given and what it answers."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Finding(NamedTuple):
    """One line of the report."""

    what: str
    found: str
    wanted: str  # "" for a line that only informs
    passed: bool


@dataclass(frozen=True)
class GpuSetup:
    """The device that is checked, and where files may be written.

    In a rehearsal the device is the CPU, networks and images are small, and what only a GPU can
    answer is left out: it shows that the script itself runs.
    """

    device: torch.device
    folder: Path  # for data and runs; removed at the end
    rehearsal: bool = False

    @property
    def data(self) -> Path:
        """The root of the drawn scenes."""
        return self.folder / "data"

    def size(self, height: int, width: int) -> tuple[int, int]:
        """A size (H, W) of images, or a small one of the same proportions in a rehearsal."""
        if not self.rehearsal:
            return height, width
        return 64, 64 * width // height

    def network(self, trunk: str, decoder: str) -> dict[str, Any]:
        """Names of a network for `build_model`, or of a small one in a rehearsal."""
        if not self.rehearsal:
            return {"trunk": trunk, "decoder": decoder}
        return {"trunk": "hrnet_w18_small", "decoder": decoder}


Check = Callable[[GpuSetup], Iterator[Finding]]


def each_of(setup: GpuSetup, *checks: Check) -> Iterator[Finding]:
    """What several checks find; one that fails by an exception is a line, and ends no other."""
    for check in checks:
        try:
            yield from check(setup)
        except Exception as error:
            text = str(error).strip() or type(error).__name__
            name = getattr(check, "func", check).__name__.strip("_")
            yield Finding(f"{name} ended early", text[-300:], "to run to its end", False)


def not_above(what: str, value: float, limit: float, *, unit: str = "") -> Finding:
    """A number that must not be above a limit; what is no number fails."""
    passed = value <= limit
    return Finding(what, f"{value:.4g}{unit}", f"at most {limit:.4g}{unit}", passed)


def not_below(what: str, value: float, limit: float, *, unit: str = "") -> Finding:
    """A number that must not be below a limit; what is no number fails."""
    passed = value >= limit
    return Finding(what, f"{value:.4g}{unit}", f"at least {limit:.4g}{unit}", passed)


def is_so(what: str, holds: bool, *, otherwise: str) -> Finding:
    """Something that is so or is not."""
    return Finding(what, "yes" if holds else otherwise, "yes", holds)


def says(what: str, found: str) -> Finding:
    """A figure to know, which nothing depends on."""
    return Finding(what, found, "", True)


def relative_difference(found: Tensor, wanted: Tensor) -> float:
    """|found - wanted| / |wanted| by Euclidean norms, computed in fp64 on the CPU."""
    found, wanted = found.detach().cpu().double(), wanted.detach().cpu().double()
    norm = torch.linalg.vector_norm
    return float(norm(found - wanted) / norm(wanted).clamp_min(1e-30))


def seconds_of(work: Callable[[], object], device: torch.device) -> float:
    """Wall time of `work`, with all that it queued on the device."""
    wait_for(device)
    begin = time.perf_counter()
    work()
    wait_for(device)
    return time.perf_counter() - begin


def wait_for(device: torch.device) -> None:
    """Wait until a GPU has done what was queued; nothing on the CPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
