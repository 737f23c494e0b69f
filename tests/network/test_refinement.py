"""High scales on the part of the image that attention asks for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from hmsa.network import InferenceOptions, ModelError, attach_attention, build_model
from hmsa.network.decoders.deeplabv3plus import DeepLabV3Plus
from hmsa.network.decoders.fcn import FCN
from hmsa.network.decoders.ocr import OCR
from hmsa.network.heads import ConvHead
from hmsa.network.inference import (
    RefinedArea,
    predict,
    predict_label,
    prepare_for_inference,
    refinement,
)
from hmsa.network.inference.blocks import (
    MOST,
    PRICE,
    BlockGrid,
    Choice,
    Rectangle,
    choose_rectangles,
)
from hmsa.network.inference.context import ImageContext
from hmsa.network.inference.refinement import predict_refined
from hmsa.network.inference.strips import Held, Resized
from hmsa.network.model import Hierarchical, PairBias
from hmsa.utils.training.live_memory import LiveMemory
from tests.engine.small import Small

THREE = (0.5, 1.0, 2.0)
CLASSES = 4
DECODERS = ("fcn", "ocr", "deeplabv3plus")


class Everywhere(nn.Module):
    """Attention with the same score everywhere."""

    def __init__(self, score: float) -> None:
        super().__init__()
        self.score = score

    def forward(self, features: Tensor) -> Tensor:
        return features.new_full((features.shape[0], 1, *features.shape[2:]), self.score)


def small(decoder: str = "fcn", *, attention: float | None = None, **options: Any) -> Hierarchical:
    """A model of a few convolutions whose scales disagree, and whose attention varies."""
    torch.manual_seed(1)
    trunk = Small()
    parts: dict[str, nn.Module] = {
        "fcn": FCN(trunk_channels=8, num_classes=CLASSES, channels=8),
        "ocr": OCR(trunk_channels=8, num_classes=CLASSES, channels=8, key_channels=8),
        "deeplabv3plus": DeepLabV3Plus(
            trunk_channels=8,
            trunk_stride=8,
            fine_channels=8,
            num_classes=CLASSES,
            align_corners=options.get("align_corners", False),
            channels=8,
            bottleneck_channels=8,
        ),
    }
    chosen = parts[decoder]
    head: nn.Module = ConvHead(inputs=chosen.feature_channels, outputs=1, channels=8)  # type: ignore[arg-type]
    if attention is not None:
        head = Everywhere(attention)
    model = Hierarchical(
        trunk=trunk,
        decoder=chosen,
        attention=head,
        num_classes=CLASSES,
        align_corners=options.pop("align_corners", False),
        train_scales=(0.5, 1.0),
        **options,
    ).eval()
    for part in model.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.uniform_(-0.2, 0.2)
            part.running_var.uniform_(0.8, 1.2)
    return model


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def logits_of(
    model: nn.Module, image: Tensor, scales: Sequence[float] = THREE, **options: Any
) -> tuple[Tensor, RefinedArea]:
    area = RefinedArea()
    found = predict(model, image, InferenceOptions(tuple(scales), **options), area=area)
    return found.logits, area


# How much, and where


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("options", [{}, {"flip": True, "over": "probabilities"}])
def test_everything_and_nothing_are_what_they_were_to_the_last_bit(
    decoder: str, options: dict[str, Any]
) -> None:
    image = noise(2, 3, 90, 150)
    model = small(decoder)
    whole, area = logits_of(model, image, **options)
    assert torch.equal(logits_of(model, image, refine=1, **options)[0], whole)
    assert area.share is None
    low, _ = logits_of(model, image, (0.5, 1.0), **options)
    nothing, area = logits_of(model, image, refine=0.0, **options)
    assert torch.equal(nothing, low) and area.share == 0
    assert not torch.allclose(whole, low, atol=1e-3)

    # Attention asks for all or for nothing of it.
    asking = small(decoder, attention=-30.0)
    found, area = logits_of(asking, image, refine="auto", **options)
    assert area.share == 1 and area.computed[2.0] == area.pixels
    assert torch.equal(found, logits_of(asking, image, **options)[0])
    content = small(decoder, attention=30.0)
    for refine in ("auto", 0.5):
        found, area = logits_of(content, image, refine=refine, **options)
        assert area.share == 0 and torch.equal(
            found, logits_of(content, image, (0.5, 1.0), **options)[0]
        )


@pytest.mark.parametrize("size", [(160, 256), (131, 203)])
@pytest.mark.parametrize("options", [{}, {"flip": True}, {"tile": (96, 128)}])
@pytest.mark.parametrize("refine", [0.2, 0.5, "auto"])
def test_the_share_is_respected_and_the_result_lies_between(
    size: tuple[int, int], options: dict[str, Any], refine: Any
) -> None:
    model, image = small(attention=0.0), noise(2, 3, *size)
    found, area = logits_of(model, image, refine=refine, **options)
    whole, low = (logits_of(model, image, scales, **options)[0] for scales in (THREE, (0.5, 1.0)))
    assert found.shape == whole.shape and bool(found.isfinite().all())
    assert area.share is not None and area.computed[2.0] <= area.pixels
    if refine == "auto":
        return
    assert 0 < area.share <= refine

    # Away from rectangles it is the lower scales' result, inside them the whole one's.
    is_low = torch.isclose(found, low, atol=1e-5).all(dim=1)
    is_whole = torch.isclose(found, whole, atol=1e-5).all(dim=1)
    if not options and refine == 0.2:
        assert is_low.float().mean() > 0.1
    if not options and refine == 0.5:
        assert is_whole.float().mean() > 0.5 * area.share


def test_every_image_of_a_batch_has_its_own_blocks() -> None:
    model = small("ocr")
    images = torch.cat([noise(1, 3, 128, 192), noise(1, 3, 128, 192).flip(-1) * 0.3])
    together, area = logits_of(model, images, refine=0.3)
    each = [logits_of(model, images[index : index + 1], refine=0.3) for index in range(2)]
    torch.testing.assert_close(together, torch.cat([logits for logits, _ in each]))
    assert area.computed[2.0] == pytest.approx(sum(own.computed[2.0] for _, own in each))

    label, _ = predict_label(model, images, InferenceOptions(THREE, refine=0.3))
    assert torch.equal(label.long(), together.argmax(1))


@pytest.mark.parametrize("size", [(1, 1), (20, 20), (33, 500)])
def test_small_and_constant_images(size: tuple[int, int]) -> None:
    model = small("deeplabv3plus")
    image = torch.zeros(1, 3, *size)
    for refine in (0.3, 0.99, "auto"):
        found, area = logits_of(model, image, refine=refine)
        assert found.shape[-2:] == size and bool(found.isfinite().all())
        assert area.share is not None and (refine == "auto" or area.share <= refine)


@pytest.mark.parametrize("scales", [(1.5, 2.0), (0.5, 2.0), (0.5, 1.0, 1.5, 2.0), (1.0, 1.3)])
def test_any_chain(scales: tuple[float, ...]) -> None:
    model, image = small(attention=0.0), noise(1, 3, 160, 224)
    found, area = logits_of(model, image, scales, refine=0.3)
    assert bool(found.isfinite().all()) and area.share is not None and 0 < area.share <= 0.3
    assert set(area.computed) == {scale for scale in sorted(scales)[1:] if scale > 1}

    # Scales up to 1 have nothing that could be left out.
    lower = (0.5, 1.0)
    assert torch.equal(
        logits_of(model, image, lower, refine=0.3)[0], logits_of(model, image, lower)[0]
    )


@pytest.mark.parametrize(
    "options", [{"fuse_at": "features"}, {"align_corners": True}], ids=["features", "corners"]
)
def test_other_ways_to_fuse_and_the_calibration(options: dict[str, Any]) -> None:
    model, image = small(**options), noise(1, 3, 160, 224)
    model.attention_bias = {(1.0, 2.0): PairBias((-3.0,)), (0.5, 1.0): PairBias((-3.0,))}
    asked, area = logits_of(model, image, refine="auto")
    assert bool(asked.isfinite().all()) and area.share is not None and area.share > 0.5

    # A bias against the higher scale is heard before that is computed.
    model.attention_bias = {(1.0, 2.0): PairBias((60.0,))}
    _, area = logits_of(model, image, refine="auto")
    assert area.share == 0


def test_biases_of_classes_count_where_the_higher_scale_is_computed() -> None:
    model, image = small(), noise(1, 3, 160, 224)
    plain = logits_of(model, image, (0.5, 1.0, 2.0, 3.0))[0]
    numbers = tuple(float(number) for number in range(CLASSES))
    for pair in ((0.5, 1.0), (1.0, 2.0), (2.0, 3.0)):
        model.attention_bias[pair] = PairBias(numbers, tuple(-5 * number for number in numbers))
    whole = logits_of(model, image, (0.5, 1.0, 2.0, 3.0))[0]
    assert not torch.allclose(whole, plain, atol=1e-3)

    refined = logits_of(model, image, (0.5, 1.0, 2.0, 3.0), refine=1)[0]
    assert torch.equal(refined, whole)
    part, area = logits_of(model, image, refine=0.4)
    assert bool(part.isfinite().all()) and area.share is not None and 0 < area.share <= 0.4


def test_somebodys_model_with_attention() -> None:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(8, CLASSES, 1)]
    model = attach_attention(nn.Sequential(*layers), features="1", multiple_of=32)
    model.eval()
    image = noise(1, 3, 100, 150)
    found, area = logits_of(model, image, refine=0.4)
    assert bool(found.isfinite().all()) and area.share is not None and 0 < area.share <= 0.4


def test_kept_scales_say_where_the_higher_one_counts() -> None:
    model, image = small(attention=0.0), noise(1, 3, 160, 224)
    kept = predict(model, image, InferenceOptions(THREE, refine=0.3), keep_scales=True)
    assert kept.scales is not None and set(kept.scales) == set(THREE)
    sizes = {scale: tuple(part.logits.shape[-2:]) for scale, part in kept.scales.items()}
    assert sizes == {0.5: (80, 112), 1.0: (160, 224), 2.0: (320, 448)}
    attention = kept.scales[1.0].attention
    assert attention is not None and kept.attention is not None
    left_out = attention == 1
    assert 0.3 < left_out.float().mean() < 0.75 and attention.min() == pytest.approx(0.5)

    # Nothing computed at all leaves maps of the right size, too.
    for scales in (THREE, (1.0, 2.0)):
        kept = predict(model, image, InferenceOptions(scales, refine=0.0), keep_scales=True)
        assert kept.scales is not None and kept.attention is not None
        assert kept.scales[2.0].logits.shape == (1, CLASSES, 320, 448)
        assert bool((kept.scales[1.0].attention == 1).all())  # type: ignore[union-attr]


def test_no_seam_at_the_border_of_a_rectangle() -> None:
    """Without a transition the steepest step would be 0.6 of what the scales are apart."""
    model = small(attention=-3.0)
    rows, columns = torch.meshgrid(
        torch.linspace(-1, 1, 160), torch.linspace(-2, 2, 256), indexing="ij"
    )
    image = torch.stack([rows, columns, rows * columns])[None]

    def steepest(logits: Tensor) -> float:
        inner = logits[..., 8:-8, 8:-8]  # the network pads with zeros beyond the image
        return max(float(inner.diff(dim=axis).abs().max()) for axis in (2, 3))

    whole, low = (logits_of(model, image, scales)[0] for scales in (THREE, (0.5, 1.0)))
    refined, area = logits_of(model, image, refine=0.3)
    apart = float((whole - low).abs().max())
    plain = max(steepest(whole), steepest(low))
    assert area.share is not None and area.share > 0.1 and apart > 2 * plain
    assert steepest(refined) < plain + 0.1 * apart


def test_peak_memory_is_not_above_that_of_the_whole() -> None:
    model, image = small("ocr", attention=0.0), noise(1, 3, 256, 384)
    peaks = {}
    for refine in (1.0, 0.3, 0.9, "auto"):
        options = InferenceOptions(THREE, refine=refine)  # type: ignore[arg-type]
        with LiveMemory() as memory:
            predict_label(model, image, options)
        peaks[refine] = memory.peak
    # The whole one has no maps of one channel that say where to compute.
    assert max(peaks.values()) <= 1.01 * peaks[1.0] and peaks[0.3] < 0.5 * peaks[1.0], peaks


@pytest.mark.parametrize("multiscale", ["single", "explicit", "hierarchical_dual"])
def test_models_that_cannot_say_so(multiscale: str) -> None:
    model = build_model(
        trunk="hrnet_w18_small", decoder="fcn", multiscale=multiscale, num_classes=CLASSES
    )
    with pytest.raises(ModelError, match="leave refine out"):
        predict(model, noise(1, 3, 32, 32), InferenceOptions(THREE, refine=0.5))


@pytest.mark.parametrize("refine", [-0.1, 1.1, float("nan"), "some", None])
def test_shares_that_are_none(refine: Any) -> None:
    with pytest.raises(ModelError, match=r"share of the image from 0 to 1"):
        InferenceOptions(THREE, refine=refine)


def test_a_way_to_infer_says_its_share() -> None:
    assert InferenceOptions(THREE, refine=0.3).describe() == "{0.5, 1, 2}, 2x on 30 %"
    asked = InferenceOptions(THREE, flip=True, refine="auto").describe()
    assert asked == "{0.5, 1, 2} + flip, 2x where attention asks"
    assert InferenceOptions((0.5, 1.0), refine=0.3).describe() == "{0.5, 1}"


# Blocks and rectangles


def counting(grid: BlockGrid, part: Rectangle) -> tuple[slice, slice]:
    """The pixels of a rectangle that are taken to count: up to the middle of its transition."""
    inset = round((grid.halo + grid.margin) / 2)
    spans = []
    for extent, length in zip(part, grid.size, strict=True):
        first, last = extent.start + inset, extent.stop - inset
        if extent.start == 0:
            first = 0
        if extent.stop == length:
            last = length
        spans.append(slice(first, max(first, last)))
    return spans[0], spans[1]


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_rectangles_hold_the_largest_and_cost_less_than_all(data: st.DataObject) -> None:
    size = data.draw(st.tuples(st.integers(1, 500), st.integers(1, 500)))
    grid = BlockGrid.of_image(size, margin=data.draw(st.sampled_from([2, 6, 18])))
    seed = data.draw(st.integers(0, 99))
    shape = data.draw(st.tuples(st.integers(1, 20), st.integers(1, 20)))
    priority = np.random.default_rng(seed).random(shape) ** data.draw(st.integers(0, 9))
    share = data.draw(st.sampled_from([0.0, 0.1, 0.3, 0.7]))

    choice = choose_rectangles(grid, priority, share)
    assert choice.refined <= share and not choice.is_whole
    covered = np.zeros(size, dtype=bool)
    for rectangle in choice.rectangles:
        covered[counting(grid, rectangle)] = True
        for extent, length in zip(rectangle, size, strict=True):
            assert 0 <= extent.start <= extent.first <= extent.last <= extent.stop <= length
            assert extent.start % 32 == 0 and (extent.stop % 32 == 0 or extent.stop == length)
    assert covered.mean() == pytest.approx(choice.refined)
    assert sum(rectangle.pixels for rectangle in choice.rectangles) <= size[0] * size[1]

    # The share is used, but for what one more row of blocks would take.
    if share >= 0.3 and min(grid.shape) >= 6:
        assert choice.refined > share - 0.2

    # No rectangle that "auto" leaves out would be worth its price.
    priority *= 3 * PRICE
    asked = choose_rectangles(grid, priority, "auto")
    if asked.is_whole or len(asked.rectangles) == MOST:
        return
    gains = grid.sums(priority)
    for rectangle in asked.rectangles:
        gains[grid.inside(box_of(grid, rectangle))] = 0
    rows, columns = grid.shape
    for top, left in np.ndindex(rows, columns):
        for bottom, right in ((top + 1, left + 1), (top + 2, left + 3), (rows, columns)):
            if bottom <= rows and right <= columns:
                box = (top, bottom, left, right)
                gained = gains[grid.inside(box)].sum()
                assert gained <= PRICE * grid.cost(box) * (1 + 1e-9)


def box_of(grid: BlockGrid, part: Rectangle) -> tuple[int, int, int, int]:
    """The blocks of a rectangle."""
    rows, columns = ((extent.start // grid.side, -(-extent.stop // grid.side)) for extent in part)
    return (*rows, *columns)


def test_a_rectangle_counts_less_and_less_towards_its_ends_but_not_at_those_of_the_image() -> None:
    grid = BlockGrid.of_image((512, 1024), margin=6)
    part = grid.rectangle((0, 4, 2, 6))
    rows, columns = grid.weights(part, grid.size)
    start, stop = part.columns.start, part.columns.stop
    assert (start, stop) == (64, 192) and part.rows.start == 0

    # Next to the ends something is read that was not computed: nothing counts within the margin.
    assert not columns[: start + 6].any() and not columns[stop - 6 :].any()
    assert (columns[start + 16 : stop - 16] == 1).all()
    assert np.abs(np.diff(columns)).max() < 0.2
    assert (rows[: part.rows.stop - 16] == 1).all() and not rows[part.rows.stop - 6 :].any()


def test_what_stands_out_is_what_is_chosen() -> None:
    grid = BlockGrid((640, 960), side=32, halo=16, margin=4)
    priority = np.full((20, 30), 0.001)
    priority[4:8, 6:12] = 0.5
    priority[16:18, 24:26] = 0.4
    assert choose_rectangles(grid, priority, 0.9).refined > 0.6
    for share in (0.08, "auto"):
        first, second = choose_rectangles(grid, priority, share).rectangles
        assert (first.rows.start, first.rows.stop) == (96, 288)
        assert (first.columns.start, first.columns.stop) == (160, 416)
        assert (second.rows.start, second.columns.stop) == (480, 864)


def test_sums_between_the_cuts_of_a_map_of_any_resolution() -> None:
    grid = BlockGrid((128, 200), side=64, halo=16, margin=4)
    assert grid.rows.cuts.tolist() == [0, 54, 74, 128]
    values = np.arange(32 * 50, dtype=np.float64).reshape(32, 50)
    sums = grid.sums(values)
    assert sums.sum() == pytest.approx(values.mean() * 128 * 200)
    exact = np.kron(values, np.ones((4, 4)))
    assert sums[1, 1] == pytest.approx(exact[54:74, slice(*grid.columns.cuts[1:3])].sum())
    assert grid.sums(np.ones((1, 1))) == pytest.approx(grid.areas())


# Fusing


@pytest.mark.parametrize("align_corners", [False, True])
def test_a_window_is_a_part_of_the_rows(align_corners: bool) -> None:
    once = Resized(Held(noise(2, 3, 13, 21)), (50, 83), align_corners=align_corners)
    twice = Resized(once, (31, 40), align_corners=align_corners)
    for maps in (once, twice, 1 - twice, twice * twice):
        window = maps.window(slice(5, 30), slice(7, 22))
        assert torch.allclose(window, maps.rows(5, 30)[..., 7:22], atol=1e-5)


class FusedPixels(TorchDispatchMode):
    """Counts the pixels of which two scales are fused."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        if function is torch.ops.aten.addcmul.default and result.dim() == 4:
            self.count += result.shape[-2] * result.shape[-1]
        return result


def test_nothing_is_fused_outside_of_the_rectangles() -> None:
    model, image = prepare_for_inference(small(attention=0.0)), noise(1, 3, 256, 384)
    pixels = {}
    for refine in (1.0, 0.0, 0.2):
        with FusedPixels() as fused:
            logits_of(model, image, refine=refine)
        pixels[refine] = fused.count
    assert pixels[0.0] < pixels[0.2] < pixels[0.0] + 0.5 * (pixels[1.0] - pixels[0.0])


def test_a_rectangle_shows_the_part_of_the_image_where_it_lies(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """To the pixel: where no border of it is near, its maps are those of the whole image."""
    model, image = small(), noise(1, 3, 256, 384)
    boxes = [(3, 9, 5, 12), (0, 5, 17, 24)]

    def chosen(grid: BlockGrid, *_: Any) -> Choice:
        return Choice([grid.rectangle(box) for box in boxes], 0.2)

    monkeypatch.setattr(refinement, "choose_rectangles", chosen)
    with torch.inference_mode():
        found = predict_refined(model, image, InferenceOptions(THREE, refine=0.3))
        whole = model.predict_scale(image, 2.0, attended=False).logits
    (choice,) = found.parts[2.0].choices
    assert [rectangle.shape for rectangle in choice.rectangles] == [(192, 224), (160, 224)]

    # The network's convolutions reach less than four cells of eight pixels far.
    for rectangle in choice.rectangles:
        rows, columns = (slice(extent.start // 8 + 4, extent.stop // 8 - 4) for extent in rectangle)
        refined, expected = (maps[..., rows, columns] for maps in (found.own[2.0].logits, whole))
        torch.testing.assert_close(refined, expected, atol=1e-5, rtol=0)
        assert expected.std() > 1e-3


# Context


@pytest.mark.parametrize("decoder", ["ocr", "deeplabv3plus"])
def test_parts_are_lent_the_context_of_their_image(decoder: str) -> None:
    model, image = small(decoder), noise(2, 3, 64, 96)
    context = ImageContext(model)
    with torch.inference_mode():
        with context.recorded():
            whole = model.predict_scale(image, 1.0, attended=False).logits
        part = image[1:, :, :32, :32]
        own = model.predict_scale(part, 1.0, attended=False).logits
        with context.lent([1]):
            lent = model.predict_scale(part, 1.0, attended=False).logits

    # In the corner, which no border of the part has touched, it is what the whole image has.
    ours, lents, owns = (maps[..., 0, 0] for maps in (whole[1:], lent, own))
    assert (lents - ours).abs().max() < (owns - ours).abs().max()
