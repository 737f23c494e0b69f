"""Street-like images and labels to measure with: drawn in a moment, as costly to read as photos."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from hmsa.datasets import CITYSCAPES, Files
from hmsa.datasets.files import pack
from hmsa.utils.words import UserError

SMALLEST = 48  # pixels of a side; ellipses and texture are a fraction of it


def draw_files(folder: Path, *, size: tuple[int, int], count: int) -> Files:
    """PNG pairs of smooth regions that share their borders with the labels.

    Texture and noise are a camera's: an image takes 3 to 4 MB at 1024 x 2048.

    Raises:
        UserError: the images would be too small.
    """
    if min(size) < SMALLEST:
        raise UserError(
            f"images of {size[0]}x{size[1]} are too small to draw; "
            f"choose at least {SMALLEST}x{SMALLEST}"
        )

    for index in range(count):
        image, label = draw_pair(size, seed=index)
        Image.fromarray(image).save(folder / f"{index}.image.png")
        Image.fromarray(label).save(folder / f"{index}.label.png")

    names = [str(index) for index in range(count)]
    return Files(
        spec=CITYSCAPES,
        split="drawn",
        root=folder,
        images=pack(f"{name}.image.png" for name in names),
        labels=pack(f"{name}.label.png" for name in names),
        names=pack(names),
    )


def draw_pair(size: tuple[int, int], *, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Image uint8 [H, W, 3] and label of raw ids uint8 [H, W].

    Overlapping ellipses of the 19 classes, some as thin as poles.
    """
    rng = np.random.default_rng(seed)
    height, width = size

    # Sky above and road below, as in most street scenes.
    label = np.full(size, CITYSCAPES.to_raw[10], dtype=np.uint8)
    label[height // 2 :] = CITYSCAPES.to_raw[0]
    for _ in range(max(20, 300 * height * width // 2**21)):
        cv2.ellipse(
            label,
            center=(int(rng.integers(width)), int(rng.integers(height))),
            axes=(int(rng.integers(2, width // 12)), int(rng.integers(2, height // 6))),
            angle=float(rng.uniform(0, 180)),
            startAngle=0,
            endAngle=360,
            color=int(CITYSCAPES.to_raw[rng.integers(19)]),
            thickness=-1,
        )

    # Every class has a colour, with light that changes slowly and noise in each pixel.
    colours = rng.integers(20, 220, (256, 3)).astype(np.float32)
    coarse = rng.normal(0, 14, (height // 16, width // 16, 3)).astype(np.float32)
    light = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    image = colours[label] + light + rng.normal(0, 2.5, (*size, 3))
    return np.clip(image, 0, 255).astype(np.uint8), label
