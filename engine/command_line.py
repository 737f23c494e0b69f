"""How every command ends: a user's mistake as one sentence and status 2, a signal by its number.

Free of torch, as are the command lines themselves.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import math
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from hmsa.utils.config import option_named
from hmsa.utils.words import UserError, did_you_mean, invocation

GRACE_SECONDS = 25.0
SAME_SIGNAL_SECONDS = 5.0
SAME_KEY_SECONDS = 0.5
FIRST_RANK_SECONDS = 3.0
OVERRIDE = re.compile(r"[a-z_]+(\.[a-z_]+)+=")


def run_command(main: Callable[[], int]) -> int:
    """Run `main` and return the exit status.

    It is that of `main`, 2 for a user's mistake (one sentence on stderr), 130 for Ctrl-C. Any other
    exception is ours, and keeps its traceback; under torchrun it is noted, so that torchrun shows
    the traceback of the failing rank last. A terminal that cannot show a character, or that is
    gone, ends nothing.
    """
    with lasting_streams():
        try:
            return main()
        except KeyboardInterrupt as stop:
            # Ctrl-C at a terminal reaches all ranks.
            if int(os.environ.get("RANK", "0")) == 0:
                say(str(stop) or "interrupted")
            return 130
        except UserError as error:
            _say_once(error)
            return 2
        except Exception as error:
            return _raise_for_torchrun(error)


def _say_once(error: UserError) -> None:
    """Say a user's mistake on one rank, where several may have met the same."""
    if error.silent:
        return

    # Before the ranks have joined each meets the mistake alone. When all do, torchrun ends the
    # others as soon as the first has ended; when one of them is alone, its sentence comes late.
    is_agreed = "silent" in vars(error)
    if int(os.environ.get("RANK", "0")) > 0 and not is_agreed:
        time.sleep(FIRST_RANK_SECONDS)
    say(f"error: {error}")


def _raise_for_torchrun(error: Exception) -> int:
    """Raise `error`, noted in the file from which torchrun shows the failing rank's traceback."""

    def again() -> int:
        raise error

    # Imports torch, which has been imported by whatever failed under torchrun.
    if "TORCHELASTIC_ERROR_FILE" in os.environ:
        from hmsa.utils.processes import recorded

        return recorded(again)()
    return again()


class _LastingStream(io.TextIOBase):
    """A standard stream whose reader may go away: what is written then is dropped."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        """Write `text` while somebody reads it."""
        try:
            self.stream.write(text)
        except (OSError, ValueError):
            self._give_up()
        return len(text)

    def flush(self) -> None:
        """Hand on what was written, while somebody reads it."""
        try:
            self.stream.flush()
        except (OSError, ValueError):
            self._give_up()

    def _give_up(self) -> None:
        """Lead the stream nowhere, so that its end at exit is no second failure."""
        with contextlib.suppress(OSError, ValueError, AttributeError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.stream.fileno())
            os.close(nowhere)

    def fileno(self) -> int:
        """That of the stream itself."""
        number: int = self.stream.fileno()
        return number

    def isatty(self) -> bool:
        """Whether the stream is a terminal."""
        return bool(self.stream.isatty())

    def writable(self) -> bool:
        """Whether it can be written to at all."""
        return True

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """That of the stream itself."""
        return str(self.stream.encoding)


@contextlib.contextmanager
def lasting_streams() -> Iterator[None]:
    """Within the block, printing never fails.

    What the encoding of a terminal cannot hold is written as an escape (\\u4e2d); a pipe that was
    closed, or a terminal that is gone, swallows the rest.
    """
    before = sys.stdout, sys.stderr
    for stream in before:
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    lasting: list[Any] = [_LastingStream(stream) for stream in before]
    sys.stdout, sys.stderr = lasting
    try:
        yield
    finally:
        for stream in lasting:
            stream.flush()
        sys.stdout, sys.stderr = before


class CommandParser(argparse.ArgumentParser):
    """A parser whose sentences say what was probably meant."""

    def error(self, message: str) -> NoReturn:
        """Print the usage and the message, with what was meant; end with status 2."""
        # argparse counts what may be left out among the arguments that are required.
        message = message.replace(
            "arguments are required: config, section.key=value",
            "argument is required: config, a YAML file such as configs/demo.yaml",
        )
        _, _, words = message.partition("unrecognized arguments: ")
        if words.startswith("--"):
            message += self._meant_by(*words.replace("=", " ").split())
        super().error(message)

    def _meant_by(self, option: str, *values: str) -> str:
        """What an unknown option stands for: one of ours, or a setting of the configuration."""
        setting = option_named(option.removeprefix("--").replace("-", "_"))
        if setting is None:
            return did_you_mean(option, self._option_string_actions)
        value = values[0] if values else "VALUE"
        return f"; a setting of the configuration is written {setting}={value}"


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


def positive_share(*, one_included: bool = False) -> Callable[[str], float]:
    """An argparse type: a share above 0 and below 1, or up to 1 where all may be meant."""
    limit = "below 1"
    if one_included:
        limit = "at most 1"

    def read(text: str) -> float:
        try:
            share = float(text)
        except ValueError:
            share = math.nan

        # Not a number is neither above 0 nor 1.
        if not (0 < share < 1 or (one_included and share == 1)):
            raise argparse.ArgumentTypeError(
                f"{text!r} is no share above 0 and {limit}, such as 0.2"
            )
        return share

    return read


def file_ending_in(*suffixes: str) -> Callable[[str], Path]:
    """An argparse type: a file to write, whose name ends as one of the formats that there are."""

    def read(text: str) -> Path:
        path = Path(text)
        if path.suffix not in suffixes:
            raise argparse.ArgumentTypeError(f"{text} must end in {' or '.join(suffixes)}")
        if path.is_dir():
            raise argparse.ArgumentTypeError(f"{text} is a folder; name a file")
        return path

    return read


def say(message: str) -> None:
    """One line on stderr."""
    print(message, file=sys.stderr, flush=True)


def say_loading(command: str) -> None:
    """Say on a terminal that a command has begun, since PyTorch takes seconds to load.

    A log has its own first line soon enough, and none of these.
    """
    is_first_rank = int(os.environ.get("RANK", "0")) == 0
    if is_first_rank and "torch" not in sys.modules and sys.stderr.isatty():
        say(f"{invocation(command)}: loading PyTorch")


def _leave(status: int) -> None:
    """End the process, after a checkpoint that is being written."""
    from hmsa.utils.runtime import exit_when_possible

    exit_when_possible(status)


class StopSignal:
    """SIGTERM, SIGUSR1 and Ctrl-C ask a training to stop after its present step.

    torchrun sends SIGTERM and kills 30 seconds later, so a rank that waits in a collective for a
    rank that is gone must leave by itself before that: after the grace time, or at a second
    SIGTERM, the process ends at once. A second signal within seconds of the first is the same
    request, since SLURM signals every process and torchrun hands its own signal on to its ranks.
    Alone at a terminal nobody is killed, so that Ctrl-C waits for the step, however long it takes;
    a second one ends the process at once.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self.received_at = 0.0
        self._timer: threading.Timer | None = None
        self._replaced: dict[int, Any] = {}
        self._message_at_once: str | None = None

    def listen(self) -> StopSignal:
        """Install the handlers (main thread only)."""
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
            # Started with `nohup` or in the background, a program ignores Ctrl-C.
            if number == signal.SIGINT and signal.getsignal(number) == signal.SIG_IGN:
                continue
            self._replaced[number] = signal.signal(number, self._handle)
        return self

    def close(self) -> None:
        """Put back the handlers of before."""
        for number, handler in self._replaced.items():
            signal.signal(number, handler or signal.SIG_DFL)
        self._replaced = {}

    @contextlib.contextmanager
    def at_once(self, message: str) -> Iterator[None]:
        """Within the block, in which nothing can be lost, Ctrl-C ends the command with `message`.

        Raises:
            KeyboardInterrupt: Ctrl-C was pressed.
        """
        self._message_at_once = message
        try:
            yield
        finally:
            self._message_at_once = None

    def _handle(self, number: int, frame: FrameType | None) -> None:
        is_interrupt = number == signal.SIGINT
        if is_interrupt and self._message_at_once is not None:
            raise KeyboardInterrupt(self._message_at_once)

        is_alone = int(os.environ.get("WORLD_SIZE", "1")) == 1
        if self.received is None:
            self.received, self.received_at = number, time.monotonic()
            if is_interrupt:
                _write_at_once(
                    "\nsaving after this step; Ctrl-C again ends at once without saving\n"
                )
            if not (is_interrupt and is_alone):
                self._timer = threading.Timer(GRACE_SECONDS, _leave, args=(128 + number,))
                self._timer.daemon = True
                self._timer.start()
            return

        # A second request counts only when it is a new one.
        wait = SAME_SIGNAL_SECONDS
        if is_interrupt and is_alone:
            wait = SAME_KEY_SECONDS
        is_new = time.monotonic() - self.received_at > wait
        if number in (signal.SIGTERM, signal.SIGINT) and is_new:
            _leave(128 + number)

    @property
    def asked(self) -> bool:
        """Whether a signal came."""
        return self.received is not None

    @property
    def what(self) -> str:
        """What came, in words."""
        return "Ctrl-C" if self.received == signal.SIGINT else "a signal"

    @property
    def status(self) -> int:
        """The exit status to leave with: 128 + the signal's number."""
        return 128 + (self.received or signal.SIGTERM)


def _write_at_once(text: str) -> None:
    """Write to stderr from a signal handler, which may have interrupted a `print` there."""
    if int(os.environ.get("RANK", "0")) == 0:
        with contextlib.suppress(OSError):
            os.write(2, text.encode())
