"""The check of a GPU: what it concludes, and that it runs where there is none."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from scripts import gpu_check
from scripts.gpu_checks.environment import is_built_for
from scripts.gpu_checks.findings import Finding, GpuSetup, each_of, not_above, not_below
from scripts.gpu_checks.runs import draw_scenes
from scripts.gpu_checks.steps import covered


@pytest.mark.parametrize(
    ("capability", "architectures", "runs"),
    [
        ("80", ["sm_75", "sm_80"], True),
        ("86", ["sm_80"], True),  # newer within a major number
        ("80", ["sm_86"], False),  # older than the code
        ("70", ["sm_75", "sm_80"], False),  # a V100 with a wheel of today
        ("90", ["sm_80"], False),  # another major number
        ("120", ["sm_80", "compute_90"], True),  # translated by the driver
        ("90", ["sm_90a"], True),
        ("90", [], False),
    ],
)
def test_a_card_that_torch_was_not_built_for_is_known(
    capability: str, architectures: list[str], runs: bool
) -> None:
    assert is_built_for(capability, architectures) is runs


def test_times_that_overlap_count_once() -> None:
    assert covered([(0.0, 2.0), (1.0, 3.0), (1.5, 2.5), (5.0, 6.0)]) == 4.0


def test_what_is_no_number_falls_short() -> None:
    assert not not_above("x", math.nan, 1.0).passed
    assert not not_below("x", math.nan, 1.0).passed


def test_rehearsal_of_steps_and_equality(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "found.json"
    words = ["--rehearse", "--only", "environment", "equality", "steps", "--json", str(file)]
    assert gpu_check.main(words) == 0
    assert "a rehearsal, which says nothing of a GPU" in capsys.readouterr().out
    rows = json.loads(file.read_text())
    assert {row["check"] for row in rows} == {"environment", "equality", "steps"}
    assert all(row["device"] == "cpu" for row in rows)


def test_what_falls_short_or_fails_is_said_and_ends_nothing_else(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def short(setup: GpuSetup) -> Iterator[Finding]:
        yield not_above("kernels", 5.0, 3.0)
        raise RuntimeError("device-side assert")

    def fine(setup: GpuSetup) -> Iterator[Finding]:
        yield not_above("kernels", 1.0, 3.0)

    monkeypatch.setattr(gpu_check, "CHECKS", {"environment": short, "equality": fine})
    assert gpu_check.main(["--rehearse", "--only", "environment", "equality"]) == 1
    printed = capsys.readouterr().out
    assert "FAILED environment: kernels: 5 (at most 3)" in printed
    assert "FAILED environment: short ended early: device-side assert" in printed
    assert "ok     equality: kernels: 1 (at most 3)" in printed
    assert "1 of 3 as they should be on cpu" in printed


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_one_sentence_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu_check.main([]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: --device cuda:0: cannot be used")
    assert "Traceback" not in error


def test_another_gpu_is_chosen_by_the_environment(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu_check.main(["--device", "cuda:1"]) == 2
    assert "set CUDA_VISIBLE_DEVICES=1" in capsys.readouterr().err


@pytest.mark.gpu
@pytest.mark.parametrize("name", gpu_check.CHECKS)
def test_this_gpu(name: str, tmp_path: Path) -> None:
    setup = GpuSetup(device=torch.device("cuda:0"), folder=tmp_path)
    draw_scenes(setup)
    assert [
        finding for finding in each_of(setup, gpu_check.CHECKS[name]) if not finding.passed
    ] == []
