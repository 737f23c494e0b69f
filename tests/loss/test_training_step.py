"""A training step with RMI as main and binary auxiliary loss, against the authors' gradients."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from hmsa.loss import build_criterion
from hmsa.network.weights.key_names import from_authors
from tests.network.conftest import golden_of

NUMBERS = json.loads(
    (Path(__file__).resolve().parents[1] / "data" / "rmi_training_step.json").read_text()
)
QUICK = "deepv3plus_r50_mscale"
BOTH = (QUICK, "hrnet_ocr_mscale")  # double precision is slow: one model of each family
CASES = [
    pytest.param(
        name, dtype, marks=() if (name, dtype) == (QUICK, torch.float32) else pytest.mark.slow
    )
    for name in NUMBERS
    for dtype in (torch.float32, torch.float64)
    if dtype == torch.float32 or name in BOTH
]


def training_batch() -> tuple[Tensor, Tensor]:
    """x_train and gt_train of golden/README.md."""
    image = np.random.default_rng(2).standard_normal((2, 3, 128, 256)).astype(np.float32)
    draw = np.random.default_rng(3)
    label = draw.integers(0, 19, (2, 8, 16)).repeat(16, axis=1).repeat(16, axis=2)
    label[draw.random(label.shape) < 0.05] = 255
    return torch.from_numpy(image), torch.from_numpy(label.astype(np.uint8))


@pytest.mark.parametrize(("name", "dtype"), CASES, ids=str)
def test_gradients_of_a_training_step_with_rmi(name: str, dtype: torch.dtype) -> None:
    """In fp32 the rounding of a network of random weights shows: norms agree, elements less."""
    expected, golden, exact = NUMBERS[name], golden_of(name), dtype == torch.float64
    model = copy.deepcopy(golden.model).to(dtype).train()
    image, label = training_batch()
    criterion = build_criterion(num_classes=19, main="rmi", aux="bce")
    terms = criterion(model(image.to(dtype)), label)
    loss = torch.stack(list(terms.values())).sum()
    loss.backward()

    assert ("aux" in terms) == ("ocr" in name)
    assert loss.item() == pytest.approx(expected["loss"], rel=1e-6 if exact else 1e-5)
    gradients = {
        key: parameter.grad.double()
        for key, parameter in model.named_parameters()
        if parameter.grad is not None
    }
    total = torch.stack([gradient.square().sum() for gradient in gradients.values()]).sum().sqrt()
    tolerance = 1e-6 if exact else 1e-3
    assert total.item() == pytest.approx(expected["gradient_norm"], rel=tolerance)
    ours = dict(
        zip(golden.state, from_authors(golden.state), strict=True)
    )  # the authors' names to ours
    for key, values in expected["gradients"].items():
        gradient = gradients[ours[key]]
        assert gradient.norm().item() == pytest.approx(values["norm"], rel=tolerance), key
        samples = gradient.flatten()[np.random.default_rng(123).integers(0, gradient.numel(), 8)]
        wanted = torch.tensor(values["samples"], dtype=torch.float64)
        assert (samples - wanted).norm() <= (1e-6 if exact else 5e-2) * wanted.norm(), key
