"""The sound inputs that cases damage: a tiny data set, a trained run, photos, a list, a video.

They are made once for a fuzzing run, by the real commands where a command makes such a thing, and
every case works on a copy. All paths in them are relative to the folder of the case.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import yaml
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
NAMES = ("sky", "road", "pole")
COLOURS = np.array([[70, 130, 180], [128, 64, 128], [153, 153, 153]], dtype=np.uint8)
SIZE = (48, 64)  # height and width of every image
IGNORE = 255
CONFIG = {
    "experiment": {"name": "fuzz", "output": "out/run", "seed": 3},
    "data": {
        "dataset": "folder",
        "root": "data",
        "classes": "data/classes.yaml",
        "cache_dir": "home",
        "crop": list(SIZE),
        "batch_size": 2,
        "workers": 0,
        "blur": "none",
        "class_uniform": {"fraction": 0.5, "tile": 32},
    },
    "model": {
        "trunk": "hrnet_w18_small",
        "decoder": "fcn",
        "decoder_channels": 16,
        "attention_channels": 8,
        "multiscale": "hierarchical",
        "trunk_weights": None,
    },
    "loss": {"main": "cross_entropy"},
    "optim": {"lr": 0.01, "epochs": 1},
    "eval": {"scales": [0.5, 1.0], "workers": 0},
    "autolabel": {"scales": [0.5, 1.0], "threshold": 0.2, "workers": 1},
    "runtime": {"device": "cpu", "threads": 1, "log_every": 1},
}


def make_material(folder: Path) -> None:
    """Make every input below `folder`; takes a few seconds.

    Raises:
        RuntimeError: a command fails on sound inputs, which is a fault by itself.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _write_data(folder / "data")
    (folder / "config.yaml").write_text(yaml.safe_dump(CONFIG, sort_keys=False))
    (folder / "home").mkdir()
    _write_photos(folder)
    _write_video(folder / "film.avi")

    # A run with all its files, then labels that its network gives the images without labels.
    command(folder, "train.py", "config.yaml", "experiment.output=run")
    words = ("--checkpoint", "run/checkpoints/best.pt", "--split", "extra")
    command(folder, "autolabel.py", *words, "--output", "autolabels")

    # A single-scale network, to which attention is attached.
    alone = ("model.multiscale=single", "eval.scales=[1.0]", "autolabel.scales=[1.0]")
    command(folder, "train.py", "config.yaml", "experiment.output=single", *alone)
    (folder / "single" / "checkpoints" / "best.pt").rename(folder / "single.pt")


def command(folder: Path, program: str, *words: str) -> None:
    """Run a program of the checkout in `folder`; it has to succeed."""
    done = subprocess.run(
        [sys.executable, str(ROOT / program), *words],
        cwd=folder,
        env={**os.environ, **environment(folder)},
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    if done.returncode:
        raise RuntimeError(
            f"{program} {' '.join(words)} ended with status {done.returncode} on sound inputs:\n"
            f"{done.stdout}{done.stderr}"
        )


def environment(folder: Path) -> dict[str, str]:
    """What a command sees of the machine: one thread, no GPU, no network, caches of its own."""
    return {
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "HMSA_OFFLINE": "1",
        "HOME": str(folder / "home"),
        "XDG_CACHE_HOME": str(folder / "home"),
        "TMPDIR": str(folder / "home"),
        "PYTHONFAULTHANDLER": "1",
        # hmsa/__main__.py finds its package in a checkout that is not installed, too.
        "PYTHONPATH": str(ROOT),
    }


def _write_data(root: Path) -> None:
    """A data set of the kind "folder": images and labels by split, and the list of classes."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 4), ("val", 2), ("extra", 3)):
        for kind in ("images", "labels"):
            (root / kind / split).mkdir(parents=True)

        # The split "extra" has no labels: a network gives it some.
        for number in range(count):
            image, label = _scene(rng)
            Image.fromarray(image).save(root / "images" / split / f"{split}{number}.png")
            if split != "extra":
                Image.fromarray(label).save(root / "labels" / split / f"{split}{number}.png")

    classes = [
        {"name": name, "color": COLOURS[number].tolist(), "id": number}
        for number, name in enumerate(NAMES)
    ]
    content = {"name": "street", "ignore": IGNORE, "classes": classes}
    (root / "classes.yaml").write_text(yaml.safe_dump(content, sort_keys=False))


def _scene(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Image uint8 [H, W, 3] and label uint8 [H, W]: sky, road and a pole."""
    height, width = SIZE
    label = np.zeros(SIZE, dtype=np.uint8)
    label[height // 2 + int(rng.integers(-4, 4)) :] = 1
    left = int(rng.integers(4, width - 10))
    label[8 : height - 8, left : left + 4] = 2

    noise = rng.normal(0, 12, (*SIZE, 3))
    image = np.clip(COLOURS[label] + noise, 0, 255).astype(np.uint8)
    label[:2] = IGNORE
    return image, label


def _write_photos(folder: Path) -> None:
    """Photos in two formats and a sub-folder, and a list of them."""
    rng = np.random.default_rng(1)
    names = ["first.png", "second.jpg", "more/third.png"]
    for name in names:
        path = folder / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(_scene(rng)[0]).save(path, quality=95)
    (folder / "photos.txt").write_text("".join(f"photos/{name}\n" for name in names))


def _write_video(path: Path) -> None:
    """Four frames of motion JPEG, which opencv can write and read everywhere."""
    rng = np.random.default_rng(2)
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 5.0, SIZE[::-1])
    for _ in range(4):
        writer.write(_scene(rng)[0][:, :, ::-1])
    writer.release()
