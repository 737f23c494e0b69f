"""Evaluating one image: `predict_label` and a confusion matrix on the device, against the straightforward way.

The straightforward way is what people write: every scale's class, auxiliary and attention maps at full size, kept until
the end; the soft-max moved to the host; arg-max and histogram in NumPy. It runs the same network with the same weights,
without gradients, on plain tensors: whole maps, a batch norm that makes a new tensor, the default memory format. Both
begin with a normalised image in memory, and both end with the confusion matrix.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hmsa.datasets import normalise, read_image
from hmsa.network import build_model, load_weights
from hmsa.network.inference.folding import prepare_for_inference
from hmsa.network.inference.predict import predict_label
from hmsa.network.inference.raster import Raster
from hmsa.utils.config import load_config
from hmsa.utils.metrics.confusion import ConfusionMatrix
from scripts.benchmarks.harness import Disagreement, Workload, compare

ROOT = Path(__file__).resolve().parents[2]
DEMO = load_config(str(ROOT / "configs" / "demo.yaml")).model.model_dump(
    exclude={"init_from", "trunk_weights", "multiscale"}
)
NETWORKS: dict[
    str, tuple[dict[str, Any], tuple[int, int]]
] = {  # name: how to build it, and the default (height, width)
    "paper": ({"trunk": "hrnet_w48", "decoder": "ocr"}, (512, 1024)),
    "demo": (DEMO, (256, 512)),
}
DTYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
CLASSES, IGNORE = 19, 255
AGREEMENT = {
    "fp32": 0.9999,
    "bf16": 0.9,
    "fp16": 0.9,
}  # least share of equal pixels; random weights are half precision's worst case


def add_arguments(parser: argparse.ArgumentParser) -> None:
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
        type=int,
        metavar=("H", "W"),
        help="of the image (default: 512 1024, demo 256 512)",
    )
    parser.add_argument(
        "--scales", nargs="+", type=float, default=[0.5, 1.0, 2.0], help="(default: %(default)s)"
    )
    parser.add_argument("--no-flip", action="store_true", help="leave the mirrored image out")
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
    for name in arguments.networks:
        parts, size = NETWORKS[name]
        size = tuple(arguments.size or size)
        for precision in arguments.precisions:
            against = arguments.baseline_precision or precision
            shared = {
                "parts": parts,
                "size": size,
                "scales": tuple(arguments.scales),
                "flip": not arguments.no_flip,
                "weights": arguments.weights,
                "photo": arguments.image,
                "device": arguments.device,
                "precision": precision,
                "against": against,
            }
            agreement = Agreement(AGREEMENT[precision])
            row = compare(
                name=f"eval {name} {precision}"
                + (f" against {against}" if against != precision else ""),
                size=f"{size[0]}x{size[1]} {{{','.join(f'{scale:g}' for scale in arguments.scales)}}}"
                + (" + flip" if shared["flip"] else ""),
                ours=ours,
                baseline=baseline,
                arguments=shared,
                check=agreement,
                device=arguments.device,
                rounds=arguments.rounds,
            )
            row["note"] = f"{100 * agreement.share:.3f} % of the pixels get the same label"
            rows.append(row)
    return rows


class Agreement:
    """Checks that two confusion matrices come from labels of which at least `least` agree, and remembers the share."""

    def __init__(self, least: float) -> None:
        self.least = least
        self.share = 0.0

    def __call__(self, ours: tuple[Tensor, Tensor], baseline: tuple[Tensor, Tensor]) -> None:
        self.share = float((ours[0].cpu() == baseline[0].cpu()).float().mean())
        if self.share < self.least:
            raise Disagreement(
                f"only {100 * self.share:.2f} % of the pixels get the same label, fewer than {100 * self.least:.2f} %."
            )
        if int(ours[1].sum()) != int(baseline[1].sum()):
            raise Disagreement(
                f"ours counted {int(ours[1].sum())} pixels and the baseline {int(baseline[1].sum())}."
            )


def ours(
    *, precision: str, against: str, scales: tuple[float, ...], flip: bool, device: str, **what: Any
) -> Workload:
    """Labels and confusion matrix as eval.py makes them."""
    model, image, label = _material(device=device, **what)
    model = prepare_for_inference(model, autocast_dtype=DTYPES[precision])
    image = image.contiguous(memory_format=torch.channels_last)

    def work() -> tuple[Tensor, Tensor]:
        matrix = ConfusionMatrix(CLASSES, IGNORE, device=device)
        predicted, _ = predict_label(
            model, image, scales=scales, flip=flip, autocast_dtype=DTYPES[precision]
        )
        matrix.update(predicted, label)
        return predicted, matrix.matrix

    return work


def baseline(
    *, precision: str, against: str, scales: tuple[float, ...], flip: bool, device: str, **what: Any
) -> Workload:
    """The straightforward way. The room's modules compute plainly where gradients are enabled; no tensor here asks for one."""
    model, image, label = _material(device=device, **what)
    model.requires_grad_(False)
    truth = label.numpy(force=True)

    def work() -> tuple[Tensor, Tensor]:
        with torch.enable_grad(), _autocast(device, DTYPES[against]):
            total: Tensor | None = None
            for mirrored in (False, True) if flip else (False,):
                maps = straightforward(model, image.flip(-1) if mirrored else image, scales)
                logits = maps["fused"]["logits"]
                logits = logits.flip(-1) if mirrored else logits
                total = logits if total is None else total + logits
            assert total is not None
            probabilities = (total / (2 if flip else 1)).float().softmax(1).numpy(force=True)
        predicted = probabilities.argmax(1)
        scored = truth != IGNORE
        counts = np.bincount(
            CLASSES * truth[scored].astype(np.int64) + predicted[scored], minlength=CLASSES**2
        )
        return torch.from_numpy(predicted), torch.from_numpy(counts.reshape(CLASSES, CLASSES))

    return work


def straightforward(
    model: Any, image: Tensor, scales: tuple[float, ...]
) -> dict[Any, dict[str, Tensor]]:
    """Every scale's maps at the size of its scaled image, and their chain under "fused"."""
    maps: dict[Any, dict[str, Tensor]] = {}
    for scale in scales:
        size = [int(side * scale) for side in image.shape[-2:]]
        scaled = _resize(image, size)
        decoded = model.decoder(model.trunk(scaled), with_aux=True)
        features = (
            decoded.features.whole() if isinstance(decoded.features, Raster) else decoded.features
        )
        maps[scale] = {
            "logits": _resize(decoded.logits, size),
            "attention": _resize(torch.sigmoid(model.attention(features)), size),
        }
        if decoded.aux is not None:
            maps[scale]["aux"] = _resize(decoded.aux, size)
    order = sorted(scales, reverse=True)
    fused = {name: value for name, value in maps[order[0]].items() if name != "attention"}
    for scale in order[1:]:
        attention = maps[scale]["attention"]
        for name, higher in fused.items():
            weighted = attention * maps[scale][name]
            if scale >= 1:
                fused[name] = weighted + (1 - attention) * _resize(higher, weighted.shape[-2:])
            else:
                fused[name] = (
                    _resize(weighted, higher.shape[-2:])
                    + (1 - _resize(attention, higher.shape[-2:])) * higher
                )
    maps["fused"] = {name: _resize(value, image.shape[-2:]) for name, value in fused.items()}
    return maps


def _resize(tensor: Tensor, size: Any) -> Tensor:
    return F.interpolate(tensor, size=tuple(size), mode="bilinear", align_corners=False)


def _autocast(device: str, dtype: torch.dtype | None) -> torch.autocast:
    return torch.autocast(
        torch.device(device).type, dtype=dtype or torch.bfloat16, enabled=dtype is not None
    )


def _material(
    *,
    parts: dict[str, Any],
    size: tuple[int, int],
    weights: str | None,
    device: str,
    photo: str | None = None,
) -> tuple[nn.Module, Tensor, Tensor]:
    """The network, a normalised image (the photo, or smooth noise), and a label of blocks."""
    torch.manual_seed(0)
    model = build_model(**parts, multiscale="hierarchical", num_classes=CLASSES)
    if weights is not None:
        load_weights(model, weights)
    model = model.to(device).eval()
    image = F.interpolate(
        torch.randn(1, 3, size[0] // 8, size[1] // 8), size=size, mode="bicubic"
    ).to(device)
    if photo is not None:
        pixels = cv2.resize(read_image(photo), size[::-1], interpolation=cv2.INTER_AREA)
        image = normalise(torch.from_numpy(pixels).permute(2, 0, 1)[None]).contiguous().to(device)
    label = torch.randint(
        0, CLASSES + 1, (1, -(-size[0] // 16), -(-size[1] // 16)), dtype=torch.uint8
    )
    label[label == CLASSES] = IGNORE
    label = (
        label.repeat_interleave(16, 1)
        .repeat_interleave(16, 2)[:, : size[0], : size[1]]
        .contiguous()
        .to(device)
    )
    return model, image, label
