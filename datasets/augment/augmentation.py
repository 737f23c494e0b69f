"""Random scale, crop, flip, colour and blur of an image with its label.

Every draw comes from one generator, which is given by (seed, epoch, index).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np

from ..errors import DataError
from .resample import Axis, place_axis, resize_image, take_nearest

GREY = (0.299, 0.587, 0.114)  # luma of R, G, B (ITU-R BT.601), as Pillow's greyscale

# Ranges of the authors' code (docs/release_notes.md, augmentation): sigma of the Gaussian and
# spatial sigma of the bilateral filter, in pixels. The paper names the augmentations without
# strengths, which are therefore those of the code.
_SIGMA = {"gaussian": (0.15, 1.30), "bilateral": (0.05, 0.75)}


@dataclass(frozen=True)
class Augmentation:
    """What is drawn for each training sample, and from which ranges.

    Attributes:
        crop: (height, width) of the sample in pixels.
        scale_range: the image is enlarged by a factor uniform in this range.
        flip: probability that the crop is mirrored.
        color: brightness, contrast and saturation are multiplied by factors uniform in
            [1 - color, 1 + color].
        hue: the hue moves by up to this part of the colour circle either way.
        blur: kind of blur.
        blur_probability: probability that a sample is blurred.
        blur_sigma: range of the blur's sigma in pixels; None: that of the authors' code.
        long_edge: pixels of the image's longer side before the random scale; both are one
            resampling. None: the image as it is.
        place: where an image smaller than the crop lies in it.
        interpolation: how images are enlarged.

    Raises:
        DataError: a value outside its range.
    """

    crop: tuple[int, int]
    scale_range: tuple[float, float] = (0.5, 2.0)
    flip: float = 0.5
    color: float = 0.25
    hue: float = 0.25
    blur: Literal["none", "gaussian", "bilateral"] = "gaussian"
    blur_probability: float = 1.0
    blur_sigma: tuple[float, float] | None = None
    long_edge: int | None = None
    place: Literal["random", "centre"] = "random"
    interpolation: Literal["linear", "cubic", "nearest"] = "linear"

    def __post_init__(self) -> None:
        # Each field with whether it holds, and what it must be.
        checks = {
            "crop": (
                len(self.crop) == 2 and min(self.crop) >= 1,
                "two sizes (height, width) of at least 1 pixel",
            ),
            "scale_range": (
                len(self.scale_range) == 2 and 0 < self.scale_range[0] <= self.scale_range[1],
                "(low, high) with 0 < low <= high",
            ),
            "flip": (0 <= self.flip <= 1, "a probability from 0 to 1"),
            "color": (0 <= self.color <= 1, "a strength from 0 to 1"),
            "hue": (0 <= self.hue <= 0.5, "a part of the colour circle from 0 to 0.5"),
            "blur": (self.blur in ("none", *_SIGMA), "none, gaussian or bilateral"),
            "blur_probability": (0 <= self.blur_probability <= 1, "a probability from 0 to 1"),
            "blur_sigma": (
                self.blur_sigma is None or 0 < self.blur_sigma[0] <= self.blur_sigma[1],
                "(low, high) in pixels with 0 < low <= high",
            ),
            "long_edge": (self.long_edge is None or self.long_edge >= 1, "at least 1 pixel"),
            "place": (self.place in ("random", "centre"), "random or centre"),
            "interpolation": (
                self.interpolation in ("linear", "cubic", "nearest"),
                "linear, cubic or nearest",
            ),
        }
        for name, (holds, wanted) in checks.items():
            if not holds:
                raise DataError(f"augmentation: {name} must be {wanted}, not {getattr(self, name)}")


def sample_generator(seed: int, epoch: int, index: int) -> np.random.Generator:
    """The generator of one sample.

    It depends on the seed, the epoch and the sample's position in the epoch's plan alone, so on no
    worker, no rank and nothing drawn before.
    """
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence((seed, epoch, index))))


@dataclass(frozen=True)
class Photometric:
    """Drawn strengths of colour and blur.

    Attributes:
        brightness: factor, 1 leaves the image as it is.
        contrast: factor, 1 leaves the image as it is.
        saturation: factor, 1 leaves the image as it is.
        hue: turn of the colour circle, from -0.5 to 0.5.
        sigma: of the blur in pixels, 0 for none.
    """

    brightness: float
    contrast: float
    saturation: float
    hue: float
    sigma: float


def draw_photometric(augmentation: Augmentation, rng: np.random.Generator) -> Photometric:
    """The first six draws of a sample.

    They are six whatever the options, so that the device can repeat them without the crop's.
    """
    draws = rng.random(6)
    brightness, contrast, saturation = 1 + augmentation.color * (2 * draws[:3] - 1)
    hue = float(augmentation.hue * (2 * draws[3] - 1))

    # The strength of the blur is drawn whether it is used or not.
    sigma = 0.0
    if augmentation.blur != "none" and draws[4] < augmentation.blur_probability:
        low, high = augmentation.blur_sigma or _SIGMA[augmentation.blur]
        sigma = float(low + (high - low) * draws[5])

    return Photometric(
        brightness=float(brightness),
        contrast=float(contrast),
        saturation=float(saturation),
        hue=hue,
        sigma=sigma,
    )


@dataclass(frozen=True)
class Geometry:
    """Where a crop comes from: its two axes, and whether it is mirrored afterwards."""

    rows: Axis
    columns: Axis
    flip: bool

    def locate(self, point: tuple[int, int]) -> tuple[int, int]:
        """Where the crop, before it is mirrored, shows source pixel `point`; (row, column)."""
        return self.rows.locate(point[0]), self.columns.locate(point[1])

    def region(self, crop: tuple[int, int]) -> tuple[int, int, int, int]:
        """The part of the finished crop that is not padding.

        Returns:
            top, bottom, left, right in pixels; bottom and right are exclusive.
        """
        left, right = self.columns.target.start, self.columns.target.stop
        if self.flip:
            left, right = crop[1] - right, crop[1] - left
        return self.rows.target.start, self.rows.target.stop, left, right


def draw_geometry(
    size: tuple[int, int],
    *,
    augmentation: Augmentation,
    rng: np.random.Generator,
    point: tuple[int, int] | None = None,
) -> Geometry:
    """The next four draws of a sample: scale, row, column, flip.

    Args:
        size: (height, width) of the image.
        augmentation: the ranges.
        rng: the sample's generator, after `draw_photometric`.
        point: source pixel (row, column) that the crop must show.
    """
    draws = rng.random(4)
    low, high = augmentation.scale_range
    scale = low + (high - low) * draws[0]
    if augmentation.long_edge is not None:
        scale *= augmentation.long_edge / max(size)

    points = point or (None, None)
    rows, columns = (
        place_axis(
            size[axis],
            crop=augmentation.crop[axis],
            scale=scale,
            position=float(draws[1 + axis]),
            point=points[axis],
            centre=augmentation.place == "centre",
        )
        for axis in (0, 1)
    )
    return Geometry(rows=rows, columns=columns, flip=bool(draws[3] < augmentation.flip))


def apply_draws(
    image: np.ndarray,
    label: np.ndarray,
    results: tuple[np.ndarray, np.ndarray],
    *,
    geometry: Geometry,
    strengths: Photometric | None,
    augmentation: Augmentation,
    ignore_label: int,
) -> None:
    """Write one training sample into `results`; neither input is changed.

    Labels are sampled by nearest neighbour on the image's own pixel centres. Padding is black
    before normalisation, and `ignore_label`.

    Args:
        image: uint8 RGB [H, W, 3].
        label: train ids, uint8 [H, W].
        results: image uint8 [h, w, 3] and label uint8 [h, w] of the crop's size, to be filled.
        geometry: drawn place, scale and flip.
        strengths: drawn colour and blur; None leaves both to `augment_on_device`.
        augmentation: the options.
        ignore_label: what padding holds in the label.
    """
    # Image and label come from the same source window by the same rule, so they stay aligned.
    shown = _crop_image(image, geometry, augmentation=augmentation, strengths=strengths)
    shown_label = take_nearest(
        label[geometry.rows.source, geometry.columns.source],
        geometry.rows.samples(),
        geometry.columns.samples(),
    )

    top, bottom, left, right = geometry.region(augmentation.crop)
    for part, result, padding in ((shown, results[0], 0), (shown_label, results[1], ignore_label)):
        if part.shape != result.shape:
            result[...] = padding
        if geometry.flip:
            part = cv2.flip(part, 1)
        result[top:bottom, left:right] = part


def _crop_image(
    image: np.ndarray,
    geometry: Geometry,
    *,
    augmentation: Augmentation,
    strengths: Photometric | None,
) -> np.ndarray:
    """The crop without its padding, uint8 [h, w, 3]."""
    rows, columns = geometry.rows, geometry.columns
    window = image[rows.source, columns.source]

    # Colour changes each pixel by itself, so it is applied where pixels are fewer: before the
    # window is enlarged, or after it is shrunk.
    enlarges = rows.length * columns.length < rows.extent * columns.extent
    if strengths is not None and enlarges:
        window = jitter(window, strengths)

    if augmentation.interpolation == "nearest":
        window = take_nearest(window, rows.samples(), columns.samples())
    else:
        window = resize_image(
            window, (rows.extent, columns.extent), interpolation=augmentation.interpolation
        )

    if strengths is not None and not enlarges:
        window = jitter(window, strengths)
    if strengths is not None and strengths.sigma > 0:
        window = blur(window, kind=augmentation.blur, sigma=strengths.sigma)
    return window


def jitter(image: np.ndarray, strengths: Photometric) -> np.ndarray:
    """Brightness, contrast and saturation as one affine map of RGB, then hue; uint8 [H, W, 3].

    The factors mean what they mean in Pillow and torchvision: multiply; blend with the image's mean
    grey; blend each pixel with its grey; turn the hue circle. They are applied in this order and
    rounded once, where the authors' code draws an order and rounds after each.
    """
    if (strengths.brightness, strengths.contrast, strengths.saturation) != (1, 1, 1):
        mean_grey = float(np.dot(cv2.mean(image)[:3], GREY))
        image = cv2.transform(image, color_matrix(strengths, mean_grey=mean_grey))

    turn = round(256 * strengths.hue)
    if turn:
        # In this form hue 0 .. 255 is the full circle, so that uint8 wraps as the circle does.
        hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV_FULL)
        hsv[..., 0] += np.uint8(turn % 256)
        image = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL)
    return image


def color_matrix(strengths: Photometric, *, mean_grey: float) -> np.ndarray:
    """Brightness b, contrast c and saturation s as one affine map of RGB, float64 [3, 4].

    With m the mean grey of the image, v -> c b v + (1 - c) b m, then v -> s v + (1 - s) grey(v).
    The linear part is c b (s I + (1 - s) 1 w^T) for the luma weights w. The offset is equal in all
    channels, so it is grey, which saturation leaves alone.
    """
    saturation = strengths.saturation
    gain = strengths.contrast * strengths.brightness
    linear = gain * (saturation * np.eye(3) + (1 - saturation) * np.tile(GREY, (3, 1)))
    offset = np.full((3, 1), (1 - strengths.contrast) * strengths.brightness * mean_grey)
    return np.concatenate([linear, offset], axis=1)


def blur(image: np.ndarray, *, kind: str, sigma: float) -> np.ndarray:
    """Gaussian blur or bilateral filter of uint8 [H, W, 3]; `sigma` in pixels.

    The tolerance in colour of the bilateral filter is the image's own standard deviation, as in the
    authors' code.
    """
    if kind == "gaussian":
        size = blur_size(sigma)
        return cv2.GaussianBlur(image, (size, size), sigma)

    spread = math.sqrt(float(np.mean(np.square(cv2.meanStdDev(image)[1]))))
    return cv2.bilateralFilter(
        np.ascontiguousarray(image), max(5, blur_size(sigma)), max(spread, 1.0), sigma
    )


def blur_size(sigma: float) -> int:
    """Side of the blur's kernel in pixels: three sigma either way."""
    return 2 * math.ceil(3 * sigma) + 1
