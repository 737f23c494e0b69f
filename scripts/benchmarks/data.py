"""The training pipeline of one process, from PNG files to a batch: ours, with and without the decoded cache, against plain Pillow.

Both sides use the same files, the same draws of scale, crop, flip, colour and blur, and one thread. Ours ends with the uint8 batch that goes to the
device (which normalises it), the baseline with the normalised float tensor that such a pipeline collates.
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
from PIL import Image, ImageEnhance, ImageFilter

from hmsa.datasets import CITYSCAPES, Augmentation, Files, build_cache, sample_generator
from hmsa.datasets.augment.augmentation import (
    Geometry,
    Photometric,
    draw_geometry,
    draw_photometric,
)
from hmsa.datasets.files import pack
from hmsa.datasets.loading.loader import Request, Source, TrainReader
from scripts.benchmarks.harness import Disagreement, Workload, row, size_text, time_alternately

Maker = Callable[[int, int], Any]  # sample of (position in the plan, image)
SEED, EPOCH, BORDER = 0, 0, 255
AUTHORS = {
    (1024, 1024): "5.5 images/s with blur, 7.3 without",
    (1024, 2048): "3.3 images/s with blur, 5.6 without",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Sizes, and how much is drawn."""
    parser.add_argument(
        "--crops",
        nargs="+",
        type=size_text("HxW"),
        default=["1024x1024", "1024x2048"],
        metavar="HxW",
        help="default: %(default)s",
    )
    parser.add_argument(
        "--image",
        type=size_text("HxW"),
        default="1024x2048",
        metavar="HxW",
        help="size of the images (default: %(default)s)",
    )
    parser.add_argument(
        "--images", type=int, default=6, help="image pairs drawn (default: %(default)s)"
    )
    parser.add_argument(
        "--samples", type=int, default=12, help="samples of a round (default: %(default)s)"
    )
    parser.add_argument(
        "--blur", choices=("gaussian", "none"), default="gaussian", help="default: %(default)s"
    )


def run(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """For each crop a row from PNG files and one from the decoded cache."""
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    with tempfile.TemporaryDirectory() as folder:
        files = draw_files(Path(folder), size=_size(arguments.image), count=arguments.images)
        rows = []
        for crop in map(_size, arguments.crops):
            augmentation = Augmentation(crop=crop, blur=arguments.blur)
            rows += measure(files, augmentation, samples=arguments.samples, rounds=arguments.rounds)
    return rows


def measure(
    files: Files, augmentation: Augmentation, *, samples: int, rounds: int
) -> list[dict[str, Any]]:
    """Seconds a sample of our pipeline, of ours from the decoded cache, of the baseline, and of decoding alone, taking turns."""
    cache = build_cache(files, kind="memmap", cache_dir=files.root)
    places = [(position, position % len(files)) for position in range(samples)]
    ours, cached = (_ours(Source(files, stored), augmentation) for stored in (None, cache))

    def baseline(position: int, index: int) -> Any:
        return pillow_sample(files, index, position, augmentation)

    for position, index in places:
        require_same_picture(ours(position, index), baseline(position, index))
    makers = (ours, cached, baseline, lambda position, index: files.read_image(index))
    workloads = tuple(_one_by_one(make, places) for make in makers)
    ours_s, cached_s, baseline_s, decoding_s = (
        seconds / samples for seconds in time_alternately(workloads, rounds=rounds)
    )
    crop = augmentation.crop
    size = f"crop {crop[0]}x{crop[1]} blur {augmentation.blur}"
    from_png = row(name="data", size=size, device="cpu", ours_s=ours_s, baseline_s=baseline_s)
    from_cache = row(
        name="data cached", size=size, device="cpu", ours_s=cached_s, baseline_s=baseline_s
    )
    megabytes = (
        np.mean([files.image_path(index).stat().st_size for index in range(len(files))]) / 1e6
    )
    authors = (
        f"; the authors' pipeline: {AUTHORS[crop]}, on another machine" if crop in AUTHORS else ""
    )
    from_png["note"] = (
        f"{1 / ours_s:.1f} images/s per process against {1 / baseline_s:.1f}; decoding the PNG of {megabytes:.1f} MB alone takes "
        f"{1e3 * decoding_s:.1f} ms, {decoding_s / ours_s:.0%} of ours{authors}"
    )
    from_cache["note"] = f"{1 / cached_s:.1f} images/s per process from raw pixels in a memory map"
    return [from_png, from_cache]


def _ours(source: Source, augmentation: Augmentation) -> Maker:
    reader = TrainReader([source], augmentation=augmentation, seed=SEED, photometric=True)
    return lambda position, index: reader.read([Request(EPOCH, position, 0, index, -1, -1)])


def _one_by_one(make: Maker, places: list[tuple[int, int]]) -> Workload:
    """Every sample is let go when the next is made, as a worker does: what keeps them all measures the system's handing out of memory instead."""

    def workload() -> None:
        for position, index in places:
            make(position, index)

    return workload


def pillow_sample(
    files: Files, index: int, position: int, augmentation: Augmentation
) -> tuple[torch.Tensor, torch.Tensor]:
    """The usual pipeline: decode, scale the whole image, pad, crop, flip, jitter, blur, to tensor, normalise; image [3, h, w] and label [h, w]."""
    image = Image.open(files.image_path(index)).convert("RGB")
    label = Image.open(str(files.label_path(index))).convert("L")
    rng = sample_generator(SEED, EPOCH, position)
    strengths = draw_photometric(augmentation, rng)
    geometry = draw_geometry((image.height, image.width), augmentation=augmentation, rng=rng)
    image, label = _place(image, label, geometry, augmentation.crop)
    image = _recolor(image, strengths)
    if strengths.sigma > 0:
        image = image.filter(ImageFilter.GaussianBlur(strengths.sigma))
    values = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().float().div(255)
    values = values.sub(torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)).div(
        torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    )
    return values, torch.from_numpy(files.spec.to_train[np.array(label)].astype(np.int64))


def _place(
    image: Image.Image, label: Image.Image, geometry: Geometry, crop: tuple[int, int]
) -> tuple[Image.Image, Image.Image]:
    """Scale by the drawn factors, pad or cut to the crop at the drawn place, flip."""
    rows, columns = geometry.rows, geometry.columns
    size = (round(image.width * columns.factor), round(image.height * rows.factor))
    box = (
        round(columns.start * columns.factor) - columns.offset,
        round(rows.start * rows.factor) - rows.offset,
    )
    image, label = (
        image.resize(size, Image.Resampling.BICUBIC),
        label.resize(size, Image.Resampling.NEAREST),
    )
    canvas, label_canvas = Image.new("RGB", crop[::-1]), Image.new("L", crop[::-1], BORDER)
    canvas.paste(image, (-box[0], -box[1]))
    label_canvas.paste(label, (-box[0], -box[1]))
    if geometry.flip:
        canvas = canvas.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        label_canvas = label_canvas.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return canvas, label_canvas


def _recolor(image: Image.Image, strengths: Photometric) -> Image.Image:
    image = ImageEnhance.Brightness(image).enhance(strengths.brightness)
    image = ImageEnhance.Contrast(image).enhance(strengths.contrast)
    image = ImageEnhance.Color(image).enhance(strengths.saturation)
    hue, saturation, value = image.convert("HSV").split()
    turned = Image.fromarray(np.array(hue) + np.uint8(round(256 * strengths.hue) % 256))
    return Image.merge("HSV", (turned, saturation, value)).convert("RGB")


def require_same_picture(ours: dict[str, Any], baseline: tuple[torch.Tensor, torch.Tensor]) -> None:
    """Both show the same: labels agree away from their borders, images in their local means (but where padding, which the baseline recolours too, has
    changed the mean grey that contrast is about)."""
    label = ours["label"][0].numpy()
    inner = cv2.erode(label, np.ones((5, 5))) == cv2.dilate(label, np.ones((5, 5)))
    agreement = (label == baseline[1].numpy())[inner].mean()
    if not agreement > 0.999:
        raise Disagreement(f"data: only {agreement:.1%} of the labels agree with the baseline's.")
    if ours["region"][0].tolist() != [0, baseline[1].shape[0], 0, baseline[1].shape[1]]:
        return
    mean, std = (
        torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1),
        torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1),
    )
    pictures = [ours["image"][0].float(), (baseline[0] * std + mean) * 255]
    means = [torch.nn.functional.avg_pool2d(picture, 16) for picture in pictures]
    difference = (means[0] - means[1]).abs().mean().item()
    if difference > 4:
        raise Disagreement(
            f"data: local means differ from the baseline's by {difference:.1f} levels."
        )


def draw_files(folder: Path, *, size: tuple[int, int], count: int) -> Files:
    """Street-like PNG pairs: smooth regions with borders in common with their labels, texture, and noise as a camera's, 3 to 4 MB at 1024 x 2048."""
    for index in range(count):
        image, label = draw_pair(size, seed=index)
        Image.fromarray(image).save(folder / f"{index}.image.png")
        Image.fromarray(label).save(folder / f"{index}.label.png")
    names = [str(index) for index in range(count)]
    images, labels = (pack(f"{name}.{what}.png" for name in names) for what in ("image", "label"))
    return Files(
        spec=CITYSCAPES, split="drawn", root=folder, images=images, labels=labels, names=pack(names)
    )


def draw_pair(size: tuple[int, int], *, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Image uint8 [H, W, 3] and label of raw ids uint8 [H, W]: overlapping ellipses, some as thin as poles, of the 19 classes."""
    rng = np.random.default_rng(seed)
    height, width = size
    label = np.full(size, CITYSCAPES.to_raw[10], dtype=np.uint8)
    label[height // 2 :] = CITYSCAPES.to_raw[0]
    for _ in range(max(20, 300 * height * width // 2**21)):
        centre = (int(rng.integers(width)), int(rng.integers(height)))
        axes = (int(rng.integers(2, width // 12)), int(rng.integers(2, height // 6)))
        cv2.ellipse(
            label,
            centre,
            axes,
            float(rng.uniform(0, 180)),
            0,
            360,
            int(CITYSCAPES.to_raw[rng.integers(19)]),
            -1,
        )
    colours = rng.integers(20, 220, (256, 3)).astype(np.float32)
    coarse = rng.normal(0, 14, (height // 16, width // 16, 3)).astype(np.float32)
    image = (
        colours[label]
        + cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
        + rng.normal(0, 2.5, (*size, 3))
    )
    return np.clip(image, 0, 255).astype(np.uint8), label


def _size(text: str) -> tuple[int, int]:
    height, width = text.split("x")
    return int(height), int(width)
