"""Measure one part of hmsa against a straightforward baseline, alternately in one run.

    python scripts/benchmark.py NAME [--json FILE] [--device cuda] [options of that benchmark]
    python scripts/benchmark.py NAME --help

Each benchmark is a file of scripts/benchmarks/ with `add_arguments(parser)` and
`run(arguments) -> list of rows` (measuring.harness.ROW_KEYS, and MORE_KEYS of the benchmark where
it has any). A row may carry a "note", which is printed below the table and not written to the JSON
file.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

# A script runs from any folder: the checkout it lies in comes before what may be installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from hmsa.engine.command_line import at_least, run_command
from scripts.measuring.harness import (
    ROW_KEYS,
    Disagreement,
    require_place_for_rows,
    write_rows,
)

FOLDER = Path(__file__).resolve().parent / "benchmarks"
NAMES = tuple(sorted(file.stem for file in FOLDER.glob("*.py")))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark that the command line names.

    Returns:
        The exit status: 1 when ours and the baseline disagree, 2 for a user's mistake.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    named = None
    if words and words[0] in NAMES:
        named = words[0]

    parser = build_parser(named)
    arguments = parser.parse_args(words)
    if named is None:
        parser.error(f"{arguments.name}: name the benchmark first, before its options")
    _require_device(parser, arguments.device)
    return run_command(lambda: measure(arguments))


def measure(arguments: argparse.Namespace) -> int:
    """Run a benchmark, write its rows and print them; returns the exit status."""
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)

    # A benchmark may take an hour: whether the file can be written is found out before.
    if arguments.json is not None:
        require_place_for_rows(arguments.json)
    benchmark = importlib.import_module(f"scripts.benchmarks.{arguments.name}")
    try:
        rows = benchmark.run(arguments)
    except Disagreement as error:
        print(f"error: {error}", file=sys.stderr)
        return 1

    if arguments.json is not None:
        keys = (*ROW_KEYS, *getattr(benchmark, "MORE_KEYS", ()))
        write_rows(arguments.json, [{key: row[key] for key in keys} for row in rows])
    print(table(rows))
    for row in rows:
        if row.get("note"):
            print(f"{row['name']} {row['size']}: {row['note']}")
    return 0


def build_parser(named: str | None) -> argparse.ArgumentParser:
    """The parser of one benchmark's command line; without a name, one that lists the benchmarks."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", choices=NAMES)
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1 (default: %(default)s)")
    parser.add_argument(
        "--rounds",
        type=at_least(1),
        default=5,
        help="timed rounds of each side (default: %(default)s)",
    )
    parser.add_argument(
        "--threads", type=at_least(1), help="torch threads (default: torch's own choice)"
    )

    # Only the named benchmark is imported, so that --help of one does not wait for all.
    if named is not None:
        importlib.import_module(f"scripts.benchmarks.{named}").add_arguments(parser)
    return parser


def _require_device(parser: argparse.ArgumentParser, name: str) -> None:
    """End with one sentence where torch does not know the device or has none of it."""
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().splitlines()[0]
        parser.error(f"--device {name}: cannot be used ({reason})")


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as aligned columns: seconds, MiB and ratios with four significant figures."""
    lines = [list(ROW_KEYS), *([_cell(row[key]) for key in ROW_KEYS] for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(ROW_KEYS))]
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True))
        for line in lines
    )


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value)


if __name__ == "__main__":
    sys.exit(main())
