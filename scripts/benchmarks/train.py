"""Training steps: precision, memory format, compiler and checkpointing, and what attention costs.

Each row compares a setting (ours) with fp32 in the default memory format (baseline) on the same
network, crop and loss. The row "hierarchical / single" compares training at scales 0.5 and 1 with
training at scale 1 alone: 1.46 x in the paper, 1.25 x by operations.
"""

from __future__ import annotations

import argparse
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from hmsa.engine import build
from hmsa.engine.benchmark import noise
from hmsa.engine.command_line import at_least
from hmsa.engine.step import TrainingStep, total_of
from hmsa.utils.config import Config
from hmsa.utils.processes import Processes
from hmsa.utils.runtime import prepare_runtime
from scripts.measuring.harness import Disagreement, Workload, compare

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
CLASSES = SimpleNamespace(num_classes=19, ignore_label=255)
SMALLEST = 32  # side of a crop whose smallest map still has statistics for a batch norm


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The network, the crop, and the settings to compare."""
    parser.add_argument("--trunk", default="hrnet_w48", help="default: %(default)s")
    parser.add_argument("--decoder", default="ocr", help="default: %(default)s")
    parser.add_argument("--multiscale", default="hierarchical", help="default: %(default)s")
    parser.add_argument(
        "--size",
        nargs=2,
        type=at_least(SMALLEST),
        metavar=("H", "W"),
        default=[1024, 2048],
        help="of the crop (default: 1024 2048)",
    )
    parser.add_argument(
        "--batch", type=at_least(1), default=1, help="images a step (default: %(default)s)"
    )
    parser.add_argument("--loss", default="rmi", help="main loss (default: %(default)s)")

    # What is compared, and in which of the settings the cost of attention is measured.
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
    """One row for every setting."""
    height, width = arguments.size
    sections = {
        "data": {"crop": [height, width], "batch_size": arguments.batch},
        "model": {
            "trunk": arguments.trunk,
            "decoder": arguments.decoder,
            "multiscale": arguments.multiscale,
        },
        "loss": {"main": arguments.loss},
    }
    size = f"{arguments.trunk} {arguments.decoder} {arguments.batch}x{height}x{width}"

    rows = []
    for name in arguments.settings:
        setting, baseline = name, build_plain
        if name == COST:
            setting, baseline = arguments.cost_setting, build_single_scale
        row = compare(
            name=name,
            size=size,
            ours=build_setting,
            baseline=baseline,
            arguments={"setting": setting, "sections": sections, "device": arguments.device},
            check=require_finite,
            device=arguments.device,
            rounds=arguments.rounds,
            warm_up=3,
        )

        row["note"] = f"{arguments.batch / row['ours_s']:.2f} images/s"
        if name == COST:
            row["note"] = (
                f"a hierarchical step takes {1 / row['ratio']:.2f} x a single-scale one, "
                f"in {arguments.cost_setting}"
            )
        rows.append(row)
    return rows


def build_setting(*, setting: str, sections: dict[str, Any], device: str) -> Workload:
    """Steps in a setting."""
    return training_step({**sections, "runtime": SETTINGS[setting]}, device)


def build_plain(*, setting: str, sections: dict[str, Any], device: str) -> Workload:
    """Steps in fp32 and the default memory format."""
    return training_step({**sections, "runtime": SETTINGS["fp32"]}, device)


def build_single_scale(*, setting: str, sections: dict[str, Any], device: str) -> Workload:
    """Steps of the same network with one scale, in the same setting."""
    model = {**sections["model"], "multiscale": "single"}
    return training_step({**sections, "model": model, "runtime": SETTINGS[setting]}, device)


def training_step(sections: dict[str, Any], device_name: str) -> Workload:
    """The step of a training, on noise; the result of the workload is the loss."""
    runtime = {"tf32": True, **sections["runtime"]}
    config = Config.from_dict({"optim": {"lr": 1e-4}, **sections, "runtime": runtime})
    prepare_runtime(tf32=config.runtime.tf32)
    device = torch.device(device_name)
    processes = Processes(rank=0, world_size=1, local_rank=0, device=device)

    # The parts that the training loop is built of; these read no more of the files than this.
    files: Any = SimpleNamespace(spec=CLASSES)
    state = build.training_state(config, files, processes)
    criterion = build.criterion(config, files).to(device)
    step = TrainingStep(config, state, criterion, processes)
    batch = noise(config, CLASSES)

    def workload() -> Tensor:
        found = step.gradients([batch])
        step.update(found)
        return total_of(found.terms)

    return workload


def require_finite(ours: Tensor, baseline: Tensor) -> None:
    """Raise Disagreement unless both losses are finite numbers.

    Both sides begin with equal weights, but half precision and another number of scales give
    another loss.
    """
    if not (torch.isfinite(ours) and torch.isfinite(baseline)):
        raise Disagreement(
            f"the losses are {float(ours):.4f} and {float(baseline):.4f}: not finite."
        )
