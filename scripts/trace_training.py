"""Trace the first steps of the demo's training: loss and norm of the gradients, as JSON.

    python scripts/make_demo_data.py data/demo_large
    python scripts/trace_training.py [--data data/demo_large] [--steps 20] [--json FILE]
    python scripts/trace_training.py --compare tests/data/demo_trace.json

The training is that of `hmsa train configs/demo/large.yaml`, on one thread of the CPU, with its
seed. A change of the code that shall change no number is proved by --compare: the exit status is 1
where a value differs from the stored one by more than --tolerance, relative.

The trace is in fp64. In fp32 the first steps of AdamW make rounding large: the same code with two
threads instead of one has another norm by 1.3e-4 in step 1 and by 1.4 % in step 2, so that no
change of the order of a sum could be told from a fault. --precision fp32 shows it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

# A script runs from any folder: the checkout it lies in comes before what may be installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from torch import Tensor

from hmsa.engine import train
from hmsa.utils.config import load_config
from hmsa.utils.training.logbook import Logbook
from hmsa.utils.training.training_state import TrainingState

ROOT = Path(__file__).resolve().parents[1]

# What makes a step a function of the code and of the data alone.
FIXED = (
    "runtime.device=cpu",
    "runtime.threads=1",
    "runtime.log_every=1",
    "data.workers=0",
    "eval.workers=0",
    "eval.precision=fp32",  # the weights are fp64 all the same
    "eval.scales=[1.0]",
)

Trace = dict[str, list[float]]


class _TracedEnough(Exception):
    """Ends the training when enough steps were traced."""


def trace_demo(data: Path, *, steps: int, precision: str) -> Trace:
    """Train the demo on `data` for a few steps.

    Returns "loss" and "gradient_norm", each a number for every step.
    """
    trace: Trace = {"loss": [], "gradient_norm": []}
    gradient_norm = TrainingState.gradient_norm

    def note_norm(state: TrainingState) -> Tensor:
        norm = gradient_norm(state)
        trace["gradient_norm"].append(float(norm))
        return norm

    def note_row(logbook: Logbook, kind: str, step: int, values: Mapping[str, Any]) -> None:
        if kind == "train":
            trace["loss"].append(float(values["loss"]))
        if len(trace["loss"]) == steps:
            raise _TracedEnough

    # The loop itself is not changed, only listened to.
    with tempfile.TemporaryDirectory() as folder:
        overrides = [
            *FIXED,
            f"runtime.precision={precision}",
            f"data.root={data}",
            f"data.cache_dir={folder}/cache",
            f"experiment.output={folder}/run",
        ]
        config = load_config(ROOT / "configs" / "demo" / "large.yaml", overrides)
        with (
            mock.patch.object(TrainingState, "gradient_norm", note_norm),
            mock.patch.object(Logbook, "row", note_row),
            contextlib.suppress(_TracedEnough),
        ):
            train.main(config)
    return trace


def trace_differences(found: Trace, stored: Trace, *, tolerance: float) -> list[str]:
    """One line for every value that is not that of `stored`, up to `tolerance` relative."""
    lines = []
    for name, values in stored.items():
        for step, (wanted, value) in enumerate(zip(values, found[name], strict=False), start=1):
            if not abs(value - wanted) <= tolerance * abs(wanted):
                lines.append(f"step {step}: {name} is {value!r}, stored is {wanted!r}")
    return lines


def main(argv: Sequence[str] | None = None) -> int:
    """Trace, print, compare; the exit status is 1 where a value differs."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=ROOT / "data" / "demo_large", metavar="DIR")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--precision", choices=("fp64", "fp32"), default="fp64")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the trace there")
    parser.add_argument("--compare", type=Path, metavar="FILE", help="a trace of before")
    parser.add_argument("--tolerance", type=float, default=1e-5, help="relative")
    arguments = parser.parse_args(argv)
    if not arguments.data.is_dir():
        parser.error(
            f"{arguments.data}: is missing; draw it with python scripts/make_demo_data.py "
            f"{arguments.data}"
        )

    found = trace_demo(
        arguments.data.resolve(), steps=arguments.steps, precision=arguments.precision
    )
    text = json.dumps(found, indent=1)
    if arguments.json is not None:
        arguments.json.write_text(text + "\n", encoding="utf-8")
    print(text)
    if arguments.compare is None:
        return 0

    stored = json.loads(arguments.compare.read_text(encoding="utf-8"))
    different = trace_differences(found, stored, tolerance=arguments.tolerance)
    for line in different:
        print(line, file=sys.stderr)
    if not different:
        print(f"equal to {arguments.compare} to {arguments.tolerance:g} relative", file=sys.stderr)
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
