"""The numbers of the README and of the results page are those of the committed rows."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
# What README calls the rows of the table.
NAMES = {
    "single scale": "single scale",
    "average of single scale": "average",
    "explicit attention": "explicit",
    "hierarchical attention": "hierarchical",
}


def table_rows(text: str) -> list[list[str]]:
    """The cells of every row of every table that has a mean and a deviation."""
    lines = [line for line in text.splitlines() if line.startswith("|") and "±" in line]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def as_published(line: dict[str, Any]) -> str:
    return f"{100 * line['miou']:.1f} ± {100 * line['deviation']:.1f}"


def test_readme_shows_the_committed_table() -> None:
    lines = json.loads((ROOT / "results" / "table1" / "table1.json").read_text())["lines"]
    rows = [row for row in table_rows((ROOT / "README.md").read_text()) if len(row) == 5]
    assert len(rows) >= 5, "README's table of results was not found"
    for name, scales, score, seeds, step in rows:
        if name.startswith("method"):
            continue
        wanted = [float(scale) for scale in scales.split()]
        known = NAMES.get(name, name)
        (line,) = (line for line in lines if line["name"] == known and line["scales"] == wanted)
        found = (as_published(line), str(len(line["by_seed"])), f"{line['cost']['step']:.2f}x")
        assert (score, seeds, step) == found, f"{name} {scales}"


@pytest.mark.parametrize("name", ["table1", "table1_long"])
def test_tables_of_the_results_page_are_the_committed_ones(name: str) -> None:
    shown = {tuple(row[:4]) for row in table_rows((ROOT / "docs" / "results.md").read_text())}
    rows = table_rows((ROOT / "results" / name / "table1.md").read_text())
    assert len(rows) > 5
    for row in rows:
        assert tuple(row[:4]) in shown, row


def test_the_gain_that_readme_names_is_the_committed_one() -> None:
    text = re.sub(r"\s+", " ", (ROOT / "README.md").read_text())
    (points, error) = re.findall(
        r"beats averaging by ([\d.]+) points \(standard error ([\d.]+)\)", text
    )[0]
    table = json.loads((ROOT / "results" / "table1" / "table1.json").read_text())
    found = table["differences"]["hierarchical {0.5,1,2} - average {0.5,1,2}"]
    assert (points, error) == (
        f"{100 * found['mean']:.2f}",
        f"{100 * found['standard_error']:.2f}",
    )
