"""The training pipeline of one process, from PNG files to a batch, against plain Pillow.

Ours is measured with and without the decoded cache. Both sides use the same files, the same draws
of scale, crop, flip, colour and blur, and one thread. Ours ends with the uint8 batch that goes to
the device (which normalises it), the baseline with the normalised float tensor that such a pipeline
collates.
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
from torch import Tensor

from hmsa.datasets import Augmentation, Files, build_cache, sample_generator
from hmsa.datasets.augment.augmentation import (
    Geometry,
    Photometric,
    draw_geometry,
    draw_photometric,
)
from hmsa.datasets.loading.loader import Request, SampleSource, TrainReader
from hmsa.engine.command_line import at_least
from scripts.measuring.drawn_images import draw_files
from scripts.measuring.harness import (
    Disagreement,
    Workload,
    numbers_of,
    row,
    size_text,
    time_alternately,
)

# A function that makes the sample of (position in the plan of the epoch, index of the image).
SampleMaker = Callable[[int, int], Any]
SEED, EPOCH, BORDER = 0, 0, 255
# ImageNet's mean and deviation of each channel, as torchvision's recipes have them.
MEAN = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
DEVIATION = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
# Measured once with the released code (https://github.com/NVIDIA/semantic-segmentation).
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
        "--images", type=at_least(1), default=6, help="image pairs drawn (default: %(default)s)"
    )
    parser.add_argument(
        "--samples",
        type=at_least(1),
        default=12,
        help="samples of a round (default: %(default)s)",
    )
    parser.add_argument(
        "--blur", choices=("gaussian", "none"), default="gaussian", help="default: %(default)s"
    )


def run(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """For each crop a row from PNG files and one from the decoded cache."""
    # A training runs one such process for each core.
    torch.set_num_threads(1)
    cv2.setNumThreads(0)

    height, width = numbers_of(arguments.image)
    with tempfile.TemporaryDirectory() as folder:
        files = draw_files(Path(folder), size=(height, width), count=arguments.images)
        rows = []
        for crop in arguments.crops:
            crop_height, crop_width = numbers_of(crop)
            augmentation = Augmentation(crop=(crop_height, crop_width), blur=arguments.blur)
            rows += measure(files, augmentation, samples=arguments.samples, rounds=arguments.rounds)
    return rows


def measure(
    files: Files, augmentation: Augmentation, *, samples: int, rounds: int
) -> list[dict[str, Any]]:
    """Seconds a sample of ours, of ours from the cache, of the baseline and of decoding alone."""
    cache = build_cache(files, kind="memmap", cache_dir=files.root)
    plan = [(position, position % len(files)) for position in range(samples)]
    from_files = our_samples(SampleSource(files), augmentation)
    from_cache = our_samples(SampleSource(files, cache), augmentation)

    def baseline(position: int, index: int) -> Any:
        return pillow_sample(files, index, position, augmentation)

    def decoding(position: int, index: int) -> Any:
        return files.read_image(index)

    for position, index in plan:
        require_same_picture(from_files(position, index), baseline(position, index))
    workloads = tuple(
        _one_by_one(make, plan) for make in (from_files, from_cache, baseline, decoding)
    )
    medians = time_alternately(workloads, rounds=rounds)
    files_s, cached_s, baseline_s, decoding_s = (seconds / samples for seconds in medians)

    crop = augmentation.crop
    size = f"crop {crop[0]}x{crop[1]} blur {augmentation.blur}"
    rows = [
        row(name="data", size=size, device="cpu", ours_s=files_s, baseline_s=baseline_s),
        row(name="data cached", size=size, device="cpu", ours_s=cached_s, baseline_s=baseline_s),
    ]

    # What decoding takes is the floor of every pipeline that begins with PNG files.
    sizes = [files.image_path(index).stat().st_size for index in range(len(files))]
    rows[0]["note"] = (
        f"{1 / files_s:.1f} images/s per process against {1 / baseline_s:.1f}; "
        f"decoding the PNG of {np.mean(sizes) / 1e6:.1f} MB alone takes "
        f"{1e3 * decoding_s:.1f} ms, {decoding_s / files_s:.0%} of ours"
    )
    if crop in AUTHORS:
        rows[0]["note"] += f"; the authors' pipeline: {AUTHORS[crop]}, on another machine"
    rows[1]["note"] = f"{1 / cached_s:.1f} images/s per process from raw pixels in a memory map"
    return rows


def our_samples(source: SampleSource, augmentation: Augmentation) -> SampleMaker:
    """Our pipeline: batches of one sample."""
    reader = TrainReader([source], augmentation=augmentation, seed=SEED, photometric=True)

    def make(position: int, index: int) -> Any:
        # No point (-1, -1): the crop lies anywhere, not around a pixel of a class.
        return reader.read([Request(EPOCH, position, 0, index, -1, -1)])

    return make


def _one_by_one(make: SampleMaker, plan: list[tuple[int, int]]) -> Workload:
    """Every sample is let go when the next is made, as a worker does.

    Keeping them all would measure how quickly the system hands out memory.
    """

    def workload() -> None:
        for position, index in plan:
            make(position, index)

    return workload


def pillow_sample(
    files: Files, index: int, position: int, augmentation: Augmentation
) -> tuple[Tensor, Tensor]:
    """The usual pipeline: decode, scale, pad, crop, flip, jitter, blur, to tensor, normalise.

    Returns:
        The image [3, h, w] and the label [h, w].
    """
    image = Image.open(files.image_path(index)).convert("RGB")
    label = Image.open(str(files.label_path(index))).convert("L")

    # The draws are ours, so that both sides do the same work.
    rng = sample_generator(SEED, EPOCH, position)
    strengths = draw_photometric(augmentation, rng)
    geometry = draw_geometry((image.height, image.width), augmentation=augmentation, rng=rng)

    image, label = _scale_and_crop(image, label, geometry, augmentation.crop)
    image = _recolour(image, strengths)
    if strengths.sigma > 0:
        image = image.filter(ImageFilter.GaussianBlur(strengths.sigma))

    values = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().float().div(255)
    values = values.sub(MEAN).div(DEVIATION)
    return values, torch.from_numpy(files.spec.to_train[np.array(label)].astype(np.int64))


def _scale_and_crop(
    image: Image.Image, label: Image.Image, geometry: Geometry, crop: tuple[int, int]
) -> tuple[Image.Image, Image.Image]:
    """Scale the whole image by the drawn factors, pad or cut it to the drawn crop, flip it."""
    rows, columns = geometry.rows, geometry.columns
    size = (round(image.width * columns.factor), round(image.height * rows.factor))
    image = image.resize(size, Image.Resampling.BICUBIC)
    label = label.resize(size, Image.Resampling.NEAREST)

    # Where the scaled image's corner lies in the crop.
    corner = (
        columns.offset - round(columns.start * columns.factor),
        rows.offset - round(rows.start * rows.factor),
    )
    canvas, label_canvas = Image.new("RGB", crop[::-1]), Image.new("L", crop[::-1], BORDER)
    canvas.paste(image, corner)
    label_canvas.paste(label, corner)

    if geometry.flip:
        canvas = canvas.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        label_canvas = label_canvas.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return canvas, label_canvas


def _recolour(image: Image.Image, strengths: Photometric) -> Image.Image:
    image = ImageEnhance.Brightness(image).enhance(strengths.brightness)
    image = ImageEnhance.Contrast(image).enhance(strengths.contrast)
    image = ImageEnhance.Color(image).enhance(strengths.saturation)

    # Pillow's hue is a byte that wraps around, as the turn does.
    hue, saturation, value = image.convert("HSV").split()
    turned = Image.fromarray(np.array(hue) + np.uint8(round(256 * strengths.hue) % 256))
    return Image.merge("HSV", (turned, saturation, value)).convert("RGB")


def require_same_picture(ours: dict[str, Any], baseline: tuple[Tensor, Tensor]) -> None:
    """Raise Disagreement unless both sides show the same.

    Labels agree away from their borders, images in their local means. Images with padding are not
    compared: the baseline recolours it, too, which moves the mean grey that contrast is about.
    """
    label = ours["label"][0].numpy()
    inner = cv2.erode(label, np.ones((5, 5))) == cv2.dilate(label, np.ones((5, 5)))
    agreement = (label == baseline[1].numpy())[inner].mean()
    if not agreement > 0.999:
        raise Disagreement(f"data: only {agreement:.1%} of the labels agree with the baseline's.")
    if ours["region"][0].tolist() != [0, baseline[1].shape[0], 0, baseline[1].shape[1]]:
        return

    # Both as levels of grey from 0 to 255, averaged over squares of 16 pixels.
    pictures = [ours["image"][0].float(), (baseline[0] * DEVIATION + MEAN) * 255]
    means = [torch.nn.functional.avg_pool2d(picture, 16) for picture in pictures]
    difference = (means[0] - means[1]).abs().mean().item()
    if difference > 4:
        raise Disagreement(
            f"data: local means differ from the baseline's by {difference:.1f} levels."
        )
