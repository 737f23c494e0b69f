"""`hmsa benchmark`: its figures, on noise and on a data set, and what a user can get wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from hmsa.engine import build
from hmsa.engine.arguments import benchmark_command
from hmsa.engine.step import PARTS, TrainingStep

SMALL = [
    "model.trunk=hrnet_w18_small",
    "model.decoder=fcn",
    "data.crop=[64,128]",
    "data.batch_size=2",
    "runtime.device=cpu",
]


def time_configuration(tmp_path: Path, *words: str) -> dict[str, Any]:
    (tmp_path / "small.yaml").write_text("data:\n  dataset: cityscapes\n")
    output = tmp_path / "figures.json"
    line = [str(tmp_path / "small.yaml"), *SMALL, *words, "--json", str(output), "--steps", "2"]
    assert benchmark_command(line) == 0
    return dict(json.loads(output.read_text()))


def test_figures_of_noise_need_no_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    figures = time_configuration(tmp_path)
    assert set(figures["shares"]) == set(PARTS)
    assert sum(figures["shares"].values()) == pytest.approx(1.0)
    assert all(share > 0 for share in figures["shares"].values())
    assert figures["images_per_second"] == pytest.approx(2 / figures["step_s"])
    assert (figures["images"], figures["crop"], figures["steps"]) == ("noise", [64, 128], 2)

    printed = capsys.readouterr().out
    assert "hrnet_w18_small fcn hierarchical" in printed and "images/s" in printed


def test_every_step_trains(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    weights = []
    update = TrainingStep.update

    def noted(step: TrainingStep, *words: Any) -> list[bool]:
        answers = update(step, *words)
        weights.append(torch.cat([part.flatten() for part in step.state.model.parameters()]))
        return answers

    monkeypatch.setattr(TrainingStep, "update", noted)
    time_configuration(tmp_path)
    # Three to warm up, two as a training runs, two part by part.
    assert len(weights) == 7
    assert all(
        not torch.equal(one, other) for one, other in zip(weights, weights[1:], strict=False)
    )


def test_a_step_is_as_many_batches_as_a_training_adds_up(tmp_path: Path) -> None:
    # Augmentation on the device is a part of the step, too.
    words = ["optim.accumulate=2", "data.augment_on_device=true", "data.blur=gaussian"]
    figures = time_configuration(tmp_path, *words)
    assert figures["images_per_step"] == 4
    assert figures["images_per_second"] == pytest.approx(4 / figures["step_s"])


def test_with_data_a_missing_data_set_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "small.yaml").write_text(f"data:\n  root: {tmp_path}/none\n")
    assert benchmark_command([str(tmp_path / "small.yaml"), *SMALL, "--data"]) == 2
    assert f"{tmp_path}/none" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("recipe", "classes"),
    [
        ("mapillary/deeplabv3plus_r50_hierarchical.yaml", 65),
        ("camvid/efficientnet_hierarchical.yaml", 11),
        ("cityscapes/hrnet_ocr_hierarchical.yaml", 19),
    ],
)
def test_recipes_need_neither_data_nor_weights(
    recipe: str, classes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []
    model_from = build.model_from

    def noted(*words: Any, **named: Any) -> Any:
        made.append((named["num_classes"], named["trunk_weights"]))
        return model_from(*words, **named)

    monkeypatch.setattr(build, "model_from", noted)
    monkeypatch.chdir(tmp_path)
    # The recipe's data, loss and start; a small network in the place of its own.
    path = Path(__file__).parents[2] / "configs" / recipe
    words = [*SMALL, "model.trunk=resnet18", "model.attention_channels=16", "data.batch_size=1"]
    words += ["model.decoder_channels=16", "loss.main=cross_entropy", "loss.class_weights=log"]
    words += ["optim.accumulate=1", "runtime.precision=fp32"]
    assert benchmark_command([str(path), *words, "--steps", "1"]) == 0
    assert made == [(classes, False)]
