"""Whole trainings: going on after a stop, determinism, and the compiler."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

from hmsa.utils.words import UserError
from scripts.benchmarks.train import training_step

from .findings import Finding, GpuSetup, each_of, is_so, not_above, says

ROOT = Path(__file__).resolve().parents[2]
DEMO = ROOT / "configs" / "demo" / "large.yaml"
STEPS = 10  # of an epoch


def draw_scenes(setup: GpuSetup) -> None:
    """The data of every training here: ten batches of two scenes, and two to validate on."""
    command = [str(ROOT / "scripts" / "make_demo_data.py"), str(setup.data)]
    command += ["--size", "128", "256", "--train", str(2 * STEPS), "--val", "2", "--extra", "0"]
    subprocess.run([sys.executable, *command], check=True, stdout=subprocess.DEVNULL)


def small_training(setup: GpuSetup, name: str, *, epochs: int) -> list[str]:
    """Overrides of the demo's recipe for a training of STEPS steps an epoch in a folder `name`."""
    return [
        f"data.root={setup.data}",
        f"data.cache_dir={setup.folder}/cache",
        "data.batch_size=2",
        "data.workers=0",
        "eval.workers=0",
        "eval.scales=[1.0]",
        f"experiment.output={setup.folder}/{name}",
        f"optim.epochs={epochs}",
        f"runtime.device={setup.device.type}",
        "runtime.log_every=1000",
        f"runtime.val_every={epochs}",
        "runtime.precision=fp32",
    ]


def check_runs(setup: GpuSetup) -> Iterator[Finding]:
    """A training that goes on in its middle against one that was never stopped, and compiling."""
    usual, deterministic = (partial(_resumed, deterministic=value) for value in (False, True))
    yield from each_of(setup, usual, deterministic)
    if not setup.rehearsal:
        yield from each_of(setup, _compiled)


def _resumed(setup: GpuSetup, *, deterministic: bool) -> Iterator[Finding]:
    """Two epochs at once, and the second of them again from the checkpoint between them."""
    name = f"resume-{deterministic}"
    overrides = small_training(setup, name, epochs=2)
    overrides += [f"runtime.deterministic={str(deterministic).lower()}"]
    run_training(overrides)

    # A copy of the run, as it was when the first epoch had ended.
    whole, again = setup.folder / name, setup.folder / f"{name}-again"
    shutil.copytree(whole, again)
    for path in (again / "checkpoints").glob("*.pt"):
        if path.name != f"step-{STEPS:08d}.pt":
            path.unlink()
    run_training([*overrides, f"experiment.output={again}"], "--resume")

    difference = difference_of_weights(again, whole)
    limit, what = 1e-3, f"{STEPS} + {STEPS} steps against {2 * STEPS}"
    if deterministic:
        limit, what = 0.0, f"{what} with runtime.deterministic"
    yield not_above(what, difference, limit)


def run_training(overrides: list[str], *options: str) -> None:
    """`hmsa train` in a process of its own, as a user starts it.

    Raises:
        UserError: it failed; the message is its last words.
    """
    command = [sys.executable, str(ROOT / "train.py"), str(DEMO), *options, *overrides]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"train.py ended with {done.returncode}: {done.stderr.strip()[-600:]}")


def difference_of_weights(run: Path, other: Path) -> float:
    """The largest relative difference of a tensor between the last checkpoints of two runs."""
    name = f"step-{2 * STEPS:08d}.pt"
    found, wanted = (
        torch.load(folder / "checkpoints" / name, map_location="cpu", weights_only=True)["model"]
        for folder in (run, other)
    )

    largest = 0.0
    for key, tensor in wanted.items():
        if tensor.is_floating_point():
            scale = float(tensor.double().norm()) or 1.0
            largest = max(largest, float((found[key].double() - tensor.double()).norm()) / scale)
    return largest


def _compiled(setup: GpuSetup) -> Iterator[Finding]:
    """The compiler on the trunk and on the whole model: no graph break, and the same loss."""
    from torch._dynamo.utils import counters

    losses: dict[str, float] = {}
    for part in ("off", "trunk", "model"):
        torch._dynamo.reset()
        counters.clear()
        sections: dict[str, Any] = {
            "data": {"crop": list(setup.size(256, 512)), "batch_size": 2},
            "model": {**setup.network("resnet50", "deeplabv3plus"), "trunk_weights": None},
            "loss": {"main": "rmi"},
            "runtime": {"compile": part},
        }
        losses[part] = float(training_step(sections, str(setup.device))())
        if part == "off":
            continue

        breaks = dict(counters["graph_break"])
        yield is_so(f"compile={part}: one graph", not breaks, otherwise=f"breaks: {breaks}")
        yield says(f"compile={part}: graphs", str(counters["stats"]["unique_graphs"]))
        difference = abs(losses[part] - losses["off"]) / abs(losses["off"])
        yield not_above(f"compile={part}: loss against none", difference, 1e-3)
