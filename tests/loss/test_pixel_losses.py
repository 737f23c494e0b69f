"""Cross-entropy and its relatives: identities between losses, gradients included."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from hmsa.loss import (
    LossError,
    binary_cross_entropy,
    bootstrapped_cross_entropy,
    class_weights_from_counts,
    cross_entropy,
    dice_loss,
    focal_loss,
    lovasz_loss,
    ohem_cross_entropy,
    relaxed_boundary_loss,
)
from hmsa.loss.fast import blocks

Loss = Callable[..., Tensor]
LOSSES: dict[str, tuple[Loss, dict[str, Any]]] = {
    "cross_entropy": (cross_entropy, {}),
    "class weights": (cross_entropy, {"class_weights": torch.tensor([0.5, 1.0, 2.0, 0.25, 3.0])}),
    "image weights": (cross_entropy, {"image_weights": "linear"}),
    "bootstrapped": (bootstrapped_cross_entropy, {"fraction": 0.3}),
    "ohem": (ohem_cross_entropy, {"threshold": 0.3, "min_kept": 0.05}),
    "bce": (binary_cross_entropy, {}),
    "bce, class weights": (
        binary_cross_entropy,
        {"class_weights": torch.tensor([0.5, 1.0, 2.0, 0.25, 3.0])},
    ),
    "relaxed": (relaxed_boundary_loss, {}),
    "dice": (dice_loss, {}),
    "dice, smooth": (dice_loss, {"smooth": 1.0}),
    "focal": (focal_loss, {}),
    "focal, gamma below 1": (focal_loss, {"gamma": 0.5}),
    "lovasz": (lovasz_loss, {}),
    "relaxed, wide, strict": (relaxed_boundary_loss, {"window": 5, "strict_classes": (1, 3)}),
}
every_loss = pytest.mark.parametrize(("loss", "settings"), LOSSES.values(), ids=LOSSES.keys())


def inputs(
    *, images: int = 2, size: tuple[int, int] = (7, 9), dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor]:
    label = torch.randint(5, (images, *size), dtype=torch.uint8)
    label[torch.rand(label.shape) < 0.15] = 255
    return torch.randn(images, 5, *size, dtype=dtype), label


def value_and_gradient(
    loss: Loss, logits: Tensor, label: Tensor, **settings: Any
) -> tuple[Tensor, Tensor]:
    logits = logits.detach().requires_grad_()
    value = loss(logits, label, **settings)
    return value.detach(), torch.autograd.grad(value, logits)[0]


@every_loss
def test_gradient_is_the_derivative(loss: Loss, settings: dict[str, Any]) -> None:
    logits, label = inputs()
    assert torch.autograd.gradcheck(
        lambda leaf: loss(leaf, label, **settings), logits.requires_grad_()
    )


@every_loss
@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str
)
def test_ignored_images_give_zero_with_zero_gradient(
    loss: Loss, settings: dict[str, Any], dtype: torch.dtype
) -> None:
    logits, label = inputs(dtype=dtype)
    for scale in (1, 1e4):
        value, gradient = value_and_gradient(
            loss, logits * scale, torch.full_like(label, 255), **settings
        )
        assert value == 0 and not gradient.any()


@every_loss
def test_an_ignored_pixel_has_no_effect(loss: Loss, settings: dict[str, Any]) -> None:
    logits, label = inputs()
    changed = torch.where(label[:, None] == 255, 1e4, logits)
    expected = value_and_gradient(loss, logits, label, **settings)
    found = value_and_gradient(loss, changed, label.long(), **settings)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-15)
    assert not found[1].movedim(1, -1)[label == 255].any()


@every_loss
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_saturated_logits_are_finite(
    loss: Loss, settings: dict[str, Any], dtype: torch.dtype
) -> None:
    logits, label = inputs(dtype=dtype)
    value, gradient = value_and_gradient(
        loss, torch.where(logits > 0, 1e4, -1e4).to(dtype), label, **settings
    )
    assert value.dtype == torch.float32 and value.isfinite()
    assert gradient.dtype == dtype and gradient.isfinite().all()


@every_loss
def test_mean_over_parts_is_the_loss_of_the_batch(loss: Loss, settings: dict[str, Any]) -> None:
    logits, label = inputs(images=4)
    label[2, 1:] = 255
    valid_pixels = (label != 255).sum()
    whole = value_and_gradient(loss, logits, label, **settings)
    for count in (valid_pixels, int(valid_pixels)):
        parts = [
            value_and_gradient(loss, *part, **settings, valid_pixels=count, parts=2)
            for part in zip(logits.split(2), label.split(2), strict=True)
        ]
        torch.testing.assert_close((parts[0][0] + parts[1][0]) / 2, whole[0], rtol=1e-12, atol=0)
        torch.testing.assert_close(
            torch.cat([part[1] for part in parts]) / 2, whole[1], rtol=1e-12, atol=1e-16
        )


@every_loss
def test_blocks_layout_and_autocast_have_no_effect(
    loss: Loss, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    logits, label = inputs(dtype=torch.float32)
    expected = value_and_gradient(loss, logits, label, **settings)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(
            value_and_gradient(loss, logits, label, **settings), expected, rtol=1e-6, atol=1e-8
        )
    layout = logits.to(memory_format=torch.channels_last)
    torch.testing.assert_close(
        value_and_gradient(loss, layout, label, **settings), expected, rtol=1e-6, atol=1e-8
    )
    monkeypatch.setattr(blocks, "CPU_BLOCK_ELEMENTS", 50)
    torch.testing.assert_close(
        value_and_gradient(loss, logits, label, **settings), expected, rtol=1e-6, atol=1e-8
    )


@every_loss
def test_a_host_is_never_asked(loss: Loss, settings: dict[str, Any]) -> None:
    """Meta tensors have no values, so what would make the host wait for a GPU fails on them."""
    logits = torch.randn(2, 5, 7, 9, device="meta", requires_grad=True)
    label = torch.zeros(2, 7, 9, dtype=torch.uint8, device="meta")
    valid_pixels = torch.zeros((), dtype=torch.int64, device="meta")
    on_meta = {
        name: value.to("meta") if isinstance(value, Tensor) else value
        for name, value in settings.items()
    }
    value = loss(logits, label, valid_pixels=valid_pixels, parts=2, **on_meta)
    assert torch.autograd.grad(value, logits)[0].shape == logits.shape


@pytest.mark.parametrize("loss", [cross_entropy, binary_cross_entropy, relaxed_boundary_loss])
@pytest.mark.parametrize("classes", [255, 256, 300])
def test_as_many_classes_as_a_byte_holds_and_more(loss: Loss, classes: int) -> None:
    """torch compares a uint8 tensor with a number modulo 256."""
    logits = torch.randn(1, classes, 8, 8, dtype=torch.float64)
    label = torch.arange(192, 256, dtype=torch.uint8).view(1, 8, 8)
    expected = value_and_gradient(loss, logits, label.long())
    torch.testing.assert_close(value_and_gradient(loss, logits, label), expected)
    assert expected[1][0].abs().sum(0).count_nonzero() == 63  # all but label 255


@pytest.mark.parametrize("name", ["C19/plain/CE", "C19/x3/CE", "C5/plain/CE"])
def test_cross_entropy_equals_the_authors_numbers(name: str) -> None:
    data = Path(__file__).resolve().parents[1] / "data"
    expected = json.loads((data / "rmi_golden.json").read_text())[f"{name}/nvidia/fp64"]
    classes, kind = name.split("/")[:2]
    with np.load(data / "rmi_inputs.npz") as stored:
        logits, label = (
            torch.from_numpy(stored[f"rmi_z_{classes}"]).double(),
            torch.from_numpy(stored[f"rmi_y_{classes}"]),
        )
    value, gradient = value_and_gradient(cross_entropy, logits * (3 if kind == "x3" else 1), label)
    assert value.item() == pytest.approx(expected["loss"], rel=1e-9)
    assert gradient.norm().item() == pytest.approx(expected["grad_norm"], rel=1e-9)


def test_cross_entropy_of_the_formula_vector() -> None:
    n, c, h, w = (
        torch.arange(size, dtype=torch.float64).view([-1 if i == axis else 1 for i in range(4)])
        for axis, size in enumerate((2, 3, 24, 32))
    )
    logits = 2 * torch.sin(0.35 * h + 0.9 * c) + 1.5 * torch.cos(0.22 * w * (n + 1) - 0.7 * c)
    label = ((h // 5 + w // 7 + n) % 4)[:, 0].long()
    assert cross_entropy(logits.float(), label, ignore_label=3).item() == pytest.approx(
        1.530248, abs=1e-6
    )


def test_cross_entropy_is_torchs() -> None:
    logits, label = inputs()
    weights = torch.tensor([0.5, 1.0, 2.0, 0.25, 3.0], dtype=torch.float64)
    expected = value_and_gradient(functional.cross_entropy, logits, label.long(), ignore_index=255)
    torch.testing.assert_close(value_and_gradient(cross_entropy, logits, label), expected)
    weighted = value_and_gradient(
        functional.cross_entropy,
        logits,
        label.long(),
        ignore_index=255,
        weight=weights,
        reduction="sum",
    )
    valid = (label != 255).sum()
    found = value_and_gradient(cross_entropy, logits, label, class_weights=weights)
    torch.testing.assert_close(found, (weighted[0] / valid, weighted[1] / valid))


def test_binary_cross_entropy_is_torchs() -> None:
    for scale in (1, 30):
        logits, label = inputs()
        one_hot = (
            functional.one_hot(torch.where(label == 255, 0, label).long(), 5)
            .movedim(-1, 1)
            .double()
        )
        mask = (label != 255)[:, None].double()

        def torchs(
            logits: Tensor, _: Tensor, one_hot: Tensor = one_hot, mask: Tensor = mask
        ) -> Tensor:
            total = functional.binary_cross_entropy_with_logits(
                logits, one_hot, weight=mask, reduction="sum"
            )
            return total / (mask.sum() + 1)

        expected = value_and_gradient(torchs, scale * logits, label)
        torch.testing.assert_close(
            value_and_gradient(binary_cross_entropy, scale * logits, label), expected
        )


@pytest.mark.parametrize("block", [1, 100, 2**18])
def test_binary_cross_entropy_with_weights_is_torchs_weighted_by_the_label(
    block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "CPU_BLOCK_ELEMENTS", block)
    weights = torch.tensor([0.5, 1.0, 2.0, 0.25, 3.0], dtype=torch.float64)
    for scale in (1, 30):
        logits, label = inputs()
        own = torch.where(label == 255, 0, label).long()
        one_hot = functional.one_hot(own, 5).movedim(-1, 1).double()
        weight = (weights[own] * (label != 255))[:, None]
        pixels = (label != 255).sum()

        def torchs(
            logits: Tensor,
            _: Tensor,
            one_hot: Tensor = one_hot,
            weight: Tensor = weight,
            pixels: Tensor = pixels,
        ) -> Tensor:
            total = functional.binary_cross_entropy_with_logits(
                logits, one_hot, weight=weight, reduction="sum"
            )
            return total / (pixels + 1)

        expected = value_and_gradient(torchs, scale * logits, label)
        found = value_and_gradient(
            binary_cross_entropy, scale * logits, label, class_weights=weights
        )
        torch.testing.assert_close(found, expected)


def test_binary_cross_entropy_in_fp32_keeps_its_precision_where_predictions_are_good() -> None:
    logits, label = inputs(size=(64, 64), dtype=torch.float32)
    true_class = (
        functional.one_hot(torch.where(label == 255, 0, label).long(), 5).movedim(-1, 1) > 0
    )
    for confidence in (0.1, 8.0, 20.0):
        good = torch.where(true_class, confidence, -confidence)
        found, gradient = value_and_gradient(binary_cross_entropy, good, label)
        expected, exact_gradient = value_and_gradient(binary_cross_entropy, good.double(), label)
        assert found.item() == pytest.approx(expected.item(), rel=1e-6)
        torch.testing.assert_close(gradient.double(), exact_gradient, rtol=1e-6, atol=0)


def test_equal_weights_change_nothing() -> None:
    logits, label = inputs()
    expected = value_and_gradient(cross_entropy, logits, label)
    torch.testing.assert_close(
        value_and_gradient(cross_entropy, logits, label, class_weights=torch.ones(5)), expected
    )
    binary = value_and_gradient(binary_cross_entropy, logits, label)
    torch.testing.assert_close(
        value_and_gradient(binary_cross_entropy, logits, label, class_weights=torch.ones(5)), binary
    )
    doubled = value_and_gradient(cross_entropy, logits, label, class_weights=2 * torch.ones(5))
    torch.testing.assert_close(doubled, (2 * expected[0], 2 * expected[1]))


@pytest.mark.parametrize("weighting", ["linear", "inverse"])
def test_image_weights_of_one_image_are_the_class_weights_of_its_counts(weighting: Any) -> None:
    logits, label = inputs(images=1)
    counts = torch.bincount(label[label != 255].long(), minlength=5)
    weights = class_weights_from_counts(counts, weighting=weighting)
    expected = value_and_gradient(cross_entropy, logits, label, class_weights=weights)
    torch.testing.assert_close(
        value_and_gradient(cross_entropy, logits, label, image_weights=weighting), expected
    )


def test_image_weights_are_each_images_own() -> None:
    logits, label = inputs(images=2)
    each = [
        cross_entropy(logits[i : i + 1], label[i : i + 1], image_weights="linear") for i in (0, 1)
    ]
    valid = (label != 255).flatten(1).sum(1)
    expected = (each[0] * valid[0] + each[1] * valid[1]) / valid.sum()
    torch.testing.assert_close(cross_entropy(logits, label, image_weights="linear"), expected)


def test_class_weights() -> None:
    counts = torch.tensor([60, 30, 10, 0])
    for weighting, raw in (
        ("linear", [1.4, 1.7, 1.9, 1.0]),
        ("inverse", [1 + 1 / 0.6, 1 + 1 / 0.3, 11.0, 1.0]),
        ("log", [1 / math.log(1.62), 1 / math.log(1.32), 1 / math.log(1.12), 1.0]),
    ):
        mean = 0.6 * raw[0] + 0.3 * raw[1] + 0.1 * raw[2]
        expected = torch.tensor(raw, dtype=torch.float64) / mean
        torch.testing.assert_close(class_weights_from_counts(counts, weighting=weighting), expected)  # type: ignore[arg-type]
    stronger = class_weights_from_counts(counts, strength=3.0)
    assert stronger[2] / stronger[0] == pytest.approx((1 + 3 * 0.9) / (1 + 3 * 0.4))
    assert torch.equal(
        class_weights_from_counts(torch.zeros(4)), torch.ones(4, dtype=torch.float64)
    )


def test_bootstrapping_everything_is_cross_entropy() -> None:
    logits, label = inputs()
    expected = value_and_gradient(cross_entropy, logits, label)
    torch.testing.assert_close(
        value_and_gradient(bootstrapped_cross_entropy, logits, label, fraction=1.0), expected
    )
    torch.testing.assert_close(
        value_and_gradient(ohem_cross_entropy, logits, label, threshold=1.0), expected
    )


def test_bootstrapping_takes_the_hardest_pixels() -> None:
    logits, label = inputs(images=1, size=(4, 5))
    label[:] = torch.randint(5, label.shape)
    losses = (
        functional.cross_entropy(logits, label.long(), reduction="none")
        .flatten()
        .sort(descending=True)
        .values
    )
    assert bootstrapped_cross_entropy(logits, label, fraction=0.25).item() == pytest.approx(
        losses[:5].mean().item()
    )
    threshold = math.exp(-losses[6:8].mean().item())
    assert ohem_cross_entropy(
        logits, label, threshold=threshold, min_kept=0.1
    ).item() == pytest.approx(losses[:7].mean().item())
    assert ohem_cross_entropy(logits, label, threshold=1e-9, min_kept=0.1).item() == pytest.approx(
        losses[:2].mean().item()
    )


def test_relaxation_without_a_boundary_is_cross_entropy() -> None:
    logits, label = inputs()
    expected = value_and_gradient(cross_entropy, logits, label)
    torch.testing.assert_close(
        value_and_gradient(relaxed_boundary_loss, logits, label, window=1), expected
    )
    strict = value_and_gradient(relaxed_boundary_loss, logits, label, strict_classes=range(5))
    torch.testing.assert_close(strict, expected)
    flat = torch.where(label == 255, 255, 2).to(torch.uint8)
    torch.testing.assert_close(
        value_and_gradient(relaxed_boundary_loss, logits, flat),
        value_and_gradient(cross_entropy, logits, flat),
    )


@pytest.mark.parametrize("strict_classes", [(), (0, 2)], ids=str)
def test_relaxation_is_the_probability_of_the_classes_in_the_window(
    strict_classes: tuple[int, ...],
) -> None:
    """Against the definition: a multi-hot map, -log of the sum of its probabilities."""
    logits, label = inputs()

    def multi_hot_loss(logits: Tensor, label: Tensor) -> Tensor:
        total, probability = torch.zeros((), dtype=logits.dtype), logits.softmax(1)
        valid = label != 255
        for n, y, x in valid.nonzero().tolist():
            window = label[n, max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2].unique().tolist()
            own = int(label[n, y, x])
            classes = [own] if own in strict_classes else [name for name in window if name != 255]
            total = total - probability[n, classes, y, x].sum().log()
        return total / valid.sum()

    expected = value_and_gradient(multi_hot_loss, logits, label)
    torch.testing.assert_close(
        value_and_gradient(relaxed_boundary_loss, logits, label, strict_classes=strict_classes),
        expected,
    )


def test_relaxed_loss_is_never_above_cross_entropy() -> None:
    logits, label = inputs(size=(20, 20))
    assert relaxed_boundary_loss(logits, label) < cross_entropy(logits, label)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (
            lambda z, y: cross_entropy(z[0], y),
            "logits must be floating point [N, C, H, W], not torch.float64 [5, 7, 9].",
        ),
        (
            lambda z, y: binary_cross_entropy(z, y[:, 1:]),
            "label must be integer [2, 7, 9] to match the logits, not torch.uint8 [2, 6, 9].",
        ),
        (
            lambda z, y: cross_entropy(z, y, class_weights=torch.ones(4)),
            "class_weights must hold 5 values, not [4].",
        ),
        (
            lambda z, y: bootstrapped_cross_entropy(z, y, fraction=0.0),
            "fraction must lie in (0, 1], not 0.0.",
        ),
        (
            lambda z, y: ohem_cross_entropy(z, y, threshold=7),
            "threshold and min_kept must lie in (0, 1], not 7 and 0.1.",
        ),
        (
            lambda z, y: relaxed_boundary_loss(z, y, window=2),
            "window must be an odd number of pixels, not 2.",
        ),
    ],
)
def test_mistakes_are_named(call: Loss, sentence: str) -> None:
    with pytest.raises(LossError) as caught:
        call(*inputs())
    assert str(caught.value) == sentence


@pytest.mark.parametrize("loss", [cross_entropy, binary_cross_entropy])
def test_keeps_no_class_map_between_the_passes(loss: Loss) -> None:
    logits = torch.randn(1, 5, 128, 128, requires_grad=True)
    label = torch.randint(5, (1, 128, 128), dtype=torch.uint8)
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss(logits, label)
    kept.pop(logits.untyped_storage().data_ptr())
    assert kept and max(kept.values()) == label.numel()
