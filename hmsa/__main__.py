"""The `hmsa` command: `hmsa train|eval|autolabel ...`, or `python -m hmsa ...`."""

from __future__ import annotations

import sys


def main(argv: list[str] | None = None, *, program: str | None = None) -> int:
    """Run the command that the first word names; returns the exit status."""
    from hmsa.engine.arguments import hmsa_command

    return hmsa_command(argv, program=program)


if __name__ == "__main__":
    sys.exit(main())
