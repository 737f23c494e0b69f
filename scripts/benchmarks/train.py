"""Training steps of the door's own `take_step`: precision, memory format, compiler and checkpointing against plain fp32, and what hierarchical costs.

Each row compares a setting (ours) with fp32 in the default memory format (baseline) on the same network, crop and loss. The row
"hierarchical / single" compares training at scales 0.5 and 1 with training at scale 1 alone: 1.46 x in the paper, 1.25 x by operations.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from hmsa.engine import build as assemble
from hmsa.engine import train
from hmsa.utils.config import Config
from hmsa.utils.processes import Processes
from hmsa.utils.runtime import prepare_runtime
from hmsa.utils.training.logbook import Logbook
from hmsa.utils.training.nonfinite import SkippedSteps
from hmsa.utils.training.run_folder import RunFolder
from scripts.benchmarks.harness import Disagreement, Workload, compare

SETTINGS: dict[str, dict[str, Any]] = {
    "fp32": {"channels_last": False},
    "bf16": {"channels_last": False, "precision": "bf16"},
    "fp16": {"channels_last": False, "precision": "fp16"},
    "bf16 + channels_last": {"precision": "bf16"},
    "bf16 + channels_last + compile trunk": {"precision": "bf16", "compile": "trunk"},
    "bf16 + channels_last + compile model": {"precision": "bf16", "compile": "model"},
    "bf16 + channels_last + checkpointing": {"precision": "bf16", "activation_checkpointing": True},
}
COST = "hierarchical / single"
CLASSES, IGNORE = 19, 255


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--trunk", default="hrnet_w48", help="default: %(default)s")
    parser.add_argument("--decoder", default="ocr", help="default: %(default)s")
    parser.add_argument("--multiscale", default="hierarchical", help="default: %(default)s")
    parser.add_argument(
        "--size",
        nargs=2,
        type=int,
        metavar=("H", "W"),
        default=[1024, 2048],
        help="of the crop (default: 1024 2048)",
    )
    parser.add_argument("--batch", type=int, default=1, help="images a step (default: %(default)s)")
    parser.add_argument("--loss", default="rmi", help="main loss (default: %(default)s)")
    parser.add_argument(
        "--settings",
        nargs="+",
        choices=[*SETTINGS, COST],
        default=[*SETTINGS, COST],
        metavar="SETTING",
        help=f"default: all of {', '.join([*SETTINGS, COST])}",
    )
    parser.add_argument(
        "--cost-setting",
        choices=SETTINGS,
        default="bf16 + channels_last",
        help=f"of the row {COST} (default: %(default)s)",
    )


def run(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    common = {
        "trunk": arguments.trunk,
        "decoder": arguments.decoder,
        "multiscale": arguments.multiscale,
        "loss": arguments.loss,
        "size": tuple(arguments.size),
        "batch": arguments.batch,
        "device": arguments.device,
    }
    size = f"{arguments.trunk} {arguments.decoder} {arguments.batch}x{'x'.join(map(str, arguments.size))}"
    options: dict[str, Any] = {
        "size": size,
        "device": arguments.device,
        "rounds": arguments.rounds,
        "warm_up": 3,
    }
    rows = []
    for name in arguments.settings:
        if name == COST:
            chosen = {**common, "setting": arguments.cost_setting}
            row = compare(
                name=name,
                ours=_setting,
                baseline=_single,
                arguments=chosen,
                check=_finite,
                **options,
            )
            row["note"] = (
                f"a hierarchical step takes {1 / row['ratio']:.2f} x a single-scale one, in {arguments.cost_setting}"
            )
        else:
            row = compare(
                name=name,
                ours=_setting,
                baseline=_plain,
                arguments={**common, "setting": name},
                check=_finite,
                **options,
            )
            row["note"] = f"{arguments.batch / row['ours_s']:.2f} images/s"
        rows.append(row)
    return rows


def _setting(*, setting: str, **common: Any) -> Workload:
    return step(runtime=SETTINGS[setting], **common)


def _plain(*, setting: str, **common: Any) -> Workload:
    return step(runtime=SETTINGS["fp32"], **common)


def _single(*, setting: str, multiscale: str, **common: Any) -> Workload:
    return step(runtime=SETTINGS[setting], multiscale="single", **common)


def step(
    *,
    runtime: dict[str, Any],
    trunk: str,
    decoder: str,
    multiscale: str,
    loss: str,
    size: tuple[int, int],
    batch: int,
    device: str,
) -> Workload:
    """One optimiser step on random images and labels; its result is the loss."""
    config = Config.from_dict(
        {
            "data": {"crop": list(size), "batch_size": batch},
            "model": {"trunk": trunk, "decoder": decoder, "multiscale": multiscale},
            "loss": {"main": loss},
            "optim": {"lr": 1e-4},
            "runtime": {"tf32": True, "checkpoint_minutes": 1e6, **runtime},
        }
    )
    prepare_runtime(tf32=config.runtime.tf32)
    processes = Processes(rank=0, world_size=1, local_rank=0, device=torch.device(device))
    files: Any = SimpleNamespace(spec=SimpleNamespace(num_classes=CLASSES, ignore_label=IGNORE))
    state, run_folder = assemble.training_state(config, files, processes), RunFolder(Path("."))
    state.model.train()
    job = train.Job(
        config,
        processes,
        run_folder,
        None,
        files,
        state.model,
        state.model,
        assemble.criterion(config, files),
        state,  # type: ignore[arg-type]
        SkippedSteps(processes, Path("."), limit=1000),
        Logbook(Path("."), write=False),
    )
    generator = torch.Generator().manual_seed(1)
    image = torch.randint(256, (batch, *size, 3), dtype=torch.uint8, generator=generator).permute(
        0, 3, 1, 2
    )
    blocks = torch.randint(
        CLASSES, (batch, 1, math.ceil(size[0] / 32), math.ceil(size[1] / 32)), generator=generator
    ).repeat_interleave(32, 2)
    label = blocks.repeat_interleave(32, 3)[:, 0, : size[0], : size[1]].to(torch.uint8)
    label[:, :4] = IGNORE
    batches = [{"image": image, "label": label, "names": ["random"] * batch}]

    def workload() -> torch.Tensor:
        terms, *_ = train.take_step(job, batches)
        return torch.stack(list(terms.values())).sum()

    return workload


def _finite(ours: torch.Tensor, baseline: torch.Tensor) -> None:
    """Both sides begin with equal weights, but half precision and another number of scales give another loss."""
    if not (torch.isfinite(ours) and torch.isfinite(baseline)):
        raise Disagreement(
            f"the losses are {float(ours):.4f} and {float(baseline):.4f}: not finite."
        )
