"""What a person should know although the work goes on."""

from __future__ import annotations

import os
import sys

from tqdm import tqdm


def notice(text: str) -> None:
    """One line on stderr, beside progress bars; of several ranks the first says it."""
    if os.environ.get("RANK", "0") == "0":
        printable = text.encode("utf-8", "backslashreplace").decode()
        tqdm.write(printable, file=sys.stderr)
