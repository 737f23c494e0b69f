"""Evaluating one image, against the straightforward way.

Ours is `predict_label` and a confusion matrix on the device. The straightforward way is what people
write: every scale's class, auxiliary and attention maps at full size, kept until the end; the
soft-max moved to the host; arg-max and histogram in NumPy. It runs the same network with the same
weights, without gradients, on plain tensors: whole maps, a batch norm that makes a new tensor, the
default memory format. Both begin with a normalised image in memory and end with the confusion
matrix.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hmsa.datasets import normalise, read_image
from hmsa.engine.arguments import ScalesAction
from hmsa.engine.command_line import at_least
from hmsa.network import InferenceOptions, build_model, load_weights
from hmsa.network.inference import predict_label, prepare_for_inference
from hmsa.utils.config import load_config
from hmsa.utils.metrics.confusion import ConfusionMatrix
from scripts.measuring.harness import Disagreement, Workload, compare

ROOT = Path(__file__).resolve().parents[2]
DEMO = load_config(str(ROOT / "configs" / "demo.yaml")).model.model_dump(
    exclude={"init_from", "trunk_weights", "multiscale"}
)
# Name: how to build the network, and the default size of the image (height, width).
NETWORKS: dict[str, tuple[dict[str, Any], tuple[int, int]]] = {
    "paper": ({"trunk": "hrnet_w48", "decoder": "ocr"}, (512, 1024)),
    "demo": (DEMO, (256, 512)),
}
DTYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
CLASSES, IGNORE = 19, 255
BLOCK = 16  # side of a block of equal labels in pixels
# The least share of equal pixels; random weights are half precision's worst case.
AGREEMENT = {"fp32": 0.9999, "bf16": 0.9, "fp16": 0.9}


@dataclass(frozen=True)
class Material:
    """What both sides work on: a network and an image, by which they can be made again."""

    parts: dict[str, Any]
    size: tuple[int, int]
    device: str = "cpu"
    weights: str | None = None
    photo: str | None = None

    def make(self) -> tuple[nn.Module, Tensor, Tensor]:
        """The network, a normalised image [1, 3, H, W], and a label [1, H, W] of blocks."""
        torch.manual_seed(0)
        model = build_model(**self.parts, multiscale="hierarchical", num_classes=CLASSES)
        if self.weights is not None:
            load_weights(model, self.weights)

        # Smooth noise, whose labels form regions; pixels of plain noise would all differ.
        coarse = torch.randn(1, 3, self.size[0] // 8, self.size[1] // 8)
        image = F.interpolate(coarse, size=self.size, mode="bicubic")
        if self.photo is not None:
            pixels = read_image(self.photo)
            pixels = cv2.resize(pixels, self.size[::-1], interpolation=cv2.INTER_AREA)
            image = normalise(torch.from_numpy(pixels).permute(2, 0, 1)[None]).contiguous()

        # One value more than classes: its blocks are ignored.
        blocks = (1, math.ceil(self.size[0] / BLOCK), math.ceil(self.size[1] / BLOCK))
        label = torch.randint(0, CLASSES + 1, blocks, dtype=torch.uint8)
        label[label == CLASSES] = IGNORE
        label = label.repeat_interleave(BLOCK, 1).repeat_interleave(BLOCK, 2)
        label = label[:, : self.size[0], : self.size[1]].contiguous()
        return model.to(self.device).eval(), image.to(self.device), label.to(self.device)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Networks, precisions, and what is inferred."""
    parser.add_argument(
        "--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS), help="default: all"
    )
    parser.add_argument(
        "--precisions",
        nargs="+",
        choices=DTYPES,
        default=["fp32", "bf16"],
        help="of both sides (default: %(default)s)",
    )
    parser.add_argument(
        "--size",
        nargs=2,
        type=at_least(BLOCK),
        metavar=("H", "W"),
        help="of the image (default: 512 1024, demo 256 512)",
    )
    parser.add_argument(
        "--scales",
        nargs="+",
        action=ScalesAction,
        default=[0.5, 1.0, 2.0],
        help="(default: %(default)s)",
    )

    parser.add_argument("--no-flip", action="store_true", help="leave the mirrored image out")

    # A trained network on a photo shows how far half precision changes labels that matter.
    parser.add_argument(
        "--weights",
        help="a checkpoint of 19 classes for the one network named: agreement on a trained model",
    )
    parser.add_argument(
        "--image", help="a photo to infer, resized to the size (default: smooth noise)"
    )
    parser.add_argument(
        "--baseline-precision", choices=DTYPES, help="of the baseline only (default: that of ours)"
    )


def run(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """One row for every network and precision."""
    rows = []
    for network in arguments.networks:
        parts, default_size = NETWORKS[network]
        height, width = arguments.size or default_size

        # Each side builds its own network and image, in a process of its own for the memory.
        material = Material(
            parts=parts,
            size=(height, width),
            device=arguments.device,
            weights=arguments.weights,
            photo=arguments.image,
        )
        rows += [
            network_row(arguments, network, material, precision)
            for precision in arguments.precisions
        ]
    return rows


def network_row(
    arguments: argparse.Namespace, network: str, material: Material, precision: str
) -> dict[str, Any]:
    """The row of one network in one precision."""
    options = InferenceOptions(
        scales=tuple(arguments.scales),
        flip=not arguments.no_flip,
        autocast_dtype=DTYPES[precision],
    )
    against = arguments.baseline_precision or precision

    # Names and sizes as in the rows of results/benchmarks.
    name = f"eval {network} {precision}"
    if against != precision:
        name += f" against {against}"
    listed = ",".join(f"{scale:g}" for scale in options.scales)
    size = f"{material.size[0]}x{material.size[1]} {{{listed}}}"
    if options.flip:
        size += " + flip"

    agreement = Agreement(AGREEMENT[precision])
    row = compare(
        name=name,
        size=size,
        ours=ours,
        baseline=baseline,
        arguments={"material": material, "options": options, "against": DTYPES[against]},
        check=agreement,
        device=arguments.device,
        rounds=arguments.rounds,
    )
    row["note"] = f"{100 * agreement.share:.3f} % of the pixels get the same label"
    return row


class Agreement:
    """Checks that two confusion matrices come from labels that agree, and remembers their share."""

    def __init__(self, least: float) -> None:
        self.least = least
        self.share = 0.0

    def __call__(self, ours: tuple[Tensor, Tensor], baseline: tuple[Tensor, Tensor]) -> None:
        self.share = float((ours[0].cpu() == baseline[0].cpu()).float().mean())
        if self.share < self.least:
            raise Disagreement(
                f"only {100 * self.share:.2f} % of the pixels get the same label, "
                f"fewer than {100 * self.least:.2f} %."
            )

        counted, expected = int(ours[1].sum()), int(baseline[1].sum())
        if counted != expected:
            raise Disagreement(f"ours counted {counted} pixels and the baseline {expected}.")


def ours(*, material: Material, options: InferenceOptions, against: object) -> Workload:
    """Labels and confusion matrix as eval.py makes them."""
    model, image, label = material.make()
    model = prepare_for_inference(model, autocast_dtype=options.autocast_dtype)
    image = image.contiguous(memory_format=torch.channels_last)

    def work() -> tuple[Tensor, Tensor]:
        matrix = ConfusionMatrix(CLASSES, IGNORE, device=material.device)
        predicted, _ = predict_label(model, image, options)
        matrix.update(predicted, label)
        return predicted, matrix.matrix

    return work


def baseline(
    *, material: Material, options: InferenceOptions, against: torch.dtype | None
) -> Workload:
    """The straightforward way, in the precision `against`.

    hmsa's modules compute plainly where gradients are enabled; no tensor here asks for one.
    """
    model, image, label = material.make()
    model.requires_grad_(False)
    truth = label.numpy(force=True)
    scored = truth != IGNORE

    def work() -> tuple[Tensor, Tensor]:
        with torch.enable_grad(), _autocast(material.device, against):
            logits = fused_logits(model, image, options.scales)
            if options.flip:
                mirrored = fused_logits(model, image.flip(-1), options.scales).flip(-1)
                logits = (logits + mirrored) / 2
            probabilities = logits.float().softmax(1).numpy(force=True)

        # A histogram of pairs (label, predicted label), as scoring scripts do it.
        predicted = probabilities.argmax(1)
        pairs = CLASSES * truth[scored].astype(np.int64) + predicted[scored]
        counts = np.bincount(pairs, minlength=CLASSES**2)
        return torch.from_numpy(predicted), torch.from_numpy(counts.reshape(CLASSES, CLASSES))

    return work


def fused_logits(model: nn.Module, image: Tensor, scales: Sequence[float]) -> Tensor:
    """The logits [1, C, H, W] of the chain over all scales."""
    return straightforward(model, image, scales)["fused"]["logits"]


def straightforward(
    model: Any, image: Tensor, scales: Sequence[float]
) -> dict[Any, dict[str, Tensor]]:
    """Every scale's maps at the size of its scaled image, and their chain under "fused".

    The chain is equation 1 of the paper, from the largest scale down.
    """
    maps: dict[Any, dict[str, Tensor]] = {scale: _maps_at(model, image, scale) for scale in scales}
    order = sorted(scales, reverse=True)
    fused = {name: value for name, value in maps[order[0]].items() if name != "attention"}

    for scale in order[1:]:
        attention = maps[scale]["attention"]
        for name, higher in fused.items():
            weighted = attention * maps[scale][name]

            # From scale 1 on fusion happens at the lower scale's size, below at the higher one's.
            if scale >= 1:
                remainder = (1 - attention) * _resize(higher, weighted.shape[-2:])
                fused[name] = weighted + remainder
            else:
                size = higher.shape[-2:]
                fused[name] = _resize(weighted, size) + (1 - _resize(attention, size)) * higher

    maps["fused"] = {name: _resize(value, image.shape[-2:]) for name, value in fused.items()}
    return maps


def _maps_at(model: Any, image: Tensor, scale: float) -> dict[str, Tensor]:
    """Logits, attention and auxiliary logits at the size of the scaled image."""
    size = [int(side * scale) for side in image.shape[-2:]]
    decoded = model.decoder(model.trunk(_resize(image, size)), with_aux=True)
    features = decoded.features
    if not isinstance(features, Tensor):
        features = features.whole()

    maps = {
        "logits": _resize(decoded.logits, size),
        "attention": _resize(torch.sigmoid(model.attention(features)), size),
    }
    if decoded.aux is not None:
        maps["aux"] = _resize(decoded.aux, size)
    return maps


def _resize(tensor: Tensor, size: Sequence[int]) -> Tensor:
    return F.interpolate(tensor, size=tuple(size), mode="bilinear", align_corners=False)


def _autocast(device: str, dtype: torch.dtype | None) -> torch.autocast:
    kind = torch.device(device).type
    if dtype is None:
        return torch.autocast(kind, enabled=False)
    return torch.autocast(kind, dtype=dtype)
