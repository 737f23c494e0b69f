"""A street in miniature that is trained on in seconds, and the commands as a person starts them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml

from tests.programs import Program

ROOT = Path(__file__).resolve().parents[2]
CLASSES = [("sky", [70, 130, 180]), ("road", [128, 64, 128]), ("pole", [153, 153, 153])]


def draw(
    folder: Path, *, train: int = 6, val: int = 3, size: tuple[int, int] = (64, 96), seed: int = 0
) -> Path:
    """A `folder` data set of three classes and some ignore; returns its root."""
    generator = np.random.default_rng(seed)
    height, width = size
    for split, count in {"train": train, "val": val}.items():
        for kind in ("images", "labels"):
            (folder / kind / split).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            label = np.zeros(size, np.uint8)
            label[int(height * generator.uniform(0.4, 0.6)) :] = 1
            left = int(generator.integers(5, width - 10))
            label[10:50, left : left + 4] = 2
            image = np.array([color for _, color in CLASSES], np.uint8)[label]
            image = np.clip(image + generator.normal(0, 12, image.shape), 0, 255).astype(np.uint8)
            label[:3] = 255
            cv2.imwrite(str(folder / "images" / split / f"{split}_{number}.png"), image[..., ::-1])
            cv2.imwrite(str(folder / "labels" / split / f"{split}_{number}.png"), label)
    classes = {
        "name": "street",
        "ignore": 255,
        "classes": [{"name": n, "color": c, "id": i} for i, (n, c) in enumerate(CLASSES)],
    }
    (folder / "classes.yaml").write_text(yaml.safe_dump(classes))
    return folder


@pytest.fixture(scope="session")
def street(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The drawn data set, not to be changed."""
    return draw(tmp_path_factory.mktemp("street"))


def configuration(folder: Path, root: Path, /, **changes: dict[str, object]) -> Path:
    """A configuration file for a training of seconds; `changes` are laid over its sections."""
    sections: dict[str, dict[str, object]] = {
        "experiment": {"name": "test", "output": str(folder / "run"), "seed": 3},
        "data": {
            "dataset": "folder",
            "root": str(root),
            "classes": str(root / "classes.yaml"),
            "crop": [48, 64],
            "batch_size": 2,
            "workers": 0,
            "class_uniform": {"fraction": 0.0},
            "blur": "none",
        },
        "model": {
            "trunk": "resnet18",
            "decoder": "deeplabv3plus",
            "multiscale": "hierarchical",
            "output_stride": 16,
            "attention_channels": 16,
        },
        "loss": {"main": "cross_entropy"},
        "optim": {"lr": 0.02, "epochs": 2, "schedule_per": "step"},
        "runtime": {"device": "cpu", "threads": 1, "log_every": 1, "val_every": 1},
        "eval": {"scales": [0.5, 1.0], "workers": 0},
        "autolabel": {"scales": [0.5, 1.0]},
    }
    for section, values in changes.items():
        sections[section].update(values)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(sections))
    return path


Command = Callable[..., subprocess.CompletedProcess[str]]


def start(
    *words: str | Path, processes: int = 1, check: int | None = 0, timeout: float = 300
) -> subprocess.CompletedProcess[str]:
    """Run a command as a person does; `check` is the exit status expected (None: any).

    Several processes are started by torchrun; a single one is a fork that has its imports already.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    if processes == 1:
        done = Program(words, environment=environment).finish(timeout=timeout)
    else:
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        done = subprocess.run(
            [*launcher, "--nproc-per-node", str(processes), *map(str, words)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=timeout,
            env=environment,
        )
    assert check is None or done.returncode == check, (
        f"status {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-6000:]}"
    )
    return done


@pytest.fixture
def command() -> Command:
    return start


@pytest.fixture(scope="session")
def trained(street: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of two epochs on the street."""
    folder = tmp_path_factory.mktemp("trained")
    start("train.py", configuration(folder, street))
    return folder / "run"
