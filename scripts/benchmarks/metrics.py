"""Scoring and writing label maps: our counting against the usual masked bincount, our PNG against opencv's.

Made-up street-like labels: blocks of classes, 5 % ignored, 10 % of the pixels predicted wrong. Ours and baseline get the
same uint8 tensors; what they return is compared exactly.
"""

from __future__ import annotations

import argparse
import math
from typing import Any

import cv2
import numpy as np
import torch

from hmsa.utils.files.png import encode_png
from hmsa.utils.metrics.confusion import ConfusionMatrix
from scripts.benchmarks.harness import Disagreement, Workload, compare

IGNORE = 255


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Sizes of the label maps and the numbers of classes."""
    parser.add_argument(
        "--size",
        nargs=2,
        type=int,
        default=(1024, 2048),
        metavar=("HEIGHT", "WIDTH"),
        help="(default: 1024 2048)",
    )
    parser.add_argument("--classes", nargs="+", type=int, default=(19, 66), help="(default: 19 66)")


def run(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each number of classes, then the file of one label map."""
    height, width = arguments.size
    common = {"device": arguments.device, "rounds": arguments.rounds}
    rows = []
    for classes in arguments.classes:
        inputs = {"height": height, "width": width, "classes": classes, "device": arguments.device}
        size = f"{height}x{width}x{classes}"
        rows.append(
            compare(
                name="confusion",
                size=size,
                ours=count_ours,
                baseline=count_masked,
                arguments=inputs,
                check=require_equal,
                **common,
            )
        )
    inputs = {"height": height, "width": width, "classes": 19}
    size = f"{height}x{width}"
    rows.append(
        compare(
            name="label_png",
            size=size,
            ours=encode_ours,
            baseline=encode_opencv,
            arguments=inputs,
            check=require_same_picture,
            rounds=arguments.rounds,
        )
    )
    ours, theirs = (len(build(**inputs)()) for build in (encode_ours, encode_opencv))
    rows[-1]["note"] = f"{ours} bytes against {theirs}"
    return rows


def made_up(height: int, width: int, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """(predicted, label), uint8 [H, W]."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, classes, (math.ceil(height / 32), math.ceil(width / 32))).astype(
        np.uint8
    )
    label = np.kron(coarse, np.ones((32, 32), dtype=np.uint8))[:height, :width].copy()
    predicted = cv2.medianBlur(np.roll(label, 3, axis=1), 9)
    wrong = (
        cv2.resize(
            rng.random((height // 16, width // 16)).astype(np.float32),
            (width, height),
            interpolation=cv2.INTER_NEAREST,
        )
        < 0.1
    )
    predicted[wrong] = (predicted[wrong] + 1) % classes
    label[rng.random(label.shape) < 0.05] = IGNORE
    return predicted, label


def count_ours(*, height: int, width: int, classes: int, device: str) -> Workload:
    """ConfusionMatrix.update."""
    predicted, label = (
        torch.from_numpy(array).to(device) for array in made_up(height, width, classes)
    )

    def count() -> torch.Tensor:
        matrix = ConfusionMatrix(classes, ignore_label=IGNORE, device=device)
        matrix.update(predicted, label)
        return matrix.matrix

    return count


def count_masked(*, height: int, width: int, classes: int, device: str) -> Workload:
    """What metric libraries do: take the valid pixels, number the pairs in int64, count them."""
    predicted, label = (
        torch.from_numpy(array).to(device) for array in made_up(height, width, classes)
    )

    def count() -> torch.Tensor:
        flat_predicted, flat_label = predicted.flatten(), label.flatten()
        valid = flat_label != IGNORE
        pairs = flat_label[valid].long() * classes + flat_predicted[valid].long()
        return torch.bincount(pairs, minlength=classes**2).reshape(classes, classes)

    return count


def encode_ours(*, height: int, width: int, classes: int) -> Workload:
    """A label map as PNG by utils.png."""
    predicted = made_up(height, width, classes)[0]
    return lambda: encode_png(predicted)


def encode_opencv(*, height: int, width: int, classes: int) -> Workload:
    """The same by opencv at the same level of compression."""
    predicted = made_up(height, width, classes)[0]
    return lambda: cv2.imencode(".png", predicted, [cv2.IMWRITE_PNG_COMPRESSION, 1])[1].tobytes()


def require_equal(ours: torch.Tensor, baseline: torch.Tensor) -> None:
    """Counts are equal."""
    if not torch.equal(ours, baseline):
        raise Disagreement(f"counts differ by up to {(ours - baseline).abs().max().item()}.")


def require_same_picture(ours: bytes, baseline: bytes) -> None:
    """Both files hold the same ids."""
    first, second = (
        cv2.imdecode(np.frombuffer(data, dtype=np.uint8), cv2.IMREAD_UNCHANGED)
        for data in (ours, baseline)
    )
    if first is None or second is None or not np.array_equal(first, second):
        raise Disagreement("the two PNG files hold different ids.")
