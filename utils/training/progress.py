"""Progress bars that suit where they are read: redrawn in place on a terminal, now and then a line of their own in a log."""

from __future__ import annotations

import re
import sys
from typing import TextIO

from tqdm import tqdm

ESCAPES = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")  # by which tqdm moves the cursor between nested bars
LOG_SECONDS = 30.0  # between two lines in a log


class _Lines:
    """A stream on which each state of a bar becomes a line, instead of carriage returns that a log cannot show."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def write(self, text: str) -> None:
        shown = ESCAPES.sub("", text).strip()
        if shown:
            self.stream.write(shown + "\n")

    def flush(self) -> None:
        self.stream.flush()


def progress_bar(
    *,
    total: int,
    unit: str,
    show: bool,
    desc: str | None = None,
    initial: int = 0,
    leave: bool = True,
) -> tqdm:
    """A bar on stderr for `total` things called `unit`, of which `initial` are done; `leave` keeps it on the terminal at its end."""
    if sys.stderr.isatty():
        return tqdm(
            total=total,
            unit=unit,
            desc=desc,
            initial=initial,
            leave=leave,
            disable=not show,
            dynamic_ncols=True,
            smoothing=0.1,
        )
    line = (
        "{desc}{percentage:3.0f}% {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}{postfix}]"
    )
    head = None if desc is None else f"{desc}: "  # as tqdm.set_description writes it
    return tqdm(
        total=total,
        unit=unit,
        desc=head,
        initial=initial,
        disable=not show,
        file=_Lines(sys.stderr),
        bar_format=line,
        smoothing=0.1,
        mininterval=LOG_SECONDS,
        maxinterval=LOG_SECONDS,
    )
