"""Random scale, crop, flip, colour and blur of an image with its label; every draw comes from one generator given by (seed, epoch, index)."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Literal

import cv2
import numpy as np

from ..errors import DataError
from .resample import Axis, place_axis, resize_image, take_nearest

GREY = (0.299, 0.587, 0.114)  # luma of R, G, B (ITU-R BT.601), as Pillow's greyscale


@dataclass(frozen=True)
class Augmentation:
    """What is drawn for each training sample, and from which ranges. Sizes are (height, width) in pixels.

    The image is enlarged by a factor uniform in `scale_range`, times long_edge / its longer side if `long_edge` is given, in one resampling;
    cropped to `crop`; mirrored with probability `flip`. Brightness, contrast and saturation are multiplied by factors uniform in
    [1 - color, 1 + color]; the hue moves by up to `hue` of the colour circle either way. With `blur_probability` it is blurred by a sigma uniform in
    `blur_sigma` (None: the release's range for that kind). `place` says where an image smaller than the crop lies in it; `interpolation` enlarges.
    """

    crop: tuple[int, int]
    scale_range: tuple[float, float] = (0.5, 2.0)
    flip: float = 0.5
    color: float = 0.25
    hue: float = 0.25
    blur: Literal["none", "gaussian", "bilateral"] = "none"
    blur_probability: float = 1.0
    blur_sigma: tuple[float, float] | None = None
    long_edge: int | None = None
    place: Literal["random", "centre"] = "random"
    interpolation: Literal["linear", "cubic", "nearest"] = "linear"

    def __post_init__(self) -> None:
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
        for name, (fine, wanted) in checks.items():
            if not fine:
                raise DataError(f"augmentation: {name} must be {wanted}, not {getattr(self, name)}")


# The release's ranges (RELEASE 1.9): gaussian sigma, bilateral spatial sigma, in pixels.
_SIGMA = {"gaussian": (0.15, 1.30), "bilateral": (0.05, 0.75)}

# The paper names Gaussian blur, colour augmentation, flip and scales 0.5 to 2 without strengths, which are therefore the release's here.
# The release enlarges bicubically, centres small images, and blurs only where a recipe asks for it, which Cityscapes' do not.
_PRESETS: dict[str, dict[str, Any]] = {
    "paper": {"blur": "gaussian"},
    "release": {"blur": "none", "place": "centre", "interpolation": "cubic"},
}


def augmentation_preset(name: str, *, crop: tuple[int, int], **changes: Any) -> Augmentation:
    """The augmentation of the "paper" or of the authors' "release" (RELEASE 1.9), with `changes` to single fields; DataError for other names."""
    if name not in _PRESETS:
        raise DataError(f"augmentation preset '{name}' is none of {', '.join(_PRESETS)}")
    return replace(Augmentation(crop=crop, **_PRESETS[name]), **changes)


def sample_generator(seed: int, epoch: int, index: int) -> np.random.Generator:
    """The generator of one sample: a function of (seed, epoch, position in the epoch's plan) alone, so of no worker, rank or past."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence((seed, epoch, index))))


@dataclass(frozen=True)
class Photometric:
    """Drawn strengths: factors of brightness, contrast and saturation (1 = unchanged), hue in turns, blur sigma in pixels (0 = none)."""

    brightness: float
    contrast: float
    saturation: float
    hue: float
    sigma: float


def draw_photometric(augmentation: Augmentation, rng: np.random.Generator) -> Photometric:
    """The first six draws of a sample, whatever the options, so that the device can repeat them without the crop's."""
    draws = rng.random(6)
    brightness, contrast, saturation = 1 + augmentation.color * (2 * draws[:3] - 1)
    low, high = augmentation.blur_sigma or _SIGMA.get(augmentation.blur, (0.0, 0.0))
    blurred = augmentation.blur != "none" and draws[4] < augmentation.blur_probability
    return Photometric(
        brightness=float(brightness),
        contrast=float(contrast),
        saturation=float(saturation),
        hue=float(augmentation.hue * (2 * draws[3] - 1)),
        sigma=float(low + (high - low) * draws[5]) if blurred else 0.0,
    )


@dataclass(frozen=True)
class Geometry:
    """Where a crop comes from: its two axes, and whether it is mirrored afterwards."""

    rows: Axis
    columns: Axis
    flip: bool

    def locate(self, point: tuple[int, int]) -> tuple[int, int]:
        """Where the crop, before it is mirrored, shows source pixel `point`; both (row, column)."""
        return self.rows.locate(point[0]), self.columns.locate(point[1])

    def region(self, crop: tuple[int, int]) -> tuple[int, int, int, int]:
        """The part of the finished crop that is not padding: top, bottom, left, right, the second and fourth exclusive."""
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
    """The next four draws of a sample: scale, row, column, flip. `size` (height, width) of the image; the crop holds `point` (row, column)."""
    draws = rng.random(4)
    low, high = augmentation.scale_range
    scale = low + (high - low) * draws[0]
    if augmentation.long_edge is not None:
        scale *= augmentation.long_edge / max(size)
    rows, columns = (
        place_axis(
            size[axis],
            crop=augmentation.crop[axis],
            scale=scale,
            position=float(draws[1 + axis]),
            point=None if point is None else point[axis],
            centre=augmentation.place == "centre",
        )
        for axis in (0, 1)
    )
    return Geometry(rows=rows, columns=columns, flip=bool(draws[3] < augmentation.flip))


def augment(
    image: np.ndarray,
    label: np.ndarray,
    *,
    augmentation: Augmentation,
    rng: np.random.Generator,
    point: tuple[int, int] | None = None,
    ignore_label: int = 255,
) -> tuple[np.ndarray, np.ndarray]:
    """One training sample: image uint8 [h, w, 3] and label uint8 [h, w] of the crop's size, from image [H, W, 3] and label [H, W].

    The crop shows the chosen source pixel `point` (row, column) wherever scale, place, flip and padding put it. Labels are sampled by nearest
    neighbour on the image's own pixel centres; padding is black before normalisation, and `ignore_label`. Neither input is changed.
    """
    strengths = draw_photometric(augmentation, rng)
    geometry = draw_geometry(
        (image.shape[0], image.shape[1]), augmentation=augmentation, rng=rng, point=point
    )
    results = (
        np.empty((*augmentation.crop, 3), dtype=np.uint8),
        np.empty(augmentation.crop, dtype=np.uint8),
    )
    apply_draws(
        image,
        label,
        results,
        geometry=geometry,
        strengths=strengths,
        augmentation=augmentation,
        ignore_label=ignore_label,
    )
    return results


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
    """Write what `augment` returns for these draws to `results`; without `strengths`, colour and blur are left to `augment_on_device`."""
    part = _crop_image(image, geometry, augmentation=augmentation, strengths=strengths)
    labels = take_nearest(
        label[geometry.rows.source, geometry.columns.source],
        geometry.rows.samples(),
        geometry.columns.samples(),
    )
    for made, result, padding in ((part, results[0], 0), (labels, results[1], ignore_label)):
        top, bottom, left, right = geometry.region(augmentation.crop)
        if made.shape != result.shape:
            result[...] = padding
        if geometry.flip:
            result[top:bottom, left:right] = cv2.flip(made, 1)
        else:
            result[top:bottom, left:right] = made


def _crop_image(
    image: np.ndarray,
    geometry: Geometry,
    *,
    augmentation: Augmentation,
    strengths: Photometric | None,
) -> np.ndarray:
    """The crop without its padding. Colour is a matter of single pixels, so it is changed where they are fewer: before enlarging or after."""
    rows, columns = geometry.rows, geometry.columns
    window = image[rows.source, columns.source]
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
    """Brightness, contrast and saturation as one affine map of RGB, then hue in HSV; uint8 [H, W, 3].

    The factors mean what they mean in Pillow and torchvision: multiply; blend with the image's mean grey; blend each pixel with its grey; turn the
    hue circle. They are applied in this order and rounded once, where the release draws an order and rounds after each.
    """
    if (strengths.brightness, strengths.contrast, strengths.saturation) != (1, 1, 1):
        image = cv2.transform(
            image, color_matrix(strengths, mean_grey=float(np.dot(cv2.mean(image)[:3], GREY)))
        )
    turn = round(256 * strengths.hue)
    if turn:
        hsv = cv2.cvtColor(
            image, cv2.COLOR_RGB2HSV_FULL
        )  # hue 0..255 is the full circle, so that uint8 wraps as the circle does
        hsv[..., 0] += np.uint8(turn % 256)
        image = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL)
    return image


def color_matrix(strengths: Photometric, *, mean_grey: float) -> np.ndarray:
    """The affine map [3, 4] of RGB that multiplies by brightness b, blends with the mean grey m by contrast c, and with the own grey by saturation s.

    v -> c b v + (1 - c) b m, then v -> s v + (1 - s) grey(v): the linear part is c b (s I + (1 - s) 1 w^T) for the luma weights w, and an equal
    offset in all channels is grey, which saturation leaves alone.
    """
    s, gain = strengths.saturation, strengths.contrast * strengths.brightness
    linear = gain * (s * np.eye(3) + (1 - s) * np.tile(GREY, (3, 1)))
    offset = np.full((3, 1), (1 - strengths.contrast) * strengths.brightness * mean_grey)
    return np.concatenate([linear, offset], axis=1)


def blur(image: np.ndarray, *, kind: str, sigma: float) -> np.ndarray:
    """Gaussian blur, or bilateral filter whose tolerance in colour is the image's own standard deviation (as in the release); uint8 [H, W, 3]."""
    if kind == "gaussian":
        size = blur_size(sigma)
        return cv2.GaussianBlur(image, (size, size), sigma)
    spread = math.sqrt(float(np.mean(np.square(cv2.meanStdDev(image)[1]))))
    return cv2.bilateralFilter(
        np.ascontiguousarray(image), max(5, blur_size(sigma)), max(spread, 1.0), sigma
    )


def blur_size(sigma: float) -> int:
    """Side of the kernel in pixels: three sigma either way."""
    return 2 * math.ceil(3 * sigma) + 1
