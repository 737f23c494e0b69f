"""Numbers that the README and the pages publish are those of the committed rows.

Numbers in sentences are found by their words: a sentence that is reworded must be reworded here,
and then its number is compared again.
"""

from __future__ import annotations

import json
import re
from functools import cache
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
HIERARCHICAL = "hierarchical {0.5,1,2}"
AVERAGE = "average {0.5,1,2}"


@cache
def rows_of(name: str) -> Any:
    """The committed rows of results/NAME.json."""
    return json.loads((ROOT / "results" / f"{name}.json").read_text())


@cache
def prose(page: str) -> str:
    """A page as one line."""
    return re.sub(r"\s+", " ", (ROOT / page).read_text(encoding="utf-8"))


def table_rows(text: str) -> list[list[str]]:
    """The cells of every row of every table that has a mean and a deviation."""
    lines = [line for line in text.splitlines() if line.startswith("|") and "±" in line]
    return [cells(line) for line in lines]


def cells(line: str) -> list[str]:
    return [cell.strip(" *") for cell in line.strip("|").split("|")]


def table_below(page: str, header: str) -> list[list[str]]:
    """The rows of the table of a page whose first line begins with `header`."""
    lines = (ROOT / page).read_text(encoding="utf-8").splitlines()
    (start,) = [number for number, line in enumerate(lines) if line.startswith(header)]
    end = start
    while end < len(lines) and lines[end].startswith("|"):
        end += 1
    return [cells(line) for line in lines[start + 2 : end]]


def as_published(line: dict[str, Any]) -> str:
    return f"{100 * line['miou']:.1f} ± {100 * line['deviation']:.1f}"


def percent(table: str, name: str, *scales: float) -> str:
    """The mean mIoU of a row, as the pages print it."""
    lines = rows_of(table)["lines"]
    (line,) = (one for one in lines if one["name"] == name and one["scales"] == list(scales))
    return f"{100 * line['miou']:.1f}"


def points(table: str, difference: str, digits: int = 2) -> str:
    """A difference paired by seed, without its sign."""
    return f"{abs(100 * rows_of(table)['differences'][difference]['mean']):.{digits}f}"


def error(table: str, difference: str) -> str:
    return f"{100 * rows_of(table)['differences'][difference]['standard_error']:.2f}"


def test_readme_shows_the_committed_table() -> None:
    rows = [row for row in table_rows((ROOT / "README.md").read_text()) if len(row) == 5]
    assert len(rows) >= 5, "README's table of results was not found"
    for name, scales, score, seeds, step in rows:
        if name.startswith("method"):
            continue
        wanted = [float(scale) for scale in scales.split()]
        known = NAMES.get(name, name)
        lines = rows_of("table1/table1")["lines"]
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


def test_differences_of_the_results_page_are_the_committed_ones() -> None:
    text = (ROOT / "docs" / "results.md").read_text()
    found = re.findall(r"^\| (.+?) \| ([+-][\d.]+) \| ([\d.]+) \| (\d) \|$", text, re.M)
    assert len(found) >= 11
    known = [rows_of(f"{name}/table1")["differences"] for name in ("table1", "table1_long")]
    for name, gain, standard_error, seeds in found:
        # The two tables have differences of the same names: one of them has these numbers.
        committed = [
            (
                f"{100 * table[name]['mean']:+.2f}",
                f"{100 * table[name]['standard_error']:.2f}",
                str(table[name]["seeds"]),
            )
            for table in known
            if name in table
        ]
        assert (gain, standard_error, seeds) in committed, name


# Sentences: the page, a pattern whose groups are numbers, and what these must be.
def sentences() -> list[tuple[str, str, list[str]]]:
    gain = f"{HIERARCHICAL} - {AVERAGE}"
    attached, long = "table1_attached/table1", "table1_long/table1"
    step = next(
        line["cost"]["step"]
        for line in rows_of("table1/table1")["lines"]
        if line["name"] == "hierarchical"
    )
    return [
        (
            "README.md",
            r"beats averaging by ([\d.]+) points \(standard error ([\d.]+)\)",
            [points("table1/table1", gain), error("table1/table1", gain)],
        ),
        (
            "README.md",
            r"Adding 0.25x costs it ([\d.]+) points? as trained, and nothing after",
            [points("table1/table1", "adding 0.25 to hierarchical", 1)],
        ),
        (
            "README.md",
            r"gains\*\*: ([\d.]+) points of mIoU over a single scale and ([\d.]+) over the average "
            r".*? takes ([\d.]+) times as long",
            [
                points("table1/table1", f"{HIERARCHICAL} - single {{1}}", 1),
                points("table1/table1", gain, 1),
                f"{step:.2f}",
            ],
        ),
        (
            "README.md",
            r"model ([\d.]+) points over its own average at {0.5, 1, 2}, and ([\d.]+) with 0.25x",
            [
                points(attached, f"attached, calibrated {scales} - average {scales}", 1)
                for scales in ("{0.5,1,2}", "{0.25,0.5,1,2}")
            ],
        ),
        (
            "docs/index.md",
            r"has ([\d.]+) % mIoU, the average .*? ([\d.]+) %, and the single scale ([\d.]+) %",
            [
                percent("table1/table1", "hierarchical", 0.5, 1, 2),
                percent("table1/table1", "average", 0.5, 1, 2),
                percent("table1/table1", "single scale", 1),
            ],
        ),
        ("docs/index.md", r"step takes ([\d.]+) times as long", [f"{step:.2f}"]),
        (
            "docs/tables.md",
            r"hierarchical minus average \+([\d.]+), minus single \+([\d.]+), "
            r"adding 0.25x -([\d.]+)",
            [
                points(long, gain, 1),
                points(long, f"{HIERARCHICAL} - single {{1}}", 1),
                points(long, "adding 0.25 to hierarchical", 1),
            ],
        ),
        (
            "docs/results.md",
            r"three times the steps .*? the cost is ([\d.]+) points",
            [points(long, "adding 0.25 to hierarchical", 1)],
        ),
        (
            "docs/results.md",
            r"in fp32 instead of bf16 .*? has ([\d.]+)\.",
            [percent("fp32/table1", "hierarchical", 0.5, 1, 2)],
        ),
    ]


@pytest.mark.parametrize(("page", "pattern", "wanted"), sentences())
def test_numbers_in_sentences_are_the_committed_ones(
    page: str, pattern: str, wanted: list[str]
) -> None:
    found = re.search(pattern, prose(page))
    assert found is not None, f"{page} has no sentence like {pattern}"
    assert list(found.groups()) == wanted


def test_a_calibrated_chain_loses_nothing_by_a_smaller_scale() -> None:
    for name in ("table1_attached/table1", "table1_long/table1"):
        assert float(points(name, "adding 0.25 to calibrated")) == 0


def test_attached_and_calibrated_rows_are_the_committed_ones() -> None:
    table = "table1_attached/table1"
    columns = [(1,), (0.5, 1), (0.5, 1, 2), (0.25, 0.5, 1, 2)]
    names = {
        "single scale, averaged": "average",
        "the same weights with attached attention": "attached to single scale",
        "the same, calibrated": "attached to single scale, calibrated",
        "hierarchical": "hierarchical",
        "hierarchical, calibrated": "hierarchical, calibrated",
    }
    rows = table_below("docs/results.md", "| test mIoU % | {1} | {0.5, 1} | {0.5, 1, 2}")
    assert [row[0] for row in rows] == list(names)
    for row in rows:
        for scales, shown in zip(columns, row[1:], strict=True):
            name = names[row[0]]
            if name == "average" and scales == (1,):
                name = "single scale"
            if shown:
                assert shown == percent(table, name, *scales), f"{row[0]} {scales}"


def test_camvid_rows_are_the_committed_ones() -> None:
    names = {
        "single scale, average": "average",
        "single scale, maximum": "max",
        "explicit": "explicit",
        "hierarchical": "hierarchical",
        "hierarchical, both scales' features": "hierarchical, both scales' features",
        "hierarchical, fused at features": "hierarchical, fused at features",
    }
    rows = table_below("docs/results.md", "| val mIoU % | {1} | {0.5, 1, 2} | {0.25, 0.5, 1, 2}")
    assert [row[0] for row in rows] == list(names)
    for row in rows:
        for scales, shown in zip([(1,), (0.5, 1, 2), (0.25, 0.5, 1, 2)], row[1:], strict=True):
            if not shown:
                continue
            name = "single scale" if scales == (1,) else names[row[0]]
            assert shown == percent("camvid/table1", name, *scales), f"{row[0]} {scales}"


def test_rows_of_rmi_and_cross_entropy_are_the_committed_ones() -> None:
    rows = table_below("docs/results.md", "| test mIoU % | seed 0 | seed 1 | seed 2 | mean |")
    for row, table in zip(rows, ("demo", "cross_entropy"), strict=True):
        lines = rows_of(f"{table}/table1")["lines"]
        (line,) = (
            line
            for line in lines
            if line["name"] == "hierarchical" and line["scales"] == [0.5, 1.0, 2.0]
        )
        seeds = [line["by_seed"][seed] for seed in sorted(line["by_seed"])]
        assert row[1:] == [f"{100 * value:.1f}" for value in [*seeds, line["miou"]]]


@pytest.mark.parametrize(
    ("name", "entry", "speed", "memory"),
    [
        ("`rmi`, 1 x 19", ("rmi", 0), "{:.1f}x", "{:.0f} %"),
        ("`rmi`, 1 x 65", ("rmi", 1), "{:.1f}x", "{:.0f} %"),
        ("`data`, crop 1024 x 1024", ("data", 0), "{:.1f}x", ""),
        ("`data`, crop 1024 x 2048", ("data", 2), "{:.1f}x", ""),
        ("`eval`, the demo's network", ("eval_demo", 0), "{:.1f}x", "{:.0f} %"),
        ("`eval`, the same, fp32", ("eval_demo_same_precision", 0), "{:.1f}x", "{:.0f} %"),
        ("`eval --networks paper`", ("eval_w48", 0), "{:.1f}x", "{:.0f} %"),
        ("the same in bf16", ("eval_w48_bf16", 0), "{:.1f}x", "{:.0f} %"),
    ],
)
def test_benchmarks_of_the_results_page_are_the_committed_ones(
    name: str, entry: tuple[str, int], speed: str, memory: str
) -> None:
    rows = table_below("docs/results.md", "| `scripts/benchmark.py` | against |")
    (row,) = [row for row in rows if row[0].startswith(name)]
    measured = rows_of(f"benchmarks/{entry[0]}")[entry[1]]
    assert row[2].startswith(speed.format(measured["ratio"]))
    if memory:
        assert row[3] == memory.format(100 * measured["memory_ratio"])


def test_pages_beside_the_results_page_repeat_its_numbers() -> None:
    """docs/attention.md tells of the same rows."""
    table = "table1_attached/table1"
    rows = table_below("docs/attention.md", "| test mIoU % | {1} | {0.5, 1} | {0.5, 1, 2}")
    columns = [(1,), (0.5, 1), (0.5, 1, 2), (0.25, 0.5, 1, 2)]
    for row, name in zip(rows[:2], ("average", "attached to single scale"), strict=True):
        for scales, shown in zip(columns, row[1:], strict=True):
            known = "single scale" if name == "average" and scales == (1,) else name
            assert shown == percent(table, known, *scales)
