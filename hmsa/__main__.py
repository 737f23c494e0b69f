"""The `hmsa` command: `hmsa train|eval|autolabel ...`, or `python -m hmsa ...`."""

from __future__ import annotations

import os
import sys


def main(argv: list[str] | None = None, *, program: str | None = None) -> int:
    """Run the command that the first word names; returns the exit status."""
    _wait_without_spinning()
    from hmsa.engine.arguments import hmsa_command

    return hmsa_command(argv, program=program)


def _wait_without_spinning() -> None:
    """Let threads that wait for one another sleep soon, unless the user has said how they wait.

    libgomp, which torch computes with on Linux, lets a waiting thread turn 300,000 rounds before
    it sleeps. Where other programs use the cores too, the thread it waits for is not running at
    all, and turning takes the very core that it needs: a training beside another one then takes
    ten times as long and more. 1000 rounds are what libgomp itself takes where it knows of more
    threads than cores. Read once, when torch is loaded
    (https://gcc.gnu.org/onlinedocs/libgomp/GOMP_005fSPINCOUNT.html).
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")


if __name__ == "__main__":
    sys.exit(main())
