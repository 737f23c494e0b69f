"""The benchmark command: its rows, its table, and that ours and the baselines agree.

No test asserts a time.
"""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from scripts import benchmark
from scripts.benchmarks import rmi
from scripts.measuring import harness

CASES = {
    "rmi": ["--sizes", "2x3x40x36"],
    "metrics": ["--size", "32", "48", "--classes", "3"],
}


@pytest.mark.usefixtures("forked_measuring")
@pytest.mark.parametrize("name", CASES)
def test_rows_and_table(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "rows" / "rows.json"
    assert benchmark.main([name, *CASES[name], "--rounds", "1", "--json", str(file)]) == 0
    rows = json.loads(file.read_text())
    printed = capsys.readouterr().out
    assert rows
    for row in rows:
        assert tuple(row) == harness.ROW_KEYS
        assert row["device"] == "cpu" and row["size"] in printed and row["name"] in printed
        assert row["ratio"] == pytest.approx(row["baseline_s"] / row["ours_s"])
        assert row["ours_mib"] >= 0 and row["baseline_mib"] >= 0


def test_a_baseline_that_disagrees_is_no_baseline(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def wrong(logits: Tensor, label: Tensor, *, num_classes: int) -> dict[str, Tensor]:
        return {
            name: 1.01 * term
            for name, term in rmi_loss(logits, label, num_classes=num_classes).items()
        }

    rmi_loss = rmi.rmi_loss
    monkeypatch.setattr(rmi, "rmi_loss", wrong)
    assert benchmark.main(["rmi", "--sizes", "1x3x40x36", "--rounds", "1"]) == 1
    assert capsys.readouterr().err.startswith(
        "error: the RMI loss: ours differs from the baseline by "
    )


def test_an_unknown_name_ends_with_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        benchmark.main(["rim"])
    assert caught.value.code == 2
    assert "rmi" in capsys.readouterr().err


def test_sides_take_turns_and_the_median_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, calls = 0.0, []
    durations = {"ours": iter([9.0, 1.0, 2.0, 3.0]), "baseline": iter([9.0, 10.0, 30.0, 20.0])}

    def side(name: str) -> harness.Workload:
        def workload() -> None:
            nonlocal clock
            calls.append(name)
            clock += next(durations[name])

        return workload

    monkeypatch.setattr(harness.time, "perf_counter", lambda: clock)
    medians = harness.time_alternately((side("ours"), side("baseline")), rounds=3)
    assert calls == ["ours", "baseline"] * 4
    assert medians == [2.0, 20.0]


def build_allocation(*, mebibytes: int) -> harness.Workload:
    """Touches so much memory, twice, the first half given back before the second."""
    kept = torch.ones(4, 2**20)  # what was there before does not count

    def workload() -> int:
        return (
            sum(int(torch.ones(mebibytes, 2**20, dtype=torch.uint8).max()) for _ in range(2))
            + kept.numel()
        )

    return workload


@pytest.mark.parametrize("mebibytes", [16, 96])
def test_peak_memory_is_what_a_round_adds(mebibytes: int) -> None:
    found = harness.peak_extra_mib(build_allocation, arguments={"mebibytes": mebibytes})
    assert found == pytest.approx(mebibytes, abs=4)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["rmi", "--device", "gpu"], "--device gpu: cannot be used"),
        (["--rounds", "1", "rmi"], "rmi: name the benchmark first"),
        (["rmi", "--rounds", "0"], "'0' is not a whole number from 1 on"),
        (["rmi", "--sizes", "2x3"], "'2x3' is not of the form NxCxHxW"),
        (["data", "--samples", "0"], "'0' is not a whole number from 1 on"),
    ],
)
def test_a_wrong_argument_is_one_sentence(
    words: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        benchmark.main(words)
    assert caught.value.code == 2 and sentence in capsys.readouterr().err


def test_a_file_that_cannot_be_written_is_found_out_before_measuring(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(rmi, "run", lambda arguments: pytest.fail("measured"))
    (tmp_path / "file").write_text("mine")
    for path, sentence in ((tmp_path / "file" / "rows.json", "rows.json"), (tmp_path, "a folder")):
        assert benchmark.main(["rmi", "--json", str(path)]) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and sentence in error and error.count("\n") == 1
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


def test_images_too_small_to_draw_are_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert benchmark.main(["data", "--image", "8x8", "--rounds", "1"]) == 2
    assert "images of 8x8 are too small to draw" in capsys.readouterr().err


def test_only_benchmarks_stand_among_the_benchmarks() -> None:
    assert benchmark.NAMES == (
        "autolabel",
        "data",
        "eval",
        "index",
        "metrics",
        "refine",
        "rmi",
        "train",
    )


def test_every_benchmark_keeps_the_contract() -> None:
    for name in benchmark.NAMES:
        arguments: Any = benchmark.build_parser(name).parse_args([name])
        assert isinstance(arguments, Namespace) and arguments.name == name
