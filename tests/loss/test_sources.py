"""Losses of logits that are rendered in blocks: the same numbers and gradients as of whole tensors."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from hmsa.loss import (
    PRESETS,
    LossError,
    binary_cross_entropy,
    bootstrapped_cross_entropy,
    build_criterion,
    cross_entropy,
    ohem_cross_entropy,
    pixels,
    relaxed_boundary_loss,
    rmi_loss,
)
from hmsa.loss.sources import UpsampledMaps, at_size
from hmsa.network import build_model
from hmsa.network.fusion import Maps, fuse_maps, resized
from hmsa.network.inference.raster import Stored

SIZE = (66, 90)
LOSSES: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "cross_entropy": cross_entropy,
    "class weights": lambda z, y: cross_entropy(z, y, class_weights=torch.arange(1.0, 6.0)),
    "image weights": lambda z, y: cross_entropy(z, y, image_weights="inverse"),
    "bootstrapped": bootstrapped_cross_entropy,
    "ohem": ohem_cross_entropy,
    "bce": binary_cross_entropy,
    "relaxed_boundary": relaxed_boundary_loss,
    "rmi": lambda z, y: torch.stack(list(rmi_loss(z, y, num_classes=5).values())).sum(),
    "rmi 3": lambda z, y: torch.stack(
        list(rmi_loss(z, y, num_classes=5, pool_size=3).values())
    ).sum(),
    "rmi max": lambda z, y: torch.stack(
        list(rmi_loss(z, y, num_classes=5, pool="max").values())
    ).sum(),
}


def random_label(images: int = 2) -> Tensor:
    label = torch.randint(5, (images, *SIZE), dtype=torch.uint8)
    label[torch.rand(label.shape) < 0.1] = 255
    return label


@pytest.fixture(params=[(1, 1), (3000, 1), (2**18, 16)], ids=["rows", "strips", "default"])
def blocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of one window, of some rows, and those of the default size."""
    monkeypatch.setattr(pixels, "CPU_BLOCK_ELEMENTS", request.param[0])
    monkeypatch.setattr(pixels, "RENDERED_ROWS", request.param[1])


@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES.keys())
@pytest.mark.parametrize("align_corners", [False, True])
def test_two_fused_scales_give_the_numbers_of_their_whole_maps(
    loss: Callable[[Any, Tensor], Tensor], align_corners: bool
) -> None:
    low, high = (
        torch.randn(2, 5, 9, 12, dtype=torch.float64),
        torch.randn(2, 5, 17, 23, dtype=torch.float64),
    )
    leaves = [
        tensor.requires_grad_()
        for tensor in (low, high, torch.rand(2, 1, 9, 12, dtype=torch.float64))
    ]
    label = random_label()

    def render() -> Any:
        lower = resized(
            Maps(Stored(leaves[0]), None, Stored(leaves[2])), (33, 45), align_corners=align_corners
        )
        return fuse_maps(
            lower, Maps(Stored(leaves[1])), size=SIZE, align_corners=align_corners
        ).logits

    found, expected = loss(render(), label), loss(render().whole(), label)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(
        torch.autograd.grad(found, leaves),
        torch.autograd.grad(expected, leaves),
        rtol=1e-9,
        atol=1e-14,
    )


@pytest.mark.parametrize("size", [(66, 90), (33, 90), (17, 23), (1, 1), (40, 7)], ids=str)
@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_upsampled_rows_are_torchs_interpolation(
    size: tuple[int, int], align_corners: bool, dtype: torch.dtype
) -> None:
    source = torch.randn(2, 3, 17, 23).to(dtype).requires_grad_()
    maps = UpsampledMaps(source, size, align_corners=align_corners)
    widened = source.double() if dtype == torch.float64 else source.float()
    expected = functional.interpolate(widened, size, mode="bilinear", align_corners=align_corners)
    torch.testing.assert_close(maps.whole(), expected, rtol=0, atol=0)
    cut = [0, *sorted({size[0] // 3, size[0] - 1} - {0}), size[0]]
    strips = torch.cat(
        [maps.rows(start, stop) for start, stop in zip(cut, cut[1:], strict=False) if stop > start],
        dim=2,
    )
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5
    torch.testing.assert_close(strips, expected, rtol=tolerance, atol=tolerance)
    weight = torch.randn_like(expected)
    found = torch.autograd.grad(strips, source, weight)[0].double()
    wanted = torch.autograd.grad(expected, source, weight)[0].double()
    half = dtype == torch.bfloat16
    torch.testing.assert_close(
        found, wanted, rtol=2e-2 if half else 10 * tolerance, atol=5e-2 if half else 10 * tolerance
    )


def test_maps_of_the_right_size_are_not_interpolated() -> None:
    logits = torch.randn(1, 3, 8, 8)
    assert at_size(logits, (8, 8), align_corners=False) is logits


def test_keeps_nothing_larger_than_the_small_maps() -> None:
    small = torch.randn(1, 5, 16, 16, requires_grad=True)
    label = torch.randint(5, (1, 128, 128), dtype=torch.uint8)
    kept: list[int] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        cross_entropy(at_size(small, (128, 128), align_corners=False), label)
    assert kept and max(kept) == label.numel()


@pytest.mark.parametrize("preset", PRESETS)
def test_a_lazy_prediction_gives_the_criterion_of_a_computed_one(preset: str) -> None:
    """The whole tail of training, upsample, fuse, losses, down to the gradients of the weights."""
    settings: dict[str, Any] = {
        "trunk": "hrnet_w18_small",
        "decoder": "ocr",
        "multiscale": "hierarchical",
        "num_classes": 5,
    }
    model = build_model(**settings).double().train()
    image, label = torch.randn(2, 3, *SIZE, dtype=torch.float64), random_label()
    criterion = build_criterion(num_classes=5, **PRESETS[preset])
    results = []
    for lazy in (True, False):
        torch.manual_seed(0)  # dropout
        model.zero_grad(set_to_none=True)
        terms = criterion(model(image, keep_scales=criterion.needs_scales, lazy=lazy), label)
        torch.stack(list(terms.values())).sum().backward()
        gradients = {
            name: parameter.grad.clone()
            for name, parameter in model.named_parameters()
            if parameter.grad is not None
        }
        results.append((terms, gradients))
    assert {"bce", "rmi", "aux"} <= set(results[0][0])
    torch.testing.assert_close(results[0][0], results[1][0], rtol=1e-10, atol=0)
    assert results[0][1].keys() == results[1][1].keys()
    for name, gradient in results[0][1].items():
        torch.testing.assert_close(gradient, results[1][1][name], rtol=1e-6, atol=1e-9, msg=name)


def test_mistakes_are_named_for_maps_too() -> None:
    maps = UpsampledMaps(torch.randn(1, 5, 4, 4), (8, 8), align_corners=False)
    with pytest.raises(LossError, match=r"label must be integer \[1, 8, 8\] to match the logits"):
        cross_entropy(maps, random_label())


def test_small_logits_are_resized_by_the_criterion_without_a_whole_map() -> None:
    small, label = torch.randn(2, 5, 17, 23, requires_grad=True), random_label()
    criterion = build_criterion(num_classes=5, main="rmi")
    found = criterion(SimpleNamespace(logits=small, aux=None, scales=None), label)
    whole = functional.interpolate(small, SIZE, mode="bilinear", align_corners=False)
    expected = criterion(SimpleNamespace(logits=whole, aux=None, scales=None), label)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
