"""Parts of the user's own, named as module:name: they are used, and mistakes are one sentence."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from hmsa.datasets import Augmentation, DataError, build_files, build_train_loader
from hmsa.engine import build
from hmsa.engine.arguments import train_command
from hmsa.engine.plugins import OwnAugmentation, OwnLogger, OwnLoss, own_decoder, own_trunk
from hmsa.loss import build_criterion
from hmsa.network import build_model
from hmsa.utils.config import Config, ConfigError
from hmsa.utils.imported import ImportedError, imported, is_reference

from .conftest import configuration

PARTS = """
import json
import numpy as np
import torch
from torch import nn
from hmsa.network.decoders import Decoded
from hmsa.network.trunks import Features

number = 3

class Plain(nn.Module):
    fine_channels, fine_stride, channels, stride = 4, 4, 8, 8
    def __init__(self):
        super().__init__()
        self.early, self.late = nn.Conv2d(3, 4, 4, 4), nn.Conv2d(4, 8, 2, 2)
    def forward(self, image):
        fine = self.early(image)
        return Features(fine, self.late(fine))

class Linear(nn.Module):
    classifiers = ("output",)
    def __init__(self, *, trunk_channels, num_classes):
        super().__init__()
        self.feature_channels = trunk_channels
        self.output = nn.Conv2d(trunk_channels, num_classes, 1)
    def forward(self, features, *, with_aux):
        return Decoded(self.output(features.semantic), None, features.semantic)

class Wrong(Plain):
    stride = 16

class Tupled(Plain):
    def forward(self, image):
        return image, image

class Undeclared(nn.Module):
    pass

class Failing(Plain):
    def forward(self, image):
        raise KeyError("no such layer")

def needy(width):
    return Plain()

def a_number(**options):
    return 3

def squares(logits, label):
    target = nn.functional.one_hot(label.clamp(max=2), 3).movedim(3, 1)
    return ((logits.softmax(1) - target) ** 2)[:, :, label[0] != 255].mean()

def plain_mean(logits, label, ignore_label):
    return nn.functional.cross_entropy(logits, label, ignore_index=ignore_label)

def a_map(logits, label):
    return logits

def noise(image, label, rng):
    return np.clip(image + rng.integers(0, 9, image.shape), 0, 255).astype(np.uint8), label

def smaller(image, label, rng):
    return image[1:], label

def raising(image, label, rng):
    raise ValueError("no good")

class Book:
    rows = []
    def __init__(self, folder, configuration):
        self.path, self.seed = folder / "book.jsonl", configuration["experiment"]["seed"]
    def numbers(self, step, values):
        with open(self.path, "a") as file:
            file.write(json.dumps([step, self.seed, sorted(values)]) + "\\n")

unsendable = lambda image, label, rng: (image, label)
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working directory with a module of parts, that is forgotten afterwards."""
    (tmp_path / "own_parts.py").write_text(PARTS)
    (tmp_path / "half.py").write_text("import own_parts\nimport not_there_at_all\n")
    (tmp_path / "broken.py").write_text("def f(:\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    for name in ("own_parts", "half", "broken"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize(
    ("reference", "words"),
    [
        ("own_prts:Plain", "there is no module 'own_prts' (did you mean 'own_parts'?)"),
        ("own_parts.inner:Plain", "there is no module 'own_parts.inner'"),
        ("own_parts:Plane", "own_parts.py (did you mean 'Plain'?)"),
        ("own_parts:number", "is of type int and cannot be called"),
        ("half:x", "half needs the module 'not_there_at_all', which is not installed"),
        ("broken:f", "broken cannot be imported: SyntaxError"),
        ("own_parts:Undeclared", "makes a module that does not declare fine_channels"),
        ("own_parts:Wrong", "declares stride 16 for 'semantic'"),
        ("own_parts:Tupled", "returns a value of type tuple, not Features(fine, semantic)"),
        ("own_parts:Failing", "failed: KeyError: 'no such layer' ("),
        ("own_parts:needy", "missing a required argument: 'width'"),
        ("own_parts:a_number", "makes something of type int, not a torch.nn.Module"),
    ],
)
def test_mistakes_are_one_sentence(here: Path, reference: str, words: str) -> None:
    with pytest.raises(ImportedError) as caught:
        build_model(trunk=own_trunk(reference), decoder="fcn", num_classes=3)
    sentence = str(caught.value)
    assert words in sentence and sentence.startswith("model.trunk: ")
    assert repr(reference) in sentence
    assert "\n" not in sentence


def test_what_is_not_of_the_form_is_said_with_the_configuration() -> None:
    assert is_reference("a.b:C.d") and not is_reference("timm:resnet18")
    with pytest.raises(ImportedError, match="of the form module:name"):
        imported("just_a_name", key="loss.main")
    with pytest.raises(ConfigError) as caught:
        Config.from_dict(
            {},
            ["loss.main=dise", "data.augment=noise", "runtime.loggers=[wanbd]", "model.decoder=x"],
        )
    for words in ("'dice'?", "expected module:name", "'wandb'?", "module:name"):
        assert words in str(caught.value)


def test_a_training_of_own_parts_goes_on_and_is_found_again(
    here: Path, street: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configuration(
        here,
        street,
        data={"augment": "own_parts:noise"},
        model={"trunk": "own_parts:Plain", "decoder": "own_parts:Linear"},
        loss={"main": "own_parts:squares"},
        runtime={"loggers": ["own_parts:Book", "tensorboard"]},
    )
    assert train_command([str(config)]) == 0
    rows = (here / "run" / "book.jsonl").read_text().splitlines()
    assert len(rows) == 8 and '"train/loss_squares"' in rows[0] and "[1, 3, [" in rows[0]
    assert list((here / "run" / "tensorboard").iterdir())

    # The checkpoint names the parts: found where they are, and said where they are not.
    device = torch.device("cpu")
    options: dict[str, Any] = {"config_file": None, "overrides": [], "device": device}
    loaded = build.load_model(here / "run", **options)
    assert type(loaded.model.trunk).__name__ == "Plain"
    del sys.modules["own_parts"]
    monkeypatch.chdir(street)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path != str(here)])
    with pytest.raises(ImportedError, match="start from its folder, or put .* on PYTHONPATH"):
        build.load_model(here / "run", **options)


def test_an_own_decoder_is_tried(here: Path) -> None:
    for reference, words in (
        ("own_parts:Plain", "does not declare feature_channels, classifiers"),
        ("own_parts:a_number", "makes something of type int"),
    ):
        with pytest.raises(ImportedError, match=words):
            build_model(trunk="resnet18", decoder=own_decoder(reference), num_classes=3)


def test_an_own_loss_is_the_same_mean_for_any_number_of_parts(here: Path) -> None:
    own = OwnLoss("own_parts:plain_mean", key="loss.main", num_classes=3)
    criterion = build_criterion(num_classes=3, main=own)
    logits = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    label = torch.randint(3, (2, 8, 8), dtype=torch.uint8)
    label[0, 2:] = 255
    valid = (label != 255).sum()
    whole = functional.cross_entropy(logits, label.long(), ignore_index=255)

    def loss(rows: slice, **counts: Any) -> torch.Tensor:
        prediction = SimpleNamespace(logits=logits[rows], aux=None, scales=None)
        terms = criterion(prediction, label[rows], **counts)
        assert list(terms) == ["plain_mean"]
        return terms["plain_mean"]

    torch.testing.assert_close(loss(slice(2)), whole)
    halves = [loss(slice(at, at + 1), valid_pixels=valid, parts=2) for at in (0, 1)]
    torch.testing.assert_close((halves[0] + halves[1]) / 2, whole)

    wrong = OwnLoss("own_parts:a_map", key="loss.aux", num_classes=3)
    with pytest.raises(
        ImportedError, match=r"loss.aux: .* must return one number .*\[2, 3, 8, 8\]"
    ):
        wrong(logits, label, ignore_label=255)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("smaller", r"the image as uint8 \[48, 64, 3\], and returned uint8 \[47, 64, 3\]"),
        ("raising", "failed: ValueError: no good"),
    ],
)
def test_an_own_augmentation_that_fails_is_said(here: Path, name: str, words: str) -> None:
    own = OwnAugmentation(f"own_parts:{name}")
    image, label = np.zeros((48, 64, 3), np.uint8), np.zeros((48, 64), np.uint8)
    with pytest.raises(DataError, match=words):
        own(image, label, np.random.default_rng(0))


def test_what_no_process_can_receive_is_said(here: Path) -> None:
    with pytest.raises(ImportedError, match="cannot be sent to loader processes"):
        OwnAugmentation("own_parts:unsendable")
    with pytest.raises(ImportedError, match="without numbers"):
        logger = OwnLogger("own_parts:a_number")
        logger.begin(here, name="x", configuration="a: 1", first_step=0)


COMPOSED = """
import albumentations as A
pipeline = A.Compose([
    A.OneOf([A.GaussNoise(p=1.0), A.CoarseDropout(p=1.0)], p=0.8),
    A.Affine(rotate=(-20, 20), fill_mask=255, p=0.7),
])
normalised = A.Compose([A.Normalize()])
"""


@pytest.fixture
def loader(here: Path, street: Path) -> Callable[..., Any]:
    def make(name: str, workers: int) -> Any:
        (here / "own_parts.py").write_text(COMPOSED)
        return build_train_loader(
            build_files(dataset="folder", root=street, split="train"),
            augmentation=Augmentation(crop=(48, 64)),
            batch_size=2,
            workers=workers,
            seed=5,
            augment=OwnAugmentation(f"own_parts:{name}"),
        )

    return make


def test_an_albumentations_pipeline_draws_from_the_samples_own_numbers(
    loader: Callable[..., Any],
) -> None:
    """A resumed run, in any number of processes, sees the same crops bit for bit."""
    pytest.importorskip("albumentations")
    first = loader("pipeline", 0)
    straight = [list(first), list(first)]  # two epochs, one after the other
    for workers in (0, 1):
        resumed = list(loader("pipeline", workers).epoch(1, start_step=1))
        for own, other in zip(resumed, straight[1][1:], strict=True):
            assert torch.equal(own["image"], other["image"])
            assert torch.equal(own["label"], other["label"])
    assert not torch.equal(straight[0][0]["image"], straight[1][0]["image"])

    with pytest.raises(DataError, match="returned float32 .* hmsa's own work"):
        next(iter(loader("normalised", 0)))
