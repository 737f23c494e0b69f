"""A default is the same in the configuration and where a loss is called without one."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from hmsa.loss import (
    binary_cross_entropy,
    bootstrapped_cross_entropy,
    build_criterion,
    dice_loss,
    focal_loss,
    ohem_cross_entropy,
    relaxed_boundary_loss,
    rmi_loss,
    weighted_rmi_loss,
)
from hmsa.utils.config import Config

# Keywords that come from elsewhere than the loss section.
FROM_ELSEWHERE = {"num_classes", "ignore_label", "align_corners", "valid_pixels", "parts"}
# Class weights are counted by the engine; losses take them as numbers.
COUNTED = {"class_weights", "binary_class_weights"}


def defaults(function: Callable[..., Any]) -> dict[str, Any]:
    """The keywords of a function that have a default."""
    parameters = inspect.signature(function).parameters
    return {
        name: parameter.default
        for name, parameter in parameters.items()
        if parameter.default is not parameter.empty and name not in FROM_ELSEWHERE | COUNTED
    }


def test_the_criterion_has_the_defaults_of_the_configuration() -> None:
    section = Config.from_dict({}).loss
    sub_sections = {"rmi", "ohem", "bootstrapped", "relaxed_boundary", "dice", "focal"}
    for name, default in defaults(build_criterion).items():
        # Left-out options are those of the loss itself.
        if name not in sub_sections:
            assert default == getattr(section, name), name


@pytest.mark.parametrize(
    ("section", "functions"),
    [
        ("rmi", (weighted_rmi_loss, rmi_loss)),
        ("ohem", (ohem_cross_entropy,)),
        ("bootstrapped", (bootstrapped_cross_entropy,)),
        ("relaxed_boundary", (relaxed_boundary_loss,)),
        ("dice", (dice_loss,)),
        ("focal", (focal_loss,)),
    ],
)
def test_every_loss_has_the_defaults_of_its_section(
    section: str, functions: tuple[Callable[..., Any], ...]
) -> None:
    found: dict[str, Any] = {}
    for function in functions:
        found |= defaults(function)
    assert found == getattr(Config.from_dict({}).loss, section).model_dump()


def test_a_configuration_that_says_nothing_trains_with_the_papers_rmi() -> None:
    """Each constant by its effect, so that a default changed everywhere at once is noticed too."""
    section = Config.from_dict({}).loss
    values = section.model_dump(exclude=COUNTED)
    logits = torch.randn(2, 4, 24, 20, dtype=torch.float64)
    label = torch.randint(4, (2, 24, 20))
    found = build_criterion(num_classes=4, **values).main(logits, label)

    # Half of both terms (lambda_way 1): not the whole first term and half of the second.
    terms = rmi_loss(
        logits,
        label,
        num_classes=4,
        radius=3,
        pool="avg",
        pool_size=4,
        probability_epsilon=1e-6,
        covariance_epsilon=5e-4,
        log_epsilon=1e-8,
    )
    expected = {"bce": 0.5 * terms["bce"], "rmi": 0.5 * terms["rmi"]}
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert found["bce"] == 0.5 * binary_cross_entropy(logits, label)

    # A class without a pixel: its term is known, and names the epsilon.
    empty = rmi_loss(logits, torch.full_like(label, 255), num_classes=4)["rmi"]
    assert empty.item() == pytest.approx(4 * 0.5 * math.log(5e-4), rel=1e-6)
