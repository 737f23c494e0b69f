"""A model of another library by model.wrap: trained, scored, and what can go wrong."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from hmsa.datasets import ClassInfo, DatasetSpec
from hmsa.engine import build
from hmsa.engine.arguments import hmsa_command
from hmsa.network import AttachedAttention
from hmsa.network.model import PairBias
from hmsa.utils.config import Config, ConfigError
from hmsa.utils.training.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from hmsa.utils.words import UserError
from tests.engine.conftest import Command, configuration

# Somebody's model, in a file that lies in the working folder.
SOMEBODYS = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, classes, wide):
        super().__init__()
        self.body = nn.Conv2d(3, wide, 3, stride=4, padding=1)
        self.head = nn.Conv2d(wide, classes, 1)

    def forward(self, image):
        return self.head(self.body(image).relu())

def net(*, classes=3, wide=8):
    return Net(classes, wide)

def broken():
    raise KeyError("no such thing")

number = 3
"""
BUILDER = "somebodys_net:net"
HAS_ONNX = all(importlib.util.find_spec(name) for name in ("onnx", "onnxscript", "onnxruntime"))
needs_onnx = pytest.mark.skipif(
    not HAS_ONNX, reason="onnx, onnxscript and onnxruntime are optional"
)


@pytest.fixture
def somebodys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with `somebodys_net.py` in it."""
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    monkeypatch.delitem(sys.modules, "somebodys_net", raising=False)
    (tmp_path / "somebodys_net.py").write_text(SOMEBODYS)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def wrapped(**changes: Any) -> AttachedAttention:
    wrap = {"builder": BUILDER, "features": "body", **changes}
    config = Config.from_dict({"model": {"wrap": wrap, "attention_channels": 8}})
    model = build.model_from(config, num_classes=3, trunk_weights=True)
    assert isinstance(model, AttachedAttention)
    return model


LINEAR = {"builder": "torch.nn:Linear", "arguments": {"in_features": 1, "out_features": 1}}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"builder": "no_such_module:net"}, "model.wrap.builder: .*no module 'no_such_module'"),
        ({"builder": "somebodys_net:nett"}, r"no 'nett' in .*\(did you mean 'net'\?\)"),
        ({"builder": "somebodys_net:number"}, "is of type int and cannot be called"),
        ({"builder": "somebodys_net:broken"}, "failed: KeyError: 'no such thing'"),
        ({"builder": "builtins:dict"}, "gives a dict, no torch.nn.Module"),
        ({"arguments": {"colour": 1}}, "failed: TypeError: .*'colour'"),
        ({"arguments": {"classes": 5}}, "logits for 5 classes where the data set has 3"),
        ({"features": "bodi"}, "no layer of the model .did you mean 'body'"),
        (LINEAR, "the model fails on images of 64 x 96 pixels"),
        ({"weights": "nowhere.pt"}, "nowhere.pt is not a file"),
        ({"weights": "other.pt"}, "other.pt does not fit the model .*of another shape"),
    ],
)
def test_what_is_wrong_with_a_wrapped_model_is_one_sentence(
    changes: dict[str, Any], said: str, somebodys: Path
) -> None:
    from somebodys_net import net  # type: ignore[import-not-found]

    torch.save(net(wide=4).state_dict(), "other.pt")
    with pytest.raises(UserError, match=said) as raised:
        wrapped(**changes)
    assert "\n" not in str(raised.value)


def test_every_field_reaches_the_model(somebodys: Path) -> None:
    from somebodys_net import net

    torch.manual_seed(1)
    state = net(wide=6).state_dict()
    # As data parallelism saves it, with a head that only training needed.
    stored = {f"module.{name}": tensor for name, tensor in state.items()}
    torch.save({"state_dict": {**stored, "module.aux_head.weight": torch.ones(2)}}, "net.pt")
    model = wrapped(weights="net.pt", arguments={"wide": 6}, multiple_of=8, features="head")
    assert all(torch.equal(model.trunk.state_dict()[name], state[name]) for name in state)
    assert model.features == "head" and model.multiple_of == 8


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ({"wrap": {"builder": "no_colon", "features": "x"}}, "write module:function"),
        ({"wrap": {"builder": "a:b"}}, "model.wrap.features"),
        ({"wrap": {"builder": "a:b", "features": "x"}, "multiscale": "single"}, "hierarchical"),
        ({"wrap": {"builder": "a:b", "features": "x"}, "fuse_at": "features"}, "does not act"),
    ],
)
def test_a_wrap_that_contradicts_itself_is_said(model: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Config.from_dict({"model": model})


@pytest.mark.parametrize("calibration", ["auto", "off"])
@pytest.mark.parametrize("suffix", [".pt2", pytest.param(".onnx", marks=needs_onnx)])
def test_an_exported_wrapped_model_answers_as_it_does(
    suffix: str, calibration: str, somebodys: Path
) -> None:
    """At a size that the model is padded for, with the biases of a calibration and without."""
    biases = {(0.5, 1.0): PairBias((-2.0, 3.0, -5.0), (4.0, 0.0, -9.0))}
    torch.manual_seed(0)
    model = wrapped()
    wrap = {"builder": BUILDER, "features": "body"}
    classes = tuple(ClassInfo(name, (number,) * 3, (number,)) for number, name in enumerate("abc"))
    content = {
        "config": Config.from_dict({"model": {"wrap": wrap, "attention_channels": 8}}).to_dict(),
        "spec": DatasetSpec("three", classes).to_dict(),
        "model": model.state_dict(),
        "attention_bias": build.rows_of_bias(biases),
    }
    save_checkpoint(somebodys / "best.pt", content)
    output = somebodys / f"model{suffix}"
    words = ["export", "--checkpoint", "best.pt", "--size", "72", "100", "--output", str(output)]
    words += ["--scales", "0.5", "1", f"model.wrap.builder={BUILDER}"]
    assert hmsa_command([*words, f"eval.calibration={calibration}"]) == 0

    image = torch.randn(1, 3, 72, 100)
    answers = {}
    with torch.no_grad():
        for name, bias in (("auto", biases), ("off", {})):
            model.eval().attention_bias = bias
            answers[name] = model(image, scales=(0.5, 1.0)).logits
        found = run_exported(output, image)
    torch.testing.assert_close(found, answers.pop(calibration), atol=1e-5, rtol=1e-4)
    (other,) = answers.values()
    assert (found - other).abs().max() > 1e-3


def run_exported(file: Path, image: torch.Tensor) -> torch.Tensor:
    """What an exported file says of an image."""
    if file.suffix == ".pt2":
        return torch.export.load(file).module()(image)
    import onnxruntime

    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(["logits"], {"image": image.numpy()})[0])


@pytest.mark.slow
def test_a_wrapped_model_is_trained_scored_and_labelled_with(
    command: Command, street: Path, somebodys: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrap = {"builder": BUILDER, "features": "body", "weights": "net.pt"}
    from somebodys_net import net

    own = net().state_dict()
    torch.save(own, "net.pt")
    config = configuration(somebodys, street)
    sections = yaml.safe_load(config.read_text())
    sections["model"] = {"wrap": wrap, "attention_channels": 8}
    sections["runtime"]["calibrate"] = True
    config.write_text(yaml.safe_dump(sections))
    assert hmsa_command(["train", str(config)]) == 0
    (somebodys / "net.pt").unlink()

    # The head was trained, the model was not, and the end of the training was calibrated.
    best = somebodys / "run" / "checkpoints" / "best.pt"
    content = load_checkpoint(best).content
    assert all(torch.equal(content["model"][f"trunk.{name}"], own[name]) for name in own)
    assert content["calibration"]["judged_by"] == "val"

    # Where it was trained it is opened without a question, and elsewhere it runs no code unasked.
    with monkeypatch.context() as elsewhere:
        elsewhere.setenv("XDG_CONFIG_HOME", str(somebodys / "elsewhere"))
        with pytest.raises(CheckpointError, match="somebodys_net:net.*model.wrap.builder=some"):
            build.open_checkpoint(best, config_file=None, overrides=())
    scores = []
    for name in ("here", "new"):
        words = ["eval", "--checkpoint", str(best), "--output", str(somebodys / name)]
        words += ["--flip", "eval.tile=[48,64]"]
        if name == "here":
            assert hmsa_command(words) == 0
        else:
            monkeypatch.setenv("PYTHONPATH", str(somebodys))
            command("-m", "hmsa", *words)
        (score,) = json.loads((somebodys / name / "metrics.json").read_text())["compared"]
        scores.append({**score, "seconds": None, "seconds_per_image": None, "peak_bytes": None})
    assert scores[0] == scores[1] and scores[0]["attention_bias"]

    output = somebodys / "labels"
    words = ["autolabel", "--checkpoint", str(best), "--output", str(output)]
    assert hmsa_command([*words, "--images", str(street / "images" / "val")]) == 0
    assert len(list(output.rglob("*.png"))) >= 3
