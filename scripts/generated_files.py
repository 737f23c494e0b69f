"""Files that a script makes from the code: written, or only compared with what lies there."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path


def write_or_check(
    wanted: Mapping[Path, str],
    argv: Sequence[str] | None,
    *,
    description: str | None,
    script: str,
    root: Path,
) -> int:
    """Write the files that are out of date; with --check in `argv` say which these are.

    `wanted` is the text that each file should hold. The exit status is 1 where a check finds one.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="write nothing; exit status 1 when a file is out of date",
    )
    arguments = parser.parse_args(argv)

    stale = [
        path
        for path, text in wanted.items()
        if not path.exists() or path.read_text(encoding="utf-8") != text
    ]
    for path in stale:
        # A check leaves the files alone, so that it can run on a checkout of somebody else's.
        if arguments.check:
            print(f"{path.relative_to(root)}: out of date; run python scripts/{script}.py")
        else:
            path.write_text(wanted[path], encoding="utf-8")
            print(f"{path.relative_to(root)}: written")

    if stale and arguments.check:
        return 1
    return 0
