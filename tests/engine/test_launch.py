"""One command as several processes: one sentence, one status, nobody left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hmsa.engine import launch as launching
from hmsa.engine.launch import launch
from tests.engine.conftest import ROOT, Command, configuration


def words(code: str) -> list[str]:
    return [sys.executable, "-S", "-c", f"import os, sys, time\n{code}"]


def test_every_process_has_its_rank(tmp_path: Path) -> None:
    code = (
        f"open({str(tmp_path)!r} + '/' + os.environ['RANK'], 'w').write(os.environ['WORLD_SIZE'])"
    )
    assert launch(3, command=words(code)) == 0
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        "0": "3",
        "1": "3",
        "2": "3",
    }


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("sys.exit(2 if os.environ['RANK'] == '1' else 0)", 2),
        ("os.kill(os.getpid(), 9)", 128 + signal.SIGKILL),
    ],
)
def test_the_status_is_that_of_the_process_that_failed(code: str, status: int) -> None:
    assert launch(2, command=words(code)) == status


def test_others_are_ended_when_one_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One waits for ever, and one does not answer when it is asked to end."""
    monkeypatch.setattr(launching, "OWN_END_SECONDS", 0.1)
    monkeypatch.setattr(launching, "ASKED_END_SECONDS", 0.1)
    code = f"""
import signal
rank = os.environ["RANK"]
if rank == "2":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
open({str(tmp_path)!r} + "/" + rank, "w").write(str(os.getpid()))
while rank == "0" and len(os.listdir({str(tmp_path)!r})) < 3:
    time.sleep(0.01)
if rank == "0":
    sys.exit(2)
time.sleep(600)
"""
    assert launch(3, command=words(code)) == 2
    for path in tmp_path.iterdir():
        with pytest.raises(ProcessLookupError):
            os.kill(int(path.read_text()), 0)


def test_a_signal_is_handed_on(tmp_path: Path) -> None:
    code = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from hmsa.engine.launch import launch
inner = '''
import os, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
open({str(tmp_path)!r} + "/" + os.environ["RANK"], "w").close()
time.sleep(600)
'''
sys.exit(launch(2, command=[sys.executable, "-S", "-c", inner]))
"""
    program = subprocess.Popen([sys.executable, "-c", code])
    while len(list(tmp_path.iterdir())) < 2:
        time.sleep(0.02)
    program.terminate()
    assert program.wait(timeout=60) == 143


def test_a_mistake_is_one_sentence_and_status_2(
    command: Command, street: Path, tmp_path: Path
) -> None:
    """Under torchrun it is a sentence among forty lines, and status 1."""
    config = configuration(tmp_path, street, data={"root": str(tmp_path / "nowhere")})
    done = command("train.py", config, "--processes", "2", check=2)
    lines = done.stderr.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ") and "nowhere" in lines[0]

    # What the configuration alone shows is said before a process is started.
    done = command("train.py", config, "--processes", "2", "optim.lrr=1", check=2)
    assert "optim.lrr" in done.stderr and "Traceback" not in done.stderr
