"""Flip, scales, tiles, the fall-back, and labels from logits."""

from __future__ import annotations

import math
import warnings
import weakref
from collections.abc import Callable, Sequence

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from hmsa.network import InferenceOptions, ModelError, Prediction, build_model
from hmsa.network.inference import (
    NonFiniteError,
    label_and_confidence,
    predict,
    predicted_label,
)
from hmsa.network.inference.tiling import alignment, overlap_pixels, ramp, spans
from hmsa.network.model import resized
from tests.network.conftest import labelled, predicted


class Convolutions(nn.Module):
    """A convolution-only model: each output pixel sees `reach` pixels to every side."""

    multiscale = "single"
    train_scales = (1.0,)
    num_classes = 5

    def __init__(self, *, layers: int = 3, stride: int = 1) -> None:
        super().__init__()
        torch.manual_seed(0)
        widths = [3, *([7] * (layers - 1)), self.num_classes]
        self.layers = nn.ModuleList(
            nn.Conv2d(one, two, 3, padding=1) for one, two in zip(widths, widths[1:], strict=False)
        )
        self.stride = stride
        self.reach = layers * stride
        self.largest = 0

    def forward(
        self, image: Tensor, *, scales: Sequence[float] | None = None, keep_scales: bool = False
    ) -> Prediction:
        self.largest = max(self.largest, image.shape[-2] * image.shape[-1])
        x = F.avg_pool2d(image, self.stride) if self.stride > 1 else image
        for layer in self.layers:
            x = torch.tanh(layer(x))
        return Prediction(
            logits=3
            * (
                x.repeat_interleave(self.stride, 2).repeat_interleave(self.stride, 3)
                if self.stride > 1
                else x
            )
        )


def noise(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def small_model(multiscale: str = "hierarchical", **options: object) -> nn.Module:
    torch.manual_seed(3)
    model = build_model(
        trunk="hrnet_w18_small", decoder="fcn", multiscale=multiscale, num_classes=4, **options
    ).eval()  # type: ignore[arg-type]
    for part in model.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.uniform_(-0.2, 0.2)
            part.running_var.uniform_(0.8, 1.2)
    return model


def at_image_size(prediction: Prediction, scale: float) -> Prediction:
    """A scale's own prediction of an image of 48 x 64 pixels, at the size of the scaled image."""
    return resized(prediction, (int(48 * scale), int(64 * scale)), align_corners=False)


# Scales and flip


def test_single_model_is_predicted_as_it_answers_itself() -> None:
    model = small_model("single")
    image = noise(2, 3, 48, 72)
    with torch.inference_mode():
        torch.testing.assert_close(predicted(model, image).logits, model(image).logits)


@pytest.mark.parametrize("size", [(48, 64), (45, 70)])
@pytest.mark.parametrize("scales", [(1.0, 0.5, 2.0), (0.75,), (0.25, 1.5)])
def test_average_of_scales_resizes_the_image_and_the_logits_back(
    size: tuple[int, int], scales: tuple[float, ...]
) -> None:
    model = small_model("single")
    image = noise(1, 3, *size)
    with torch.inference_mode():
        every = []
        for scale in scales:
            scaled = F.interpolate(
                image, size=[round(side * scale) for side in size], mode="bilinear"
            )
            every.append(F.interpolate(model(scaled).logits, size=size, mode="bilinear"))
    stacked = torch.stack(every)
    torch.testing.assert_close(
        predicted(model, image, scales=scales).logits, stacked.mean(0), atol=1e-5, rtol=1e-5
    )
    torch.testing.assert_close(
        predicted(model, image, scales=scales, combine="max").logits,
        stacked.amax(0),
        atol=1e-5,
        rtol=1e-5,
    )
    mean = stacked.softmax(2).mean(0)
    torch.testing.assert_close(
        predicted(model, image, scales=scales, over="probabilities").logits.softmax(1),
        mean,
        atol=1e-6,
        rtol=1e-5,
    )
    largest = stacked.softmax(2).amax(0)
    expected = largest / largest.sum(1, keepdim=True)
    probability = predicted(
        model, image, scales=scales, over="probabilities", combine="max"
    ).logits.softmax(1)
    if len(scales) > 1:
        torch.testing.assert_close(probability, expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("multiscale", ["single", "hierarchical", "hierarchical_dual", "explicit"])
def test_flip_is_the_mean_of_both_ways(multiscale: str) -> None:
    model = small_model(multiscale, train_scales=(0.5, 1.0) if multiscale != "single" else None)
    image = noise(1, 3, 40, 56)
    scales = (0.5, 1.0)
    straight = predicted(model, image, scales=scales).logits
    back = predicted(model, image.flip(-1), scales=scales).logits.flip(-1)
    assert not torch.allclose(straight, back, atol=1e-3)
    torch.testing.assert_close(
        predicted(model, image, scales=scales, flip=True).logits,
        (straight + back) / 2,
        atol=1e-5,
        rtol=1e-5,
    )
    if multiscale != "single":
        mean = (straight.softmax(1) + back.softmax(1)) / 2
        probability = predicted(
            model, image, scales=scales, flip=True, over="probabilities"
        ).logits.softmax(1)
        torch.testing.assert_close(probability, mean, atol=1e-6, rtol=1e-5)


def test_chained_models_chain_their_scales_themselves() -> None:
    model = small_model()
    image = noise(1, 3, 48, 64)
    with torch.inference_mode():
        expected = model(image, scales=(0.5, 1.0, 2.0), keep_scales=True)
        two = model(image)
    found = predicted(model, image, scales=(2.0, 0.5, 1.0), keep_scales=True)
    torch.testing.assert_close(found.logits, expected.logits)
    torch.testing.assert_close(found.attention, expected.attention)
    assert found.scales is not None and set(found.scales) == {0.5, 1.0, 2.0}
    for scale, part in expected.scales.items():
        torch.testing.assert_close(found.scales[scale].logits, at_image_size(part, scale).logits)
    torch.testing.assert_close(predicted(model, image).logits, two.logits)
    assert predicted(model, image).scales is None


def test_kept_scales_with_flip_are_means_of_both_ways() -> None:
    model = small_model()
    image = noise(1, 3, 48, 64)
    kept = predicted(model, image, scales=(0.5, 1.0), flip=True, keep_scales=True).scales
    with torch.inference_mode():
        straight, mirrored = (
            {
                scale: at_image_size(part, scale)
                for scale, part in model(view, scales=(0.5, 1.0), keep_scales=True).scales.items()
            }
            for view in (image, image.flip(-1))
        )
    assert kept is not None
    for scale in (0.5, 1.0):
        torch.testing.assert_close(
            kept[scale].logits, (straight[scale].logits + mirrored[scale].logits.flip(-1)) / 2
        )
    torch.testing.assert_close(
        kept[0.5].attention, (straight[0.5].attention + mirrored[0.5].attention.flip(-1)) / 2
    )


def test_a_vanished_probability_keeps_finite_logits() -> None:
    class Certain(Convolutions):
        def forward(self, image: Tensor, **options: object) -> Prediction:
            return Prediction(logits=200 * super().forward(image).logits)

    logits = predicted(
        Certain(), noise(1, 3, 20, 20), flip=True, over="probabilities", tile=(12, 12)
    ).logits
    assert torch.isfinite(logits).all()


def test_half_precision_of_the_network_leaves_float32_logits() -> None:
    model = small_model()
    image = noise(1, 3, 48, 64)
    exact = predicted(model, image, flip=True).logits
    half = predicted(model, image, flip=True, autocast_dtype=torch.bfloat16).logits
    assert exact.dtype == half.dtype == torch.float32
    assert not torch.equal(exact, half)
    torch.testing.assert_close(half, exact, atol=0.05 * float(exact.abs().max()), rtol=0)
    assert predicted(model.double(), image.double()).logits.dtype == torch.float64


def test_the_model_is_evaluated_and_keeps_its_modes() -> None:
    model = small_model("single").train()
    model.trunk.layer1.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    image = noise(1, 3, 32, 32)
    first = predicted(model, image).logits
    assert (
        model.training
        and not model.trunk.layer1.training
        and not model.trunk.layer1[0].bn1.training
        and model.decoder.training
    )
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    torch.testing.assert_close(first, predicted(model.eval(), image).logits)


# Tiles


@given(
    length=st.integers(1, 700),
    tile=st.integers(1, 256),
    share=st.floats(0, 0.9),
    aligned=st.sampled_from([1, 4, 32, 64, 256]),
)
@settings(max_examples=300, deadline=None)
def test_spans_cover_every_pixel_once_and_leave_borders_out(
    length: int, tile: int, share: float, aligned: int
) -> None:
    overlap = overlap_pixels(share, tile)
    parts = spans(length, tile=tile, overlap=overlap, alignment=aligned)
    assert parts[0].start == 0 and parts[-1].stop == length
    assert (
        parts[0].first == 0
        and parts[-1].last == length
        and parts[-1].to_after == 0
        and parts[0].from_before == 0
    )
    covered = 0
    for part in parts:
        assert (
            part.start <= part.first == covered
            and part.last + part.to_after <= part.stop
            and part.stop - part.start <= tile
        )
        assert part.first + part.from_before <= part.last
        covered = part.last
    assert covered == length
    for before, after in zip(parts, parts[1:], strict=False):
        assert before.stop - after.start >= overlap
        assert (before.last, before.to_after) == (after.first, after.from_before) and (
            before.to_after >= 1 or before.stop == after.start
        )
        outside = (before.stop - after.start - before.to_after) // 2
        assert (
            after.first - after.start >= outside
            and before.stop - before.last - before.to_after >= outside
        )


def test_starts_of_tiles_keep_to_the_pixel_grid_of_all_scales() -> None:
    assert (
        alignment((1.0,)) == 32
        and alignment((0.5, 1.0, 2.0)) == 64
        and alignment((0.25, 1.0)) == 128
        and alignment((0.75,)) == 128
    )
    assert alignment((0.3,)) == 32  # 320 pixels would not be worth it
    parts = spans(1000, tile=512, overlap=128, alignment=64)
    assert all(part.start % 64 == 0 for part in parts)


def test_weights_of_a_ramp_rise_smoothly_and_sum_to_one() -> None:
    rising = ramp(9, like=torch.zeros(1, dtype=torch.float64))
    assert (rising.diff() > 0).all() and rising[0] > 0 and rising[-1] < 1
    torch.testing.assert_close(rising + rising.flip(0), torch.ones_like(rising))


@pytest.mark.parametrize("size", [(97, 131), (64, 200), (40, 40), (150, 60)])
@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize(("tile", "overlap"), [((48, 64), 0.25), ((64, 40), 16), ((56, 56), 0.6)])
def test_tiles_of_convolutions_give_the_whole_image(
    size: tuple[int, int], flip: bool, tile: tuple[int, int], overlap: float
) -> None:
    model = Convolutions().double()
    image = noise(2, 3, *size).double()
    whole = predicted(model, image, flip=flip).logits
    model.largest = 0
    tiled = predicted(model, image, flip=flip, tile=tile, overlap=overlap).logits
    assert model.largest <= tile[0] * tile[1]
    torch.testing.assert_close(tiled, whole, atol=1e-12, rtol=0)


def test_tiles_see_the_grid_of_strided_features() -> None:
    model = Convolutions(layers=2, stride=8).double()
    image = noise(1, 3, 256, 320).double()
    whole = predicted(model, image).logits
    torch.testing.assert_close(
        predicted(model, image, tile=(128, 160), overlap=64).logits, whole, atol=1e-12, rtol=0
    )


def test_tiles_of_several_scales_agree_away_from_where_they_saw_a_border() -> None:
    model = Convolutions(layers=2).double()
    image = noise(1, 3, 192, 256).double()
    scales = (0.5, 1.0, 2.0)
    whole = predicted(model, image, scales=scales, over="probabilities").logits
    tiled = predicted(
        model, image, scales=scales, over="probabilities", tile=(128, 128), overlap=64
    ).logits
    torch.testing.assert_close(tiled, whole, atol=1e-10, rtol=0)


def test_what_differs_at_borders_of_tiles_is_blended_not_cut() -> None:
    class Position(nn.Module):
        """Its logits are the column within the tile: neighbours disagree by their distance."""

        multiscale, train_scales, num_classes = "single", (1.0,), 1

        def forward(self, image: Tensor) -> Prediction:
            return Prediction(
                logits=torch.arange(image.shape[-1], dtype=torch.float32).expand(
                    1, 1, *image.shape[-2:]
                )
            )

    logits = predicted(Position(), noise(1, 3, 32, 224), tile=(32, 128), overlap=0.5).logits[
        0, 0, 0
    ]
    steps = logits.diff()
    assert steps.min() < -2 and steps.min() > -20  # an unblended seam falls by 96 at once
    assert float(logits[0]) == 0 and float(logits[-1]) == 127


@pytest.mark.parametrize("multiscale", ["single", "hierarchical", "explicit"])
def test_tiles_of_a_network_stay_near_the_whole_image(multiscale: str) -> None:
    model = small_model(multiscale, train_scales=(0.5, 1.0) if multiscale != "single" else None)
    image = F.interpolate(noise(1, 3, 16, 24), size=(256, 384), mode="bicubic")
    whole = predicted(model, image, scales=(0.5, 1.0), keep_scales=True)
    tiled = predicted(
        model, image, scales=(0.5, 1.0), tile=(192, 256), overlap=0.5, keep_scales=True
    )
    assert (whole.logits.argmax(1) == tiled.logits.argmax(1)).float().mean() > 0.97
    assert (
        whole.scales is not None
        and tiled.scales is not None
        and (whole.attention is None) == (tiled.attention is None)
    )
    for scale, part in whole.scales.items():
        assert tiled.scales[scale].logits.shape == part.logits.shape
        assert (
            tiled.scales[scale].logits - part.logits
        ).abs().mean() < 0.2 * part.logits.abs().mean()


def test_kept_scales_are_pasted_where_they_belong_at_any_size() -> None:
    model = Convolutions(layers=1).double()
    image = noise(1, 3, 131, 97).double()
    whole = predicted(model, image, scales=(1.0, 2.0, 0.3), keep_scales=True).scales
    tiled = predicted(
        model, image, scales=(1.0, 2.0, 0.3), keep_scales=True, tile=(64, 64), overlap=16
    ).scales
    assert whole is not None and tiled is not None
    for scale in (1.0, 2.0):
        torch.testing.assert_close(tiled[scale].logits, whole[scale].logits)
    assert tiled[0.3].logits.shape == whole[0.3].logits.shape and (tiled[0.3].logits != 0).all()


# Memory


class Recorder(torch.utils._python_dispatch.TorchDispatchMode):
    """The largest number of elements of any tensor that an operation makes."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = 0

    def __torch_dispatch__(
        self, function: Callable, types: object, args: tuple = (), kwargs: dict | None = None
    ) -> object:
        result = function(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves(result):
            if isinstance(tensor, Tensor) and tensor.dtype == torch.float32:
                self.largest = max(self.largest, tensor.untyped_storage().nbytes() // 4)
        return result


def test_labels_of_a_tiled_image_never_need_its_logits() -> None:
    model = small_model()
    image = noise(1, 3, 512, 512)
    with Recorder() as whole:
        predicted(model, image)
    with Recorder() as tiled:
        label, confidence = labelled(model, image, tile=(128, 128), with_confidence=True)
    assert whole.largest >= model.num_classes * 512 * 512
    assert tiled.largest <= 3 * 512 * 512  # the image itself, or a view of it, is the largest
    assert label.shape == (1, 512, 512) and confidence is not None


def out_of_memory_above(
    model: Convolutions, limit: int, error: Callable[[], BaseException]
) -> Convolutions:
    forward = model.forward

    def limited(image: Tensor, **options: object) -> Prediction:
        if image.shape[-2] * image.shape[-1] > limit:
            raise error()
        return forward(image, **options)  # type: ignore[arg-type]

    model.forward = limited  # type: ignore[assignment, method-assign]
    return model


@pytest.mark.parametrize(
    "error",
    [
        lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        lambda: RuntimeError(
            "[enforce fail at alloc_cpu.cpp:126] err == 0. "
            "DefaultCPUAllocator: can't allocate memory"
        ),
        lambda: RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"),
        lambda: RuntimeError("Unable to find a valid cuDNN algorithm to run convolution"),
        MemoryError,
    ],
)
def test_out_of_memory_falls_back_to_tiles_and_says_so(error: Callable[[], BaseException]) -> None:
    image = noise(1, 3, 200, 240).double()
    whole = predicted(Convolutions().double(), image).logits
    said: list[str] = []
    model = out_of_memory_above(Convolutions().double(), 128 * 128, error)
    logits = predicted(model, image, on_fallback=said.append).logits
    torch.testing.assert_close(logits, whole, atol=1e-12, rtol=0)
    assert len(said) == 2 and all(
        "memory ran out" in sentence and sentence.count(".") == 1 for sentence in said
    )
    assert "200 x 240" in said[0] and "200 x 128" in said[1]
    label, _ = labelled(model, image, on_fallback=said.append)
    assert torch.equal(label, predicted_label(whole)) and len(said) == 4


def test_the_fall_back_is_never_silent() -> None:
    image = noise(1, 3, 100, 100)
    model = out_of_memory_above(Convolutions(), 80 * 100, MemoryError)
    with pytest.warns(RuntimeWarning, match="memory ran out"):
        predicted(model, image)


def test_a_hopeless_lack_of_memory_is_one_sentence() -> None:
    model = out_of_memory_above(Convolutions(), 10, MemoryError)
    with pytest.raises(ModelError, match="64 x 64 pixels fit"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        predicted(model, noise(1, 3, 256, 256))


def test_other_errors_are_not_mistaken_for_a_lack_of_memory() -> None:
    model = out_of_memory_above(Convolutions(), 10, lambda: RuntimeError("shapes do not match"))
    with pytest.raises(RuntimeError, match="shapes"):
        predicted(model, noise(1, 3, 32, 32), on_fallback=lambda sentence: pytest.fail(sentence))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"combine": "median"}, "combine 'median'.*average, max"),
        ({"over": "logit"}, "over 'logit'.*logits, probabilities"),
        ({"tile": (0, 5)}, "tile"),
        ({"tile": (8,)}, "tile"),
        ({"tile": (32, 32), "overlap": 32}, "overlap 32"),
        ({"overlap": -1}, "overlap -1"),
    ],
)
def test_mistaken_wishes_are_refused(options: dict[str, object], words: str) -> None:
    with pytest.raises(ModelError, match=words):
        predicted(Convolutions(), noise(1, 3, 40, 40), **options)  # type: ignore[arg-type]


# Labels


@given(
    count=st.integers(1, 2),
    classes=st.integers(1, 255),
    height=st.integers(1, 70),
    width=st.integers(1, 40),
    seed=st.integers(0, 99),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float64]),
    channels_last=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_label_and_confidence_are_the_largest_of_the_soft_max(
    count: int,
    classes: int,
    height: int,
    width: int,
    seed: int,
    dtype: torch.dtype,
    channels_last: bool,
) -> None:
    logits = (10 * noise(count, classes, height, width, seed=seed)).to(dtype)
    if channels_last:
        logits = logits.contiguous(memory_format=torch.channels_last)
    label, confidence = label_and_confidence(logits)
    largest = logits.float().softmax(1).amax(1)
    assert (
        label.dtype == torch.uint8
        and confidence.dtype == torch.float32
        and label.shape == confidence.shape == (count, height, width)
    )
    torch.testing.assert_close(confidence, largest, atol=1e-6, rtol=1e-5)
    picked = logits.gather(1, label.long().unsqueeze(1)).squeeze(1)
    assert torch.equal(picked, logits.amax(1))  # where classes tie, either is right
    assert torch.equal(label, predicted_label(logits))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("tile", [None, (32, 40)])
def test_logits_that_are_no_numbers_are_never_a_label_in_silence(
    value: float, tile: tuple[int, int] | None
) -> None:
    """Not class 0: confidence is NaN there; without confidence it is an error; logits stay."""

    class Broken(nn.Module):
        multiscale, train_scales, num_classes = "single", (1.0,), 3

        def forward(self, image: Tensor) -> Prediction:
            logits = torch.zeros(1, 3, *image.shape[-2:])
            logits[:, 1] = torch.where(image[:, 0] > 1, value, 0.5)
            return Prediction(logits=logits)

    image = torch.zeros(1, 3, 50, 60)
    image[0, 0, 20:23, 30:34] = 2
    broken = image[:, 0] > 1
    _, confidence = labelled(Broken(), image, with_confidence=True, tile=tile)
    assert torch.equal(confidence.isnan(), broken)
    with pytest.raises(NonFiniteError, match="largest logit of 12 of 3000 pixels") as caught:
        labelled(Broken(), image, tile=tile)
    assert isinstance(caught.value, ModelError) and "\n" not in str(caught.value)

    logits = predicted(Broken(), image, tile=tile).logits
    assert torch.equal(logits.isfinite().all(dim=1), ~broken)
    assert torch.equal(label_and_confidence(logits)[1].isnan(), broken)
    with pytest.raises(NonFiniteError):
        predicted_label(logits)


def test_a_class_that_is_ruled_out_is_no_fault() -> None:
    logits = torch.zeros(1, 3, 4, 4)
    logits[:, 0] = -torch.inf
    logits[:, 2] = 1
    assert (predicted_label(logits) == 2).all()
    assert label_and_confidence(logits)[1].isfinite().all()


def test_of_equal_logits_the_first_class_is_the_label() -> None:
    assert (predicted_label(torch.zeros(1, 9, 5, 6)) == 0).all()


@pytest.mark.parametrize("tile", [None, (64, 96)])
@pytest.mark.parametrize("flip", [False, True])
def test_predicted_labels_are_those_of_the_logits(tile: tuple[int, int] | None, flip: bool) -> None:
    model = small_model()
    image = noise(2, 3, 100, 140)
    logits = predicted(
        model, image, scales=(0.5, 1.0, 2.0), flip=flip, tile=tile, over="probabilities"
    ).logits
    label, confidence = labelled(
        model,
        image,
        scales=(0.5, 1.0, 2.0),
        flip=flip,
        tile=tile,
        over="probabilities",
        with_confidence=True,
    )
    expected, likely = label_and_confidence(logits)
    assert torch.equal(label, expected)
    torch.testing.assert_close(confidence, likely)
    assert labelled(model, image, flip=flip, tile=tile)[1] is None


def test_more_classes_than_a_byte_holds_are_a_mistake_of_ours() -> None:
    with pytest.raises(AssertionError, match="256 classes"):
        predicted_label(torch.zeros(1, 256, 2, 2))


def test_constant_maps_stay_constant_through_tiles_scales_and_flip() -> None:
    class Constant(nn.Module):
        multiscale, train_scales, num_classes = "single", (1.0,), 3

        def forward(self, image: Tensor) -> Prediction:
            return Prediction(
                logits=torch.tensor([math.pi, -1.7, 0.3])
                .view(1, 3, 1, 1)
                .expand(1, 3, *image.shape[-2:])
            )

    logits = predicted(
        Constant(), noise(1, 3, 70, 90), scales=(0.5, 1.0), flip=True, tile=(32, 40)
    ).logits
    torch.testing.assert_close(
        logits, torch.tensor([math.pi, -1.7, 0.3]).view(1, 3, 1, 1).expand(1, 3, 70, 90)
    )


class Live(torch.utils._python_dispatch.TorchDispatchMode):
    """The most bytes that new tensors held at any time; `known` tensors and their views apart."""

    def __init__(self, *known: Tensor) -> None:
        super().__init__()
        self.known = {tensor.untyped_storage().data_ptr() for tensor in known}
        self.alive: dict[int, int] = {}
        self.bytes = self.peak = 0

    def __torch_dispatch__(
        self, function: Callable, types: object, args: tuple = (), kwargs: dict | None = None
    ) -> object:
        result = function(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves(result):
            if isinstance(tensor, Tensor) and tensor.untyped_storage().data_ptr() not in {
                0,
                *self.known,
            }:
                place, size = tensor.untyped_storage().data_ptr(), tensor.untyped_storage().nbytes()
                self.bytes += 0 if self.alive.get(place) else size
                self.alive[place] = self.alive.get(place, 0) + 1
                self.peak = max(self.peak, self.bytes)
                weakref.finalize(tensor, self._gone, place, size)
        return result

    def _gone(self, place: int, size: int) -> None:
        self.alive[place] -= 1
        self.bytes -= 0 if self.alive[place] else size


class Wide(Convolutions):
    """Few layers, but the memory of a network: 256 channels at stride 4 from 19 classes."""

    num_classes = 19

    def __init__(self) -> None:
        super().__init__(layers=1)
        self.widen, self.narrow = nn.Conv2d(3, 256, 1), nn.Conv2d(256, self.num_classes, 1)

    def forward(self, image: Tensor, **options: object) -> Prediction:
        features = torch.tanh(self.widen(F.avg_pool2d(image, 4)))
        return Prediction(
            logits=self.narrow(features).repeat_interleave(4, 2).repeat_interleave(4, 3)
        )


def test_a_large_image_in_tiles_takes_little_more_memory_than_one_tile() -> None:
    model = Wide()
    peaks = {}
    for size in ((1024, 1024), (2048, 4096)):
        image = torch.zeros(1, 3, *size)
        with Live(image, *model.parameters()) as live:
            labelled(model, image, tile=(1024, 1024))
        peaks[size] = live.peak
    assert peaks[1024, 1024] > 1024 * 1024 * 256 // 16 * 4
    assert peaks[2048, 4096] <= 1.2 * peaks[1024, 1024], {
        size: f"{peak / 2**20:.0f} MiB" for size, peak in peaks.items()
    }
    with Live(image) as live:
        labelled(model, image)
    assert live.peak > 4 * peaks[1024, 1024], "what it takes without tiles"


@pytest.mark.parametrize("multiscale", ["hierarchical", "explicit"])
@pytest.mark.parametrize("tile", [None, (64, 64)])
def test_attention_alone_is_that_of_all_kept_maps(multiscale, tile):
    torch.manual_seed(0)
    model = build_model(
        trunk="resnet18", decoder="fcn", multiscale=multiscale, num_classes=3
    ).eval()
    image = torch.randn(1, 3, 96, 128)
    options = InferenceOptions(scales=(0.5, 1.0, 2.0), flip=True, tile=tile)
    everything = predict(model, image, options, keep_scales=True)
    alone = predict(model, image, options, keep_scales="attention")
    assert torch.equal(alone.logits, everything.logits)
    assert torch.equal(alone.attention, everything.attention)
    for scale, part in everything.scales.items():
        assert alone.scales[scale].logits.numel() == 0 < part.logits.numel()
        if part.attention is None:
            assert alone.scales[scale].attention is None
        else:
            assert torch.equal(alone.scales[scale].attention, part.attention)
