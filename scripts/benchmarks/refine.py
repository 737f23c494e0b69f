"""High scales only where attention asks for them, against all of them everywhere.

Ours is `predict_label` with `refine`, the baseline the same call without it. With --checkpoints the
ways take turns on the test images of the checkpoints' data set, so that mIoU and seconds come of
one run, and a row is the mean over the checkpoints; calibrate them first (hmsa calibrate). Without,
networks with random weights show seconds, operations and memory at any size, and that the share 1
changes no bit; there is no mIoU to have. On one thread of a CPU seconds are the processor's.

Each row also has `share` (what was asked for), `refined` (where the high scale counts), `computed`
(with halos), `flops` (over one pass at scale 1), and with checkpoints `miou` and `gain` (the share
of what the high scale gains).
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hmsa.datasets import normalise
from hmsa.engine import build
from hmsa.engine.arguments import read_refine, read_scale
from hmsa.engine.command_line import at_least
from hmsa.engine.costs import relative_flops
from hmsa.network import InferenceOptions, build_model
from hmsa.network.inference import RefinedArea, predict_label, prepare_for_inference
from hmsa.utils.metrics.confusion import ConfusionMatrix
from scripts.measuring.drawn_images import draw_pair
from scripts.measuring.harness import Disagreement, Workload, peak_extra_mib, row, synchronise

MORE_KEYS = ("share", "refined", "computed", "flops", "miou", "gain", "checkpoints", "images")
NETWORKS: dict[str, dict[str, Any]] = {
    "resnet50 deeplabv3plus": {"trunk": "resnet50", "decoder": "deeplabv3plus"},
    "hrnet_w48 ocr": {"trunk": "hrnet_w48", "decoder": "ocr"},
}
CLASSES = 19


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What is inferred, and how much of it is refined."""
    parser.add_argument(
        "--checkpoints",
        nargs="+",
        type=Path,
        metavar="FILE",
        help="trained and calibrated ones, one a seed (default: random weights, no mIoU)",
    )
    parser.add_argument("--root", help="data.root of the checkpoints' data set")
    parser.add_argument("--split", default="test", help="(default: %(default)s)")
    parser.add_argument(
        "--every", type=at_least(1), default=1, help="take every so many-th image of the split"
    )
    parser.add_argument(
        "--shares",
        nargs="+",
        type=read_refine,
        default=[0.0, 0.1, 0.2, 0.3, 0.5, "auto"],
        help="(default: %(default)s)",
    )
    parser.add_argument(
        "--scales", nargs="+", type=read_scale, default=[0.5, 1.0, 2.0], help="(default: 0.5 1 2)"
    )
    parser.add_argument(
        "--networks",
        nargs="+",
        choices=NETWORKS,
        default=list(NETWORKS),
        help="with random weights (default: all)",
    )
    parser.add_argument(
        "--size",
        nargs=2,
        type=at_least(64),
        default=[512, 1024],
        metavar=("H", "W"),
        help="of the images for random weights (default: 512 1024)",
    )
    parser.add_argument("--no-memory", action="store_true", help="leave the peak memory out")


@dataclass
class WayMeasured:
    """What one way to infer gave over the images of one checkpoint."""

    options: InferenceOptions
    seconds: list[float] = field(default_factory=list)
    area: RefinedArea = field(default_factory=RefinedArea)
    matrix: ConfusionMatrix | None = None
    flops: float = 0.0

    @property
    def computed(self) -> float:
        """Share of the images on which the network ran at scales above 1."""
        if not self.area.pixels:
            return 1.0
        return statistics.mean(self.area.computed.values()) / self.area.pixels


def run(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """One row for every share, of the checkpoints together or of each network."""
    if arguments.checkpoints:
        return checkpoint_rows(arguments)
    return [line for network in arguments.networks for line in network_rows(arguments, network)]


def ways_of(arguments: argparse.Namespace) -> list[WayMeasured]:
    """The whole evaluation first, then every share of it."""
    whole = InferenceOptions(tuple(arguments.scales))
    return [
        WayMeasured(whole),
        *(WayMeasured(replace(whole, refine=share)) for share in arguments.shares),
    ]


# --- trained networks ---


def checkpoint_rows(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Rows with the means over the checkpoints."""
    overrides = ["eval.precision=fp32"]
    if arguments.root is not None:
        overrides.append(f"data.root={arguments.root}")
    measured = []
    images, size = 0, (0, 0)
    for checkpoint in arguments.checkpoints:
        loaded = build.load_model(
            checkpoint,
            config_file=None,
            overrides=overrides,
            device=torch.device(arguments.device),
        )
        model = prepare_for_inference(loaded.model)
        files = build.split_files(loaded.config, arguments.split, expected=loaded.spec)
        files.require_labels()

        ways = ways_of(arguments)
        for way in ways:
            way.matrix = ConfusionMatrix(
                loaded.spec.num_classes,
                ignore_label=loaded.spec.ignore_label,
                device=arguments.device,
            )
        indices = range(0, len(files), arguments.every)
        for position, index in enumerate(indices):
            pixels = files.read_image(index)
            image = normalise(torch.from_numpy(pixels)[None].to(arguments.device))
            label = torch.from_numpy(files.read_label(index))[None].to(arguments.device)
            take_turns(model, image, ways, first=position, device=arguments.device, label=label)
        images, size = len(indices), (int(pixels.shape[0]), int(pixels.shape[1]))
        for way in ways:
            way.flops = relative_flops(model, way.options, way.area) or 0.0
        measured.append(ways)

    columns = list(zip(*measured, strict=True))
    rows = []
    scores = [[100 * way.matrix.miou() for way in column if way.matrix] for column in columns]
    lowest = scores[1] if columns[1][0].options.refine == 0 else None
    for column, own in zip(columns, scores, strict=True):
        line = base_row(
            arguments,
            name=f"refine {loaded.config.experiment.name}",
            size=size,
            seconds=statistics.mean(statistics.mean(way.seconds) for way in column),
            whole=statistics.mean(statistics.mean(way.seconds) for way in columns[0]),
            ways=column,
        )
        line["miou"], line["checkpoints"], line["images"] = statistics.mean(own), len(own), images
        if lowest is not None:
            gained = statistics.mean(scores[0]) - statistics.mean(lowest)
            line["gain"] = (statistics.mean(own) - statistics.mean(lowest)) / gained
        listed = " ".join(f"{score:.2f}" for score in own)
        line["note"] = f"{way_in_words(column)}; mIoU by checkpoint {listed}"
        rows.append(line)
    return rows


def take_turns(
    model: nn.Module,
    image: Tensor,
    ways: Sequence[WayMeasured],
    *,
    first: int,
    device: str,
    label: Tensor | None = None,
) -> list[Tensor]:
    """Infer an image in every way, a different one first each time; returns the labels."""
    # One thread's own time does not count what other programs of the machine do meanwhile.
    clock = time.perf_counter
    if torch.device(device).type == "cpu" and torch.get_num_threads() == 1:
        clock = time.process_time

    found: dict[int, Tensor] = {}
    for step in range(len(ways)):
        number = (first + step) % len(ways)
        way = ways[number]
        synchronise(device)
        begin = clock()
        predicted, _ = predict_label(model, image, way.options, area=way.area)
        synchronise(device)
        way.seconds.append(clock() - begin)
        if label is not None and way.matrix is not None:
            way.matrix.update(predicted, label)
        found[number] = predicted
    return [found[number] for number in range(len(ways))]


# --- random weights ---


def network_rows(arguments: argparse.Namespace, network: str) -> list[dict[str, Any]]:
    """Rows of one network with random weights: no mIoU."""
    size = (arguments.size[0], arguments.size[1])
    model, image = make(network, size, arguments.device)
    ways = ways_of(arguments)
    everything = WayMeasured(replace(ways[0].options, refine=1.0))
    labels = take_turns(model, image, [ways[0], everything], first=0, device=arguments.device)
    if not torch.equal(labels[0], labels[1]):
        raise Disagreement(f"{network}: the share 1 changes labels.")

    ways[0].seconds.clear()
    for number in range(arguments.rounds):
        take_turns(model, image, ways, first=number, device=arguments.device)
    memory = [0.0] * len(ways)
    for number, way in enumerate(ways):
        way.flops = relative_flops(model, way.options, way.area) or 0.0
        if not arguments.no_memory:
            memory[number] = peak_extra_mib(
                workload,
                arguments={
                    "network": network,
                    "size": size,
                    "device": arguments.device,
                    "options": way.options,
                },
                device=arguments.device,
            )

    rows = []
    for number, way in enumerate(ways):
        line = base_row(
            arguments,
            name=f"refine {network}, random weights",
            size=size,
            seconds=statistics.median(way.seconds),
            whole=statistics.median(ways[0].seconds),
            ways=[way],
        )
        line["images"] = 1
        if memory[number]:
            line["ours_mib"], line["baseline_mib"] = memory[number], memory[0]
            line["memory_ratio"] = memory[number] / memory[0]
        line["note"] = way_in_words([way])
        rows.append(line)
    return rows


def make(network: str, size: tuple[int, int], device: str) -> tuple[nn.Module, Tensor]:
    """A network with random weights, ready for inference, and a drawn image `[1, 3, H, W]`."""
    torch.manual_seed(0)
    model = build_model(**NETWORKS[network], multiscale="hierarchical", num_classes=CLASSES)
    pixels, _ = draw_pair(size, seed=0)
    image = normalise(torch.from_numpy(pixels)[None].to(device))
    return prepare_for_inference(model.to(device).eval()), image


def workload(
    *, network: str, size: tuple[int, int], device: str, options: InferenceOptions
) -> Workload:
    """One way to infer one image, to measure its memory."""
    model, image = make(network, size, device)
    return lambda: predict_label(model, image, options)


# --- rows ---


def base_row(
    arguments: argparse.Namespace,
    *,
    name: str,
    size: tuple[int, int],
    seconds: float,
    whole: float,
    ways: Sequence[WayMeasured],
) -> dict[str, Any]:
    """The row of one way to infer, which `ways` measured, beside the whole evaluation."""
    options = ways[0].options
    listed = ",".join(f"{scale:g}" for scale in options.scales)
    line = row(
        name=name,
        size=f"{size[0]}x{size[1]} {{{listed}}}",
        device=arguments.device,
        ours_s=seconds,
        baseline_s=whole,
    )
    refined = [way.area.share for way in ways if way.area.share is not None]
    more = {
        "share": options.refine,
        "refined": statistics.mean(refined) if refined else 1.0,
        "computed": statistics.mean(way.computed for way in ways),
        "flops": statistics.mean(way.flops for way in ways),
    }
    return {**line, **dict.fromkeys(MORE_KEYS), **more}


def way_in_words(ways: Sequence[WayMeasured]) -> str:
    """A way to infer in words."""
    computed = statistics.mean(way.computed for way in ways)
    flops = statistics.mean(way.flops for way in ways)
    return (
        f"{ways[0].options.describe()}: {100 * computed:.0f} % computed, "
        f"{flops:.2f} times the operations of {{1}}"
    )
