"""How every command ends: a user's mistake as one sentence and status 2, a signal by its number.

Free of torch, as are the command lines themselves.
"""

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

from hmsa.utils.words import UserError

GRACE_SECONDS = 25.0
SAME_SIGNAL_SECONDS = 5.0
OVERRIDE = re.compile(r"[a-z_]+(\.[a-z_]+)+=")


def run_command(main: Callable[[], int]) -> int:
    """Run `main` and return the exit status.

    It is that of `main`, 2 for a user's mistake (one sentence on stderr), 130 for Ctrl-C. Any other
    exception is ours, and keeps its traceback; under torchrun it is noted, so that torchrun shows
    the traceback of the failing rank last.
    """
    try:
        return main()
    except KeyboardInterrupt:
        say("interrupted")
        return 130
    except UserError as error:
        # Where all ranks raise the same mistake, one of them says it.
        if not error.silent:
            say(f"error: {error}")
        return 2
    except Exception as error:
        return _raise_for_torchrun(error)


def _raise_for_torchrun(error: Exception) -> int:
    """Raise `error`, noted in the file from which torchrun shows the failing rank's traceback."""

    def again() -> int:
        raise error

    # Imports torch, which has been imported by whatever failed under torchrun.
    if "TORCHELASTIC_ERROR_FILE" in os.environ:
        from hmsa.utils.processes import recorded

        return recorded(again)()
    return again()


def parse_with_overrides(
    parser: argparse.ArgumentParser, argv: Sequence[str] | None
) -> argparse.Namespace:
    """Parse a command line whose overrides may stand anywhere: `--scales 0.5 1 data.root=x`, too.

    Returns what `parser` finds, with `overrides` a list of `section.key=value`.
    """
    given = list(argv) if argv is not None else sys.argv[1:]
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


def say(message: str) -> None:
    """One line on stderr."""
    print(message, file=sys.stderr, flush=True)


class StopSignal:
    """SIGTERM and SIGUSR1 ask a training to stop after its present step.

    torchrun sends SIGTERM and kills 30 seconds later, so a rank that waits in a collective for a
    rank that is gone must leave by itself before that: after the grace time, or at a second
    SIGTERM, the process ends at once. A second signal within seconds of the first is the same
    request, since SLURM signals every process and torchrun hands its own signal on to its ranks.
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
        if self.received is None:
            self.received, self.received_at = number, time.monotonic()
            self._timer = threading.Timer(GRACE_SECONDS, os._exit, args=(128 + number,))
            self._timer.daemon = True
            self._timer.start()
            return

        # A second request counts only when it is a new one.
        is_new = time.monotonic() - self.received_at > SAME_SIGNAL_SECONDS
        if number == signal.SIGTERM and is_new:
            os._exit(128 + number)

    @property
    def asked(self) -> bool:
        """Whether a signal came."""
        return self.received is not None

    @property
    def status(self) -> int:
        """The exit status to leave with: 128 + the signal's number."""
        return 128 + (self.received or signal.SIGTERM)
