"""Measure one part of the house against a straightforward baseline, alternately in one run.

    python scripts/benchmark.py rmi [--json FILE] [--device cuda] [options of that benchmark; --help lists them]

Each benchmark is a file of scripts/benchmarks/ with `add_arguments(parser)` and `run(arguments) -> list of rows`
(harness.ROW_KEYS). A row may carry a "note", which is printed below the table and not written to the JSON file.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from hmsa.engine.command_line import at_least, run_door
from scripts.benchmarks.harness import ROW_KEYS, Disagreement

FOLDER = Path(__file__).resolve().parent / "benchmarks"
NAMES = tuple(sorted(file.stem for file in FOLDER.glob("*.py") if file.stem != "harness"))


def main(command_line: Sequence[str] | None = None) -> int:
    """Run the benchmark that the command line names; exit status 1 when ours and the baseline disagree."""
    words = list(sys.argv[1:] if command_line is None else command_line)
    named = words[0] if words and words[0] in NAMES else None
    parser = build_parser(named)
    arguments = parser.parse_args(words)
    if arguments.json is not None:
        try:
            arguments.json.parent.mkdir(parents=True, exist_ok=True)
            arguments.json.touch()
        except OSError as error:
            parser.error(
                f"--json {arguments.json}: cannot be written ({error.strerror}); name another file"
            )
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    try:
        rows = importlib.import_module(f"scripts.benchmarks.{arguments.name}").run(arguments)
    except Disagreement as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(table(rows))
    for row in rows:
        if row.get("note"):
            print(f"{row['name']} {row['size']}: {row['note']}")
    if arguments.json is not None:
        arguments.json.write_text(
            json.dumps([{key: row[key] for key in ROW_KEYS} for row in rows], indent=2) + "\n"
        )
    return 0


def build_parser(named: str | None) -> argparse.ArgumentParser:
    """The parser of one benchmark's command line; without a name, the one that lists the benchmarks."""
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
    if named is not None:
        importlib.import_module(f"scripts.benchmarks.{named}").add_arguments(parser)
    return parser


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as aligned columns: seconds, MiB and ratios with three significant figures."""
    lines = [list(ROW_KEYS)] + [[_cell(row[key]) for key in ROW_KEYS] for row in rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(ROW_KEYS))]
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True))
        for line in lines
    )


def _cell(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def user_errors() -> tuple[type[Exception], ...]:
    """What ends a measurement in one sentence."""
    from hmsa.engine import build as assemble

    return assemble.USER_ERRORS


if __name__ == "__main__":
    sys.exit(run_door(main, user_errors=user_errors))
