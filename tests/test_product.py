"""The product from end to end: a folder of photographs, the wheel, and nothing of this checkout.

The wheel is built once and installed alone into a new environment. Its dependencies come from the
environment that runs the tests, by a .pth file: torch anew would be minutes of download. Everything
runs in another folder, and no file is edited. The network is the one that `hmsa init` chooses; the
only wishes are its own options and overrides that keep the trainings short.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import cv2
import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
SHIPPED = ("hmsa", "engine", "network", "datasets", "loss", "utils", "configs")
SIZE = (96, 128)
# Colours in the masks, and what the things look like in photographs.
# The commonest comes first, as `hmsa init` lists them.
COLOURS = np.array([[20, 40, 200], [200, 60, 180], [30, 160, 60], [250, 200, 30]], np.uint8)
LOOKS = np.array([[150, 190, 235], [110, 110, 115], [80, 140, 60], [200, 50, 40]])
NAMES = ["sky", "road", "grass", "car"]


def draw(generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A photograph uint8 [H, W, 3] of sky, road, grass and a car, and its classes uint8 [H, W]."""
    height, width = SIZE
    label = np.zeros(SIZE, np.uint8)
    horizon = int(height * generator.uniform(0.35, 0.5))
    label[horizon:] = 2
    middle = width * generator.uniform(0.4, 0.6)
    road = [[middle - 8, horizon], [middle + 8, horizon], [middle + 70, height]]
    cv2.fillPoly(label, [np.array([*road, [middle - 70, height]], np.int32)], 1)
    left, top = int(generator.integers(10, 70)), horizon + int(generator.integers(4, 12))
    label[top : top + 28, left : left + 44] = 3

    light = LOOKS * generator.uniform(0.8, 1.15)
    photo = light[label] + generator.normal(0, 10, (*SIZE, 3))
    return np.clip(photo, 0, 255).astype(np.uint8), label


def save(path: Path, picture: np.ndarray) -> None:
    """Write RGB [H, W, 3] or grey [H, W]."""
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), picture[..., ::-1] if picture.ndim == 3 else picture)


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new environment that holds the wheel alone."""
    folder = tmp_path_factory.mktemp("product")
    source = folder / "source"
    source.mkdir()
    for name in SHIPPED:
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, source / name, ignore=ignored)
    for name in ("setup.py", "pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, source)

    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    alone = ["--no-deps", "--no-index"]
    built = [*pip, "wheel", *alone, "--no-build-isolation", "-w", folder / "wheel", source]
    subprocess.run(built, check=True, capture_output=True, timeout=300)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "env"], check=True)
    (wheel,) = (folder / "wheel").glob("hmsa-*.whl")
    python = folder / "env" / "bin" / "python"
    pip[3:3] = ["--python", str(python)]
    subprocess.run([*pip, "install", *alone, wheel], check=True, capture_output=True, timeout=300)

    # A .pth file adds a folder, but runs no .pth files in it: an editable hmsa stays unknown.
    (packages,) = (folder / "env" / "lib").glob("python*/site-packages")
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "env"


class Shell:
    """Runs commands of the environment in a folder, as a user types them."""

    def __init__(self, environment: Path, folder: Path) -> None:
        self.folder = folder
        kept = {name: os.environ[name] for name in ("LANG", "TMPDIR") if name in os.environ}
        self.variables = {
            **kept,
            "PATH": f"{environment / 'bin'}:/usr/bin:/bin",
            "HOME": str(folder),
            "HMSA_CACHE": str(folder / "cache"),
            "HMSA_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
            "CUDA_VISIBLE_DEVICES": "",
        }

    def __call__(self, command: str) -> str:
        """Run a command that has to succeed; returns all that it printed."""
        done = subprocess.run(
            ["bash", "-c", command],
            cwd=self.folder,
            env=self.variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=600,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout[-6000:]}"
        assert "Traceback" not in done.stdout and "Warning:" not in done.stdout, done.stdout
        return done.stdout

    def read(self, path: str) -> np.ndarray:
        """A picture that was written: RGB [H, W, 3], or grey [H, W]."""
        picture = cv2.imread(str(self.folder / path), cv2.IMREAD_UNCHANGED)
        assert picture is not None, f"{path} is no picture"
        return picture[..., ::-1] if picture.ndim == 3 else picture


def miou_in(text: str) -> float:
    """The fraction that `hmsa eval` prints."""
    (found,) = re.findall(r"mIoU (\S+) % at", text)
    return float(found) / 100


def test_from_photographs_with_colour_masks_to_a_model(environment: Path, tmp_path: Path) -> None:
    shell = Shell(environment, tmp_path)
    generator = np.random.default_rng(0)
    for number in range(40):
        photo, label = draw(generator)
        save(tmp_path / f"photos/images/day_{number:02d}.jpg", photo)
        save(tmp_path / f"photos/masks/day_{number:02d}.png", COLOURS[label])
    said = shell(f"hmsa init photos --classes {' '.join(NAMES)} --epochs 2")
    assert "40 images with labels" in said and said.endswith("hmsa train photos.yaml\n")
    assert "4, by colours" in said and "training on 32, validation on 8" in said
    assert "no faults" in shell("hmsa check photos.yaml")

    said = shell("hmsa train photos.yaml")
    assert "4 classes (sky, road, grass, car)" in said and "run folder  runs/photos" in said
    assert "hmsa eval --checkpoint runs/photos/checkpoints/best.pt" in said

    # Pixels named at random have an IoU of 0.14 at most, one class for all of them 0.11.
    said = shell("hmsa eval --checkpoint runs/photos --output runs/photos/eval")
    miou = miou_in(said)
    assert miou > 0.5 and "8 images" in said
    metrics = json.loads((tmp_path / "runs/photos/eval/metrics.json").read_text())
    assert metrics["miou"] == pytest.approx(miou, abs=6e-4)
    assert set(metrics["per_class"]) == set(NAMES)
    assert "<html" in (tmp_path / "runs/photos/eval/report.html").read_text()

    # A photograph of another size, and a film.
    unseen, _ = draw(generator)
    save(tmp_path / "photo.jpg", cv2.resize(unseen, (150, 110)))
    film = cv2.VideoWriter(
        str(tmp_path / "film.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 5, SIZE[::-1]
    )
    for _ in range(3):
        film.write(draw(generator)[0][..., ::-1])
    film.release()
    shell("hmsa predict runs/photos photo.jpg film.avi")
    legend = json.loads((tmp_path / "predictions/classes.json").read_text())
    assert [item["name"] for item in legend] == NAMES
    assert [item["color"] for item in legend] == COLOURS.tolist()
    assert shell.read("predictions/labels/photo.png").shape[:2] == (110, 150)
    colours = shell.read("predictions/colour/photo.png").reshape(-1, 3)
    assert {*map(tuple, colours.tolist())} <= {*map(tuple, COLOURS.tolist())}
    assert len(list((tmp_path / "predictions/labels/film").glob("*.png"))) == 3
    (video,) = (tmp_path / "predictions/video").glob("film.*")
    assert cv2.VideoCapture(str(video)).read()[1].shape[:2] == SIZE
    assert 'href="overlay/photo.png"' in (tmp_path / "predictions/index.html").read_text()

    # Labels for photographs that have none, and a training with them.
    for number in range(6):
        save(tmp_path / f"new/evening_{number}.jpg", draw(generator)[0])
    said = shell(
        "hmsa autolabel --checkpoint runs/photos --images new --output labels --threshold 0.3"
    )
    assert "data.extra.root=labels" in said
    automatic = [shell.read(f"labels/{path.name}") for path in (tmp_path / "labels").glob("*.png")]
    assert len(automatic) == 6 and {picture.shape[:2] for picture in automatic} == {SIZE}
    manifest = json.loads((tmp_path / "labels/manifest.json").read_text())
    assert manifest["labelled"] == 6 and set(manifest["per_class"]) == set(NAMES)
    said = shell(
        "hmsa train photos.yaml data.extra.root=labels experiment.name=student optim.epochs=1"
    )
    assert "6 more with automatic labels" in said
    assert (tmp_path / "runs/student/checkpoints/best.pt").is_file()

    said = shell("hmsa export --checkpoint runs/photos --size 96 128 --output model.pt2")
    assert "largest difference of a logit" in said and (tmp_path / "model.pt2").is_file()

    # In Python, from the installed package, the same as the command.
    code = """
import hmsa, numpy, sys
model = hmsa.load("runs/photos")
label, confidence = model.predict("photo.jpg")
print(hmsa.__file__, *model.classes)
numpy.save("label.npy", label)
"""
    (tmp_path / "use.py").write_text(code)
    place, *classes = shell("python use.py").split()
    assert Path(place).is_relative_to(environment) and classes == NAMES
    # In bf16, and the command folds batch norms: pixels between two classes may differ.
    label = np.load(tmp_path / "label.npy")
    assert (label == shell.read("predictions/labels/photo.png")).mean() > 0.99


def test_from_binary_masks_to_a_prediction(environment: Path, tmp_path: Path) -> None:
    shell = Shell(environment, tmp_path)
    generator = np.random.default_rng(1)
    for number in range(20):
        photo, label = draw(generator)
        save(tmp_path / f"cars/{number:02d}.jpg", photo)
        save(tmp_path / f"cars/{number:02d}_mask.png", np.uint8(255) * (label == 3))

    said = shell("hmsa init cars --epochs 3")
    assert "20 images with labels" in said and "training on 16, validation on 4" in said

    # Nine tenths are no car: background everywhere has an mIoU of 45 %.
    said = shell("hmsa train cars.yaml")
    (best,) = re.findall(r"best val mIoU (\S+) %", said)
    assert float(best) > 50
    shell("hmsa predict runs/cars cars/03.jpg")
    predicted = shell.read("predictions/labels/03.png")
    assert predicted.shape == SIZE and set(np.unique(predicted)) == {0, 255}
