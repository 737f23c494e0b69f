"""Scoring and writing label maps: our counting and our PNG against the usual ways.

The usual ways are a masked bincount, and opencv's encoder. Made-up street-like labels: blocks of
classes, 5 % ignored, 10 % of the pixels predicted wrong. Ours and baseline get the same uint8
tensors; what they return is compared exactly.
"""

from __future__ import annotations

import argparse
import math
from typing import Any

import cv2
import numpy as np
import torch

from hmsa.engine.command_line import at_least
from hmsa.utils.files.png import encode_png
from hmsa.utils.metrics.confusion import ConfusionMatrix
from scripts.measuring.harness import Disagreement, Workload, compare

IGNORE = 255
BLOCK = 32  # side of a block of equal labels in pixels


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Sizes of the label maps and the numbers of classes."""
    parser.add_argument(
        "--size",
        nargs=2,
        type=at_least(16),
        default=(1024, 2048),
        metavar=("HEIGHT", "WIDTH"),
        help="(default: 1024 2048)",
    )
    parser.add_argument(
        "--classes", nargs="+", type=at_least(1), default=(19, 66), help="(default: 19 66)"
    )


def run(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each number of classes, then one for the file of a label map."""
    height, width = arguments.size
    rows = []
    for classes in arguments.classes:
        inputs = {"height": height, "width": width, "classes": classes, "device": arguments.device}
        row = compare(
            name="confusion",
            size=f"{height}x{width}x{classes}",
            ours=count_ours,
            baseline=count_masked,
            arguments=inputs,
            check=require_equal,
            device=arguments.device,
            rounds=arguments.rounds,
        )
        rows.append(row)

    # Encoding happens on the CPU whatever the device.
    inputs = {"height": height, "width": width, "classes": 19}
    encoding = compare(
        name="label_png",
        size=f"{height}x{width}",
        ours=encode_ours,
        baseline=encode_opencv,
        arguments=inputs,
        check=require_same_picture,
        rounds=arguments.rounds,
    )
    ours, theirs = (len(build(**inputs)()) for build in (encode_ours, encode_opencv))
    encoding["note"] = f"{ours} bytes against {theirs}"
    return [*rows, encoding]


def made_up(height: int, width: int, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """(predicted, label), both uint8 [H, W]."""
    rng = np.random.default_rng(0)
    coarse_size = (math.ceil(height / BLOCK), math.ceil(width / BLOCK))
    coarse = rng.integers(0, classes, coarse_size).astype(np.uint8)
    label = np.kron(coarse, np.ones((BLOCK, BLOCK), dtype=np.uint8))[:height, :width].copy()

    # A prediction is wrong along borders, as networks are, and in patches.
    predicted = cv2.medianBlur(np.roll(label, 3, axis=1), 9)
    patches = rng.random((height // 16, width // 16)).astype(np.float32)
    wrong = cv2.resize(patches, (width, height), interpolation=cv2.INTER_NEAREST) < 0.1
    predicted[wrong] = (predicted[wrong] + 1) % classes

    label[rng.random(label.shape) < 0.05] = IGNORE
    return predicted, label


def count_ours(*, height: int, width: int, classes: int, device: str) -> Workload:
    """ConfusionMatrix.update."""
    predicted, label = _on_device(made_up(height, width, classes), device)

    def count() -> torch.Tensor:
        matrix = ConfusionMatrix(classes, ignore_label=IGNORE, device=device)
        matrix.update(predicted, label)
        return matrix.matrix

    return count


def count_masked(*, height: int, width: int, classes: int, device: str) -> Workload:
    """What metric libraries do: take the valid pixels, number the pairs in int64, count them."""
    predicted, label = _on_device(made_up(height, width, classes), device)

    def count() -> torch.Tensor:
        flat_predicted, flat_label = predicted.flatten(), label.flatten()
        valid = flat_label != IGNORE
        pairs = flat_label[valid].long() * classes + flat_predicted[valid].long()
        return torch.bincount(pairs, minlength=classes**2).reshape(classes, classes)

    return count


def _on_device(
    arrays: tuple[np.ndarray, np.ndarray], device: str
) -> tuple[torch.Tensor, torch.Tensor]:
    predicted, label = arrays
    return torch.from_numpy(predicted).to(device), torch.from_numpy(label).to(device)


def encode_ours(*, height: int, width: int, classes: int) -> Workload:
    """A label map as PNG by hmsa.utils.files.png."""
    predicted = made_up(height, width, classes)[0]
    return lambda: encode_png(predicted)


def encode_opencv(*, height: int, width: int, classes: int) -> Workload:
    """The same by opencv at the same level of compression."""
    predicted = made_up(height, width, classes)[0]
    return lambda: cv2.imencode(".png", predicted, [cv2.IMWRITE_PNG_COMPRESSION, 1])[1].tobytes()


def require_equal(ours: torch.Tensor, baseline: torch.Tensor) -> None:
    """Raise Disagreement unless the counts are equal."""
    if not torch.equal(ours, baseline):
        raise Disagreement(f"counts differ by up to {(ours - baseline).abs().max().item()}.")


def require_same_picture(ours: bytes, baseline: bytes) -> None:
    """Raise Disagreement unless both files hold the same ids."""
    first, second = (
        cv2.imdecode(np.frombuffer(data, dtype=np.uint8), cv2.IMREAD_UNCHANGED)
        for data in (ours, baseline)
    )
    if first is None or second is None or not np.array_equal(first, second):
        raise Disagreement("the two PNG files hold different ids.")
