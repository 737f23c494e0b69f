"""Every default stands once: a builder's keyword, left out, means what the field does.

A builder without a default cannot drift, and None there means that the caller says nothing.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest

from hmsa.datasets import (
    Augmentation,
    ClassUniform,
    ExtraSource,
    build_eval_loader,
    build_files,
    build_train_loader,
    read_image,
    read_label,
)
from hmsa.loss import LOSSES, build_criterion
from hmsa.loss.hard_pixels import bootstrapped_cross_entropy, ohem_cross_entropy
from hmsa.loss.rmi import rmi_loss
from hmsa.network import attach_attention, build_model
from hmsa.network.inference import InferenceOptions
from hmsa.utils.config import iter_fields
from hmsa.utils.training.optimizer import build_optimizer, parameter_groups, scaled_learning_rate
from hmsa.utils.training.schedule import build_schedule

FIELDS = {field.name: field for field in iter_fields()}
BUILDERS: list[tuple[Callable[..., Any], str]] = [
    (build_model, "model"),
    (attach_attention, "model.wrap"),
    (build_criterion, "loss"),
    (rmi_loss, "loss.rmi"),
    (ohem_cross_entropy, "loss.ohem"),
    (bootstrapped_cross_entropy, "loss.bootstrapped"),
    (LOSSES["relaxed_boundary"], "loss.relaxed_boundary"),
    (LOSSES["dice"], "loss.dice"),
    (LOSSES["focal"], "loss.focal"),
    (Augmentation, "data"),
    (build_files, "data"),
    (build_train_loader, "data"),
    (read_image, "data"),
    (read_label, "data"),
    (ClassUniform, "data.class_uniform"),
    (ExtraSource, "data.extra"),
    (build_files, "data.extra"),
    (build_eval_loader, "eval"),
    (InferenceOptions, "eval"),
    (InferenceOptions, "autolabel"),
    (build_optimizer, "optim"),
    (parameter_groups, "optim"),
    (scaled_learning_rate, "optim"),
    (build_schedule, "optim"),
]


def normalised(value: Any) -> Any:
    """Lists as tuples, and one side of a tile as both."""
    return tuple(value) if isinstance(value, list) else value


@pytest.mark.parametrize(
    ("builder", "section"), BUILDERS, ids=[f"{b.__name__}-{section}" for b, section in BUILDERS]
)
def test_a_builders_default_is_that_of_the_field(builder: Callable[..., Any], section: str) -> None:
    compared = 0
    for name, parameter in inspect.signature(builder).parameters.items():
        field = FIELDS.get(f"{section}.{name}")
        if field is None:
            continue
        compared += 1
        if parameter.default is inspect.Parameter.empty or parameter.default is None:
            continue
        # A loader called from Python starts no processes unasked; a training wants some.
        if name == "workers" and parameter.default == 0:
            continue
        default = normalised(parameter.default)
        if name == "tile" and isinstance(default, int):
            default = (default, default)
        assert default == normalised(field.default), f"{builder.__name__}({name}=...)"
    assert compared, f"{builder.__name__} takes no field of {section}"
