"""The self-training script: its stages in their order, each restartable.

The programs that it starts are replaced by one that only notes how it was called.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = """#!/bin/sh
if [ "$1" = -c ]; then echo fp32; exit; fi
echo "$(basename "$0") $*" >> "$CALLS"
case "$*" in *"$FAIL"*) exit 3 ;; esac
"""


def start(
    folder: Path, *words: str, fail: str = "no such word", **environment: str
) -> tuple[int, list[str]]:
    """(exit status, the programs' command lines) of the script with its runs in `folder`."""
    programs = folder / "programs"
    programs.mkdir(exist_ok=True)
    for name in ("python", "torchrun"):
        (programs / name).write_text(PROGRAM)
        (programs / name).chmod(0o755)
    calls = folder / "calls"
    calls.write_text("")
    own = {
        "PATH": f"{programs}:{os.environ['PATH']}",
        "CALLS": str(calls),
        "FAIL": fail,
        "RUNS": str(folder),
        **environment,
    }
    done = subprocess.run(
        ["scripts/self_training.sh", *words],
        cwd=ROOT,
        env={**os.environ, **own},
        capture_output=True,
        text=True,
        timeout=60,
    )
    return done.returncode, calls.read_text().splitlines()


@pytest.mark.parametrize(
    ("words", "configs", "teacher", "student"),
    [
        (
            [],
            "configs/cityscapes/hrnet_ocr_",
            "cityscapes_hrnet_ocr_teacher",
            "cityscapes_hrnet_ocr_student",
        ),
        (["demo"], "configs/demo/", "demo_teacher", "demo_student"),
    ],
)
def test_stages_and_what_each_hands_to_the_next(
    tmp_path: Path, words: list[str], configs: str, teacher: str, student: str
) -> None:
    status, calls = start(tmp_path, *words, "data.root=/data")
    assert status == 0
    assert [call.split()[1] for call in calls] == [
        "train.py",
        "autolabel.py",
        "autolabel.py",
        "train.py",
        "eval.py",
        "eval.py",
        "scripts/compare_runs.py",
    ]
    for call, config, run in ((calls[0], "teacher", teacher), (calls[3], "student", student)):
        assert (
            f"train.py {configs}{config}.yaml --resume experiment.output={tmp_path / run} " in call
        )
        assert (ROOT / f"{configs}{config}.yaml").is_file()
    labels = tmp_path / teacher / "autolabels"
    checkpoint = tmp_path / teacher / "checkpoints" / "best.pt"
    assert f"--checkpoint {checkpoint} --split train_extra --output {labels} " in calls[1]
    assert (
        calls[2] == f"python autolabel.py --verify --output {labels}"
        and f"data.extra.root={labels}" in calls[3]
    )
    assert all(
        "data.root=/data" in call for call in (calls[0], calls[1], calls[3], calls[4], calls[5])
    )


def test_a_restart_goes_on_with_the_stage_that_failed(tmp_path: Path) -> None:
    status, calls = start(tmp_path, "demo", "data.root=/data", fail="--split train_extra")
    assert status == 3 and len(calls) == 2
    status, calls = start(tmp_path, "demo", "data.root=/data", fail="eval.py")
    assert status == 3 and [call.split()[1] for call in calls] == [
        "autolabel.py",
        "autolabel.py",
        "train.py",
        "eval.py",
    ]
    status, calls = start(tmp_path, "demo", "data.root=/data")
    assert status == 0 and [call.split()[1] for call in calls] == [
        "autolabel.py",
        "eval.py",
        "eval.py",
        "scripts/compare_runs.py",
    ]


def test_several_processes_and_wrong_words(tmp_path: Path) -> None:
    status, calls = start(tmp_path, "demo", "data.root=/data", PROCESSES="4")
    staged = [call for call in calls if "--verify" not in call and "compare_runs" not in call]
    assert (
        status == 0
        and all(call.startswith("torchrun --standalone --nproc-per-node 4 ") for call in staged)
        and len(staged) == 5
    )
    assert start(tmp_path, "demmo") == (2, [])
    for wrong in ("0", "two", "-1"):
        assert start(tmp_path, "demo", PROCESSES=wrong) == (2, [])


def test_help_is_the_head_of_the_script() -> None:
    script = ROOT / "scripts" / "self_training.sh"
    done = subprocess.run([script, "--help"], capture_output=True, text=True, timeout=60)
    lines = done.stdout.splitlines()
    assert done.returncode == 0 and lines[0].startswith("The paper's self-training (section 4)")
    assert lines[-1].endswith("auto-labelling from the labels it has.")
