"""Schedules, optimisers, averaged weights, guards, logbook: the small parts of a training."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path

import pytest
import torch
from torch import nn

from utils.ema import WeightAverage
from utils.logbook import Logbook
from utils.optimizer import OptimizerError, build_optimizer, parameter_groups, scaled_learning_rate, set_learning_rate
from utils.run_folder import RunError, RunFolder
from utils.schedule import build_schedule
from utils.training_state import BufferGuard, TrainingState


def test_poly_by_epoch_is_the_releases() -> None:
    """The release: lr0 * (1 - epoch / epochs)^exponent, constant within an epoch (RELEASE 1.10)."""
    factor = build_schedule(schedule="poly", epochs=175, steps_per_epoch=371, poly_exponent=2.0, schedule_per="epoch")
    assert factor(0) == factor(370) == 1.0
    assert factor(371) == pytest.approx((1 - 1 / 175) ** 2, abs=1e-15)
    assert factor(100 * 371 + 5) == pytest.approx((75 / 175) ** 2, abs=1e-15)


def test_poly_by_step_falls_every_step_to_zero() -> None:
    factor = build_schedule(schedule="poly", epochs=2, steps_per_epoch=10, poly_exponent=1.0, warmup_steps=4)
    values = [factor(step) for step in range(20)]
    assert values[:4] == pytest.approx([0.25, 0.5 * 0.95, 0.75 * 0.9, 0.85])
    assert all(a > b for a, b in zip(values[3:], values[4:], strict=False))
    assert factor(20) == 0.0


def test_the_releases_other_schedules() -> None:
    poly2 = build_schedule(schedule="poly2", epochs=180, steps_per_epoch=1, poly_exponent=1.0, poly_step=110, schedule_per="epoch")
    assert poly2(109) == pytest.approx(71 / 180) and poly2(110) == pytest.approx((70 / 180) ** 2)
    scl = build_schedule(schedule="scl_poly", epochs=100, steps_per_epoch=1, poly_exponent=1.0, rescale=0.5, repoly=1.5, rescale_epoch=60)
    assert scl(59) == pytest.approx(0.41) and scl(60) == pytest.approx(0.5) and scl(80) == pytest.approx(0.5 * 0.5**1.5)


def _toy() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1))


def test_every_parameter_is_in_one_group_with_its_rate_and_decay() -> None:
    model = _toy()
    groups = parameter_groups(model, lr=0.1, weight_decay=1e-4, decay_norm_and_bias=False, head_parameters=model[2].parameters(),
                              head_lr_multiplier=10.0)
    seen = {id(p): group for group in groups for p in group["params"]}
    assert len(seen) == len(list(model.parameters()))
    assert seen[id(model[0].weight)]["weight_decay"] == 1e-4 and seen[id(model[0].weight)]["base_lr"] == 0.1
    assert seen[id(model[1].weight)]["weight_decay"] == 0.0
    assert seen[id(model[2].weight)]["base_lr"] == 1.0 and seen[id(model[2].bias)]["weight_decay"] == 0.0


@pytest.mark.parametrize("backend", ["foreach", "fused"])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_backends_agree_with_the_loop(backend: str, optimizer: str) -> None:
    weights = []
    for kind in ("torch", backend):
        model = _toy().double()
        image = torch.randn(2, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        built = build_optimizer(parameter_groups(model, lr=0.1, weight_decay=1e-3), optimizer=optimizer, backend=kind)
        for step in range(5):
            set_learning_rate(built, 1.0 - step / 10)
            (model(image) - 1).pow(4).mean().backward()
            built.step()
            built.zero_grad()
        weights.append(torch.cat([p.detach().reshape(-1) for p in model.parameters()]))
    torch.testing.assert_close(weights[0], weights[1], rtol=1e-5, atol=1e-7)


def test_fused_sgd_survives_an_overflow_in_its_first_step() -> None:
    """torch leaves fused SGD's momentum uninitialised when the first step is skipped (ENGINEERING 2.4): 50 of 50 trials went wrong."""
    for backend in ("fused", "auto"):
        for trial in range(10):
            parameter = nn.Parameter(torch.ones(1000))
            trash = [torch.full((1000,), 1e30) for _ in range(20)]
            del trash
            built = build_optimizer(parameter_groups(nn.ParameterList([parameter]), lr=0.1, weight_decay=0.0), backend=backend, scaled=True)
            scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
            for gradient in (float("inf"), 1.0):
                scaler.scale((parameter * gradient).sum()).backward()
                scaler.step(built)
                scaler.update()
                built.zero_grad()
            torch.testing.assert_close(parameter.detach(), torch.full((1000,), 0.9), msg=f"{backend}, trial {trial}")


def test_apex_is_only_taken_when_it_is_nvidias(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    groups = parameter_groups(_toy(), lr=0.1, weight_decay=0.0)
    with pytest.raises(OptimizerError, match="not installed"):
        build_optimizer(groups, backend="apex")
    (tmp_path / "apex").mkdir()
    (tmp_path / "apex" / "__init__.py").write_text("")  # the PyPI package of that name has no apex.optimizers
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(OptimizerError, match="unrelated"):
        build_optimizer(groups, backend="apex")
    with pytest.raises(OptimizerError, match="lamb"):
        build_optimizer(groups, optimizer="lamb", backend="fused")
    for name in [name for name in sys.modules if name == "apex" or name.startswith("apex.")]:
        monkeypatch.delitem(sys.modules, name)


def test_apex_is_given_our_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    apex, inner, calls = types.ModuleType("apex"), types.ModuleType("apex.optimizers"), []
    apex.__spec__ = types.SimpleNamespace(name="apex")  # type: ignore[assignment]
    inner.FusedSGD = lambda groups, **options: calls.append((groups, options)) or "fused"  # type: ignore[attr-defined]
    core = types.ModuleType("amp_C")
    core.__spec__ = types.SimpleNamespace(name="amp_C")  # type: ignore[assignment]
    for name, module in {"apex": apex, "apex.optimizers": inner, "amp_C": core}.items():
        monkeypatch.setitem(sys.modules, name, module)
    groups = parameter_groups(_toy(), lr=0.1, weight_decay=0.0)
    assert build_optimizer(groups, backend="apex", momentum=0.8) == "fused"
    assert calls == [(groups, {"lr": 0.1, "momentum": 0.8, "nesterov": False})]


def test_learning_rate_scaling() -> None:
    assert scaled_learning_rate(0.01, batch=8, reference_batch=16, scaling="linear") == 0.005
    assert scaled_learning_rate(0.01, batch=4, reference_batch=16, scaling="sqrt") == 0.005
    assert scaled_learning_rate(0.01, batch=8, reference_batch=16, scaling="none") == 0.01
    assert scaled_learning_rate(0.01, batch=8, reference_batch=None, scaling="linear") == 0.01


def test_averaged_weights_are_applied_and_taken_back() -> None:
    model = _toy()
    average = WeightAverage(model, decay=0.5)
    with torch.no_grad():
        start = model[0].weight.clone()
        model[0].weight += 2.0
    average.update(model)
    with average.applied(model):
        torch.testing.assert_close(model[0].weight, start + 1.0)
    torch.testing.assert_close(model[0].weight, start + 2.0)


def test_the_guard_puts_batch_norm_back() -> None:
    model = _toy().train()
    guard = BufferGuard(model)
    model(torch.ones(2, 3, 8, 8))
    guard.keep()
    good = model[1].running_var.clone()
    model(torch.full((2, 3, 8, 8), float("nan")))
    assert not torch.isfinite(model[1].running_var).all()
    guard.restore()
    assert torch.equal(model[1].running_var, good)


def test_a_state_goes_on_where_it_was() -> None:
    def fresh() -> TrainingState:
        model = _toy()
        built = build_optimizer(parameter_groups(model, lr=0.1, weight_decay=0.0))
        return TrainingState(model, built, torch.amp.GradScaler("cpu", enabled=False), WeightAverage(model, decay=0.9))

    def step(state: TrainingState) -> None:
        state.model(torch.ones(2, 3, 8, 8)).square().mean().backward()
        state.step()
        state.optimizer.zero_grad()
        state.progress.step += 1

    straight, halved = fresh(), fresh()
    for _ in range(4):
        step(straight)
    for _ in range(2):
        step(halved)
    resumed = fresh()
    resumed.load(halved.content())
    for _ in range(2):
        step(resumed)
    assert resumed.progress.step == 4
    for own, other in zip(resumed.weights().values(), straight.weights().values(), strict=True):
        assert torch.equal(own, other)


def test_rows_beyond_the_resumed_step_are_dropped(tmp_path: Path) -> None:
    book = Logbook(tmp_path)
    book.begin("a: 1\n")
    for step in (1, 2, 3):
        book.row("train", step, {"loss": float("nan") if step == 2 else 0.5})
    with open(book.path, "a") as file:
        file.write('{"kind": "train", "st')  # a kill in mid-line
    book.close()
    again = Logbook(tmp_path)
    again.begin("a: 1\n", first_step=2)
    again.close()
    rows = [json.loads(line) for line in book.path.read_text().splitlines()]
    assert [(row["step"], row["loss"]) for row in rows] == [(1, 0.5), (2, None)]
    assert (tmp_path / "config.yaml").read_text() == "a: 1\n"


def test_a_run_is_never_overwritten_unasked(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    run.claim(resume=False)
    run.claim(resume=False)  # nothing was trained yet
    run.checkpoints.save(1, {})
    with pytest.raises(RunError, match="--resume"):
        run.claim(resume=False)
    run.claim(resume=True)


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(RunError, match="cannot be written"):
        RunFolder(tmp_path / "file" / "run").claim(resume=False)
