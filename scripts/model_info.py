"""What the models cost: parameters, operations of a training step and of evaluation, and peak memory of activations.

    python scripts/model_info.py [--trunks hrnet_w48 resnet50] [--decoders ocr] [--multiscale single hierarchical]
                                 [--size 512 1024] [--scales 1 --scales 0.5 1 2] [--classes 19] [--json FILE]

Everything is counted on the meta device, where tensors have shapes and no content: no GPU and no memory are needed.
FLOPs are those of convolutions and matrix products, as `torch.utils.flop_counter` counts them. Peak memory is that of
live tensors in float32 beyond parameters and image; what libraries take for themselves comes on top.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from hmsa.network import DECODERS, MULTISCALE, TRUNKS, ModelError, Prediction, build_model
from hmsa.network.inference.predict import predict
from scripts.benchmarks.live_memory import LiveMemory

EVALUATED = ((1.0,), (0.5, 1.0), (0.5, 1.0, 2.0), (0.25, 0.5, 1.0, 2.0))
MIB = 2**20


def main(command_line: Sequence[str] | None = None) -> int:
    arguments = build_parser().parse_args(command_line)
    size = (arguments.size[0], arguments.size[1])
    scale_lists = [tuple(scales) for scales in arguments.scales or EVALUATED]
    try:
        rows = [
            information(
                trunk=trunk,
                decoder=decoder,
                multiscale=multiscale,
                size=size,
                batch=arguments.batch,
                num_classes=arguments.classes,
                scale_lists=scale_lists,
                output_stride=arguments.output_stride,
                activation_checkpointing=arguments.activation_checkpointing,
            )
            for trunk in arguments.trunks
            for decoder in arguments.decoders
            for multiscale in arguments.multiscale
        ]
    except ModelError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(table(rows))
    if arguments.json is not None:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n")
    return 0


def build_parser() -> argparse.ArgumentParser:
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
    parser.add_argument(
        "--size",
        nargs=2,
        type=int,
        default=(512, 1024),
        metavar=("H", "W"),
        help="of the crop and of the image (default: 512 1024)",
    )
    parser.add_argument(
        "--batch", type=int, default=1, help="images per training step (default: 1)"
    )
    parser.add_argument("--classes", type=int, default=19, help="(default: 19)")
    parser.add_argument(
        "--scales",
        nargs="+",
        type=float,
        action="append",
        metavar="S",
        help="a scale list to evaluate; may be repeated",
    )
    parser.add_argument(
        "--output-stride", type=int, help="of trunks that can be dilated (default: 8)"
    )
    parser.add_argument(
        "--activation-checkpointing",
        action="store_true",
        help="as runtime.activation_checkpointing",
    )
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    return parser


def information(
    *,
    trunk: str,
    decoder: str,
    multiscale: str,
    size: tuple[int, int],
    num_classes: int,
    scale_lists: Sequence[tuple[float, ...]] = EVALUATED,
    batch: int = 1,
    output_stride: int | None = None,
    activation_checkpointing: bool = False,
) -> dict[str, Any]:
    """One row: FLOPs and bytes, of a training step on `batch` images and of evaluating one image at each scale list.

    Ratios are to the same trunk and decoder with one scale. An explicit model is evaluated at the scales it was trained
    with only; where a model cannot be evaluated at a list, its entry is None.
    """
    parts: dict[str, Any] = {
        "trunk": trunk,
        "decoder": decoder,
        "num_classes": num_classes,
        "output_stride": output_stride,
        "activation_checkpointing": activation_checkpointing,
    }
    with torch.device("meta"):
        model = build_model(multiscale=multiscale, **parts)
    flops, peak = training_cost(model, size=size, batch=batch)
    single_flops, single_peak, one_scale = _single_costs(size, batch, tuple(parts.items()))
    evaluation = {}
    for scales in scale_lists:
        cost = evaluation_cost(model, size=size, scales=scales)
        evaluation[" ".join(f"{scale:g}" for scale in scales)] = cost and {
            "flops": cost[0],
            "ratio": cost[0] / one_scale[0],
            "peak_bytes": cost[1],
            "peak_ratio": cost[1] / one_scale[1],
        }
    return {
        "trunk": trunk,
        "decoder": decoder,
        "multiscale": multiscale,
        "size": list(size),
        "batch": batch,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "training": {
            "scales": list(model.train_scales),
            "flops": flops,
            "ratio": flops / single_flops,
            "peak_bytes": peak,
            "peak_ratio": peak / single_peak,
        },
        "evaluation": evaluation,
    }


@cache
def _single_costs(
    size: tuple[int, int], batch: int, parts: tuple[tuple[str, Any], ...]
) -> tuple[int, int, tuple[int, int]]:
    """(FLOPs, peak bytes) of training the same network with one scale, and those of evaluating it."""
    with torch.device("meta"):
        single = build_model(multiscale="single", **dict(parts))
    evaluation = evaluation_cost(single, size=size, scales=(1.0,))
    assert evaluation is not None
    return *training_cost(single, size=size, batch=batch), evaluation


def training_cost(model: nn.Module, *, size: tuple[int, int], batch: int) -> tuple[int, int]:
    """(FLOPs, peak bytes) of forward, cross-entropy of logits and auxiliary logits, and backward."""
    model.train()
    image = torch.empty(batch, 3, *size, device="meta")
    label = torch.zeros(batch, *size, dtype=torch.long, device="meta")

    def step() -> None:
        prediction: Prediction = model(image)
        loss = F.cross_entropy(prediction.logits, label)
        if prediction.aux is not None:
            loss = loss + 0.4 * F.cross_entropy(prediction.aux, label)
        loss.backward()

    try:
        return _cost(step)
    finally:
        model.zero_grad(set_to_none=True)


def evaluation_cost(
    model: nn.Module, *, size: tuple[int, int], scales: tuple[float, ...]
) -> tuple[int, int] | None:
    """(FLOPs, peak bytes) of `network.inference.predict` on one image; None where the model does not take these scales."""
    image = torch.empty(1, 3, *size, device="meta")
    try:
        return _cost(lambda: predict(model, image, scales=scales))
    except ModelError:
        return None


def _cost(work: Callable[[], object]) -> tuple[int, int]:
    with LiveMemory() as memory, FlopCounterMode(display=False) as counter:
        work()
    return int(counter.get_total_flops()), memory.peak


def table(rows: Sequence[dict[str, Any]]) -> str:
    """One line for each model: millions of parameters, GFLOPs (and ratio to one scale), MiB."""
    lists = list(rows[0]["evaluation"])
    head = ["trunk", "decoder", "multiscale", "parameters", "training GFLOPs", "MiB"]
    for scales in lists:
        head += [f"{{{scales}}} GFLOPs", "MiB"]
    lines = [head]
    for row in rows:
        line = [row["trunk"], row["decoder"], row["multiscale"], f"{row['parameters'] / 1e6:.2f} M"]
        for cost in (row["training"], *(row["evaluation"][scales] for scales in lists)):
            line += (
                ["-", "-"]
                if cost is None
                else [
                    f"{cost['flops'] / 1e9:,.0f} ({cost['ratio']:.2f}x)",
                    f"{cost['peak_bytes'] / MIB:,.0f}",
                ]
            )
        lines.append(line)
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    return "\n".join(
        "  ".join(_padded(cell, widths[column], column) for column, cell in enumerate(line))
        for line in lines
    )


def _padded(cell: str, width: int, column: int) -> str:
    """Names to the left, numbers to the right."""
    return cell.ljust(width) if column < 3 else cell.rjust(width)


if __name__ == "__main__":
    sys.exit(main())
