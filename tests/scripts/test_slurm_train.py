"""The SLURM script, with srun and scontrol replaced by scripts that note how they were called."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "slurm_train.sh"
SRUN = """#!/bin/sh
echo "$@" > {folder}/called
trap 'echo saved > {folder}/saved; exit 143' TERM
if [ -e {folder}/long ]; then
  touch {folder}/ready
  while true; do sleep 0.05; done
fi
exit $(cat {folder}/status)
"""
SCONTROL = """#!/bin/sh
if [ "$1" = show ]; then printf 'node7\\nnode8\\n'; else echo "$@" > {folder}/requeued; fi
"""


@pytest.fixture
def cluster(tmp_path: Path) -> Path:
    """A folder with an srun and a scontrol; what they were asked is written there."""
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (tmp_path / name).write_text(text.format(folder=tmp_path))
        (tmp_path / name).chmod(0o755)
    (tmp_path / "status").write_text("0")
    return tmp_path


def submit(cluster: Path, *words: str) -> subprocess.Popen[str]:
    environment = {
        **os.environ,
        "PATH": f"{cluster}:{os.environ['PATH']}",
        "SLURM_JOB_NODELIST": "node[7-8]",
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_GPUS_ON_NODE": "8",
        "SLURM_JOB_ID": "42",
        "SLURM_SUBMIT_DIR": str(ROOT),
    }
    return subprocess.Popen(
        ["bash", str(SCRIPT), *words], env=environment, stderr=subprocess.PIPE, text=True
    )


@pytest.mark.parametrize("status", [0, 3])
def test_torchrun_is_started_on_every_node_and_its_status_is_the_jobs(
    cluster: Path, status: int
) -> None:
    (cluster / "status").write_text(str(status))
    job = submit(cluster, "configs/demo.yaml", "optim.lr=0.1")
    assert job.wait(timeout=60) == status
    called = (cluster / "called").read_text().split()
    assert called[1:3] == ["-m", "torch.distributed.run"] and called[-4:] == [
        "train.py",
        "configs/demo.yaml",
        "optim.lr=0.1",
        "--resume",
    ]
    given = dict(zip(called[3:-4:2], called[4:-4:2], strict=True))
    assert given == {
        "--nnodes": "2",
        "--nproc-per-node": "8",
        "--max-restarts": "3",
        "--rdzv-backend": "c10d",
        "--rdzv-id": "42",
        "--rdzv-endpoint": "node7:29500",
    }
    assert not (cluster / "requeued").exists()  # a training that fails would only fail again


def test_before_the_time_runs_out_it_saves_and_queues_again(cluster: Path) -> None:
    (cluster / "long").touch()
    job = submit(cluster, "configs/demo.yaml")
    while not (cluster / "ready").exists():
        time.sleep(0.02)
        assert job.poll() is None
    job.send_signal(signal.SIGUSR1)
    assert job.wait(timeout=60) == 143
    assert (cluster / "saved").exists() and (cluster / "requeued").read_text().split() == [
        "requeue",
        "42",
    ]


def test_without_a_configuration_it_says_how_to_call_it(cluster: Path) -> None:
    job = submit(cluster)
    assert job.wait(timeout=60) == 2
    assert job.stderr is not None and job.stderr.read().startswith("usage: sbatch")
