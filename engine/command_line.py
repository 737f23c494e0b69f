"""How a door ends: user errors as one sentence and exit status 2, interruptions by their signal, everything else with its traceback."""

from __future__ import annotations

import argparse
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from types import FrameType

from hmsa.utils.config import Config, ConfigError, dump, load_config

GRACE_SECONDS = 25.0
SAME_SIGNAL_SECONDS = 5.0
OVERRIDE = re.compile(r"[a-z_]+(\.[a-z_]+)+=")


def run_door(
    main: Callable[[], int], *, user_errors: Callable[[], tuple[type[Exception], ...]]
) -> int:
    """Run `main` and return the exit status: its own, 2 for a user error (one sentence on stderr), 130 for Ctrl-C.

    `user_errors` is called only when something was raised, so that it may import the rooms whose error classes it names.
    """
    try:
        return main()
    except KeyboardInterrupt:
        say("interrupted")
        return 130
    except Exception as error:
        if not isinstance(error, user_errors()):
            raise
        if not getattr(error, "silent", False):
            say(f"error: {error}")
        return 2


def parse_with_overrides(
    parser: argparse.ArgumentParser, argv: Sequence[str] | None
) -> argparse.Namespace:
    """Parse a command line whose `overrides` (section.key=value) may stand anywhere: `--scales 0.5 1 data.root=x`, too."""
    given = list(sys.argv[1:] if argv is None else argv)
    overrides = [word for word in given if OVERRIDE.match(word)]
    arguments = parser.parse_intermixed_args([word for word in given if not OVERRIDE.match(word)])
    arguments.overrides = [*arguments.overrides, *overrides]
    return arguments


def at_least(least: int) -> Callable[[str], int]:
    """An argparse type: a whole number from `least` on."""

    def read(text: str) -> int:
        if not re.fullmatch(r"-?\d+", text) or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {least} on")
        return int(text)

    return read


def resolve_or_exit(path: str, overrides: Sequence[str], *, only_print: bool = False) -> Config:
    """The configuration a door was given, before anything slow is imported; its mistakes, or printing it, end the program."""
    found: list[Config] = []

    def read() -> int:
        found.append(load_config(path, overrides))
        return 0

    status = run_door(read, user_errors=lambda: (ConfigError,))
    if status == 0 and only_print:
        print(dump(found[0]), end="")
    if status or only_print:
        sys.exit(status)
    return found[0]


def say(message: str) -> None:
    """One line on stderr."""
    print(message, file=sys.stderr, flush=True)


class StopSignal:
    """SIGTERM and SIGUSR1 ask for a stop at the next step boundary; a later second SIGTERM, or no boundary within the grace time, ends at once.

    torchrun sends SIGTERM and kills 30 seconds later, so a rank that hangs in a collective must leave by itself before that. What comes within
    seconds of the first is the same request: SLURM signals every process, and torchrun hands its own signal on to its ranks.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self.received_at = 0.0
        self._timer: threading.Timer | None = None

    def listen(self) -> StopSignal:
        """Install the handlers (main thread only)."""
        for number in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, self._handle)
        return self

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            if (
                number == signal.SIGTERM
                and time.monotonic() - self.received_at > SAME_SIGNAL_SECONDS
            ):
                os._exit(128 + number)
            return
        self.received, self.received_at = number, time.monotonic()
        self._timer = threading.Timer(GRACE_SECONDS, os._exit, args=(128 + number,))
        self._timer.daemon = True
        self._timer.start()

    @property
    def asked(self) -> bool:
        """Whether a signal came."""
        return self.received is not None

    @property
    def status(self) -> int:
        """The exit status to leave with: 128 + the signal's number."""
        return 128 + (self.received or signal.SIGTERM)
