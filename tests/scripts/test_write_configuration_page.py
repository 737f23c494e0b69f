"""docs/configuration.md tells what the configuration's fields say."""

from __future__ import annotations

from pathlib import Path

import pytest

from hmsa.utils.config import iter_fields
from scripts import write_configuration_page
from scripts.write_configuration_page import PAGE, configuration_page, main


def test_committed_page_is_up_to_date() -> None:
    assert PAGE.read_text(encoding="utf-8") == configuration_page(), (
        "run python scripts/write_configuration_page.py"
    )


def test_every_option_has_one_complete_row() -> None:
    rows = [line for line in configuration_page().splitlines() if line.startswith("| `")]
    cells = [[cell.strip() for cell in row.strip("|").split(" | ")] for row in rows]
    assert [row[0].strip("`") for row in cells] == [field.name for field in iter_fields()]
    assert all(len(row) == 4 and all(row) for row in cells)


def test_check_writes_nothing_and_tells_of_an_old_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(write_configuration_page, "ROOT", tmp_path)
    monkeypatch.setattr(write_configuration_page, "PAGE", tmp_path / "configuration.md")
    assert main(["--check"]) == 1
    assert "configuration.md: out of date" in capsys.readouterr().out
    assert not (tmp_path / "configuration.md").exists()

    assert main([]) == 0
    assert main(["--check"]) == 0
