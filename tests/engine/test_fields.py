"""Every field of the configuration is read by something.

Change it, and an argument of its consumer changes.
"""

from __future__ import annotations

import ast
import typing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from hmsa.engine import build
from hmsa.utils.config import Config, ConfigField, iter_fields
from hmsa.utils.processes import Processes

ALONE = Processes(rank=0, world_size=1, local_rank=0, device=torch.device("cpu"))
BASE: dict[str, Any] = {
    "data": {"extra": {"root": "labels"}, "dataset": "cityscapes"},
    "loss": {"class_weights": "linear"},
}
READERS = (
    "train.py",
    "step.py",
    "run_summary.py",
    "validation.py",
    "evaluate.py",
    "autolabel.py",
    "label_images.py",
    "reporting.py",
    "calibrate.py",
)


class Recorder:
    """Stands for every builder that engine.build calls, and notes with what."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[str] = []
        spec = SimpleNamespace(num_classes=3, ignore_label=255, names=("a", "b", "c"))
        files = SimpleNamespace(spec=spec)
        verification = SimpleNamespace(raise_for_problems=lambda: None)
        model = torch.nn.Sequential(torch.nn.Conv2d(3, 3, 1))
        model.parameters_of_heads = lambda: ()  # type: ignore[assignment]
        model.parameters_of_attention = lambda: ()  # type: ignore[assignment]
        model.freeze = self.stand_in("freeze", None)
        results = {
            "build_files": files,
            "verify_files": verification,
            "count_pixels": np.array([1, 2, 3]),
            "build_model": model,
            "synchronise_batch_norm": model,
            "find_weights": SimpleNamespace(path=None, sentence="none"),
        }
        for name in (
            "build_files",
            "build_train_loader",
            "build_eval_loader",
            "verify_files",
            "count_pixels",
            "build_model",
            "load_weights",
            "find_weights",
            "build_criterion",
            "build_optimizer",
            "parameter_groups",
            "scaled_learning_rate",
            "build_schedule",
            "class_weights_from_counts",
            "normalise",
            "augment_on_device",
            "synchronise_batch_norm",
            "compile_in_place",
            "WeightAverage",
            "attention_bias_of",
            "OwnAugmentation",
            "model_file",
        ):
            monkeypatch.setattr(build, name, self.stand_in(name, results.get(name, 0.5)))
        monkeypatch.setattr(build, "Hierarchical", torch.nn.Sequential)
        monkeypatch.setattr(build, "TrainingState", lambda *parts: None)

    def stand_in(self, name: str, result: Any) -> Any:
        def call(*arguments: Any, **keywords: Any) -> Any:
            shown = [
                argument
                for argument in (*arguments, *keywords.items())
                if not isinstance(argument, (torch.Tensor, torch.nn.Module))
            ]
            self.calls.append(f"{name}{shown}")
            return result

        return call

    def of(self, config: Config) -> list[str]:
        """What engine.build does with `config`, as text."""
        self.calls = []
        files = build.split_files(config, config.data.train_split)
        build.split_files(config, config.data.val_split)
        build.verify(config, files)
        build.train_loader(config, files, ALONE)
        build.split_loader(config, files, ALONE)
        model = build.initial_model(config, num_classes=3)
        self.calls.append(
            str(next(build.place(model, config, torch.device("cpu")).parameters()).dtype)
        )
        build.training_state(config, files, ALONE)
        build.criterion(config, files)
        self.calls.append(str(build.training_scales(config, step=1)))
        build.schedule(config, steps_per_epoch=10)
        build.prepared(
            config,
            {
                "image": torch.zeros(1),
                "label": torch.zeros(1),
                "region": torch.zeros(1),
                "position": torch.zeros(1),
            },
            epoch=0,
            device=torch.device("cpu"),
        )
        opened = build.OpenedCheckpoint(Path("x.pt"), config, files.spec, weights={}, sha256="")
        build.build_loaded(opened, device=torch.device("cpu"))
        for section in (config.eval, config.autolabel):
            self.calls.append(str(build.inference_options(section)))
        return self.calls


def other_value(field: ConfigField) -> Any:
    """A value for `field` that is allowed and not its default."""
    special = {
        "data.crop": [64, 96],
        "data.scale_range": [0.7, 1.4],
        "data.class_uniform.tile": [64, 64],
        "data.blur_sigma": [0.5, 0.6],
        "model.train_scales": [0.25, 1.0],
        "model.random_ratio": [0.3, 0.6],
        "model.aspp_rates": [1, 2, 3],
        "eval.scales": [1.0],
        "autolabel.scales": [1.0],
        "eval.tile": [64, 64],
        "autolabel.tile": [64, 64],
        "data.extra.policy": {"a": "human"},
        "data.extra.boost_classes": ["a"],
        "autolabel.class_thresholds": {"a": 0.5},
        "loss.relaxed_boundary.strict_classes": [1],
        "data.root": "elsewhere",
        "experiment.output": "elsewhere",
    }
    if field.name in special:
        value = special[field.name]
        return tuple(value) if isinstance(value, list) else value
    options = (
        typing.get_args(field.annotation)
        if typing.get_origin(field.annotation) is not None
        else (field.annotation,)
    )
    choices = [choice for option in options for choice in (typing.get_args(option) or (option,))]
    literal = [
        choice
        for choice in choices
        if isinstance(choice, (str, int))
        and not isinstance(choice, type)
        and choice != field.default
    ]
    if literal:
        return literal[-1]
    if isinstance(field.default, bool):
        return not field.default
    if isinstance(field.default, int):
        return field.default + 2
    if isinstance(field.default, float):
        return field.default / 2 if field.default else 0.125
    return (
        0.5
        if any("float" in str(choice) for choice in choices)
        else 3
        if any("int" in str(choice) for choice in choices)
        else "other"
    )


def changed_copy(model: Any, path: list[str], value: Any) -> Any:
    """`model` with one field changed and nothing checked.

    Rules between fields are tested elsewhere.
    """
    if len(path) > 1:
        value = changed_copy(getattr(model, path[0]), path[1:], value)
    return model.model_copy(update={path[0]: value})


def test_every_field_changes_an_argument_of_its_consumer(
    monkeypatch: pytest.MonkeyPatch, root: Path
) -> None:
    recorder = Recorder(monkeypatch)
    base = Config.from_dict(BASE)
    before = recorder.of(base)
    assert recorder.of(base) == before
    read_by_the_stories = {
        node.attr
        for name in READERS
        for node in ast.walk(ast.parse((root / "engine" / name).read_text()))
        if isinstance(node, ast.Attribute)
    }
    unread = []
    for field in iter_fields():
        # A wrapped model takes the place of the one whose other fields are looked at here; see
        # test_wrap.py for its own.
        if field.name == "data.extra" or field.name.startswith("model.wrap"):
            continue
        changed = (
            recorder.of(changed_copy(base, field.name.split("."), other_value(field))) != before
        )
        if not changed and field.name.rpartition(".")[2] not in read_by_the_stories:
            unread.append(field.name)
    assert unread == []
