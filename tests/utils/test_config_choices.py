"""The configuration against the packages, none of which knows the other.

Choices are compared with the builders' tables, and field names with their keywords.
"""

from __future__ import annotations

import dataclasses
import inspect
import types
import typing
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
)
from hmsa.datasets.build import DATASETS
from hmsa.datasets.policy import POLICIES
from hmsa.loss import LOSSES, build_criterion
from hmsa.loss.hard_pixels import bootstrapped_cross_entropy, ohem_cross_entropy
from hmsa.loss.rmi import rmi_loss
from hmsa.network import DECODERS, MULTISCALE, TRUNKS, build_model
from hmsa.network.inference import InferenceOptions
from hmsa.utils.config import Config, ConfigError, iter_fields
from hmsa.utils.config.models import DECODERS as KNOWN_DECODERS
from hmsa.utils.config.models import LOGGERS as KNOWN_LOGGERS
from hmsa.utils.config.models import LOSSES as KNOWN_LOSSES
from hmsa.utils.config.models import TRAIN_SCALES
from hmsa.utils.config.models import TRUNKS as KNOWN_TRUNKS
from hmsa.utils.training.loggers import LOGGERS
from hmsa.utils.training.optimizer import build_optimizer, parameter_groups, scaled_learning_rate
from hmsa.utils.training.schedule import build_schedule

FIELDS = {field.name: field for field in iter_fields()}


def choices(name: str) -> set[Any]:
    """The words a field takes."""

    def literals(annotation: Any) -> set[Any]:
        if typing.get_origin(annotation) is typing.Literal:
            return set(typing.get_args(annotation))
        inner = (
            typing.get_args(annotation)
            if isinstance(annotation, types.UnionType) or typing.get_origin(annotation)
            else ()
        )
        return set().union(*map(literals, inner))

    return literals(FIELDS[name].annotation)


def names_in(section: str) -> set[str]:
    """The fields of a section, without those of sections in it."""
    start = f"{section}."
    return {
        name.removeprefix(start)
        for name in FIELDS
        if name.startswith(start) and "." not in name.removeprefix(start)
    }


def keywords(function: Callable[..., Any]) -> set[str]:
    return set(inspect.signature(function).parameters)


def test_choices_are_the_builders_tables() -> None:
    assert set(KNOWN_TRUNKS) == set(TRUNKS)
    assert set(KNOWN_DECODERS) == set(DECODERS)
    assert set(KNOWN_LOSSES) == set(LOSSES)
    assert set(KNOWN_LOGGERS) == set(LOGGERS)
    assert choices("model.multiscale") == set(MULTISCALE) == set(TRAIN_SCALES)
    assert choices("data.dataset") == set(DATASETS)
    assert choices("data.extra.policy") == set(POLICIES)


def test_fields_of_the_model_are_build_models_keywords() -> None:
    elsewhere = {"init_from", "freeze", "wrap", "random_ratio"}
    assert names_in("model") - elsewhere == keywords(build_model) - {
        "num_classes",
        "activation_checkpointing",
    }


def test_fields_of_the_loss_are_build_criterions_keywords() -> None:
    nested = {"rmi", "ohem", "bootstrapped", "relaxed_boundary", "dice", "focal"}
    assert names_in("loss") | nested == keywords(build_criterion) - {
        "num_classes",
        "ignore_label",
        "align_corners",
    }
    common = {"logits", "label", "ignore_label", "valid_pixels", "parts", "num_classes"}
    common |= {"class_weights"}  # of loss.class_weights and loss.binary_class_weights
    assert names_in("loss.rmi") - {"weight", "lambda_way"} == keywords(rmi_loss) - common
    assert names_in("loss.ohem") == keywords(ohem_cross_entropy) - common
    assert names_in("loss.bootstrapped") == keywords(bootstrapped_cross_entropy) - common
    assert names_in("loss.dice") == keywords(LOSSES["dice"]) - common
    assert names_in("loss.focal") == keywords(LOSSES["focal"]) - common
    assert names_in("loss.relaxed_boundary") == keywords(LOSSES["relaxed_boundary"]) - common


def test_fields_of_the_data_are_keywords_of_the_datasets_room() -> None:
    augmentation = {field.name for field in dataclasses.fields(Augmentation)}
    assert augmentation <= names_in("data")
    assert names_in("data.class_uniform") == {
        field.name for field in dataclasses.fields(ClassUniform)
    }
    assert {"probability", "mode", "boost_classes"} == {
        field.name for field in dataclasses.fields(ExtraSource)
    } & names_in("data.extra")
    assert {"dataset", "root", "classes", "cv", "max_pixels"} <= keywords(build_files) & names_in(
        "data"
    )
    assert {"split", "labels", "policy", "confidence_threshold", "mask_border"} <= keywords(
        build_files
    ) & names_in("data.extra")
    assert {"batch_size", "workers", "cache", "cache_dir"} <= keywords(
        build_train_loader
    ) & names_in("data")
    assert {"batch_size", "workers", "score_native"} <= keywords(build_eval_loader) & names_in(
        "eval"
    )


def test_fields_of_the_optimiser_are_keywords_of_their_builders() -> None:
    taken = (
        keywords(build_optimizer)
        | keywords(parameter_groups)
        | keywords(build_schedule)
        | keywords(scaled_learning_rate)
    )
    elsewhere = {
        "accumulate",
        "clip_norm",
        "ema_decay",
        "lr_scaling",
    }  # the loop, the weight average, `scaling`
    assert names_in("optim") - elsewhere <= taken


@pytest.mark.parametrize("section", ["eval", "autolabel"])
def test_fields_of_inference_are_its_options(section: str) -> None:
    assert {"scales", "flip", "combine", "over", "tile", "overlap"} <= keywords(
        InferenceOptions
    ) & names_in(section)


def test_timm_trunks_are_taken_by_name() -> None:
    assert (
        Config.from_dict({}, ["model.trunk=timm:convnext_tiny"]).model.trunk == "timm:convnext_tiny"
    )
    with pytest.raises(ConfigError, match=r"'timm:' is none of .* \(did you mean 'timm:NAME'\?\)"):
        Config.from_dict({}, ["model.trunk='timm:'"])
