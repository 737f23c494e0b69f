"""Two checkouts take turns; the ratios are of their CPU seconds. No test asserts a time."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from scripts import compare_checkouts

ROOT = Path(__file__).resolve().parents[2]


def test_a_row_is_made_of_pairs() -> None:
    row = compare_checkouts.row_of("rmi", [(1.0, 1.0), (2.0, 2.2), (1.0, 1.5)])
    assert row == {
        "name": "rmi",
        "before_cpu_s": 1.0,
        "after_cpu_s": 1.5,
        "ratio": 1.1,
        "lowest_ratio": 1.0,
        "highest_ratio": 1.5,
        "ratio_of_quickest": 1.0,
        "rounds": 3,
    }


def test_a_checkout_against_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "rows.json"
    words = [str(ROOT), "--parts", "rmi", "--rounds", "1", "--most", "100", "--json", str(output)]
    assert compare_checkouts.main(words) == 0
    content = json.loads(output.read_text())
    assert content["before"] == content["after"]
    assert [row["name"] for row in content["rows"]] == ["rmi"]
    assert "s before" in capsys.readouterr().out
    assert compare_checkouts.main([*words[:-4], "--most", "0"]) == 1


def test_what_is_no_checkout_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        compare_checkouts.main([str(tmp_path)])
    assert "is no checkout of hmsa" in capsys.readouterr().err
