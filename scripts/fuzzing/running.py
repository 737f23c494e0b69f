"""Running a case within a time limit, and judging what came of it."""

from __future__ import annotations

import contextlib
import faulthandler
import hashlib
import os
import re
import resource
import runpy
import signal
import stat
import subprocess
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path

from .cases import Case
from .material import ROOT, environment

LIMIT = 60.0  # seconds until a command counts as hanging
MEMORY = 8 * 2**30  # bytes of address space, so that one case cannot take the machine down
STATUSES = (0, 1, 2)
# Of a command that goes on and says so: a picture left out, a checkpoint passed over.
WORDS_OF_WARNING = re.compile(r"warning|damaged|skipp|left out|not used|going back|set aside", re.I)


@dataclass(frozen=True)
class Outcome:
    """How a command ended."""

    status: int | None  # negative for a signal, None for a hang
    text: str
    seconds: float


def run_forked(case: Case, folder: Path) -> Outcome:
    """Run the program in a fork of this process, which has imported what it needs already."""
    log = folder / "home" / "log"
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        status = 70
        try:
            status = _in_child(case, folder, log)
        finally:
            # The parent's clean-up is not the child's to do.
            os._exit(status)

    begin = time.monotonic()
    ended = _wait(child)
    text = log.read_bytes().decode("utf-8", "replace")
    return Outcome(ended, text, time.monotonic() - begin)


def _in_child(case: Case, folder: Path, log: Path) -> int:
    """Become the program: its folder, its output, its command line; returns the exit status."""
    # What ends it shall not be printed among the output of whoever started the fuzzing.
    faulthandler.disable()
    os.setsid()
    os.chdir(folder)
    os.environ.update(environment(folder))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.stdout = os.fdopen(1, "w", encoding="utf-8", closefd=False)
    sys.stderr = os.fdopen(2, "w", encoding="utf-8", errors="backslashreplace", closefd=False)

    # As Python starts a script: its own name, and its folder first on the path.
    program = str(ROOT / case.program)
    sys.argv = [program, *case.words]
    status = 0
    try:
        runpy.run_path(program, run_name="__main__")
    except SystemExit as end:
        status = _status_of(end)
    except BaseException:
        traceback.print_exc()
        status = 1
    with contextlib.suppress(Exception):
        sys.stdout.flush()
        sys.stderr.flush()
    return status


def _status_of(end: SystemExit) -> int:
    if end.code is None:
        return 0
    if isinstance(end.code, int):
        return end.code
    print(end.code, file=sys.stderr)
    return 1


def _wait(child: int) -> int | None:
    """The exit status of a forked child; None, with its whole session killed, after the limit."""
    deadline = time.monotonic() + LIMIT
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            _kill_session(child)
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    _kill_session(child)
    os.waitpid(child, 0)
    return None


def _kill_session(leader: int) -> None:
    """Kill what a command left behind; usually there is nothing."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, signal.SIGKILL)


def run_process(case: Case, folder: Path) -> Outcome:
    """Run the program as a user does, in a process of its own."""
    log = folder / "home" / "log"
    command = [sys.executable, str(ROOT / case.program), *case.words]
    begin = time.monotonic()
    with open(log, "wb") as output:
        child = subprocess.Popen(
            command,
            cwd=folder,
            env={**os.environ, **environment(folder)},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )

        # None after the limit; what the program has started goes down with it.
        status: int | None = None
        with contextlib.suppress(subprocess.TimeoutExpired):
            status = child.wait(LIMIT)
        _kill_session(child.pid)
        child.wait()
    text = log.read_bytes().decode("utf-8", "replace")
    return Outcome(status, text, time.monotonic() - begin)


Snapshot = dict[str, str]


def snapshot(folder: Path) -> Snapshot:
    """Every path below `folder` with what it is: the hash of a file, the target of a link.

    The folder of caches and temporary files is left out.
    """
    found: Snapshot = {}
    for parent, folders, files in os.walk(folder):
        if Path(parent) == folder:
            folders[:] = [name for name in folders if name != "home"]
        for name in [*folders, *files]:
            path = os.path.join(parent, name)
            found[os.path.relpath(path, folder)] = _state(path)
    return found


def _state(path: str) -> str:
    """What a path is; a fifo or a device is never opened."""
    mode = os.lstat(path).st_mode
    if stat.S_ISLNK(mode):
        return f"link to {os.readlink(path)}"
    if stat.S_ISREG(mode):
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    return str(stat.S_IFMT(mode))


def findings(case: Case, outcome: Outcome, before: Snapshot, after: Snapshot) -> list[str]:
    """What is wrong with how a command ended; nothing where it is as it should be."""
    wrong = []

    # The first of these explains the others: a traceback ends with status 1, too.
    if outcome.status is None:
        wrong.append(f"hangs: no end after {LIMIT:.0f} s")
    elif "Traceback (most recent call last)" in outcome.text:
        wrong.append(f"traceback: {_last_line(outcome.text)}")
    elif outcome.status not in STATUSES:
        wrong.append(f"ends with status {outcome.status}: {_last_line(outcome.text)}")
    elif outcome.status == 2 and "error:" not in outcome.text:
        wrong.append(f"ends with status 2 without a sentence: {_last_line(outcome.text)}")
    elif outcome.status == 0 and case.damage.matters and not _is_mentioned(case, outcome.text):
        wrong.append("takes the damage without a word")
    return [*wrong, *_touched(case, before, after)]


def _is_mentioned(case: Case, text: str) -> bool:
    return Path(case.changed).name in text or WORDS_OF_WARNING.search(text) is not None


def _touched(case: Case, before: Snapshot, after: Snapshot) -> list[str]:
    """Inputs that changed, and new files outside the outputs."""
    changed = sorted(
        path
        for path, state in before.items()
        if after.get(path) != state and not _owns(case, path, before)
    )

    # Under an output anything may appear, and in the caches of a data set, which are documented.
    places = (*case.outputs, "data/.hmsa")
    new = sorted(
        path
        for path in after.keys() - before.keys()
        if not any(_is_below(path, place) for place in places)
    )
    return [
        *(f"changes or removes {path}" for path in changed),
        *(f"writes {path}, which is outside its output" for path in new),
    ]


def _owns(case: Case, path: str, before: Snapshot) -> bool:
    """Whether a file that was there before is the command's own, made by it earlier."""
    owners = {"resume": "run", "autolabel again": "autolabels"}
    owned = owners.get(case.command)
    return owned is not None and owned in case.outputs and _is_below(path, owned)


def _is_below(path: str, folder: str) -> bool:
    return folder in (".", "..") or path == folder or path.startswith(folder + os.sep)


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return " ".join(lines[-1:])[:300]
