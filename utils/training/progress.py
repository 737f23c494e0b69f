"""Progress bars: redrawn in place on a terminal, now and then a line of their own in a log."""

from __future__ import annotations

import re
import sys
from typing import Any, TextIO

from tqdm import tqdm

# tqdm moves the cursor between nested bars with these.
ESCAPES = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")

# Seconds between two lines in a log.
LOG_SECONDS = 30.0


class _LineStream:
    """A stream that writes each state of a bar as a line, since a log shows no carriage returns."""

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
    """A bar on stderr for `total` things called `unit`, of which `initial` are done.

    `leave` keeps it on the terminal at its end.
    """
    common: dict[str, Any] = {
        "total": total,
        "unit": unit,
        "initial": initial,
        "disable": not show,
        "smoothing": 0.1,
    }
    if sys.stderr.isatty():
        return tqdm(desc=desc, leave=leave, dynamic_ncols=True, **common)

    # tqdm.set_description adds the colon itself, the constructor with a bar_format does not.
    line = (
        "{desc}{percentage:3.0f}% {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}{postfix}]"
    )
    return tqdm(
        desc=None if desc is None else f"{desc}: ",
        file=_LineStream(sys.stderr),
        bar_format=line,
        mininterval=LOG_SECONDS,
        maxinterval=LOG_SECONDS,
        **common,
    )
