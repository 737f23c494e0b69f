"""Code that a checkpoint names runs only where its user has named it: every way to open one."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import hmsa
from hmsa.datasets import ClassInfo, DatasetSpec
from hmsa.engine import build, trust
from hmsa.engine.arguments import hmsa_command
from hmsa.network import build_model
from hmsa.utils.config import Config
from hmsa.utils.training.checkpoint import CheckpointError, save_checkpoint
from tests.engine.conftest import ROOT

PARTS = """
from pathlib import Path
from hmsa.network.trunks import TRUNKS

Path("was_run").touch()

def trunk(**options):
    return TRUNKS["resnet18"](**options)

def net(**arguments):
    raise AssertionError("built")

def loss(logits, label):
    return logits.mean()
"""
TRUNK, LOSS = "strangers_parts:trunk", "strangers_parts:loss"
LOGGER = "strangers_parts:book"
NAMES_TRUNK = f"model.trunk={TRUNK}"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a stranger's checkpoint and code, on a machine that knows neither."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "strangers_parts", raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "strangers_parts.py").write_text(PARTS)
    return tmp_path


def checkpoint(path: Path, **sections: Any) -> Path:
    """A checkpoint of a small network, which names a trunk of the stranger's."""
    parts = {"decoder": "fcn", "decoder_channels": 8, "attention_channels": 8}
    model = build_model(trunk="resnet18", num_classes=2, **parts)  # type: ignore[arg-type]
    classes = tuple(ClassInfo(name, (number,) * 3, (number,)) for number, name in enumerate("ab"))
    sections = {"model": {"trunk": TRUNK, **parts}, **sections}
    content = {
        "config": Config.from_dict(sections).to_dict(),
        "spec": DatasetSpec("two", classes).to_dict(),
        "model": model.state_dict(),
    }
    save_checkpoint(path, content)
    return path


COMMANDS: dict[str, Callable[[str], list[str]]] = {
    "eval": lambda path: ["eval", "--checkpoint", path],
    "eval of images": lambda path: ["eval", "--checkpoint", path, "--images", ".", "--output", "o"],
    "predict": lambda path: ["predict", path, "."],
    "autolabel": lambda path: ["autolabel", "--checkpoint", path, "--images", ".", "--output", "o"],
    "calibrate": lambda path: ["calibrate", "--checkpoint", path],
    "export": lambda path: [
        *("export", "--checkpoint", path, "--size", "64", "64", "--output", "x.pt2")
    ],
}


@pytest.mark.parametrize("command", [*COMMANDS, "attach", "hmsa.load", "save_pretrained"])
def test_no_way_to_open_a_checkpoint_runs_code_that_nobody_named(
    command: str, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = checkpoint(folder / "theirs.pt")
    if command == "hmsa.load":
        with pytest.raises(CheckpointError, match=TRUNK):
            hmsa.load(path)
    elif command == "save_pretrained":
        monkeypatch.setenv(trust.SWITCH, "1")
        hmsa.load(path).save_pretrained(folder / "shared")
        (folder / "was_run").unlink()
        monkeypatch.delenv(trust.SWITCH)
        monkeypatch.delitem(sys.modules, "strangers_parts")
        with pytest.raises(CheckpointError, match=TRUNK):
            hmsa.Segmenter.from_pretrained(folder / "shared")
    else:
        if command == "attach":
            single = {"trunk": TRUNK, "multiscale": "single"}
            words = ["attach", "--checkpoint", str(checkpoint(folder / "single.pt", model=single))]
        else:
            words = COMMANDS[command](str(path))
        assert hmsa_command(words) == 2
        (sentence,) = capsys.readouterr().err.splitlines()
        assert TRUNK in sentence and NAMES_TRUNK in sentence and trust.SWITCH in sentence
    assert not (folder / "was_run").exists() and "strangers_parts" not in sys.modules


def test_what_a_command_names_is_remembered_for_this_file_of_code(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = checkpoint(folder / "theirs.pt")

    def opened(*overrides: str, runs: Any = trust.NETWORK) -> Any:
        return build.open_checkpoint(path, config_file=None, overrides=overrides, runs=runs)

    # A longer name that begins alike is another one.
    with pytest.raises(CheckpointError):
        opened(f"experiment.name={TRUNK}s")
    opened(NAMES_TRUNK)
    opened()
    (record,) = (folder / "home" / "hmsa" / "trusted_code").iterdir()
    assert json.loads(record.read_text())["code"] == TRUNK

    # The same name in another folder is other code.
    (folder / "other").mkdir()
    (folder / "other" / "strangers_parts.py").write_text(PARTS)
    monkeypatch.chdir(folder / "other")
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry != str(folder)])
    with pytest.raises(CheckpointError, match=TRUNK):
        opened()
    monkeypatch.setenv(trust.SWITCH, "1")
    opened()


def test_only_code_that_the_command_would_run_is_asked_for(folder: Path) -> None:
    path = checkpoint(folder / "theirs.pt", loss={"main": LOSS}, runtime={"loggers": [LOGGER]})
    options: dict[str, Any] = {"config_file": None, "overrides": [NAMES_TRUNK]}
    build.open_checkpoint(path, **options)
    with pytest.raises(CheckpointError, match=f"loss.main={LOSS},") as caught:
        build.open_checkpoint(path, **options, runs=trust.SCORES)
    assert "loggers" not in str(caught.value)
    with pytest.raises(CheckpointError, match="runtime.loggers=.*strangers_parts:book"):
        build.open_checkpoint(path, **options, runs=trust.TRAINING)

    # What replaces it is no code of the checkpoint's.
    options["overrides"] += ["loss.main=rmi"]
    build.open_checkpoint(path, **options, runs=trust.SCORES)


def test_a_builder_is_trusted_with_its_arguments(folder: Path) -> None:
    def wrapping(**arguments: Any) -> Path:
        wrap = {"builder": "strangers_parts:net", "features": "x", "arguments": arguments}
        return checkpoint(folder / "wrapped.pt", model={"wrap": wrap})

    options: dict[str, Any] = {"config_file": None}
    named = ["model.wrap.builder=strangers_parts:net"]
    build.open_checkpoint(wrapping(depth=18), overrides=named, **options)
    build.open_checkpoint(wrapping(depth=18), overrides=[], **options)
    with pytest.raises(CheckpointError, match='strangers_parts:net with {"repo": "evil"}'):
        build.open_checkpoint(wrapping(repo="evil"), overrides=[], **options)


def test_every_key_that_may_name_code_is_known() -> None:
    """A new kind of part must not be imported unasked."""
    engine = ROOT / "engine"
    text = "".join((engine / name).read_text() for name in ("plugins.py", "wrapped.py"))
    keys = set(re.findall(r'(?:key=|key = |BUILDER = )"([a-z_.]+)"', text))
    keys |= {f"loss.{role}" for role in ("main", "aux", "scale_loss")}
    assert keys == set(trust.TRAINING)
    importers = {
        path.name
        for path in engine.rglob("*.py")
        if re.search(r"\bimported(_callable)?\(", path.read_text())
    }
    assert importers == {"plugins.py", "wrapped.py"}


def test_a_home_that_cannot_be_written_only_asks_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "a_file").touch()
    monkeypatch.setenv("XDG_CONFIG_HOME", str(folder / "a_file"))
    options: dict[str, Any] = {"config_file": None, "device": torch.device("cpu")}
    path = checkpoint(folder / "theirs.pt")
    loaded = build.load_model(path, overrides=[NAMES_TRUNK], **options)
    assert type(loaded.model.trunk).__name__ == "ResNet"
    with pytest.raises(CheckpointError, match=TRUNK):
        build.load_model(path, overrides=[], **options)
