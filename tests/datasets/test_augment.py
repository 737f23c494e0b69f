"""Augmentation: geometry against a recomputation pixel by pixel, chosen pixels at every edge,
colours against Pillow's.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageEnhance

from hmsa.datasets import (
    Augmentation,
    DataError,
    augment_on_device,
    normalise,
    sample_generator,
)
from hmsa.datasets.augment.augmentation import (
    Photometric,
    apply_draws,
    blur,
    draw_geometry,
    draw_photometric,
    jitter,
)
from hmsa.datasets.augment.resample import place_axis, resize_image, take_nearest

IGNORE = 255
PLAIN: dict[str, Any] = {"color": 0.0, "hue": 0.0, "blur": "none"}
sizes = st.tuples(st.integers(1, 40), st.integers(1, 40))
ranges = st.sampled_from([(0.5, 2.0), (1.0, 1.0), (0.3, 0.6), (1.7, 3.0), (0.05, 0.2)])


def coded(label: np.ndarray) -> np.ndarray:
    """An image whose colour tells the label: no two labels share one, none is black (as padding
    is).
    """
    return np.stack([label + 1, 200 - label, 3 * label], axis=-1).astype(np.uint8)


def augment(
    image: np.ndarray,
    label: np.ndarray,
    *,
    augmentation: Augmentation,
    rng: np.random.Generator,
    point: tuple[int, int] | None = None,
    ignore_label: int = IGNORE,
) -> tuple[np.ndarray, np.ndarray]:
    """One sample, drawn and made as the loader does it."""
    strengths = draw_photometric(augmentation, rng)
    geometry = draw_geometry(label.shape, augmentation=augmentation, rng=rng, point=point)
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


def applied(
    image: np.ndarray, label: np.ndarray, *, augmentation: Augmentation, **draws: Any
) -> tuple[np.ndarray, np.ndarray]:
    """`apply_draws` to arrays full of something else."""
    results = (
        np.full((*augmentation.crop, 3), 99, dtype=np.uint8),
        np.full(augmentation.crop, 99, dtype=np.uint8),
    )
    apply_draws(image, label, results, augmentation=augmentation, ignore_label=IGNORE, **draws)
    return results


@given(
    size=sizes,
    crop=sizes,
    scale_range=ranges,
    seed=st.integers(0, 2**20),
    place=st.sampled_from(["random", "centre"]),
    chosen=st.booleans(),
)
def test_label_is_what_the_image_shows(
    size: tuple[int, int],
    crop: tuple[int, int],
    scale_range: tuple[float, float],
    seed: int,
    place: str,
    chosen: bool,
) -> None:
    """With nearest sampling of a colour-coded image, decoding it gives the label exactly: padding,
    flip, scale and chosen pixel included.
    """
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 60, size, dtype=np.uint8)
    point = (int(rng.integers(size[0])), int(rng.integers(size[1]))) if chosen else None
    augmentation = Augmentation(
        crop=crop, scale_range=scale_range, interpolation="nearest", place=place, **PLAIN
    )
    image, result = augment(
        coded(label), label, augmentation=augmentation, rng=rng, point=point, ignore_label=IGNORE
    )
    assert (
        image.shape == (*crop, 3)
        and result.shape == crop
        and image.dtype == result.dtype == np.uint8
    )
    padded = ~image.any(axis=-1)
    assert np.array_equal(result == IGNORE, padded)
    assert np.array_equal(np.where(padded, IGNORE, image[..., 0].astype(int) - 1), result)
    assert np.array_equal(np.where(padded, 0, 199 - result + 1), image[..., 1])


@pytest.mark.parametrize("interpolation", ["linear", "cubic"])
@pytest.mark.parametrize("scale", [0.5, 0.73, 0.95, 1.0, 1.31, 2.0])
def test_smooth_sampling_shows_the_label_inside_every_region(
    interpolation: str, scale: float
) -> None:
    """Away from where neighbouring samples differ, an interpolated coded image decodes to the
    label: image and label share their pixel centres.
    """
    label = np.kron(np.arange(30, dtype=np.uint8).reshape(5, 6), np.ones((16, 16), dtype=np.uint8))
    augmentation = Augmentation(
        crop=(60, 70), scale_range=(scale, scale), interpolation=interpolation, **PLAIN
    )
    wrong = inside = 0
    for index in range(20):
        image, result = augment(
            coded(label), label, augmentation=augmentation, rng=sample_generator(0, 0, index)
        )
        flat = np.ones(
            result.shape, dtype=bool
        )  # the two pixels around agree: no class border within the reach of the filter
        for axis in (0, 1):
            for shift in (-2, -1, 1, 2):
                flat &= np.roll(result, shift, axis) == result
        flat[:2], flat[-2:], flat[:, :2], flat[:, -2:] = False, False, False, False
        flat &= result != IGNORE
        inside += flat.sum()
        wrong += (image[..., 0].astype(int) - 1 != result)[flat].sum()
    assert inside > 5000 and wrong == 0


@pytest.mark.parametrize("scale", [0.5, 0.6, 0.9, 1.4, 2.0])
def test_borders_between_regions_lie_where_the_image_has_them(scale: float) -> None:
    """A step from black to white: where the label changes differs by half a pixel at most from
    where the image does, and on average by nothing.
    """
    offsets = []
    for index in range(120):
        label = np.zeros((50, 61), dtype=np.uint8)
        label[:, 20 + index % 20 :] = 1
        shown = np.repeat((label * 255)[..., None], 3, axis=-1)
        augmentation = Augmentation(crop=(30, 40), scale_range=(scale, scale), **PLAIN)
        image, result = augment(
            shown, label, augmentation=augmentation, rng=sample_generator(3, 0, index)
        )
        row = result[15]
        if set(row.tolist()) >= {0, 1}:
            white = (image[15, :, 0].astype(float) / 255)[row != IGNORE].sum()
            offsets.append((white - (row == 1).sum()) * (1 if row[row != IGNORE][-1] == 1 else -1))
    assert len(offsets) > 30 and max(map(abs, offsets)) < 0.51 and abs(np.mean(offsets)) < 0.1


@given(
    size=sizes,
    crop=sizes,
    scale_range=ranges,
    seed=st.integers(0, 2**20),
    corner=st.integers(0, 8),
    place=st.sampled_from(["random", "centre"]),
)
def test_crop_shows_the_chosen_pixel(
    size: tuple[int, int],
    crop: tuple[int, int],
    scale_range: tuple[float, float],
    seed: int,
    corner: int,
    place: str,
) -> None:
    """A class of one single pixel, in every corner, on every edge and in the middle, is in the crop
    whatever the scale, flip and padding.
    """
    point = (
        [0, size[0] // 2, size[0] - 1][corner // 3],
        [0, size[1] // 2, size[1] - 1][corner % 3],
    )
    label = np.zeros(size, dtype=np.uint8)
    label[point] = 1
    augmentation = Augmentation(crop=crop, scale_range=scale_range, place=place, **PLAIN)
    _, result = augment(
        coded(label), label, augmentation=augmentation, rng=np.random.default_rng(seed), point=point
    )
    assert (result == 1).any()


def test_crops_with_a_chosen_pixel_lie_anywhere_around_it() -> None:
    """Every place that keeps the pixel is drawn, none other, and about equally often: no
    probability piles up at the borders.
    """
    starts = [
        place_axis(100, crop=10, scale=1.0, position=i / 1000, point=4, centre=False).start
        for i in range(1000)
    ]
    assert (
        np.array_equal(np.unique(starts, return_counts=True)[0], np.arange(5))
        and min(np.bincount(starts)) == 200
    )
    assert {
        place_axis(100, crop=10, scale=1.0, position=i / 1000, point=99, centre=False).start
        for i in range(1000)
    } == {90}
    assert {
        place_axis(100, crop=10, scale=1.0, position=i / 1000, point=50, centre=False).start
        for i in range(1000)
    } == set(range(41, 51))


def test_small_images_slide_in_their_crop_or_stay_in_its_middle() -> None:
    """Also when only one side is smaller than the crop."""
    label = np.zeros((10, 100), dtype=np.uint8)
    tops = set()
    for index in range(200):
        augmentation = Augmentation(crop=(16, 32), scale_range=(1, 1), **PLAIN)
        _, result = augment(
            coded(label), label, augmentation=augmentation, rng=sample_generator(0, 0, index)
        )
        rows = np.flatnonzero((result == 0).all(axis=1))
        assert len(rows) == 10 and (np.delete(result, rows, axis=0) == IGNORE).all()
        tops.add(int(rows[0]))
        centred = augment(
            coded(label),
            label,
            augmentation=replace(augmentation, place="centre"),
            rng=sample_generator(0, 0, index),
        )[1]
        assert (centred[3:13] == 0).all() and (centred[:3] == IGNORE).all()
    assert tops == set(range(7))


def test_scale_is_uniform_and_long_edge_multiplies_it_in_one_resampling() -> None:
    """Sizes drawn: s * long_edge / longer side."""
    augmentation = Augmentation(crop=(4000, 4000), long_edge=400, **PLAIN)
    factors = []
    for index in range(2000):
        geometry = draw_geometry(
            (500, 1000), augmentation=augmentation, rng=sample_generator(7, 1, index)
        )
        assert (
            geometry.rows.length == 500
            and abs(geometry.rows.factor - geometry.columns.factor) < 0.01
        )
        factors.append(geometry.columns.factor * 1000 / 400)
    assert (
        0.49 < min(factors) < 0.52
        and 1.98 < max(factors) <= 2.0
        and abs(np.mean(factors) - 1.25) < 0.03
    )
    flips = [
        draw_geometry(
            (500, 1000), augmentation=augmentation, rng=sample_generator(7, 1, index)
        ).flip
        for index in range(2000)
    ]
    assert abs(np.mean(flips) - 0.5) < 0.04


def test_only_the_window_is_touched() -> None:
    """What lies outside the source window cannot matter, which is what makes a crop of a
    memory-mapped image cheap.
    """
    rng = np.random.default_rng(0)
    label = rng.integers(0, 20, (300, 300), dtype=np.uint8)
    image = rng.integers(0, 256, (300, 300, 3), dtype=np.uint8)
    augmentation = Augmentation(crop=(64, 64), scale_range=(1.5, 1.5))
    draws = np.random.default_rng(5)
    strengths, geometry = (
        draw_photometric(augmentation, draws),
        draw_geometry((300, 300), augmentation=augmentation, rng=draws),
    )
    elsewhere = np.ones((300, 300), dtype=bool)
    elsewhere[geometry.rows.source, geometry.columns.source] = False
    assert elsewhere.mean() > 0.95
    other_image, other_label = image.copy(), label.copy()
    other_image[elsewhere], other_label[elsewhere] = 77, 7
    results = [
        applied(*pair, geometry=geometry, strengths=strengths, augmentation=augmentation)
        for pair in ((image, label), (other_image, other_label))
    ]
    assert all(np.array_equal(ours, theirs) for ours, theirs in zip(*results, strict=True))


def test_shrinking_is_antialiased() -> None:
    """A checkerboard finer than the result becomes grey; plain bilinear sampling would alias it at
    these factors.
    """
    board = (np.indices((600, 600)).sum(0) % 2 * 255).astype(np.uint8)
    for factor in (0.27, 0.5, 0.6, 0.75):
        small = resize_image(
            np.repeat(board[..., None], 3, -1), (int(600 * factor), int(600 * factor))
        )
        reference = np.asarray(
            Image.fromarray(board).resize(small.shape[1::-1], Image.Resampling.BOX)
        )
        assert (
            abs(small[..., 0].astype(float) - 127.5).max()
            <= abs(reference.astype(float) - 127.5).max() + 12
        )


def test_the_same_generator_gives_the_same_sample_and_inputs_stay_as_they_are() -> None:
    """Read-only inputs (a memory map) are fine, results never share memory with them."""
    rng = np.random.default_rng(1)
    image, label = (
        rng.integers(0, 256, (64, 96, 3), dtype=np.uint8),
        rng.integers(0, 9, (64, 96), dtype=np.uint8),
    )
    image.setflags(write=False)
    label.setflags(write=False)
    for options in (PLAIN, {"blur": "gaussian"}, {"blur": "bilateral"}):
        for crop, scales in (((64, 96), (1.0, 1.0)), ((48, 48), (0.5, 2.0))):
            augmentation = Augmentation(crop=crop, scale_range=scales, **options)
            first, second = (
                augment(image, label, augmentation=augmentation, rng=sample_generator(1, 2, 3))
                for _ in range(2)
            )
            other = augment(image, label, augmentation=augmentation, rng=sample_generator(1, 2, 4))
            assert np.array_equal(first[0], second[0]) and np.array_equal(first[1], second[1])
            assert not any(
                np.may_share_memory(made, given) for made in first for given in (image, label)
            )
            assert (
                options is PLAIN and scales == (1.0, 1.0) or not np.array_equal(first[0], other[0])
            )


@pytest.mark.parametrize("strength", ["brightness", "contrast", "saturation"])
@pytest.mark.parametrize("factor", [0.75, 0.9, 1.25])
def test_colours_change_as_pillows_do(strength: str, factor: float) -> None:
    """Factor by factor against Pillow's enhancers, to a rounding."""
    image = np.random.default_rng(2).integers(40, 190, (50, 60, 3), dtype=np.uint8)
    ours = jitter(image, replace(Photometric(1, 1, 1, 0, 0), **{strength: factor}))
    enhancer = {
        "brightness": ImageEnhance.Brightness,
        "contrast": ImageEnhance.Contrast,
        "saturation": ImageEnhance.Color,
    }[strength]
    theirs = np.asarray(enhancer(Image.fromarray(image)).enhance(factor))
    assert abs(ours.astype(int) - theirs.astype(int)).max() <= 2


@pytest.mark.parametrize("turn", [-0.25, -0.1, 0.05, 0.25])
def test_hue_turns_the_colour_circle(turn: float) -> None:
    """Against Pillow's HSV, to the rounding of 8-bit HSV; a third of a turn makes red green."""
    image = np.random.default_rng(3).integers(0, 256, (50, 60, 3), dtype=np.uint8)
    hsv = np.array(Image.fromarray(image).convert("HSV"))
    hsv[..., 0] += np.uint8(round(turn * 256) % 256)
    theirs = np.asarray(Image.fromarray(hsv, mode="HSV").convert("RGB"))
    ours = jitter(image, Photometric(1, 1, 1, turn, 0))
    assert abs(ours.astype(int) - theirs.astype(int)).mean() < 2.5
    red = np.full((4, 4, 3), (200, 0, 0), dtype=np.uint8)
    assert jitter(red, Photometric(1, 1, 1, 1 / 3, 0))[0, 0].argmax() == 1


def test_blur_is_what_its_name_says() -> None:
    """Gaussian keeps the mean and lowers the variance by the kernel's energy; bilateral keeps a
    strong edge that Gaussian softens.
    """
    noise = np.random.default_rng(4).integers(0, 256, (200, 200, 3), dtype=np.uint8)
    blurred = blur(noise, kind="gaussian", sigma=1.0)
    steps = np.exp(-0.5 * np.arange(-3, 4) ** 2)
    energy = float(((steps / steps.sum()) ** 2).sum()) ** 2
    assert abs(blurred.mean() - noise.mean()) < 1 and blurred.var() / noise.var() == pytest.approx(
        energy, rel=0.05
    )
    edge = np.zeros((40, 40, 3), dtype=np.uint8)
    edge[:, 20:] = 255
    assert blur(edge, kind="gaussian", sigma=0.7)[20, 19, 0] > 25
    assert blur(edge, kind="bilateral", sigma=0.7)[20, 19, 0] < 20


def test_drawn_strengths_fill_their_ranges() -> None:
    """As in the authors' code: factors in 1 +- color, hue +- 0.25, gaussian sigma 0.15..1.30,
    bilateral 0.05..0.75, the given share of blurred images.
    """
    for kind, low, high in (("gaussian", 0.15, 1.30), ("bilateral", 0.05, 0.75)):
        augmentation = Augmentation(crop=(8, 8), blur=kind, blur_probability=0.5, color=0.2)
        drawn = [
            draw_photometric(augmentation, sample_generator(0, 0, index)) for index in range(3000)
        ]
        for name in ("brightness", "contrast", "saturation"):
            values = np.array([getattr(item, name) for item in drawn])
            assert 0.8 <= values.min() < 0.805 and 1.195 < values.max() <= 1.2
        hues = np.array([item.hue for item in drawn])
        assert -0.25 <= hues.min() < -0.245 and 0.245 < hues.max() <= 0.25
        sigmas = np.array([item.sigma for item in drawn])
        assert abs((sigmas > 0).mean() - 0.5) < 0.03
        assert low <= sigmas[sigmas > 0].min() < low + 0.01 and high - 0.01 < sigmas.max() <= high


def test_values_out_of_range_are_refused_in_a_sentence() -> None:
    """Each names its field."""
    wrongs: list[dict[str, Any]] = [
        {"scale_range": (2.0, 0.5)},
        {"crop": (0, 5)},
        {"flip": 1.5},
        {"hue": 0.7},
        {"blur": "box"},
        {"place": "left"},
    ]
    for wrong in [
        *wrongs,
        {"blur_sigma": (0, 1)},
        {"long_edge": 0},
        {"color": -1},
        {"interpolation": "best"},
        {"blur_probability": 2},
    ]:
        with pytest.raises(DataError, match=f"augmentation: {next(iter(wrong))} must be"):
            Augmentation(**{"crop": (8, 8), **wrong})


@pytest.mark.parametrize("kind", ["none", "gaussian", "bilateral"])
def test_device_repeats_the_workers_strengths(kind: str) -> None:
    """Colour and blur in the batch give the workers' picture to a rounding, and black padding
    exactly.
    """
    rng = np.random.default_rng(6)
    smooth = resize_image(
        rng.integers(0, 256, (8, 10, 3), dtype=np.uint8), (80, 100), interpolation="cubic"
    )
    label = np.zeros((80, 100), dtype=np.uint8)
    augmentation = Augmentation(crop=(72, 120), scale_range=(0.7, 1.0), blur=kind)
    seed, epoch, positions = 3, 5, [0, 1, 2, 3, 40, 41]
    on_worker, bare, regions = [], [], []
    for position in positions:
        rng = sample_generator(seed, epoch, position)
        strengths, geometry = (
            draw_photometric(augmentation, rng),
            draw_geometry((80, 100), augmentation=augmentation, rng=rng),
        )
        for used, where in ((strengths, on_worker), (None, bare)):
            where.append(
                applied(
                    smooth, label, geometry=geometry, strengths=used, augmentation=augmentation
                )[0]
            )
        regions.append(geometry.region(augmentation.crop))
    tensors = [
        torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2) for images in (on_worker, bare)
    ]
    expected = normalise(tensors[0])
    made = augment_on_device(
        tensors[1],
        region=torch.tensor(regions),
        position=torch.tensor(positions),
        augmentation=augmentation,
        seed=seed,
        epoch=epoch,
    )
    assert made.is_contiguous(memory_format=torch.channels_last) and made.dtype == torch.float32
    levels = (made - expected).abs() * 255 * 0.229
    assert levels.mean() < 1.5 and torch.quantile(levels.flatten(), 0.99) < 8
    changed = (normalise(tensors[1]) - expected).abs() * 255 * 0.229
    assert changed.mean() > 10 * levels.mean()
    padding = (tensors[0] == 0).all(dim=1, keepdim=True).expand_as(made)
    assert padding.any() and torch.equal(made[padding], expected[padding])


def test_take_nearest_does_not_depend_on_which_axis_goes_first() -> None:
    """Tall and flat results alike are array[rows][:, columns]."""
    array = np.random.default_rng(0).integers(0, 256, (20, 30), dtype=np.uint8)
    for shape in ((3, 50), (50, 3)):
        rows, columns = (
            np.sort(np.random.default_rng(1).integers(0, n, m))
            for n, m in zip(array.shape, shape, strict=True)
        )
        assert np.array_equal(take_nearest(array, rows, columns), array[rows][:, columns])


@pytest.mark.gpu
def test_device_repeats_on_a_gpu_what_it_does_on_the_cpu() -> None:
    """Colour, blur and normalisation of the same batch."""
    image = torch.from_numpy(
        np.random.default_rng(0).integers(0, 256, (3, 40, 50, 3), dtype=np.uint8)
    ).permute(0, 3, 1, 2)
    region = torch.tensor([[0, 40, 0, 50], [5, 30, 0, 50], [0, 40, 7, 43]])
    for kind in ("gaussian", "bilateral"):
        made = [
            augment_on_device(
                image.to(device),
                region=region,
                position=[0, 1, 2],
                augmentation=Augmentation(crop=(40, 50), blur=kind),
                seed=1,
                epoch=2,
            ).cpu()
            for device in ("cpu", "cuda")
        ]
        assert torch.allclose(*made, atol=1e-3)
