"""`--processes N`: one command as N processes of this machine, which end as one.

torchrun does the same, over several machines and with restarts, and answers a mistake in the
configuration with some forty lines of its own and status 1. Here the sentence stands alone, and the
status is that of the process that failed first. Free of torch.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

# After one process has failed the others end by themselves, are asked to, and are killed.
OWN_END_SECONDS = 1.0
ASKED_END_SECONDS = 30.0
POLL_SECONDS = 0.05


def is_launched() -> bool:
    """Whether a launcher, this one or torchrun, has started this process as one of several."""
    return "WORLD_SIZE" in os.environ


def launch(processes: int, *, command: Sequence[str] | None = None) -> int:
    """Run `processes` times what this process was started with; returns the exit status.

    It is 0 when all of them end with 0, else that of the first that does not, or 128 + the number
    of the signal that ended it.

    Args:
        processes: how many.
        command: program and arguments to start instead of those of this process.
    """
    words = list(command or [sys.executable, *sys.orig_argv[1:]])
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]

    # As torchrun sets them. Threads of several processes would be in each other's way.
    shared = {
        **os.environ,
        "WORLD_SIZE": str(processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    shared.setdefault("OMP_NUM_THREADS", "1")
    children = [
        subprocess.Popen(words, env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank in range(processes)
    ]
    with _handing_on(children):
        status = _first_failure(children)
        if status != 0:
            _end(children)
    return status


@contextmanager
def _handing_on(children: Sequence[subprocess.Popen[bytes]]) -> Iterator[None]:
    """Within the block the children get the signals that end a job, and this process waits."""

    def hand_on(number: int, frame: FrameType | None) -> None:
        for child in children:
            if child.poll() is None:
                child.send_signal(number)

    def leave_alone(number: int, frame: FrameType | None) -> None:
        # A terminal sends Ctrl-C to the children, too.
        return

    handlers = {signal.SIGTERM: hand_on, signal.SIGUSR1: hand_on, signal.SIGINT: leave_alone}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _first_failure(children: Sequence[subprocess.Popen[bytes]]) -> int:
    """Wait for all children, or for one to fail; returns its exit status, else 0."""
    while True:
        statuses = [child.poll() for child in children]
        for status in statuses:
            if status is not None and status < 0:
                return 128 - status
            if status:
                return status
        if None not in statuses:
            return 0
        time.sleep(POLL_SECONDS)


def _end(children: Sequence[subprocess.Popen[bytes]]) -> None:
    """Wait for children that end by themselves, then ask, then kill."""
    for seconds, number in ((OWN_END_SECONDS, signal.SIGTERM), (ASKED_END_SECONDS, signal.SIGKILL)):
        deadline = time.monotonic() + seconds
        while any(child.poll() is None for child in children) and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
        for child in children:
            if child.poll() is None:
                child.send_signal(number)
    for child in children:
        child.wait()
