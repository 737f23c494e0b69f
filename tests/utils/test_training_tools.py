"""Schedules, optimisers, averaged weights, guards, logbook: the small parts of a training."""

from __future__ import annotations

import copy
import importlib
import json
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from hmsa.engine.command_line import StopSignal
from hmsa.utils.processes import Processes
from hmsa.utils.runtime import RuntimeSettingError, prepare_runtime
from hmsa.utils.training import meter as meter_module
from hmsa.utils.training.ema import WeightAverage
from hmsa.utils.training.logbook import Logbook
from hmsa.utils.training.loggers import TensorBoard
from hmsa.utils.training.meter import Meter
from hmsa.utils.training.optimizer import (
    OptimizerError,
    build_optimizer,
    parameter_groups,
    scaled_learning_rate,
    set_learning_rate,
)
from hmsa.utils.training.run_folder import RunError, RunFolder
from hmsa.utils.training.schedule import build_schedule
from hmsa.utils.training.training_state import BufferGuard, Progress, TrainingState


def test_poly_by_epoch_is_the_releases() -> None:
    """The release: lr0 * (1 - epoch / epochs)^exponent, constant within an epoch."""
    factor = build_schedule(
        schedule="poly", epochs=175, steps_per_epoch=371, poly_exponent=2.0, schedule_per="epoch"
    )
    assert factor(0) == factor(370) == 1.0
    assert factor(371) == pytest.approx((1 - 1 / 175) ** 2, abs=1e-15)
    assert factor(100 * 371 + 5) == pytest.approx((75 / 175) ** 2, abs=1e-15)


def test_poly_by_step_falls_every_step_to_zero() -> None:
    factor = build_schedule(
        schedule="poly", epochs=2, steps_per_epoch=10, poly_exponent=1.0, warmup_steps=4
    )
    values = [factor(step) for step in range(20)]
    assert values[:4] == pytest.approx([0.25, 0.5 * 0.95, 0.75 * 0.9, 0.85])
    assert all(a > b for a, b in zip(values[3:], values[4:], strict=False))
    assert factor(20) == 0.0


def test_the_releases_other_schedules() -> None:
    poly2 = build_schedule(
        schedule="poly2",
        epochs=180,
        steps_per_epoch=1,
        poly_exponent=1.0,
        poly_step=110,
        schedule_per="epoch",
    )
    assert poly2(109) == pytest.approx(71 / 180) and poly2(110) == pytest.approx((70 / 180) ** 2)
    scl = build_schedule(
        schedule="scl_poly",
        epochs=100,
        steps_per_epoch=1,
        poly_exponent=1.0,
        rescale=0.5,
        repoly=1.5,
        rescale_epoch=60,
    )
    assert (
        scl(59) == pytest.approx(0.41)
        and scl(60) == pytest.approx(0.5)
        and scl(80) == pytest.approx(0.5 * 0.5**1.5)
    )


def _toy() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1))


def test_every_parameter_is_in_one_group_with_its_rate_and_decay() -> None:
    model = _toy()
    groups = parameter_groups(
        model,
        lr=0.1,
        weight_decay=1e-4,
        decay_norm_and_bias=False,
        head_parameters=model[2].parameters(),
        head_lr_multiplier=10.0,
    )
    seen = {id(p): group for group in groups for p in group["params"]}
    assert len(seen) == len(list(model.parameters()))
    assert (
        seen[id(model[0].weight)]["weight_decay"] == 1e-4
        and seen[id(model[0].weight)]["base_lr"] == 0.1
    )
    assert seen[id(model[1].weight)]["weight_decay"] == 0.0
    assert (
        seen[id(model[2].weight)]["base_lr"] == 1.0
        and seen[id(model[2].bias)]["weight_decay"] == 0.0
    )


@pytest.mark.parametrize("backend", ["foreach", "fused"])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_backends_agree_with_the_loop(backend: str, optimizer: str) -> None:
    weights = []
    for kind in ("torch", backend):
        model = _toy().double()
        image = torch.randn(
            2, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
        )
        built = build_optimizer(
            parameter_groups(model, lr=0.1, weight_decay=1e-3), optimizer=optimizer, backend=kind
        )
        for step in range(5):
            set_learning_rate(built, 1.0 - step / 10)
            (model(image) - 1).pow(4).mean().backward()
            built.step()
            built.zero_grad()
        weights.append(torch.cat([p.detach().reshape(-1) for p in model.parameters()]))
    torch.testing.assert_close(weights[0], weights[1], rtol=1e-5, atol=1e-7)


def test_fused_sgd_survives_an_overflow_in_its_first_step() -> None:
    """torch leaves fused SGD's momentum uninitialised when the first step is skipped."""
    for backend in ("fused", "auto"):
        for trial in range(10):
            parameter = nn.Parameter(torch.ones(1000))
            trash = [torch.full((1000,), 1e30) for _ in range(20)]
            del trash
            built = build_optimizer(
                parameter_groups(nn.ParameterList([parameter]), lr=0.1, weight_decay=0.0),
                backend=backend,
                scaled=True,
            )
            scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
            for gradient in (float("inf"), 1.0):
                scaler.scale((parameter * gradient).sum()).backward()
                scaler.step(built)
                scaler.update()
                built.zero_grad()
            torch.testing.assert_close(
                parameter.detach(), torch.full((1000,), 0.9), msg=f"{backend}, trial {trial}"
            )


# What ours must know of it: no set_to_none, and the momentum under torch's name.
FUSED_SGD = """
import torch
class FusedSGD(torch.optim.Optimizer):
    def __init__(self, params, lr, momentum=0.0, weight_decay=0.0):
        super().__init__(params, dict(lr=lr, momentum=momentum, weight_decay=weight_decay))
    def zero_grad(self):
        raise AssertionError("train.py clears the gradients itself")
    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                grad = p.grad + group["weight_decay"] * p
                state = self.state[p]
                if "momentum_buffer" in state:
                    grad = state["momentum_buffer"] * group["momentum"] + grad
                state["momentum_buffer"] = grad.clone()
                p -= group["lr"] * state["momentum_buffer"]
"""


@pytest.fixture
def apex(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[Callable[[dict[str, str]], None]]:
    """Puts packages of that name onto the path; they are gone afterwards."""

    def install(files: dict[str, str]) -> None:
        for name, text in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        importlib.invalidate_caches()

    monkeypatch.syspath_prepend(tmp_path)
    yield install
    for name in [name for name in sys.modules if name.split(".")[0] in ("apex", "amp_C")]:
        del sys.modules[name]


def test_apex_is_only_taken_when_it_is_nvidias_and_whole(
    apex: Callable[[dict[str, str]], None],
) -> None:
    groups = parameter_groups(_toy(), lr=0.1, weight_decay=0.0)

    def sentence() -> str:
        with pytest.raises(OptimizerError) as caught:
            build_optimizer(groups, backend="apex")
        assert "apex" not in sys.modules or "optim.backend" in str(caught.value)
        return str(caught.value)

    assert "not installed" in sentence() and "PyPI package called apex is unrelated" in sentence()
    apex({"apex/__init__.py": "from pyramid.session import UnencryptedCookieSessionFactoryConfig"})
    assert "not NVIDIA's but the unrelated Pyramid toolkit" in sentence()
    apex(
        {
            "apex/__init__.py": "",
            "apex/optimizers/__init__.py": "from torch.optim.optimizer import no_longer_there",
        }
    )
    assert "without its CUDA extensions" in sentence()
    apex({"amp_C.py": ""})
    assert "cannot be imported" in sentence() and "no_longer_there" in sentence()
    with pytest.raises(OptimizerError, match="lamb"):
        build_optimizer(groups, optimizer="lamb", backend="fused")


def test_apex_trains_as_torch_does(apex: Callable[[dict[str, str]], None]) -> None:
    apex({"apex/__init__.py": "", "apex/optimizers/__init__.py": FUSED_SGD, "amp_C.py": ""})
    weights = []
    for backend in ("torch", "apex"):
        model = _toy()
        state = TrainingState(
            model,
            build_optimizer(
                parameter_groups(model, lr=0.1, weight_decay=1e-3), backend=backend, momentum=0.8
            ),
            torch.amp.GradScaler("cpu", enabled=False),
            None,
        )
        for factor in (1.0, 0.5, 0.25):
            set_learning_rate(state.optimizer, factor)
            model(torch.ones(2, 3, 8, 8)).square().mean().backward()
            state.step()
            model.zero_grad(set_to_none=True)
        weights.append(
            torch.cat([parameter.detach().reshape(-1) for parameter in model.parameters()])
        )
        assert "momentum_buffer" in state.content()["optimizer"]["state"][0]
    assert type(state.optimizer).__module__ == "apex.optimizers"
    torch.testing.assert_close(weights[0], weights[1])


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
        return TrainingState(
            model,
            built,
            torch.amp.GradScaler("cpu", enabled=False),
            WeightAverage(model, decay=0.9),
        )

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


def test_a_scale_with_all_the_attention_is_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    book = Logbook(tmp_path)
    for step, share in ((1, 0.5), (2, 0.99), (3, 0.9999), (4, 1.0)):
        book.row("train", step, {"loss": 0.5, "attention_0.5": 1 - share, "attention_1": share})
    (told,) = [record.getMessage() for record in caplog.records]
    assert "by step 3 scale 1 has all of it" in told and "optim.lr" in told


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


def _fp16_state() -> TrainingState:
    model = _toy()
    built = build_optimizer(parameter_groups(model, lr=0.1, weight_decay=0.0), scaled=True)
    return TrainingState(model, built, torch.amp.GradScaler("cpu", init_scale=4.0), None)


def test_a_scaler_goes_on_after_a_skipped_step_and_falls_until_overflow_is_no_excuse() -> None:
    state = _fp16_state()
    start = state.model[0].weight.clone()
    for expected in (True, True, False):  # 4, 2, 1
        assert state.overflow_is_usual() is expected
        state.scaler.scale(
            state.model(torch.randn(2, 3, 8, 8)).square().mean() * float("inf")
        ).backward()
        assert not torch.isfinite(state.gradient_norm())
        state.skip_step()
        state.model.zero_grad(set_to_none=True)
    assert state.progress.skipped_steps == 3 and torch.equal(state.model[0].weight, start)
    state.scaler.scale(state.model(torch.randn(2, 3, 8, 8)).square().mean()).backward()
    assert torch.isfinite(state.gradient_norm())
    state.step()
    assert not torch.equal(state.model[0].weight, start)


def test_a_place_in_an_epoch_is_found_again_with_another_batch() -> None:
    progress = Progress(epoch=3, step_in_epoch=5, step=35, batch=4)
    progress.fit_batch(4)
    assert progress.step_in_epoch == 5 and progress.steps_left(5, 10) == 15
    progress.fit_batch(3)
    assert (progress.step_in_epoch, progress.step, progress.batch) == (
        6,
        35,
        3,
    )  # of 20 images seen, 18 make whole steps
    fresh = Progress()
    fresh.fit_batch(8)
    assert fresh.batch == 8 and fresh.step_in_epoch == 0


def test_a_validation_that_is_repeated_is_noted_once(tmp_path: Path) -> None:
    for to_validate, expected in ((False, ["train", "val"]), (True, ["train"])):
        book = Logbook(tmp_path / str(to_validate))
        book.folder.mkdir()
        book.begin("a: 1\n")
        book.row("train", 3, {"loss": 1.0})
        book.row("val", 3, {"loss": 1.0})
        book.close()
        book.begin("a: 1\n", first_step=3, to_validate=to_validate)
        book.close()
        assert [json.loads(line)["kind"] for line in book.path.read_text().splitlines()] == expected


def test_tensorboard_may_fail_and_training_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken:
        def add_scalar(self, *_: object) -> None:
            raise OSError("No space left on device")

    board = TensorBoard()
    book = Logbook(tmp_path, loggers=[board])
    board.board = Broken()
    for step in (1, 2):
        book.row("train", step, {"loss": 1.0})
    assert book.shown.loggers == [] and len(book.path.read_text().splitlines()) == 2
    assert caplog.text.count("TensorBoard is off from here on (No space left on device)") == 1


def test_one_request_to_stop_may_come_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """From SLURM and again from torchrun; only a later SIGTERM is impatience."""
    ended: list[int] = []
    clock = iter([100.0, 101.0, 106.0])
    monkeypatch.setattr("hmsa.engine.command_line.time.monotonic", lambda: next(clock))
    monkeypatch.setattr("hmsa.engine.command_line.os._exit", ended.append)
    stop = StopSignal()
    assert not stop.asked
    stop._handle(signal.SIGUSR1, None)  # type: ignore[arg-type]
    stop._handle(signal.SIGTERM, None)  # type: ignore[arg-type]
    assert stop.asked and stop.status == 128 + signal.SIGUSR1 and ended == []
    stop._handle(signal.SIGTERM, None)  # type: ignore[arg-type]
    assert ended == [128 + signal.SIGTERM]
    assert stop._timer is not None
    stop._timer.cancel()


def test_readings_average_over_steps_and_name_their_parts() -> None:
    meter = Meter(
        Processes(rank=0, world_size=1, local_rank=0, device=torch.device("cpu")),
        steps_left=4,
        every=2,
    )
    batches = list(meter.timed([1, 2]))
    assert batches == [1, 2]
    found = [
        meter.step(
            {"a": torch.tensor(value), "b": torch.tensor(1.0)},
            {"attention_0.5": torch.tensor(value / 10)},
            images=3,
            lr=0.1,
            epoch=0,
        )
        for value in (2.0, 4.0)
    ]
    assert found[0] is None and found[1] is not None
    assert (found[1]["loss"], found[1]["loss_a"], found[1]["loss_b"]) == (4.0, 3.0, 1.0)
    assert (
        found[1]["attention_0.5"] == pytest.approx(0.3)
        and found[1]["lr"] == 0.1
        and found[1]["images_per_second"] > 0
    )
    assert "images/s" in meter.close() and "GiB" in meter.close()
    resumed = Meter(meter.processes, steps_left=3, first_step=1, every=2)
    assert (
        resumed.step({"a": torch.tensor(1.0)}, {}, images=3, lr=0.1, epoch=0) is not None
    )  # at step 2, as before


def test_the_line_goes_on_between_readings_and_waits_for_no_device(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(meter_module, "SHOWN_SECONDS", -1.0)

    def line_of(device: str, step: int) -> str:
        processes = Processes(rank=0, world_size=1, local_rank=0, device=torch.device(device))
        meter = Meter(processes, steps_left=4, every=100)
        for number in range(step):
            loss = torch.tensor(1.0 + number, device=device)
            meter.step({"a": loss}, {}, images=3, lr=0.1 / (1 + number), epoch=2)
        line = str(meter.bar.postfix)
        meter.close()
        return line

    assert line_of("cpu", 1).startswith("loss 1.000 (a 1.000), lr 0.1,")
    assert line_of("cpu", 2).startswith("loss 1.500 (a 1.500), lr 0.05,")
    # A number on the meta device cannot be read at all, as one on a GPU only by waiting.
    assert line_of("meta", 2).startswith("lr 0.05, ")


def test_a_summary_tells_what_was_done_and_what_comes_next(tmp_path: Path) -> None:
    progress = Progress(epoch=2, step=10, skipped_steps=1, best_miou=0.5123, best_epoch=1)
    assert (
        progress.summary()
        == "2 epochs, 10 steps, 1 of them skipped; best val mIoU 51.2 % after epoch 1"
    )
    run = RunFolder(tmp_path)
    assert run.next_commands() == ""
    newest = run.checkpoints.save(3, {})
    assert f"hmsa eval --checkpoint {newest} " in run.next_commands()
    run.checkpoints.save_best({})
    assert f"hmsa eval --checkpoint {run.checkpoints.best} " in run.next_commands()


def test_an_overflow_of_a_running_statistic_makes_its_step_one_to_skip() -> None:
    """Loss and gradients stay finite, but the statistic would stay infinite for ever."""
    model = _toy()
    built = build_optimizer(parameter_groups(model, lr=0.1, weight_decay=0.0))
    state = TrainingState(model, built, torch.amp.GradScaler("cpu", enabled=False), None)
    good = model[1].running_var.clone()
    for value, is_finite in ((3e38, False), (1.0, True)):
        state.keep_buffers()
        model(torch.randn(2, 3, 8, 8)).square().mean().backward()
        with torch.no_grad():
            model[1].running_var.mul_(value).mul_(10.0)
        norm = state.gradient_norm()
        assert bool(torch.isfinite(norm)) is is_finite
        if not is_finite:
            state.skip_step()
            assert torch.equal(model[1].running_var, good)
        else:
            gradients = [parameter.grad for parameter in model.parameters()]
            assert torch.equal(norm, torch.nn.utils.get_total_norm(gradients))
        model.zero_grad(set_to_none=True)


def test_other_buffers_than_statistics_may_be_infinite() -> None:
    """Such as masks of attention."""
    model = _toy()
    model.register_buffer("mask", torch.full((3,), float("-inf")), persistent=False)
    assert bool(torch.isfinite(BufferGuard(model).largest_statistic()))
    assert bool(torch.isfinite(BufferGuard(nn.Conv2d(3, 3, 1)).largest_statistic()))


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_the_state_of_an_optimiser_is_laid_out_as_its_parameters(optimizer: str) -> None:
    """Fused optimisers refuse it otherwise, when runtime.channels_last has changed."""

    def fresh(memory_format: torch.memory_format) -> TrainingState:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 3)).to(
            memory_format=memory_format
        )
        built = build_optimizer(
            parameter_groups(model, lr=0.1, weight_decay=0.0), optimizer=optimizer, backend="fused"
        )
        return TrainingState(model, built, torch.amp.GradScaler("cpu", enabled=False), None)

    def step(state: TrainingState) -> None:
        state.model(torch.ones(2, 3, 8, 8)).square().mean().backward()
        state.step()
        state.model.zero_grad(set_to_none=True)

    plain = fresh(torch.contiguous_format)
    step(plain)
    resumed = fresh(torch.channels_last)
    resumed.load(copy.deepcopy(plain.content()))
    for parameter, values in resumed.optimizer.state.items():
        for value in values.values():
            assert value.shape != parameter.shape or value.stride() == parameter.stride()
    step(plain)
    step(resumed)
    for own, other in zip(plain.model.parameters(), resumed.model.parameters(), strict=True):
        torch.testing.assert_close(own, other)


def test_far_too_many_threads_are_one_sentence() -> None:
    with pytest.raises(RuntimeSettingError, match="runtime.threads: 100000 is far more"):
        prepare_runtime(threads=100_000)
