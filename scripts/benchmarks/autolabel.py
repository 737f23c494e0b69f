"""The auto-labelling job against bare inference, and its PNG files against other encoders'.

Ours is what `autolabel.py` does with an image: read and decode it, predict, threshold on the
device, write the label. The baseline is the network alone, `model(image)` to logits at full size,
of an image that is on the device already; the target is at least 90 % of its images/s (ratio 0.9).
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image
from torch import nn

from hmsa.datasets import CITYSCAPES, Files, LabelPolicy, normalise
from hmsa.engine.autolabel import label_images
from hmsa.engine.build import Loaded, inference_options
from hmsa.engine.command_line import at_least
from hmsa.engine.label_images import LabellingJob
from hmsa.network import build_model
from hmsa.utils.config import Config
from hmsa.utils.files.png import encode_png
from hmsa.utils.runtime import autocast_dtype
from scripts.measuring.drawn_images import SMALLEST, draw_files, draw_pair
from scripts.measuring.harness import (
    Disagreement,
    Workload,
    peak_extra_mib,
    row,
    synchronise,
    time_alternately,
)

# Fresh classifiers give all classes nearly the same probability; weights so much larger tell the
# classes apart.
SPREAD = 40.0
# Random weights then keep some pixels and give up others.
THRESHOLD = 1.5 / CITYSCAPES.num_classes
# So many pixels must have the baseline's label; the job interpolates its logits strip by strip.
SHARE = 0.999
LEVELS = (1, 6)  # zlib's quickest and its default


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The network, and how much is labelled."""
    parser.add_argument(
        "--size",
        nargs=2,
        type=at_least(SMALLEST),
        default=[512, 1024],
        metavar=("H", "W"),
        help="of the images (default: %(default)s)",
    )
    parser.add_argument(
        "--images", type=at_least(1), default=8, help="images of a round (default: %(default)s)"
    )

    parser.add_argument("--trunk", default="resnet50", help="(default: %(default)s)")
    parser.add_argument("--decoder", default="deeplabv3plus", help="(default: %(default)s)")
    parser.add_argument(
        "--precision",
        default="fp32",
        choices=("fp32", "bf16", "fp16"),
        help="of both sides (default: %(default)s)",
    )
    parser.add_argument(
        "--workers",
        type=at_least(0),
        default=2,
        help="threads that decode ahead (default: %(default)s)",
    )
    parser.add_argument("--confidence", action="store_true", help="write confidence images too")


def run(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for the job, one for labels and one for confidences as PNG."""
    cv2.setNumThreads(0)
    size = (arguments.size[0], arguments.size[1])
    return [job_row(arguments, size), *png_rows(size, rounds=arguments.rounds)]


def job_row(arguments: argparse.Namespace, size: tuple[int, int]) -> dict[str, Any]:
    """Seconds an image of the whole job and of the bare network, taking turns."""
    with tempfile.TemporaryDirectory() as folder:
        files = draw_files(Path(folder), size=size, count=arguments.images)
        shared: dict[str, Any] = {
            "arguments": arguments,
            "files": files,
            "output": Path(folder) / "out",
        }
        bare, job = baseline(**shared), ours(**shared)
        require_same_labels(job(), bare(), Path(folder) / "out", files)

        def decode() -> None:
            for index in range(len(files)):
                files.read_image(index)

        medians = time_alternately(
            (job, bare, decode), device=arguments.device, rounds=arguments.rounds, warm_up=0
        )
        ours_s, bare_s, decode_s = (seconds / len(files) for seconds in medians)
        ours_mib, bare_mib = (
            peak_extra_mib(build, arguments=shared, device=arguments.device)
            for build in (ours, baseline)
        )

    result = row(
        name=f"autolabel {arguments.trunk} {arguments.decoder} {arguments.precision}",
        size=f"{size[0]}x{size[1]} {{1}}",
        device=arguments.device,
        ours_s=ours_s,
        baseline_s=bare_s,
        ours_mib=ours_mib,
        baseline_mib=bare_mib,
    )
    result["note"] = (
        f"{1 / ours_s:.2f} images/s of the job, {1 / bare_s:.2f} of the network alone: "
        f"{bare_s / ours_s:.1%}; decoding takes {1e3 * decode_s:.1f} ms an image in its threads"
    )
    return result


def build_network(arguments: argparse.Namespace, files: Files) -> nn.Module:
    """A network with random weights that tells classes apart."""
    torch.manual_seed(0)
    model = build_model(
        trunk=arguments.trunk,
        decoder=arguments.decoder,
        multiscale="single",
        num_classes=CITYSCAPES.num_classes,
    )

    # One image in training mode: batch norms learn what such images are like.
    image = normalise(torch.from_numpy(files.read_image(0))[None])
    model.train()
    with torch.no_grad():
        model(image)
        for name in model.decoder.classifiers:
            for parameter in model.decoder.get_submodule(name).parameters():
                parameter.mul_(SPREAD)
    model = model.to(arguments.device).eval()
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def ours(*, arguments: argparse.Namespace, files: Files, output: Path) -> Workload:
    """Every image labelled anew, as `autolabel.py` does it."""
    section = {
        "scales": [1.0],
        "precision": arguments.precision,
        "workers": arguments.workers,
        "confidence": arguments.confidence,
        "threshold": THRESHOLD,
    }
    config = Config.from_dict({"autolabel": section})
    model: Any = build_network(arguments, files)

    # The labels that were drawn beside the images are none of the job's business.
    job = LabellingJob(
        loaded=Loaded(model=model, config=config, spec=CITYSCAPES, sha256=""),
        files=replace(files, labels=None),
        options=inference_options(config.autolabel),
        policy=LabelPolicy(),
        output=output,
        thresholds=np.full(CITYSCAPES.num_classes, THRESHOLD),
        settings={"label_ids": "train", "threshold": THRESHOLD},
    )

    def work() -> int:
        return label_images(job, range(len(files)), show=False)

    return work


def baseline(*, arguments: argparse.Namespace, files: Files, output: Path) -> Workload:
    """The network alone, on images that are on the device already.

    A round's result are the labels of the first image, cut at the same threshold.
    """
    model = build_network(arguments, files)
    images = [
        normalise(torch.from_numpy(files.read_image(index))[None].to(arguments.device))
        for index in range(len(files))
    ]
    dtype = autocast_dtype(arguments.precision)
    kind = torch.device(arguments.device).type

    @torch.inference_mode()
    def work() -> np.ndarray:
        # The first image comes last, so that its logits are those that remain.
        with torch.autocast(kind, dtype=dtype, enabled=dtype is not None):
            for image in reversed(images):
                logits = model(image).logits
        synchronise(arguments.device)

        probability, label = logits[0].float().softmax(0).max(0)
        return torch.where(probability >= THRESHOLD, label, 255).cpu().numpy()

    return work


def require_same_labels(failed: int, expected: np.ndarray, output: Path, files: Files) -> None:
    """Raise Disagreement where the job failed or its first label is not the baseline's."""
    if failed:
        raise Disagreement(f"the job could not label {failed} images.")
    found = np.array(Image.open(output / f"{files.name(0)}.png"))
    share = float((found == expected).mean())
    if share < SHARE:
        raise Disagreement(
            f"only {share:.2%} of the pixels have the label that the network alone gives them."
        )


def png_rows(size: tuple[int, int], *, rounds: int) -> list[dict[str, Any]]:
    """A row for labels and one for confidences: our encoder against the quickest of the others.

    Ours at zlib's level 1; opencv, Pillow and torchvision at both levels. The note gives all times
    and sizes.
    """
    label = CITYSCAPES.to_train[draw_pair(size, seed=0)[1]]
    coarse = np.random.default_rng(0).random((size[0] // 32, size[1] // 32), dtype=np.float32)
    smooth = cv2.resize(coarse, size[::-1], interpolation=cv2.INTER_CUBIC)
    confidence = (np.clip(smooth, 0, 1) * 255).astype(np.uint8)

    rows = []
    for name, array in (("labels", label), ("confidences", confidence)):
        encoders = all_encoders(array)
        _require_lossless(name, array, encoders)

        medians = time_alternately(tuple(encoders.values()), rounds=rounds)
        seconds = dict(zip(encoders, medians, strict=True))
        others = [taken for key, taken in seconds.items() if not key.startswith("ours")]
        result = row(
            name=f"png {name}",
            size=f"{size[0]}x{size[1]}",
            device="cpu",
            ours_s=seconds["ours 1"],
            baseline_s=min(others),
        )
        result["note"] = "; ".join(
            f"{key}: {1e3 * taken:.1f} ms, {len(encoders[key]()) / 1024:.1f} KiB"
            for key, taken in seconds.items()
        )
        rows.append(result)
    return rows


def _require_lossless(
    name: str, array: np.ndarray, encoders: dict[str, Callable[[], bytes]]
) -> None:
    """Raise Disagreement where a file does not hold the pixels it was made of."""
    for encode in encoders.values():
        decoded = cv2.imdecode(np.frombuffer(encode(), np.uint8), cv2.IMREAD_UNCHANGED)
        if decoded is None or not np.array_equal(decoded, array):
            raise Disagreement(f"png {name}: an encoder changes pixels.")


def all_encoders(array: np.ndarray) -> dict[str, Callable[[], bytes]]:
    """Encoders of `array` by name and compression level, torchvision's where it is installed."""

    def by_opencv(level: int) -> bytes:
        done, data = cv2.imencode(".png", array, [cv2.IMWRITE_PNG_COMPRESSION, level])
        assert done
        return data.tobytes()

    def by_pillow(level: int) -> bytes:
        buffer = BytesIO()
        Image.fromarray(array).save(buffer, "png", compress_level=level)
        return buffer.getvalue()

    encoders: dict[str, Callable[[], bytes]] = {}
    for level in LEVELS:
        encoders[f"ours {level}"] = partial(encode_png, array, level=level)
    for level in LEVELS:
        encoders[f"opencv {level}"] = partial(by_opencv, level)
        encoders[f"Pillow {level}"] = partial(by_pillow, level)

    try:
        from torchvision.io import encode_png as torchvision_encode
    except ImportError:
        return encoders

    tensor = torch.from_numpy(array)[None]

    def by_torchvision(level: int) -> bytes:
        return bytes(torchvision_encode(tensor, compression_level=level).numpy())

    for level in LEVELS:
        encoders[f"torchvision {level}"] = partial(by_torchvision, level)
    return encoders
