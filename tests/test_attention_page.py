"""docs/attention.md: its examples run, one after the other, and what it names exists."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "docs" / "attention.md").read_text(encoding="utf-8")


def test_the_examples_attach_train_and_infer() -> None:
    pytest.importorskip("torchvision")
    attaching, training, inferring = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    generator = torch.Generator().manual_seed(1)
    image = torch.randn(2, 3, 64, 96, generator=generator)
    label = torch.randint(0, 19, (2, 64, 96), generator=generator)
    names: dict[str, Any] = {"torch": torch, "image": image, "batches": [(image, label)]}

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exec(compile(attaching, "docs/attention.md", "exec"), names)
    model = names["model"]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    exec(compile(training, "docs/attention.md", "exec"), names)
    changed = {
        name.split(".")[0]
        for name, tensor in model.state_dict().items()
        if not torch.equal(tensor, before[name])
    }
    assert changed == {"attention"}

    exec(compile(inferring, "docs/attention.md", "exec"), names)
    assert names["label"].shape == (2, 64, 96) and names["label"].dtype == torch.uint8


def test_the_files_that_it_names_exist() -> None:
    files = re.findall(r"`((?:engine|network)/\w+\.py)`", TEXT)
    assert len(files) >= 4
    assert [name for name in files if not (ROOT / name).is_file()] == []
