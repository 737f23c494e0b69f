"""A file of the authors, and nothing else: the commands give the numbers that their code gives.

The weights are a function of their names (tests/network/conftest.py), those of DeepLab V3+ on
ResNet-50 with attention, the smallest of which the authors' numbers are known.
`tests/data/golden_labels.json` says which classes they predict for the golden image, how sure, at
256 pixels of it. That image is noise, which no file of 8 bits can hold: the commands read a
photograph of its size, and the noise takes its place where pixels are normalised.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hmsa.datasets import CITYSCAPES
from hmsa.engine import autolabel, build, pictures
from hmsa.engine.arguments import autolabel_command, hmsa_command, predict_command
from tests.datasets.trees import photo, save
from tests.network.conftest import GOLDEN, Golden
from tests.network.test_golden import check, check_cases

NAME = "deepv3plus_r50_mscale"
SIZE = (128, 256)
NOISE = torch.from_numpy(np.random.default_rng(0).standard_normal((1, 3, *SIZE)).astype(np.float32))
SAMPLED = np.random.default_rng(123).integers(0, SIZE[0] * SIZE[1], 256)
SCALES = ["--scales", "0.5", "1"]


@pytest.fixture(scope="module")
def golden() -> Golden:
    return Golden(NAME)


@pytest.fixture(scope="module")
def expected() -> dict[str, list[float]]:
    path = Path(__file__).parents[1] / "data" / "golden_labels.json"
    return json.loads(path.read_text())[NAME]


@pytest.fixture(scope="module")
def file(golden: Golden, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The weights as the authors save theirs, in a folder without anything else."""
    path = tmp_path_factory.mktemp("authors") / "golden.pth"
    torch.save({"state_dict": {f"module.{key}": golden.state[key] for key in golden.state}}, path)
    return path


@pytest.fixture
def noisy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A photograph that the network sees as the golden noise; nothing else is in reach."""

    def normalise(image: torch.Tensor, **options: object) -> torch.Tensor:
        assert image.dtype == torch.uint8 and image.numel() == NOISE.numel()
        return NOISE.clone()

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pictures, "normalise", normalise)
    monkeypatch.setattr(autolabel, "normalise", normalise)
    save(tmp_path / "photos/a.png", photo(SIZE))
    return tmp_path / "photos"


def test_the_file_is_recognised_and_gives_the_authors_numbers(golden: Golden, file: Path) -> None:
    loaded = build.load_model(file, config_file=None, overrides=(), device=torch.device("cpu"))
    assert {key: getattr(loaded.config.model, key) for key in GOLDEN[NAME]} == GOLDEN[NAME]
    assert loaded.spec == CITYSCAPES
    two_scale = {"two_scale": golden.numbers["eval"]["two_scale"]}
    check_cases(loaded.model, NOISE, two_scale)


def test_it_predicts_the_authors_classes(
    file: Path, noisy: Path, expected: dict[str, list[float]]
) -> None:
    words = [str(file), str(noisy), *SCALES, "--save", "labels", "probabilities"]
    assert predict_command(words) == 0
    probabilities = np.load("predictions/probabilities/a.npy").astype(np.float32)
    sampled = probabilities.reshape(19, -1)[:, SAMPLED]
    assert sampled.argmax(0).tolist() == expected["labels"]
    # Written as float16, whose step below 1 is 5e-4.
    assert np.abs(sampled.max(0) - expected["confidences"]).max() < 5e-4

    # The picture has Cityscapes' ids. Four of 32768 pixels are within 1e-3 of another class.
    written = np.asarray(Image.open("predictions/labels/a.png"))
    found = np.bincount(CITYSCAPES.to_train[written].ravel(), minlength=19)[:19]
    assert np.abs(found - expected["label_histogram"]).sum() <= 8


def test_it_labels_where_the_authors_are_sure(
    file: Path, noisy: Path, expected: dict[str, list[float]]
) -> None:
    words = ["--checkpoint", str(file), "--images", str(noisy), "--output", "labels", *SCALES]
    assert autolabel_command([*words, "--threshold", "0.9"]) == 0
    (path,) = Path("labels").rglob("a*.png")
    label = CITYSCAPES.to_train[np.asarray(Image.open(path))].ravel()
    classes, sure = np.array(expected["labels"]), np.array(expected["confidences"]) >= 0.9
    assert np.array_equal(label[SAMPLED], np.where(sure, classes, CITYSCAPES.ignore_label))
    assert abs(int((label != CITYSCAPES.ignore_label).sum()) - expected["kept_at_0.9"]) <= 7


def test_it_is_exported_with_the_authors_numbers(
    golden: Golden, file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    program = tmp_path / "golden.pt2"
    words = ["export", "--checkpoint", str(file), "--size", *map(str, SIZE), *SCALES]
    assert hmsa_command([*words, "--output", str(program)]) == 0
    assert "largest difference of a logit" in capsys.readouterr().out
    run = torch.export.load(program).module()
    check(run(NOISE), golden.numbers["eval"]["two_scale"]["pred"])
