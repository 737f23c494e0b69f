"""What the models cost: parameters, operations of training and evaluation, memory of activations.

    python scripts/model_info.py [--trunks hrnet_w48 resnet50] [--decoders ocr]
                                 [--multiscale single hierarchical] [--size 512 1024]
                                 [--scales 1 --scales 0.5 1 2] [--classes 19] [--json FILE]

Everything is counted on the meta device, where tensors have shapes and no content: no GPU and no
memory are needed. FLOPs are those of convolutions and matrix products, as
`torch.utils.flop_counter` counts them. Peak memory is that of live tensors in float32 beyond
parameters and image; what libraries take for themselves comes on top.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

# A script runs from any folder: the checkout it lies in comes before what may be installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from hmsa.engine.arguments import read_scales
from hmsa.engine.command_line import at_least, run_command
from hmsa.network import (
    DECODERS,
    MULTISCALE,
    TRUNKS,
    InferenceOptions,
    ModelError,
    Prediction,
    build_model,
)
from hmsa.network.inference import predict
from hmsa.utils.training.live_memory import LiveMemory
from scripts.measuring.harness import require_place_for_rows, write_rows

EVALUATED = ((1.0,), (0.5, 1.0), (0.5, 1.0, 2.0), (0.25, 0.5, 1.0, 2.0))
AUX_WEIGHT = 0.4  # of the auxiliary loss, as in the paper's recipes
MIB = 2**20


class Cost(NamedTuple):
    """What a computation takes."""

    flops: int
    peak_bytes: int


@dataclass(frozen=True)
class NetworkParts:
    """A network but for its way of using several scales, and the images it is counted with."""

    trunk: str
    decoder: str
    size: tuple[int, int]
    num_classes: int = 19
    batch: int = 1
    output_stride: int | None = None
    activation_checkpointing: bool = False

    def build(self, multiscale: str) -> nn.Module:
        """The network on the meta device."""
        with torch.device("meta"):
            return build_model(
                trunk=self.trunk,
                decoder=self.decoder,
                multiscale=multiscale,
                num_classes=self.num_classes,
                output_stride=self.output_stride,
                activation_checkpointing=self.activation_checkpointing,
            )


def main(argv: Sequence[str] | None = None) -> int:
    """Count and print; returns the exit status."""
    parser = build_parser()
    options = parser.parse_args(argv)
    try:
        options.scales = [read_scales(" ".join(words)) for words in options.scales or ()]
    except argparse.ArgumentTypeError as error:
        parser.error(f"argument --scales: {error}")
    return run_command(lambda: count_models(options))


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--trunks",
        nargs="+",
        default=["hrnet_w48", "resnet50"],
        metavar="NAME",
        help=f"{', '.join(TRUNKS)} or timm:<name> (default: %(default)s)",
    )
    parser.add_argument(
        "--decoders",
        nargs="+",
        default=["ocr", "deeplabv3plus"],
        metavar="NAME",
        help=f"{', '.join(DECODERS)} (default: %(default)s)",
    )
    parser.add_argument(
        "--multiscale", nargs="+", default=list(MULTISCALE), metavar="NAME", help="default: all"
    )

    # The images that are counted with.
    parser.add_argument(
        "--size",
        nargs=2,
        type=at_least(1),
        default=(512, 1024),
        metavar=("H", "W"),
        help="of the crop and of the image (default: 512 1024)",
    )
    parser.add_argument(
        "--batch",
        type=at_least(1),
        default=1,
        help="images per training step (default: %(default)s)",
    )
    parser.add_argument("--classes", type=at_least(1), default=19, help="(default: %(default)s)")
    parser.add_argument(
        "--scales",
        nargs="+",
        action="append",
        metavar="S",
        help="a scale list to evaluate; may be repeated",
    )

    parser.add_argument(
        "--output-stride", type=at_least(1), help="of trunks that can be dilated (default: 8)"
    )
    parser.add_argument(
        "--activation-checkpointing",
        action="store_true",
        help="as runtime.activation_checkpointing",
    )
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    return parser


def count_models(options: argparse.Namespace) -> int:
    """Count every combination that the command line names, print and write the rows."""
    if options.json is not None:
        require_place_for_rows(options.json)
    scale_lists = options.scales or [tuple(scales) for scales in EVALUATED]
    rows = []
    for trunk in options.trunks:
        for decoder in options.decoders:
            parts = NetworkParts(
                trunk=trunk,
                decoder=decoder,
                size=(options.size[0], options.size[1]),
                num_classes=options.classes,
                batch=options.batch,
                output_stride=options.output_stride,
                activation_checkpointing=options.activation_checkpointing,
            )
            for multiscale in options.multiscale:
                rows.append(information(parts, multiscale, scale_lists))

    if options.json is not None:
        write_rows(options.json, rows)
    print(table(rows))
    return 0


def information(
    parts: NetworkParts,
    multiscale: str,
    scale_lists: Sequence[tuple[float, ...]] = EVALUATED,
) -> dict[str, Any]:
    """One row: cost of a training step, and of evaluating one image at each scale list.

    Ratios are to the same trunk and decoder with one scale. An explicit model is evaluated at the
    scales it was trained with only; where a model cannot be evaluated at a list, its entry is None.
    """
    model = parts.build(multiscale)
    training = training_cost(model, size=parts.size, batch=parts.batch)
    single_training, single_evaluation = _single_costs(parts)

    evaluation = {}
    for scales in scale_lists:
        cost = evaluation_cost(model, size=parts.size, scales=scales)
        listed = " ".join(f"{scale:g}" for scale in scales)
        evaluation[listed] = _relative(cost, single_evaluation)

    return {
        "trunk": parts.trunk,
        "decoder": parts.decoder,
        "multiscale": multiscale,
        "size": list(parts.size),
        "batch": parts.batch,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "training": {
            "scales": list(model.train_scales),  # type: ignore[arg-type]
            **(_relative(training, single_training) or {}),
        },
        "evaluation": evaluation,
    }


def _relative(cost: Cost | None, single: Cost) -> dict[str, float] | None:
    """A cost beside that of one scale."""
    if cost is None:
        return None
    return {
        "flops": cost.flops,
        "ratio": cost.flops / single.flops,
        "peak_bytes": cost.peak_bytes,
        "peak_ratio": cost.peak_bytes / single.peak_bytes,
    }


@cache
def _single_costs(parts: NetworkParts) -> tuple[Cost, Cost]:
    """The costs of training the same network with one scale, and of evaluating it."""
    single = parts.build("single")
    evaluation = evaluation_cost(single, size=parts.size, scales=(1.0,))
    assert evaluation is not None
    return training_cost(single, size=parts.size, batch=parts.batch), evaluation


def training_cost(model: nn.Module, *, size: tuple[int, int], batch: int) -> Cost:
    """Cost of forward, cross-entropy of logits and auxiliary logits, and backward."""
    model.train()
    image = torch.empty(batch, 3, *size, device="meta")
    label = torch.zeros(batch, *size, dtype=torch.long, device="meta")

    def step() -> None:
        prediction: Prediction = model(image)
        loss = F.cross_entropy(prediction.logits, label)
        if prediction.aux is not None:
            loss = loss + AUX_WEIGHT * F.cross_entropy(prediction.aux, label)
        loss.backward()

    # The gradients go away again, so that evaluation is counted without them.
    try:
        return _cost(step)
    finally:
        model.zero_grad(set_to_none=True)


def evaluation_cost(
    model: nn.Module, *, size: tuple[int, int], scales: tuple[float, ...]
) -> Cost | None:
    """Cost of `network.inference.predict` on one image; None where the model refuses the scales."""
    image = torch.empty(1, 3, *size, device="meta")
    options = InferenceOptions(scales=scales)
    try:
        return _cost(lambda: predict(model, image, options))
    except ModelError:
        return None


def _cost(work: Callable[[], object]) -> Cost:
    with LiveMemory() as memory, FlopCounterMode(display=False) as counter:
        work()
    return Cost(flops=int(counter.get_total_flops()), peak_bytes=memory.peak)


def table(rows: Sequence[dict[str, Any]]) -> str:
    """One line for each model: millions of parameters, GFLOPs (and ratio to one scale), MiB."""
    lists = list(rows[0]["evaluation"])
    head = ["trunk", "decoder", "multiscale", "parameters", "training GFLOPs", "MiB"]
    for scales in lists:
        head += [f"{{{scales}}} GFLOPs", "MiB"]

    lines = [head]
    for row in rows:
        line = [row["trunk"], row["decoder"], row["multiscale"], f"{row['parameters'] / 1e6:.2f} M"]
        line += _cost_cells(row["training"])
        for scales in lists:
            line += _cost_cells(row["evaluation"][scales])
        lines.append(line)

    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    return "\n".join(
        "  ".join(_padded(cell, widths[column], column) for column, cell in enumerate(line))
        for line in lines
    )


def _cost_cells(cost: dict[str, float] | None) -> list[str]:
    """GFLOPs with their ratio, and MiB."""
    if cost is None:
        return ["-", "-"]
    return [
        f"{cost['flops'] / 1e9:,.0f} ({cost['ratio']:.2f}x)",
        f"{cost['peak_bytes'] / MIB:,.0f}",
    ]


def _padded(cell: str, width: int, column: int) -> str:
    """Names to the left, numbers to the right."""
    if column < 3:
        return cell.ljust(width)
    return cell.rjust(width)


if __name__ == "__main__":
    sys.exit(main())
