"""RMI: the authors' numbers, the reference, and the inputs on which published versions fail."""

from __future__ import annotations

import json
import math
import re
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from hmsa.loss import LossError, binary_cross_entropy, rmi_loss, weighted_rmi_loss
from hmsa.loss.fast import blocks
from hmsa.loss.fast.region_information import _robust_cholesky
from hmsa.loss.reference import reference_rmi_loss

DATA = Path(__file__).resolve().parents[1] / "data"
GOLDEN: dict[str, dict[str, Any]] = json.loads((DATA / "rmi_golden.json").read_text())
RMI_CASES = [name for name in GOLDEN if "/CE/" not in name]
FLOOR = 0.5 * math.log(5e-4)  # what a class without any error, or without any pixel, contributes


def golden_inputs(name: str) -> tuple[Tensor, Tensor]:
    """Logits and label of a golden case, made from the stored plain ones."""
    classes, kind = name.split("/")[:2]
    with np.load(DATA / "rmi_inputs.npz") as stored:
        logits = torch.from_numpy(stored[f"rmi_z_{classes}"])
        label = torch.from_numpy(stored[f"rmi_y_{classes}"])
    if (
        kind == "perfect"
    ):  # the 8 x 8 blocks of the plain label without the ignored pixels strewn over them
        blocks = (
            torch.where(label == 255, 0, label)
            .unflatten(1, (8, 8))
            .unflatten(3, (12, 8))
            .amax((2, 4))
        )
        label = blocks.repeat_interleave(8, 1).repeat_interleave(8, 2)
        logits = torch.where(
            functional.one_hot(label.long(), logits.shape[1]).movedim(-1, 1) > 0, 8.0, -8.0
        )
    label = {"all_ignore": torch.full_like(label, 255), "one_class": torch.ones_like(label)}.get(
        kind, label
    )
    return logits * {"x3": 3, "x30": 30, "zeros": 0}.get(kind, 1), label


def golden_settings(name: str) -> dict[str, Any]:
    variant = name.split("/")[2]
    if variant.startswith("default"):
        return {}
    found = re.match(r"r(\d)_(avg|max|interp|nopool)(\d?)", variant)
    assert found is not None, variant
    settings: dict[str, Any] = {"radius": int(found[1]), "pool_size": int(found[3] or 1)}
    settings["pool"] = "avg" if found[2] == "nopool" else found[2]
    return settings | ({"lambda_way": 0} if "way0" in variant else {})


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-6), (torch.float32, 1e-4)], ids=["fp64", "fp32"]
)
@pytest.mark.parametrize("name", RMI_CASES)
def test_equals_the_authors_numbers(name: str, dtype: torch.dtype, tolerance: float) -> None:
    expected, settings = GOLDEN[name], golden_settings(name)
    logits, label = golden_inputs(name)
    logits = logits.to(dtype).requires_grad_()
    weighted = sum(
        weighted_rmi_loss(logits, label, num_classes=logits.shape[1], **settings).values()
    )
    settings.pop("lambda_way", None)
    parts = rmi_loss(logits, label, num_classes=logits.shape[1], **settings)
    (gradient,) = torch.autograd.grad(weighted, logits)

    assert weighted.item() == pytest.approx(expected["loss"], rel=tolerance)
    assert parts["rmi"].item() == pytest.approx(expected["rmi_part"], rel=tolerance)
    assert parts["bce"].item() == pytest.approx(expected["bce_part"], rel=tolerance)
    assert gradient.double().norm().item() == pytest.approx(expected["grad_norm"], rel=tolerance)
    samples = gradient.flatten()[
        np.random.default_rng(7).integers(0, gradient.numel(), 32)
    ].double()
    wanted = torch.tensor(expected["grad_samples32"], dtype=torch.float64)
    torch.testing.assert_close(
        samples, wanted, rtol=tolerance, atol=tolerance * wanted.abs().max().item()
    )


def formula_inputs() -> tuple[Tensor, Tensor]:
    """Inputs that are given as a formula, so that anybody can make them."""
    n, c, h, w = (
        torch.arange(size, dtype=torch.float64).view([-1 if i == axis else 1 for i in range(4)])
        for axis, size in enumerate((2, 3, 24, 32))
    )
    logits = (
        2 * torch.sin(0.35 * h + 0.9 * c) + 1.5 * torch.cos(0.22 * w * (n + 1) - 0.7 * c)
    ).float()
    label = ((h // 5 + w // 7 + n) % 4)[:, 0].to(torch.uint8)
    return logits, torch.where(label == 3, 255, label)


def test_equals_the_numbers_of_the_formula_vector() -> None:
    logits, label = formula_inputs()
    logits.requires_grad_()
    terms = rmi_loss(logits, label, num_classes=3)
    loss = 0.5 * terms["bce"] + 0.5 * terms["rmi"]
    (gradient,) = torch.autograd.grad(loss, logits)
    assert terms["bce"].item() == pytest.approx(3.271638, abs=1e-6)
    assert terms["rmi"].item() == pytest.approx(-0.414881, abs=2e-6)
    assert loss.item() == pytest.approx(1.428378, abs=1e-6)
    assert gradient.abs().sum().item() == pytest.approx(1.259924, abs=1e-6)
    assert gradient[0, 0, 0, 0].item() == pytest.approx(-6.884663e-05, abs=1e-9)
    ways = {
        ("max", 3): 2.423028,
        ("avg", 2): 3.011193,
        ("avg", 3): 0.815691,
        ("interp", 4): 0.148986,
        ("max", 4): 1.362198,
    }
    for (pool, size), expected in ways.items():
        found = rmi_loss(logits, label, num_classes=3, pool=pool, pool_size=size)["rmi"]
        assert found.item() == pytest.approx(expected, abs=2e-6)


@given(
    shape=st.tuples(st.integers(1, 2), st.integers(1, 4), st.integers(12, 40), st.integers(12, 40)),
    radius=st.integers(1, 4),
    pooling=st.sampled_from(
        [("avg", 1), ("avg", 2), ("avg", 3), ("avg", 4), ("max", 2), ("max", 3), ("interp", 3)]
    ),
    block=st.sampled_from([1, 700, 2**18]),
    seed=st.integers(0, 1000),
)
def test_equals_the_reference(
    shape: tuple[int, ...], radius: int, pooling: tuple[str, int], block: int, seed: int
) -> None:
    settings: dict[str, Any] = {
        "num_classes": shape[1],
        "radius": radius,
        "pool": pooling[0],
        "pool_size": pooling[1],
    }
    if min(shape[2:]) // pooling[1] < radius:
        return
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(shape, generator=generator, dtype=torch.float64)
    label = torch.randint(shape[1] + 1, (shape[0], *shape[2:]), generator=generator)
    label[label == shape[1]] = 255
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "CPU_BLOCK_ELEMENTS", block)
        found, gradient = loss_and_gradient(rmi_loss, logits, label, **settings)
    expected, exact_gradient = loss_and_gradient(reference_rmi_loss, logits, label, **settings)
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(gradient, exact_gradient, rtol=1e-6, atol=1e-9)


def loss_and_gradient(
    loss: Any, logits: Tensor, label: Tensor, **settings: Any
) -> tuple[Tensor, Tensor]:
    logits = logits.detach().requires_grad_()
    terms = loss(logits, label, **settings)
    (gradient,) = torch.autograd.grad(0.7 * terms["bce"] + 0.3 * terms["rmi"], logits)
    return torch.stack([terms["bce"], terms["rmi"]]).detach(), gradient


@pytest.mark.parametrize("pool", ["avg", "max"])
def test_class_weights_change_the_binary_term_alone(pool: str) -> None:
    logits, label = torch.randn(2, 3, 24, 20), torch.randint(3, (2, 24, 20))
    label[0, :3] = 255
    weights = torch.tensor([0.5, 1.0, 4.0])
    settings: dict[str, Any] = {"num_classes": 3, "pool": pool, "pool_size": 4}
    plain = rmi_loss(logits, label, **settings)
    found = rmi_loss(logits, label, class_weights=weights, **settings)
    assert found["rmi"] == plain["rmi"]
    expected = binary_cross_entropy(logits, label, class_weights=weights)
    torch.testing.assert_close(found["bce"], expected)
    assert found["bce"] > plain["bce"]

    # The gradient is that of the two terms, each on its own.
    leaf = logits.requires_grad_()
    terms = rmi_loss(leaf, label, class_weights=weights, **settings)
    (both,) = torch.autograd.grad(terms["bce"] + terms["rmi"], leaf)
    (binary,) = torch.autograd.grad(binary_cross_entropy(leaf, label, class_weights=weights), leaf)
    (regions,) = torch.autograd.grad(rmi_loss(leaf, label, **settings)["rmi"], leaf)
    torch.testing.assert_close(both, binary + regions)


@pytest.mark.parametrize(
    ("pool", "size", "radius", "shape"),
    [
        ("avg", 4, 3, (16, 13)),
        ("avg", 3, 2, (10, 8)),
        ("avg", 1, 4, (8, 7)),
        ("max", 3, 3, (13, 10)),
        ("interp", 2, 3, (9, 8)),
        ("avg", 2, 1, (6, 5)),
    ],
)
def test_gradient_is_the_derivative(
    pool: str, size: int, radius: int, shape: tuple[int, int]
) -> None:
    """On images of a few windows, of which the last ones are cut off."""
    label = torch.randint(2, (1, *shape))
    label[0, :2] = 255

    def terms(logits: Tensor) -> tuple[Tensor, ...]:
        return tuple(
            rmi_loss(
                logits, label, num_classes=2, radius=radius, pool=pool, pool_size=size
            ).values()
        )  # type: ignore[arg-type]

    assert torch.autograd.gradcheck(
        terms, torch.randn(1, 2, *shape, dtype=torch.float64, requires_grad=True)
    )


def awkward_inputs(kind: str, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    label = torch.randint(4, (2, *size))
    logits = torch.randn(2, 4, *size)
    true_class = functional.one_hot(label, 4).movedim(-1, 1) > 0
    if kind == "zeros":
        logits = 0 * logits
    elif kind == "one class":
        label = torch.ones_like(label)
    elif kind == "perfect":
        logits = torch.where(true_class, 30.0, -30.0)
    elif kind == "saturated":
        logits = torch.where(logits > 0, 1e4, -1e4)
    elif kind == "saturated and wrong":
        logits = torch.where(true_class, -1e4, 1e4)
    elif kind == "constant":
        logits = torch.full_like(logits, 3.0)
    elif kind == "half ignored":
        label[0] = 255
    elif kind == "all ignored":
        label[:] = 255
    return logits, label


AWKWARD = [
    "zeros",
    "one class",
    "perfect",
    "saturated",
    "saturated and wrong",
    "constant",
    "half ignored",
    "all ignored",
]


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str
)
@pytest.mark.parametrize("kind", AWKWARD)
@pytest.mark.parametrize("size", [(64, 48), (9, 200), (7, 5), (1, 1)], ids=str)
def test_awkward_inputs_are_finite(kind: str, size: tuple[int, int], dtype: torch.dtype) -> None:
    logits, label = awkward_inputs(kind, size)
    for pool, pool_size in (("avg", 4), ("avg", 1), ("max", 3), ("interp", 4)):
        leaf = logits.to(dtype).requires_grad_()
        settings: Any = {"pool": pool, "pool_size": pool_size}
        terms = rmi_loss(leaf, label, num_classes=4, **settings)
        (gradient,) = torch.autograd.grad(sum(terms.values()), leaf)
        assert all(term.isfinite() for term in terms.values()), (pool, terms)
        assert gradient.dtype == dtype and gradient.isfinite().all(), pool
        if kind == "all ignored":
            assert terms["bce"] == 0 and not gradient.any()
            assert terms["rmi"].item() == pytest.approx(4 * FLOOR, rel=1e-5)


def test_an_image_smaller_than_a_window_has_the_floor_of_every_class() -> None:
    logits = torch.randn(
        1, 3, 3, 64, requires_grad=True
    )  # pools to one row, a window is three rows high
    terms = rmi_loss(logits, torch.zeros(1, 3, 64, dtype=torch.uint8), num_classes=3)
    (gradient,) = torch.autograd.grad(terms["rmi"], logits)
    assert terms["rmi"].item() == pytest.approx(3 * FLOOR, rel=1e-5)
    assert not gradient.any()


def test_not_a_number_is_not_hidden() -> None:
    logits = torch.randn(1, 3, 32, 32)
    logits[0, 1, 5, 5] = torch.nan
    terms = rmi_loss(logits, torch.randint(3, (1, 32, 32)), num_classes=3)
    assert terms["bce"].isnan() and terms["rmi"].isnan()


@pytest.mark.parametrize("confidence", [4.0, 9.0, 14.0])
def test_gradient_keeps_its_precision_where_predictions_are_good(confidence: float) -> None:
    """In fp32 a probability near 1 has lost the digits of its error, and covariances cancel."""
    label = torch.randint(5, (1, 16, 24)).repeat_interleave(8, 1).repeat_interleave(8, 2)
    true_class = functional.one_hot(label, 5).movedim(-1, 1) > 0
    logits = torch.where(true_class, confidence, -confidence) + torch.randn(true_class.shape)
    found, gradient = loss_and_gradient(rmi_loss, logits, label, num_classes=5)
    expected, exact_gradient = loss_and_gradient(rmi_loss, logits.double(), label, num_classes=5)
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=0)
    assert (gradient - exact_gradient).norm() < 1e-5 * exact_gradient.norm()


def test_absent_classes_contribute_their_floor_and_no_gradient() -> None:
    logits = torch.randn(1, 6, 40, 40, requires_grad=True)
    label = torch.randint(3, (1, 40, 40))
    (gradient,) = torch.autograd.grad(rmi_loss(logits, label, num_classes=6)["rmi"], logits)
    assert gradient[:, :3].any() and not gradient[:, 3:].any()
    alone = rmi_loss(logits[:, :3], label, num_classes=3)["rmi"]
    assert rmi_loss(logits, label, num_classes=6)["rmi"].item() == pytest.approx(
        alone.item() + 3 * FLOOR, rel=1e-5
    )


def test_order_of_classes_does_not_matter() -> None:
    logits, label = torch.randn(2, 4, 33, 29, dtype=torch.float64), torch.randint(4, (2, 33, 29))
    order = torch.tensor([2, 0, 3, 1])
    permuted = rmi_loss(logits[:, order], order.argsort()[label], num_classes=4)
    torch.testing.assert_close(permuted, rmi_loss(logits, label, num_classes=4))


def test_mean_over_parts_is_the_loss_of_the_batch() -> None:
    logits, label = torch.randn(4, 3, 24, 20, dtype=torch.float64), torch.randint(3, (4, 24, 20))
    label[1, :13] = 255
    whole = rmi_loss(logits, label, num_classes=3)
    valid_pixels = (label != 255).sum()
    for count in (valid_pixels, int(valid_pixels)):
        parts = [
            rmi_loss(
                logits[i : i + 2], label[i : i + 2], num_classes=3, valid_pixels=count, parts=2
            )
            for i in (0, 2)
        ]
        for name, value in whole.items():
            torch.testing.assert_close(
                (parts[0][name] + parts[1][name]) / 2, value, rtol=1e-12, atol=0
            )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_logits_are_widened_before_anything_else(dtype: torch.dtype) -> None:
    logits, label = torch.randn(1, 4, 40, 36).to(dtype), torch.randint(4, (1, 40, 36))
    half, gradient = loss_and_gradient(rmi_loss, logits, label, num_classes=4)
    full, full_gradient = loss_and_gradient(rmi_loss, logits.float(), label, num_classes=4)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, full)
    torch.testing.assert_close(gradient, full_gradient.to(dtype))


def test_autocast_has_no_effect() -> None:
    logits, label = torch.randn(1, 4, 40, 36), torch.randint(4, (1, 40, 36))
    variants: list[dict[str, Any]] = [{}, {"pool": "max", "pool_size": 3}]
    for settings in variants:
        expected = loss_and_gradient(rmi_loss, logits, label, num_classes=4, **settings)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = loss_and_gradient(rmi_loss, logits, label, num_classes=4, **settings)
        torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_memory_layout_and_label_dtype_have_no_effect() -> None:
    logits, label = torch.randn(2, 4, 40, 36), torch.randint(4, (2, 40, 36))
    expected = loss_and_gradient(rmi_loss, logits, label, num_classes=4)
    other = logits.to(memory_format=torch.channels_last)
    torch.testing.assert_close(
        loss_and_gradient(rmi_loss, other, label.to(torch.uint8), num_classes=4), expected
    )


def test_every_label_that_is_no_class_is_ignored() -> None:
    logits, label = torch.randn(1, 4, 20, 20), torch.randint(4, (1, 20, 20))
    masked = torch.where(label == 2, 255, label)
    by_value = rmi_loss(logits, label, num_classes=4, ignore_label=2)
    torch.testing.assert_close(by_value, rmi_loss(logits, masked, num_classes=4))
    torch.testing.assert_close(
        by_value, rmi_loss(logits, torch.where(label == 2, -1, label), num_classes=4)
    )


def test_a_host_is_never_asked() -> None:
    """Meta tensors have no values, so what would make the host wait for a GPU fails on them."""
    logits = torch.randn(2, 3, 40, 36, device="meta", requires_grad=True)
    label = torch.zeros(2, 40, 36, dtype=torch.uint8, device="meta")
    with pytest.raises((RuntimeError, NotImplementedError)):
        logits.sum().item()
    for pool, size in product(("avg", "max", "interp"), (1, 4)):
        terms = rmi_loss(logits, label, num_classes=3, pool=pool, pool_size=size)  # type: ignore[arg-type]
        (gradient,) = torch.autograd.grad(sum(terms.values()), logits)
        assert gradient.shape == logits.shape


def test_keeps_no_class_map_between_the_passes() -> None:
    logits = torch.randn(1, 8, 128, 128, requires_grad=True)
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.numel() * tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        rmi_loss(logits, torch.randint(8, (1, 128, 128), dtype=torch.uint8), num_classes=8)
    kept.pop(logits.untyped_storage().data_ptr())
    assert 0 < sum(kept.values()) < logits.numel() * 4 / 3


def test_cholesky_of_a_barely_indefinite_matrix_takes_the_least_jitter() -> None:
    definite = torch.eye(3, dtype=torch.float64)
    vector = torch.tensor([[1.0, 2.0, 3.0]], dtype=torch.float64)
    indefinite = vector.mT @ vector - 1e-9 * definite
    factors = _robust_cholesky(torch.stack((definite, indefinite)))
    torch.testing.assert_close(factors[0], definite, rtol=0, atol=0)
    assert factors[1].isfinite().all()
    torch.testing.assert_close(factors[1] @ factors[1].mT, indefinite, rtol=0, atol=1e-6)
    assert _robust_cholesky(torch.full((1, 3, 3), torch.nan)).isnan().any()


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"pool": "median"}, "pool must be one of avg, max, interp, not 'median'."),
        ({"radius": 0}, "radius must be at least 1, not 0."),
        ({"num_classes": 7}, "logits have 4 classes, but num_classes is 7."),
    ],
)
def test_mistakes_are_named(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(LossError) as caught:
        rmi_loss(
            torch.randn(1, 4, 8, 8),
            torch.zeros(1, 8, 8, dtype=torch.uint8),
            **({"num_classes": 4} | settings),
        )
    assert str(caught.value) == sentence


@pytest.mark.gpu
def test_a_gpu_gives_the_same_numbers_without_waiting() -> None:
    logits, label = torch.randn(2, 5, 130, 126), torch.randint(6, (2, 130, 126))
    label[label == 5] = 255
    expected = loss_and_gradient(rmi_loss, logits, label, num_classes=5)
    on_gpu = (logits.cuda(), label.cuda())
    loss_and_gradient(rmi_loss, *on_gpu, num_classes=5)
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = loss_and_gradient(rmi_loss, *on_gpu, num_classes=5)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(
        [tensor.cpu() for tensor in found], list(expected), rtol=1e-5, atol=1e-7
    )
