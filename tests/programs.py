"""Programs and ranks that start at once: forks of one process that has made the imports already.

A command that is started by itself pays four seconds of processor time for imports before it does
anything. Here multiprocessing's fork server makes them once. What it forks is still a process of
its own, with its own command line, environment, streams and exit status. Tests that are about the
start itself (torchrun, an installed package, what is imported when) start Python anew.
"""

from __future__ import annotations

import atexit
import contextlib
import multiprocessing
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from multiprocessing import connection, forkserver
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
# What commands import, at the top or when they run.
PRELOADED = [
    *(f"hmsa.engine.{name}" for name in ("train", "evaluate", "autolabel", "calibrate", "attach")),
    *("torch._dynamo", "torch.utils.tensorboard", "torchvision", "pytest"),
]
CONTEXT: Any = multiprocessing.get_context("forkserver")


def prepare_fork_server() -> None:
    """Start the fork server, unless it runs; it finds the checkout by PYTHONPATH alone."""
    multiprocessing.set_forkserver_preload(PRELOADED)
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [before])])
    try:
        forkserver.ensure_running()
    finally:
        del os.environ["PYTHONPATH"]
        if before is not None:
            os.environ["PYTHONPATH"] = before


class Program:
    """A program of the checkout that runs in a fork, as `python WORDS` would."""

    def __init__(
        self,
        words: Sequence[object],
        *,
        environment: Mapping[str, str],
        cwd: Path = ROOT,
        merged: bool = False,
    ) -> None:
        prepare_fork_server()
        self.words = [*map(str, words)]
        self.folder = tempfile.TemporaryDirectory(prefix="hmsa-program-")
        names = ("output", "output" if merged else "errors")
        self.streams = [os.path.join(self.folder.name, name) for name in names]
        arguments = (self.words, str(cwd), dict(environment), self.streams)
        self.process = CONTEXT.Process(target=_become, args=arguments)
        self.process.start()

    def finish(self, *, timeout: float) -> subprocess.CompletedProcess[str]:
        """Wait for its end; its status is minus the signal's number where one ended it."""
        self.process.join(timeout)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
            raise subprocess.TimeoutExpired(self.words, timeout)

        texts = [Path(stream).read_text(errors="replace") for stream in self.streams]
        self.folder.cleanup()
        return subprocess.CompletedProcess(self.words, self.process.exitcode, *texts)


def run_ranks_of(
    words: Sequence[object], *, processes: int, environment: Mapping[str, str], timeout: float = 300
) -> list[subprocess.CompletedProcess[str]]:
    """Run a program as all ranks of a job, stdout and stderr of each in one.

    Where SIGKILL ends a rank it ends the others too, as a launcher does, or a machine that loses
    its power.
    """
    port = str(free_port())
    started = []
    for rank in range(processes):
        own = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes)}
        own.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
        variables = {**environment, **(own if processes > 1 else {})}
        started.append(Program(words, environment=variables, merged=True))

    deadline = time.monotonic() + timeout
    living = [program.process for program in started]
    while living and time.monotonic() < deadline:
        connection.wait([process.sentinel for process in living], timeout=1)
        if any(process.exitcode == -signal.SIGKILL for process in living):
            for process in living:
                process.kill()
        living = [process for process in living if process.is_alive()]
    return [program.finish(timeout=1) for program in started]


def run_ranks(function: Callable[..., None], arguments: tuple[Any, ...], *, processes: int) -> None:
    """As torch.multiprocessing.spawn(function, arguments, processes), without imports anew."""
    import torch.multiprocessing

    prepare_fork_server()
    torch.multiprocessing.start_processes(
        function, args=arguments, nprocs=processes, start_method="forkserver"
    )


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _become(words: list[str], cwd: str, environment: dict[str, str], streams: list[str]) -> None:
    """Run the program in this process, and end it as the program ends."""
    os.setsid()
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)

    # Both streams in one file share its position, as after 2>&1.
    output = os.open(streams[0], os.O_WRONLY | os.O_CREAT)
    errors = output if streams[1] == streams[0] else os.open(streams[1], os.O_WRONLY | os.O_CREAT)
    os.dup2(output, 1)
    os.dup2(errors, 2)
    sys.stdout = os.fdopen(1, "w", encoding="utf-8", closefd=False)
    sys.stderr = os.fdopen(
        2, "w", encoding="utf-8", errors="backslashreplace", buffering=1, closefd=False
    )

    status = 1
    try:
        _run(words)
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    with contextlib.suppress(Exception):
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(status)


def _run(words: list[str]) -> None:
    """What `python WORDS` does with its words."""
    # `--processes 2` starts these words anew.
    sys.orig_argv = [sys.executable, *words]
    if words[0] == "-m":
        sys.path.insert(0, os.getcwd())
        sys.argv = words[1:]
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        return
    sys.path.insert(0, str(Path(words[0]).resolve().parent))
    sys.argv = words
    runpy.run_path(words[0], run_name="__main__")
