"""The cost table: counted, not estimated, and without computing anything."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from hmsa.network import InferenceOptions, build_model
from hmsa.network.inference import predict
from hmsa.utils.training.live_memory import LiveMemory
from scripts.model_info import NetworkParts, information, main, table

SIZE = (64, 128)


@pytest.fixture(scope="module")
def rows() -> list[dict]:
    lists = [(1.0,), (0.5, 1.0), (0.5, 1.0, 2.0)]
    parts = NetworkParts("resnet18", "deeplabv3plus", SIZE, num_classes=5)
    return [
        information(parts, multiscale, lists)
        for multiscale in ("single", "hierarchical", "explicit")
    ]


def test_ratios_are_to_one_scale(rows: list[dict]) -> None:
    single, hierarchical, explicit = rows
    assert (
        single["training"]["ratio"] == 1
        and single["evaluation"]["1"]["ratio"] == 1
        and hierarchical["evaluation"]["1"]["ratio"] == 1
    )
    assert 1.25 < hierarchical["training"]["ratio"] < 1.45 < 5.25 < explicit["training"]["ratio"]
    assert hierarchical["training"]["scales"] == [0.5, 1.0]
    assert single["evaluation"]["0.5 1 2"]["ratio"] == pytest.approx(
        5.25, rel=0.05
    )  # strips share border rows
    assert (
        single["evaluation"]["0.5 1 2"]["ratio"]
        < hierarchical["evaluation"]["0.5 1 2"]["ratio"]
        < 6
    )
    assert explicit["evaluation"]["1"] is None and explicit["evaluation"]["0.5 1"] is None


def test_parameters_and_operations_are_those_of_the_real_model(rows: list[dict]) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    model = build_model(
        trunk="resnet18", decoder="deeplabv3plus", multiscale="hierarchical", num_classes=5
    )
    assert rows[1]["parameters"] == sum(parameter.numel() for parameter in model.parameters())
    with FlopCounterMode(display=False) as counter:
        predict(model, torch.randn(1, 3, *SIZE), InferenceOptions(scales=(0.5, 1.0)))
    assert rows[1]["evaluation"]["0.5 1"]["flops"] == counter.get_total_flops()


def test_peak_memory_is_that_of_live_tensors() -> None:
    def work() -> torch.Tensor:
        a = torch.zeros(1000)  # 4000 bytes
        b = a.view(10, 100)[2:]  # a view of them
        c = b + 1  # 3200
        a.add_(1)
        del a, b
        return c * 2  # 4000 are free by now: 3200 more

    with LiveMemory() as memory:
        kept = work()
    assert memory.peak == 4000 + 3200 and memory.now == kept.numel() * 4 == 3200
    outside = torch.zeros(500)
    with LiveMemory() as memory:
        outside.view(5, 100).mul_(2)
    assert memory.peak == 0  # what was there before is not counted


def test_what_autograd_keeps_counts() -> None:
    layers = nn.Sequential(*(nn.Sequential(nn.Linear(100, 100), nn.Tanh()) for _ in range(5)))
    x = torch.zeros(64, 100)

    def forward() -> torch.Tensor:
        return layers(x)

    with LiveMemory() as kept:
        forward().sum().backward()
    with torch.no_grad(), LiveMemory() as freed:
        forward()
    assert freed.peak == 3 * 64 * 100 * 4 and kept.peak >= 5 * 64 * 100 * 4


def test_training_needs_more_memory_than_evaluation_and_checkpointing_less(
    rows: list[dict],
) -> None:
    assert rows[1]["training"]["peak_bytes"] > rows[1]["evaluation"]["0.5 1"]["peak_bytes"] > 0
    plain, lean = (
        information(
            NetworkParts(
                "resnet18",
                "fcn",
                (256, 256),
                num_classes=5,
                batch=4,
                activation_checkpointing=checkpointing,
            ),
            "hierarchical",
            [(1.0,)],
        )
        for checkpointing in (False, True)
    )
    assert lean["training"]["peak_bytes"] < plain["training"]["peak_bytes"]
    assert lean["training"]["flops"] > plain["training"]["flops"]


def test_the_table_has_a_line_for_each_model(rows: list[dict]) -> None:
    lines = table(rows).splitlines()
    assert (
        len(lines) == 4
        and lines[1].split()[:3] == ["resnet18", "deeplabv3plus", "single"]
        and "(1.00x)" in lines[1]
    )
    assert len({len(line) for line in lines}) == 1


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "--trunks",
        "hrnet_w18_small",
        "--decoders",
        "fcn",
        "--multiscale",
        "single",
        "--size",
        "64",
        "64",
        "--scales",
        "1",
        "--classes",
        "3",
    ]
    assert main([*words, "--json", str(tmp_path / "info.json")]) == 0
    written = json.loads((tmp_path / "info.json").read_text())
    assert written[0]["trunk"] == "hrnet_w18_small" and "hrnet_w18_small" in capsys.readouterr().out
    assert main(["--trunks", "hrnet_w84"]) == 2
    assert "did you mean" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--size", "0", "64"], "whole number from 1 on"),
        (["--classes", "-1"], "whole number from 1 on"),
        (["--scales", "nan"], "'nan' is not a scale"),
        (["--scales", "0.5", "inf"], "'inf' is not a scale"),
    ],
)
def test_a_wrong_number_is_one_sentence(
    words: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert caught.value.code == 2 and sentence in capsys.readouterr().err
