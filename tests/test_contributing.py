"""CONTRIBUTING: its examples are true. Each is put where the page says and then used."""

from __future__ import annotations

import re
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import cross_entropy

from hmsa.datasets import ClassInfo, DataError, DatasetSpec
from hmsa.loss import LOSSES, build_criterion
from hmsa.network import DECODERS, TRUNKS, build_model
from hmsa.utils.config.models import LOSSES as KNOWN_LOSSES

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
EXAMPLES = {
    match[1]: match[2]
    for match in re.finditer(r"```python\n# (\S+\.py)\n(.*?)```", TEXT, re.DOTALL)
}


@pytest.fixture
def example() -> Iterator[Callable[[str], types.ModuleType]]:
    """The module that an example would be, in its place among the others."""
    made = []

    def run(file: str) -> types.ModuleType:
        name = "hmsa." + file.removesuffix(".py").replace("/", ".")
        module = types.ModuleType(name)
        module.__package__ = name.rpartition(".")[0]
        sys.modules[name] = module
        made.append(name)
        exec(compile(EXAMPLES[file], file, "exec", dont_inherit=True), module.__dict__)
        return module

    yield run
    for name in made:
        del sys.modules[name]


def test_every_example_is_used_here() -> None:
    assert set(EXAMPLES) == {
        "network/trunks/plain.py",
        "network/decoders/linear.py",
        "datasets/layouts/flat.py",
        "loss/poly.py",
    }
    assert not [file for file in EXAMPLES if (ROOT / file).exists()]


@pytest.mark.parametrize("multiscale", ["single", "hierarchical", "explicit"])
def test_a_trunk_and_a_decoder_of_ones_own(
    multiscale: str, example: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, linear = example("network/trunks/plain.py"), example("network/decoders/linear.py")
    monkeypatch.setitem(
        TRUNKS,
        "plain",
        lambda *, output_stride, align_corners, activation_checkpointing: plain.Plain(),
    )
    monkeypatch.setitem(
        DECODERS,
        "linear",
        lambda *, trunk, num_classes, **options: linear.Linear(
            trunk_channels=trunk.channels, num_classes=num_classes
        ),
    )
    for decoder in ("linear", "deeplabv3plus", "ocr", "fcn"):
        model = build_model(
            trunk="plain",
            decoder=decoder,
            multiscale=multiscale,
            num_classes=4,
            attention_channels=8,
        ).eval()
        with torch.no_grad():
            prediction = model(
                torch.randn(1, 3, 67, 90),
                scales=(0.5, 1.0, 2.0) if multiscale != "single" else None,
            )
        assert prediction.logits.shape == (1, 4, 67, 90) and prediction.logits.isfinite().all()


def test_a_data_set_of_ones_own(example: Callable[[str], Any], tmp_path: Path) -> None:
    flat = example("datasets/layouts/flat.py")
    spec = DatasetSpec(name="flat", classes=(ClassInfo(name="a", color=(1, 2, 3), raw_ids=(0,)),))
    for name in ("y.image.png", "y.label.png", "x.label.png", "x.image.png"):
        (tmp_path / "train").mkdir(exist_ok=True)
        Image.fromarray(np.zeros((2, 3), np.uint8)).save(tmp_path / "train" / name)
    found = flat.find_flat(tmp_path, "train", spec=spec)
    assert found.names == ["x", "y"]
    assert (found.images, found.labels) == tuple(
        [f"train/{name}.{kind}.png" for name in "xy"] for kind in ("image", "label")
    )
    (tmp_path / "train" / "x.label.png").unlink()
    for split in ("train", "val"):
        with pytest.raises(DataError):
            flat.find_flat(tmp_path, split, spec=spec)


def test_a_loss_of_ones_own(example: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    poly = example("loss/poly.py").poly_loss
    logits = torch.randn(2, 3, 4, 5, dtype=torch.float64, requires_grad=True)
    label = torch.randint(0, 3, (2, 4, 5))
    label[0, 0] = 255
    torch.testing.assert_close(
        poly(logits, label, epsilon=0.0), cross_entropy(logits, label, ignore_index=255)
    )
    assert poly(logits, label) > poly(logits, label, epsilon=0.0)
    assert torch.autograd.gradcheck(lambda values: poly(values, label), logits)
    assert poly(logits, torch.full_like(label, 255)) == 0
    halves = [
        poly(part, own, valid_pixels=(label != 255).sum(), parts=2)
        for part, own in zip(logits.split(1), label.split(1), strict=True)
    ]
    torch.testing.assert_close(torch.stack(halves).mean(), poly(logits, label))
    assert set(LOSSES) == set(KNOWN_LOSSES)
    monkeypatch.setitem(
        LOSSES,
        "cross_entropy",
        lambda *arguments, class_weights, image_weights, **rest: poly(*arguments, **rest),
    )
    prediction = types.SimpleNamespace(logits=logits, aux=None, scales=None)
    terms = build_criterion(main="cross_entropy", num_classes=3)(prediction, label)
    torch.testing.assert_close(sum(terms.values()), poly(logits, label))
