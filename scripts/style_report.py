"""How the code reads: one line for each measure of CONTRIBUTING.md's style, with what is wanted.

    python scripts/style_report.py [FILE_OR_FOLDER ...]

Without arguments it looks at everything but the tests. The exit status is 1 when a measure falls
short; `--names` lists the public names that stand for two things.
"""

from __future__ import annotations

import argparse
import ast
import io
import sys
import tokenize
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
WIDTH = 100
LONG_BODY = 12  # lines from which a function should be divided into paragraphs
LINES_PER_COMMENT = 40

# Marks that switch formatting off, and the words by which a comment speaks to a tool.
SKIPS = ("fmt:", "noqa: " + "E402")
FOR_TOOLS = ("fmt:", "noqa", "type:", "/usr")
# Names that mean the same wherever they stand: in every program, page, benchmark and table.
CONVENTIONAL = frozenset(
    {"main", "build_parser", "add_arguments", "parse", "run", "measure", "table"}
    | {"sections", "subtitle"}
    | {"ours", "baseline", "require_equal", "require_same_picture"}
    | {"make_table", "markdown", "summarise"}
)
NOT_OURS = frozenset({"tests", "build", "dist", "node_modules"})


@dataclass
class Measures:
    """What was counted over all files."""

    lines: int = 0  # that are not blank
    wide: list[str] = field(default_factory=list)
    comments: int = 0
    skips: int = 0
    long_functions: int = 0
    divided_functions: int = 0
    conditionals: int = 0
    parameters: int = 0
    annotated: int = 0
    homes: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))

    def add(self, path: Path) -> None:
        """Count one file."""
        text = path.read_text(encoding="utf-8")
        rows = text.splitlines()
        tree = ast.parse(text, filename=str(path))

        self.lines += sum(bool(row.strip()) for row in rows)
        self.wide += [
            f"{path}:{number}" for number, row in enumerate(rows, start=1) if len(row) > WIDTH
        ]
        self._count_comments(text, rows)

        for statement in tree.body:
            if isinstance(statement, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                self._note_home(statement.name, path)
        for node in ast.walk(tree):
            self.conditionals += isinstance(node, ast.IfExp)
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                self._count_function(node, rows)

    def _note_home(self, name: str, path: Path) -> None:
        if not name.startswith("_") and name not in CONVENTIONAL:
            self.homes[name].add(str(path))

    def _count_comments(self, text: str, rows: Sequence[str]) -> None:
        """Comments that have a line of their own, but for those that speak to a tool."""
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            if token.type != tokenize.COMMENT:
                continue
            words = token.string.lstrip("#! ")
            is_own_line = rows[token.start[0] - 1].lstrip().startswith("#")
            self.skips += words.startswith(SKIPS)
            self.comments += is_own_line and not words.startswith(FOR_TOOLS)

    def _count_function(
        self, node: ast.FunctionDef | ast.AsyncFunctionDef, rows: Sequence[str]
    ) -> None:
        arguments = node.args
        given = [
            argument
            for argument in arguments.posonlyargs + arguments.args + arguments.kwonlyargs
            if argument.arg not in ("self", "cls")
        ]
        self.parameters += len(given)
        self.annotated += sum(argument.annotation is not None for argument in given)

        # The body begins after the docstring.
        body = node.body
        start = body[0].lineno - 1
        if ast.get_docstring(node, clean=False) is not None:
            start = body[0].end_lineno or start
        inner = rows[start : node.end_lineno]
        if len(inner) >= LONG_BODY:
            self.long_functions += 1
            self.divided_functions += any(not row.strip() for row in inner)

    def names_twice(self) -> dict[str, list[str]]:
        """Public top-level names of classes and functions that stand in more than one file."""
        return {name: sorted(homes) for name, homes in sorted(self.homes.items()) if len(homes) > 1}

    def table(self) -> Iterator[tuple[str, str, str, bool]]:
        """(measure, value, wanted, whether it holds)."""
        lines, comments = max(self.lines, 1), max(self.comments, 1)
        divided = 100 * self.divided_functions / max(self.long_functions, 1)
        annotated = 100 * self.annotated / max(self.parameters, 1)
        conditionals = 100 * self.conditionals / lines
        twice = self.names_twice()

        yield f"lines over {WIDTH} columns", f"{len(self.wide)}", "0", not self.wide
        long_functions = f"functions of {LONG_BODY} body lines or more with a blank line"
        yield long_functions, f"{divided:.0f} %", ">= 80 %", divided >= 80
        per_comment = lines / comments
        is_commented = per_comment <= LINES_PER_COMMENT
        yield (
            "lines of code per comment on its own line",
            f"{per_comment:.0f}",
            f"<= {LINES_PER_COMMENT}",
            is_commented,
        )
        yield "parameters annotated", f"{annotated:.1f} %", "100 %", annotated == 100
        name = "conditional expressions per 100 lines"
        yield name, f"{conditionals:.2f}", "<= 1", conditionals <= 1
        yield "marks that switch formatting off", f"{self.skips}", "0", not self.skips
        yield "public top-level names with two meanings", f"{len(twice)}", "0", not twice


def python_files(given: Sequence[str]) -> list[Path]:
    """The files named, and those below the folders named, without tests and what is not ours."""
    found: list[Path] = []
    for path in map(Path, given):
        inside = sorted(path.rglob("*.py")) if path.is_dir() else [path]
        found += [file for file in inside if _is_ours(file.relative_to(path))]
    return found


def _is_ours(path: Path) -> bool:
    return not any(part in NOT_OURS or part.startswith(".") for part in path.parts)


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table; the exit status is 1 when a measure falls short."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("paths", nargs="*", default=[str(ROOT)], metavar="FILE_OR_FOLDER")
    parser.add_argument("--names", action="store_true", help="list names with two meanings")
    arguments = parser.parse_args(argv)

    measures = Measures()
    files = python_files(arguments.paths)
    if not files:
        parser.error(f"no Python file in {', '.join(arguments.paths)}")
    for path in files:
        measures.add(path)

    rows = list(measures.table())
    print(f"{len(files)} files, {measures.lines} lines that are not blank, tests left out")
    for name, value, wanted, holds in rows:
        print(f"{'ok   ' if holds else 'SHORT'} {name:55}{value:>10}  wanted {wanted}")
    for place in measures.wide[:20]:
        print(f"  over {WIDTH} columns: {place}")
    if arguments.names:
        for name, homes in measures.names_twice().items():
            print(f"  {name}: {', '.join(homes)}")
    return 0 if all(holds for *_, holds in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
