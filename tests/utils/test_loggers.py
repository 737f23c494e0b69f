"""Loggers beside metrics.jsonl, against stand-ins of the libraries that record their calls."""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from hmsa.utils.training.logbook import Logbook
from hmsa.utils.training.loggers import LOGGERS, LoggerError
from hmsa.utils.training.optimizer import build_optimizer
from hmsa.utils.training.schedule import build_schedule

CALLS: list[tuple[Any, ...]] = []


def called(name: str, result: Any = None) -> Any:
    def call(*arguments: Any, **keywords: Any) -> Any:
        CALLS.append((name, arguments, keywords))
        return result

    return call


@pytest.fixture
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    """wandb and mlflow with the functions of theirs that are used."""
    CALLS.clear()
    wandb, mlflow = ModuleType("wandb"), ModuleType("mlflow")
    run = SimpleNamespace(id="w1", log=called("log"), finish=called("finish"))
    names = {"init": called("init", run), "Image": lambda picture: ("image", picture.shape)}
    wandb.__dict__.update(names)
    info = SimpleNamespace(info=SimpleNamespace(run_id="m1"))
    mlflow.__dict__["start_run"] = called("start_run", info)
    for name in ("set_experiment", "log_text", "log_metrics", "log_image", "end_run"):
        mlflow.__dict__[name] = called(name)
    for module in (wandb, mlflow):
        module.__spec__ = ModuleSpec(module.__name__, None)
        monkeypatch.setitem(sys.modules, module.__name__, module)


def a_run(folder: Path, kind: str, *, first_step: int = 0) -> None:
    book = Logbook(folder, loggers=[LOGGERS[kind]()], name="mine")
    book.begin("optim:\n  lr: 0.5\n", first_step=first_step)
    book.row("train", 3, {"loss": 0.25, "iou": {"road": 0.5}, "note": "text", "bad": float("nan")})
    book.picture("val", 3, lambda: np.zeros((4, 5, 3), np.uint8))
    book.close()


def test_weights_and_biases(stand_ins: None, tmp_path: Path) -> None:
    a_run(tmp_path, "wandb")
    (_, _, begun), row, picture, end = CALLS
    assert begun["config"] == {"optim": {"lr": 0.5}} and begun["name"] == "mine"
    assert (begun["project"], begun["id"], begun["resume"]) == ("hmsa", None, None)
    assert row[1:] == (({"train/loss": 0.25, "train_iou/road": 0.5},), {"step": 3})
    assert picture[1:] == (({"val": ("image", (4, 5, 3))},), {"step": 3}) and end[0] == "finish"

    # A resumed training goes on with the same run; another one in the folder does not.
    a_run(tmp_path, "wandb", first_step=2)
    assert (CALLS[4][2]["id"], CALLS[4][2]["resume"]) == ("w1", "allow")
    a_run(tmp_path, "wandb")
    assert CALLS[8][2]["id"] is None


def test_mlflow(stand_ins: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "streets")
    a_run(tmp_path, "mlflow")
    a_run(tmp_path, "mlflow", first_step=2)
    names = [name for name, _, _ in CALLS]
    assert names[:6] == [
        "set_experiment",
        "start_run",
        "log_text",
        "log_metrics",
        "log_image",
        "end_run",
    ]
    assert CALLS[0][1] == ("streets",) and CALLS[1][2] == {"run_id": None, "run_name": "mine"}
    assert CALLS[3][1:] == (({"train/loss": 0.25, "train_iou/road": 0.5},), {"step": 3})
    assert CALLS[4][1][1] == "val/00000003.png" and CALLS[7][2]["run_id"] == "m1"


@pytest.mark.parametrize("kind", ["wandb", "mlflow"])
def test_what_is_missing_or_cannot_begin_is_one_sentence(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(LoggerError, match=f"pip install {kind}, or take it out of runtime.loggers"):
        LOGGERS[kind]()
    monkeypatch.undo()

    def refuse(*arguments: Any, **keywords: Any) -> None:
        raise ValueError("no\nserver")

    request.getfixturevalue("stand_ins")
    sys.modules["wandb"].__dict__["init"] = sys.modules["mlflow"].__dict__["start_run"] = refuse
    with pytest.raises(LoggerError, match=rf"'{kind}' cannot begin \(ValueError: no server\); "):
        a_run(tmp_path, kind)


def test_a_logger_that_fails_is_off_and_the_training_goes_on(
    stand_ins: None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*arguments: Any, **keywords: Any) -> None:
        raise RuntimeError("connection lost")

    sys.modules["mlflow"].__dict__["log_metrics"] = fail
    a_run(tmp_path, "mlflow")
    assert "mlflow is off from here on (connection lost)" in caplog.text
    assert (tmp_path / "metrics.jsonl").read_text().count("\n") == 1
    assert [name for name, _, _ in CALLS][-1] == "log_text"


def test_the_cosine_schedule_and_adam() -> None:
    rate = build_schedule(schedule="cosine", epochs=4, steps_per_epoch=10, warmup_steps=2)
    assert [rate(0), rate(20)] == [0.5, pytest.approx(0.5)]
    assert rate(10) == pytest.approx((1 + 0.5**0.5) / 2) and rate(40) == pytest.approx(0)

    import torch

    for name, kind in (("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW)):
        groups = [{"params": [torch.zeros(1, requires_grad=True)], "lr": 0.1}]
        assert type(build_optimizer(groups, optimizer=name)) is kind
