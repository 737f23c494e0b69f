"""The training benchmark takes real steps, for every setting it offers. No test asserts a time."""

from __future__ import annotations

import argparse
from typing import Any

import pytest
import torch

from hmsa.network.trunks import TRUNKS
from scripts.benchmarks import train as benchmark
from tests.engine.small import Small

TINY: dict[str, Any] = {
    "data": {"crop": [48, 64], "batch_size": 2},
    "model": {"trunk": "resnet18", "decoder": "fcn", "multiscale": "hierarchical"},
    "loss": {"main": "rmi"},
}


@pytest.mark.parametrize("setting", [name for name in benchmark.SETTINGS if "compile" not in name])
def test_every_setting_trains(setting: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a trunk of three convolutions: in fp16 a CPU takes a minute for a real one."""
    monkeypatch.setitem(TRUNKS, "resnet18", lambda **_: Small())
    workload = benchmark.build_setting(setting=setting, sections=TINY, device="cpu")
    first, second = float(workload()), float(workload())
    assert torch.isfinite(torch.tensor([first, second])).all() and first != second


def test_the_cost_of_a_hierarchical_step_is_told_beside_its_row(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[dict[str, Any]] = []
    monkeypatch.setattr(
        benchmark,
        "compare",
        lambda **keywords: asked.append(keywords) or {"ours_s": 0.65, "ratio": 1 / 1.3},
    )
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=5)
    benchmark.add_arguments(parser)
    small = ["--trunk", "resnet18", "--decoder", "fcn", "--size", "48", "64"]
    rows = benchmark.run(parser.parse_args([*small, "--settings", "bf16", benchmark.COST]))
    assert [row["note"] for row in rows] == [
        "1.54 images/s",
        "a hierarchical step takes 1.30 x a single-scale one, in bf16 + channels_last",
    ]
    assert [keywords["size"] for keywords in asked] == ["resnet18 fcn 1x48x64"] * 2
    assert [keywords["baseline"] for keywords in asked] == [
        benchmark.build_plain,
        benchmark.build_single_scale,
    ]
    assert torch.isfinite(benchmark.build_single_scale(**asked[1]["arguments"])())
