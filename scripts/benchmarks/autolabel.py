"""The auto-labelling job against bare inference, and the PNG files it writes against those of other encoders.

Ours is what `autolabel.py` does with an image: read and decode it, predict, threshold on the device, write the label. The baseline is the network
alone, `model(image)` to logits at full size, of an image that is on the device already; the target is at least 90 % of its images/s (ratio 0.9).
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image
from torch import nn

from hmsa.datasets import CITYSCAPES, Files, LabelPolicy, normalise
from hmsa.engine import autolabel
from hmsa.engine.build import Inference, Loaded
from hmsa.network import build_model
from hmsa.utils.config import Config
from hmsa.utils.files.png import encode_png
from hmsa.utils.runtime import autocast_dtype
from scripts.benchmarks.data import draw_files, draw_pair
from scripts.benchmarks.harness import (
    Disagreement,
    Workload,
    peak_extra_mib,
    row,
    synchronise,
    time_alternately,
)

SPREAD = 40.0  # fresh classifiers give all classes nearly the same probability; so much larger weights tell them apart
THRESHOLD = (
    1.5 / CITYSCAPES.num_classes
)  # at which random weights keep some pixels and give up others
SHARE = 0.999  # of the pixels must have the baseline's label; the job's logits are interpolated strip by strip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The network, and how much is labelled."""
    parser.add_argument(
        "--size",
        nargs=2,
        type=int,
        default=[512, 1024],
        metavar=("H", "W"),
        help="of the images (default: %(default)s)",
    )
    parser.add_argument(
        "--images", type=int, default=8, help="images of a round (default: %(default)s)"
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
        "--workers", type=int, default=2, help="threads that decode ahead (default: %(default)s)"
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
        seconds = time_alternately(
            (job, bare, reading(files)), device=arguments.device, rounds=arguments.rounds, warm_up=0
        )
        ours_s, bare_s, decode_s = (taken / len(files) for taken in seconds)
        memory = [
            peak_extra_mib(build, arguments=shared, device=arguments.device)
            for build in (ours, baseline)
        ]
    name = f"autolabel {arguments.trunk} {arguments.decoder} {arguments.precision}"
    result = row(
        name=name,
        size=f"{size[0]}x{size[1]} {{1}}",
        device=arguments.device,
        ours_s=ours_s,
        baseline_s=bare_s,
        ours_mib=memory[0],
        baseline_mib=memory[1],
    )
    result["note"] = (
        f"{1 / ours_s:.2f} images/s of the job, {1 / bare_s:.2f} of the network alone: {bare_s / ours_s:.1%}; decoding takes {1e3 * decode_s:.1f} ms "
        f"an image in its threads"
    )
    return result


def material(arguments: argparse.Namespace, files: Files) -> tuple[nn.Module, Config]:
    """The network with random weights, its batch norms used to the images and its classes told apart, and a configuration for it."""
    torch.manual_seed(0)
    config = Config.from_dict(
        {
            "autolabel": {
                "scales": [1.0],
                "precision": arguments.precision,
                "workers": arguments.workers,
                "confidence": arguments.confidence,
                "threshold": THRESHOLD,
            }
        }
    )
    model = build_model(
        trunk=arguments.trunk,
        decoder=arguments.decoder,
        multiscale="single",
        num_classes=CITYSCAPES.num_classes,
    )
    image = normalise(torch.from_numpy(files.read_image(0))[None])
    model.train()
    with torch.no_grad():
        model(image)
        for name in model.decoder.classifiers:
            for parameter in model.decoder.get_submodule(name).parameters():
                parameter.mul_(SPREAD)
    return model.to(arguments.device, memory_format=torch.channels_last).eval(), config  # type: ignore[call-overload]


def ours(*, arguments: argparse.Namespace, files: Files, output: Path) -> Workload:
    """Every image labelled anew, as the door does it."""
    model, config = material(arguments, files)
    unlabelled = Files(
        spec=files.spec,
        split=files.split,
        root=files.root,
        images=files.images,
        labels=None,
        names=files.names,
    )
    loaded = Loaded(model=model, config=config, spec=CITYSCAPES, sha256="")  # type: ignore[arg-type]
    settings = {"label_ids": "train", "threshold": config.autolabel.threshold}
    thresholds = np.full(CITYSCAPES.num_classes, config.autolabel.threshold)
    job = autolabel.Job(
        loaded,
        unlabelled,
        Inference.of(config.autolabel),
        LabelPolicy(),
        output,
        thresholds,
        settings,
    )

    def work() -> int:
        return autolabel.label_images(job, range(len(files)), show=False)

    return work


def baseline(*, arguments: argparse.Namespace, files: Files, output: Path) -> Workload:
    """The network on images that are on the device already; returns the labels of the last round's first image, cut at the same threshold."""
    model, _ = material(arguments, files)
    images = [
        normalise(torch.from_numpy(files.read_image(index))[None].to(arguments.device))
        for index in range(len(files))
    ]
    half = autocast_dtype(arguments.precision)

    @torch.inference_mode()
    def work() -> np.ndarray:
        with torch.autocast(
            torch.device(arguments.device).type, dtype=half, enabled=half is not None
        ):
            for image in reversed(images):
                logits = model(image).logits
        synchronise(arguments.device)
        probability, label = logits[0].float().softmax(0).max(0)
        return torch.where(probability >= THRESHOLD, label, 255).cpu().numpy()

    return work


def reading(files: Files) -> Workload:
    """Decoding alone."""
    return lambda: [files.read_image(index) for index in range(len(files))]


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
    """Ours at zlib's level 1 against the quickest of opencv, Pillow and torchvision at theirs; the note gives all times and sizes."""
    label = CITYSCAPES.to_train[draw_pair(size, seed=0)[1]]
    smooth = cv2.resize(
        np.random.default_rng(0).random((size[0] // 32, size[1] // 32), dtype=np.float32),
        size[::-1],
        interpolation=cv2.INTER_CUBIC,
    )
    rows = []
    for name, array in (
        ("labels", label),
        ("confidences", (np.clip(smooth, 0, 1) * 255).astype(np.uint8)),
    ):
        encoders = all_encoders(array)
        for encode in encoders.values():
            decoded = cv2.imdecode(np.frombuffer(encode(), np.uint8), cv2.IMREAD_UNCHANGED)
            if decoded is None or not np.array_equal(decoded, array):
                raise Disagreement(f"png {name}: an encoder changes pixels.")
        seconds = dict(
            zip(encoders, time_alternately(tuple(encoders.values()), rounds=rounds), strict=True)
        )
        others = {key: taken for key, taken in seconds.items() if not key.startswith("ours")}
        result = row(
            name=f"png {name}",
            size=f"{size[0]}x{size[1]}",
            device="cpu",
            ours_s=seconds["ours 1"],
            baseline_s=min(others.values()),
        )
        result["note"] = "; ".join(
            f"{key}: {1e3 * taken:.1f} ms, {len(encoders[key]()) / 1024:.1f} KiB"
            for key, taken in seconds.items()
        )
        rows.append(result)
    return rows


def all_encoders(array: np.ndarray) -> dict[str, Callable[[], bytes]]:
    """Encoders by name and compression level: ours, opencv, Pillow, and torchvision where it is installed."""

    def by_opencv(level: int) -> bytes:
        done, data = cv2.imencode(".png", array, [cv2.IMWRITE_PNG_COMPRESSION, level])
        assert done
        return data.tobytes()

    def by_pillow(level: int) -> bytes:
        from io import BytesIO

        buffer = BytesIO()
        Image.fromarray(array).save(buffer, "png", compress_level=level)
        return buffer.getvalue()

    found: dict[str, Callable[[], bytes]] = {}
    for level in (1, 6):
        found[f"ours {level}"] = lambda level=level: encode_png(array, level=level)  # type: ignore[misc]
    for level in (1, 6):
        found[f"opencv {level}"] = lambda level=level: by_opencv(level)  # type: ignore[misc]
        found[f"Pillow {level}"] = lambda level=level: by_pillow(level)  # type: ignore[misc]
    try:
        from torchvision.io import encode_png as by_torchvision
    except ImportError:
        return found
    tensor = torch.from_numpy(array)[None]
    for level in (1, 6):
        found[f"torchvision {level}"] = lambda level=level: bytes(
            by_torchvision(tensor, compression_level=level).numpy()
        )  # type: ignore[misc]
    return found
