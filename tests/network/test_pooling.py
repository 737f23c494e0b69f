"""Averaging over scales gives the digits of the authors' evaluation; prepared models too."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from hmsa.network.inference import prepare_for_inference
from tests.network.conftest import predicted, remembered

NUMBERS = json.loads((Path(__file__).parents[1] / "data" / "golden_pooling.json").read_text())[
    "cases"
]


def check(logits: torch.Tensor, expected: dict, tolerance: float) -> None:
    assert list(logits.shape) == expected["shape"]
    values = logits.double().flatten()
    samples = values[torch.from_numpy(np.random.default_rng(123).integers(0, len(values), 64))]
    assert (
        samples - torch.tensor(expected["samples"], dtype=torch.float64)
    ).abs().max() <= tolerance
    assert values.mean().item() == pytest.approx(expected["mean"], abs=tolerance)
    assert values.std(correction=0).item() == pytest.approx(expected["std"], abs=tolerance)


def scales_of(case: str) -> tuple[float, ...]:
    return tuple(float(scale) for scale in case.split("_")[2:])


@pytest.mark.parametrize("golden", list(NUMBERS), indirect=True)
def test_average_over_scales(golden, image: torch.Tensor) -> None:
    with remembered(golden.model):
        for case, numbers in NUMBERS[golden.name].items():
            check(
                predicted(golden.model, image, scales=scales_of(case)).logits,
                numbers,
                max(1e-4, 1e-5 * numbers["largest"]),
            )


@pytest.mark.parametrize("golden", ["deepv3plus_r50"], indirect=True)
def test_average_over_scales_of_a_prepared_model_in_double_precision(
    golden, image: torch.Tensor
) -> None:
    case, numbers = next(iter(NUMBERS[golden.name].items()))
    prepared = prepare_for_inference(copy.deepcopy(golden.model).double())
    check(predicted(prepared, image.double(), scales=scales_of(case)).logits, numbers, 1e-8)
