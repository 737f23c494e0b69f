"""Every model of the paper, to the digits the authors' code gives."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hmsa.network import InferenceOptions
from hmsa.network.inference import predict
from hmsa.network.model import MultiScaleModel, resized, scaled_size
from hmsa.network.weights.key_names import from_authors
from tests.network.conftest import remembered


def scales_of(case: str) -> tuple[float, ...]:
    named = {"two_scale": (0.5, 1.0), "single": (1.0,)}
    return named.get(case) or tuple(float(part) for part in case.split("_")[1:])


def check(tensor: Tensor, expected: dict, *, tolerance: float | None = None) -> None:
    """Shape, 64 samples, mean and standard deviation."""
    assert list(tensor.shape) == expected["shape"]
    allowed = max(1e-4, 1e-5 * expected["largest"]) if tolerance is None else tolerance
    values = tensor.double().flatten()
    samples = values[torch.from_numpy(np.random.default_rng(123).integers(0, len(values), 64))]
    assert (samples - torch.tensor(expected["samples"], dtype=torch.float64)).abs().max() <= allowed
    assert values.mean().item() == pytest.approx(expected["mean"], abs=allowed)
    assert values.std(correction=0).item() == pytest.approx(expected["std"], abs=allowed)


def check_cases(
    model: MultiScaleModel, image: Tensor, cases: dict, *, tolerance: float | None = None
) -> None:
    """Every list of scales, with the maps of its scales kept, without, and in strips."""
    raw: list[Tensor] = []
    hook = (
        None
        if model.multiscale == "single"
        else model.attention.register_forward_hook(
            lambda _module, _inputs, output: raw.append(output)
        )
    )
    with torch.no_grad(), remembered(model):
        for case, tensors in cases.items():
            scales = scales_of(case)
            raw.clear()
            kept = model(image, scales=scales, keep_scales=True)
            streamed = model(image, scales=scales)
            in_strips = predict(model, image, InferenceOptions(scales), keep_scales=True)
            for name, expected in tensors.items():
                kind, _, at = name.partition("_")
                if name == "pred":
                    check(kept.logits, expected, tolerance=tolerance)
                    check(streamed.logits, expected, tolerance=tolerance)
                    check(in_strips.logits, expected, tolerance=tolerance)
                elif name == "attn_10x" and model.multiscale == "hierarchical_dual":
                    check(streamed.attention, expected, tolerance=tolerance)
                elif name == "attn_last_scale_channel":  # of the explicit model, before resizing
                    check(raw[0][:, -1:], expected, tolerance=tolerance)
                else:
                    scale = {"05x": 0.5, "10x": 1.0}.get(at) or float(at.removesuffix("x"))
                    # The authors state them at the size of the scaled image.
                    size = scaled_size(image.shape[-2:], scale)
                    own = resized(kept.scales[scale], size, align_corners=False)
                    for found in (own, in_strips.scales[scale]):
                        maps = found.logits if kind == "pred" else found.attention
                        check(maps, expected, tolerance=tolerance)
    if hook is not None:
        hook.remove()


def test_weights_load_by_the_authors_names(golden):
    assert (
        sum(parameter.numel() for parameter in golden.model.parameters())
        == golden.numbers["parameters"]
    )
    assert len(golden.state) == golden.numbers["tensors"]
    assert (
        golden.fingerprint() == golden.numbers["sha256"]
    )  # the authors' names and shapes, all of them
    report = golden.report
    assert (report.kind, len(report.loaded), report.skipped, report.unexpected) == (
        "authors",
        len(golden.state),
        (),
        (),
    )


def test_outputs_in_single_precision(golden, image):
    if not golden.numbers["eval"]:
        pytest.skip("no numbers for this model")
    check_cases(golden.model, image, golden.numbers["eval"])


def test_outputs_in_double_precision(golden, image):
    if not golden.numbers["eval"]:
        pytest.skip("no numbers for this model")
    check_cases(
        copy.deepcopy(golden.model).double(), image.double(), golden.numbers["eval"], tolerance=1e-8
    )


def training_batch() -> tuple[Tensor, Tensor]:
    """x_train and gt_train of the golden numbers."""
    image = np.random.default_rng(2).standard_normal((2, 3, 128, 256)).astype(np.float32)
    draw = np.random.default_rng(3)
    label = draw.integers(0, 19, (2, 8, 16)).repeat(16, axis=1).repeat(16, axis=2)
    label[draw.random(label.shape) < 0.05] = 255
    return torch.from_numpy(image), torch.from_numpy(label)


@pytest.mark.parametrize(
    "dtype, tolerance", [(torch.float32, 1e-3), (torch.float64, 1e-7)], ids=["fp32", "fp64"]
)
def test_gradients_and_running_statistics_of_a_training_step(golden, dtype, tolerance):
    expected = golden.numbers["train"]
    if not expected:
        pytest.skip("no numbers for this model")
    if dtype == torch.float64 and golden.name not in ("deepv3plus_r50_mscale", "hrnet_ocr"):
        pytest.skip("slow: one model of each family is enough in double precision")
    model = copy.deepcopy(golden.model).train().to(dtype)
    image, label = training_batch()
    prediction = model(image.to(dtype))
    loss = F.cross_entropy(prediction.logits, label, ignore_index=255)
    if prediction.aux is not None:
        loss = loss + 0.4 * F.cross_entropy(prediction.aux, label, ignore_index=255)
    loss.backward()

    assert loss.item() == pytest.approx(expected["loss"], rel=min(tolerance, 1e-5))
    gradients = {key: parameter.grad for key, parameter in model.named_parameters()}
    total = torch.sqrt(sum((gradient.double() ** 2).sum() for gradient in gradients.values()))
    assert total.item() == pytest.approx(expected["gradient_norm"], rel=tolerance)
    ours = dict(
        zip(golden.state, from_authors(golden.state), strict=True)
    )  # the authors' names to ours
    for key, norm in expected["gradient_norms"].items():
        assert gradients[ours[key]].norm().item() == pytest.approx(norm, rel=tolerance), key
    state = model.state_dict()
    for key, statistic in expected["running"].items():  # 0.5 before 1.0; explicit: 1.0, 0.5, 2.0
        if key.startswith("scale_attn.") and model.multiscale == "hierarchical":
            # The release also computes the attention of the higher scale, which changes nothing
            # but these statistics.
            continue
        values = state[ours[key]].double()
        assert values.mean().item() == pytest.approx(statistic["mean"], abs=1e-6), key
        assert values.flatten()[:4].tolist() == pytest.approx(statistic["first4"], abs=1e-5), key
