"""The `hmsa` command: `hmsa train|eval|autolabel ...`, or `python -m hmsa ...`."""

from __future__ import annotations

import sys
from importlib import import_module

COMMANDS = {"train": "train", "eval": "evaluate", "autolabel": "autolabel"}


def main(argv: list[str] | None = None) -> int:
    """Run the command that the first argument names; returns the exit status."""
    arguments = sys.argv[1:] if argv is None else argv
    if not arguments or arguments[0] not in COMMANDS:
        print(f"usage: hmsa {'|'.join(COMMANDS)} ...", file=sys.stderr)
        return 2
    module = import_module(f"hmsa.engine.{COMMANDS[arguments[0]]}")
    return int(module.command(arguments[1:]))


if __name__ == "__main__":
    sys.exit(main())
