"""A training may be killed, cut off, or run out of anything at any moment.

It goes on to the same bits, and says what happened in a sentence.
"""

from __future__ import annotations

import json
import os
import random
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from hmsa.utils.training.checkpoint import CheckpointFolder
from tests.engine.conftest import Command, configuration
from tests.programs import run_ranks_of

SMALL = "tests/engine/small.py"


class Outcome(NamedTuple):
    """Exit status and output of each rank."""

    statuses: list[int]
    texts: list[str]

    @property
    def text(self) -> str:
        return "\n".join(self.texts)


Train = Callable[..., Outcome]


@pytest.fixture(scope="session")
def train() -> Train:
    """Trains on a trunk of three convolutions, in forks."""

    def run(
        config: Path,
        *words: str,
        faults: tuple[str, ...] = (),
        processes: int = 1,
        status: int | None = 0,
        environment: dict[str, str] | None = None,
    ) -> Outcome:
        given = [part for fault in faults for part in ("--fault", fault)]
        variables = {**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})}
        ended = run_ranks_of(
            [SMALL, *given, config, *words], processes=processes, environment=variables
        )
        outcome = Outcome([one.returncode for one in ended], [one.stdout for one in ended])
        assert status is None or outcome.statuses == [status] * processes, outcome.text[-6000:]
        return outcome

    return run


def small(folder: Path, street: Path, /, **changes: dict[str, Any]) -> Path:
    """A configuration of 3 steps an epoch."""
    sections: dict[str, dict[str, Any]] = {
        "data": {"crop": [32, 48]},
        "model": {"decoder_channels": 8, "attention_channels": 8},
        "optim": {"epochs": 4},
        "runtime": {"checkpoint_minutes": 1e-6, "val_every": 2},
        "eval": {"scales": [1.0]},
    }
    for section, values in changes.items():
        sections.setdefault(section, {}).update(values)
    return configuration(folder, street, **sections)


def state_of(run: Path) -> dict[str, Any]:
    """The newest checkpoint."""
    content: dict[str, Any] = torch.load(
        run / "checkpoints" / (run / "checkpoints" / "last").read_text().strip(), weights_only=True
    )
    return content


def rows_of(run: Path) -> list[tuple[str, int, float]]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [(row["kind"], row["step"], row["loss"]) for row in rows]


def leaves(value: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from leaves(inner, f"{place}.{key}")
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            yield from leaves(inner, f"{place}.{number}")
    else:
        yield place, value


def assert_same_bits(run: Path, expected: Path) -> None:
    """Weights, momentum, progress, the best weights, every row of metrics.jsonl exactly once."""
    found, wanted = dict(leaves(state_of(run))), dict(leaves(state_of(expected)))
    assert found.keys() == wanted.keys()
    assert state_of(run)["progress"]["epoch"] == state_of(run)["config"]["optim"]["epochs"]
    for place, value in wanted.items():
        if not place.startswith((".config.", ".versions")):
            assert (
                torch.equal(found[place], value)
                if isinstance(value, torch.Tensor)
                else found[place] == value
            ), place
    assert rows_of(run) == rows_of(expected)
    best = [
        torch.load(folder / "checkpoints" / "best.pt", weights_only=True)["model"]
        for folder in (run, expected)
    ]
    assert all(torch.equal(best[0][key], value) for key, value in best[1].items())


MOMENTS = (
    "step",
    "gradients",
    "stepped",
    "row",
    "evaluate",
    "best",
    "write",
    "write",
    "write",
    "fsync",
    "replace",
    "replaced",
    "unlink",
)


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "kills"), [(1, 20), (2, 5)])
def test_killed_at_any_moment_it_ends_with_the_same_bits(
    processes: int, kills: int, train: Train, street: Path, tmp_path: Path
) -> None:
    """SIGKILL at random moments, also while a checkpoint is written, then --resume."""
    changes: dict[str, Any] = {
        "optim": {"epochs": 12},
        "data": {"batch_size": 2 // processes},
        "runtime": {"val_every": 3},
    }
    whole, broken = (
        small(tmp_path / "whole", street, **changes),
        small(tmp_path / "broken", street, **changes),
    )
    train(whole, processes=processes)
    generator = random.Random(1)
    chosen = (
        [*MOMENTS, *generator.choices(MOMENTS, k=20)][:kills]
        if kills > len(MOMENTS)
        else generator.sample(MOMENTS, kills)
    )
    for moment in chosen:
        number = generator.randint(1, {"write": 200, "evaluate": 1, "best": 1}.get(moment, 4))
        outcome = train(
            broken,
            "--resume",
            faults=(f"kill:{moment}:{number}",),
            processes=processes,
            status=None,
        )
        assert outcome.statuses[0] == -signal.SIGKILL, (
            f"{moment} {number} never came: {outcome.text[-3000:]}"
        )
    train(broken, "--resume", processes=processes)
    assert_same_bits(tmp_path / "broken" / "run", tmp_path / "whole" / "run")


@pytest.fixture(scope="session")
def whole(train: Train, street: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an uninterrupted run of 12 steps, alone."""
    folder = tmp_path_factory.mktemp("whole")
    train(small(folder, street))
    return folder / "run"


def says(outcome: Outcome, *words: str) -> None:
    """One sentence of error over all ranks, with these words in it, and no traceback."""
    errors = [line for line in outcome.text.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and "Traceback" not in outcome.text, outcome.text
    assert not [word for word in words if word not in errors[0]], errors[0]


def test_a_truncated_newest_checkpoint_falls_back_and_says_so(
    train: Train, street: Path, whole: Path, tmp_path: Path
) -> None:
    config = small(tmp_path, street)
    train(config, faults=("kill:step:8",), status=-signal.SIGKILL)
    newest = CheckpointFolder(tmp_path / "run" / "checkpoints").steps()[-1]
    newest.write_bytes(newest.read_bytes()[:-1000])
    outcome = train(config, "--resume")
    assert (
        f"{newest}: its bytes do not have the sha256" in outcome.text
        and "going back" in outcome.text
    )
    assert "step-00000006.pt: epoch 2, step 6" in outcome.text
    assert_same_bits(tmp_path / "run", whole)


@pytest.mark.parametrize(
    ("moment", "name"), [("row:5", "step-00000005.pt"), ("step:3", "metrics.jsonl")]
)
def test_a_full_disk_is_one_sentence_and_loses_nothing(
    moment: str, name: str, train: Train, street: Path, whole: Path, tmp_path: Path
) -> None:
    """A limit on the size of files stands for a disk that fills up.

    It does so while a checkpoint is written, and while a row is.
    """
    config = small(tmp_path, street)
    says(train(config, faults=(f"fill_disk:{moment}",), status=2), name, "--resume", "untouched")
    newest, passed = CheckpointFolder(tmp_path / "run" / "checkpoints").newest_valid()
    assert newest is not None and not passed
    train(config, "--resume")
    assert_same_bits(tmp_path / "run", whole)


def test_a_lost_worker_is_one_sentence(
    train: Train, street: Path, whole: Path, tmp_path: Path
) -> None:
    config = small(tmp_path, street, data={"workers": 1})
    says(train(config, faults=("lose_worker:step:2",), status=2), "worker", "data.workers")
    train(config, "--resume")
    assert_same_bits(tmp_path / "run", whole)


def test_sigterm_to_the_process_group_saves_although_workers_get_it_too(
    train: Train, street: Path, whole: Path, tmp_path: Path
) -> None:
    config = small(tmp_path, street, data={"workers": 2}, runtime={"checkpoint_minutes": 100})
    outcome = train(config, faults=("terminate_group:step:5",), status=128 + signal.SIGTERM)
    assert (
        "stopped by a signal after step 5; go on with --resume" in outcome.text
        and "Traceback" not in outcome.text
    )
    assert state_of(tmp_path / "run")["progress"]["step"] == 5
    train(config, "--resume")
    assert_same_bits(tmp_path / "run", whole)


def test_ctrl_c_saves_and_says_how_to_go_on(
    train: Train, street: Path, whole: Path, tmp_path: Path
) -> None:
    """Within a step, and within a validation, before which everything was saved."""
    config = small(tmp_path, street, runtime={"checkpoint_minutes": 100})
    for moment, step in (("step:5", 5), ("evaluate:2", 6)):
        outcome = train(config, "--resume", faults=(f"interrupt:{moment}",), status=130)
        assert f"stopped by Ctrl-C after step {step}; go on with --resume" in outcome.text
        assert "Traceback" not in outcome.text
        assert state_of(tmp_path / "run")["progress"]["step"] == step
    train(config, "--resume")
    assert_same_bits(tmp_path / "run", whole)


def test_a_finished_run_says_so_and_is_not_scored_again(
    train: Train, street: Path, tmp_path: Path
) -> None:
    config = small(tmp_path, street, model={"trunk_weights": None})
    text = train(config).text
    for words in (
        "6 training and 3 validation images",
        "3 classes (sky, road, pole)",
        "hierarchical at {0.5, 1}",
        "weights     random",
        "device      CPU",
        f"run folder  {tmp_path / 'run'}",
        "an epoch takes about",
        "of validating and saving",
    ):
        assert words in text, words
    rows = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    assert {json.loads(row)["epoch"] for row in rows.splitlines()} == {1, 2, 3, 4}

    # Nothing is evaluated: the fault would kill it.
    outcome = train(config, "--resume", faults=("kill:evaluate:1",))
    assert "this training is finished" in outcome.text and "hmsa eval" in outcome.text
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == rows

    # Without its last score, or with more epochs, it is not finished.
    train(config, "--resume", "optim.epochs=5", faults=("kill:evaluate:3",), status=-9)
    assert "this training is finished" not in train(config, "--resume", "optim.epochs=5").text
    last = json.loads((tmp_path / "run" / "metrics.jsonl").read_bytes().splitlines()[-1])
    assert (last["kind"], last["epoch"], last["step"]) == ("val", 5, 15)


def test_an_unreachable_rendezvous_is_one_sentence(
    train: Train, street: Path, tmp_path: Path
) -> None:
    alone = {
        "RANK": "1",
        "LOCAL_RANK": "0",
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "9",
    }
    outcome = train(
        small(tmp_path, street, runtime={"timeout_minutes": 0.02}), environment=alone, status=2
    )
    says(outcome, "127.0.0.1:9", "MASTER_ADDR", "firewall")


def test_memory_that_runs_out_says_what_to_change_before_the_first_epoch(
    train: Train, street: Path, tmp_path: Path
) -> None:
    config = small(tmp_path / "a", street)
    says(
        train(config, faults=("out_of_memory:evaluate:1",), status=2),
        "validation",
        "eval.tile",
        "eval.batch_size",
    )
    assert not (tmp_path / "a" / "run" / "metrics.jsonl").exists()  # no step was taken
    says(
        train(small(tmp_path / "b", street), faults=("out_of_memory:step:1",), status=2),
        "training",
        "runtime.precision=bf16",
        "data.crop",
    )


def test_a_step_that_is_not_finite_is_skipped_on_all_ranks_and_names_its_images(
    train: Train, street: Path, tmp_path: Path
) -> None:
    config = small(tmp_path, street, data={"batch_size": 1}, runtime={"max_bad_steps": 3})
    outcome = train(config, processes=2, faults=("nan:loss:2:1", "nan:loss:5:1", "nan:loss:6:1"))
    sentences = [
        line
        for line in outcome.text.splitlines()
        if "skipped on all ranks, the loss is not finite" in line
    ]
    assert len(sentences) == 3 and outcome.texts[0].count("skipped on all ranks") == 3
    assert all(
        line.partition("images: ")[2].count("train_") == 1 for line in sentences
    )  # of the guilty rank alone
    state = state_of(tmp_path / "run")
    assert state["progress"]["skipped_steps"] == 3 and state["progress"]["step"] == 12
    assert all(torch.isfinite(value).all() for value in state["model"].values())


def test_steps_that_stay_bad_end_all_ranks_with_a_dump(
    train: Train, street: Path, tmp_path: Path
) -> None:
    config = small(tmp_path, street, data={"batch_size": 1}, runtime={"max_bad_steps": 3})
    bad = tuple(f"nan:loss:{number}:1" for number in (3, 4, 5))
    says(
        train(config, processes=2, faults=bad, status=2),
        "3 steps in a row",
        "train_",
        "not-finite-rank",
        "optim.lr",
    )
    (dump,) = (tmp_path / "run").glob("not-finite-*.pt")
    content = torch.load(dump, weights_only=True)
    assert (
        dump.name == "not-finite-rank1.pt"
        and content["step"] == 4
        and content["batches"][0]["names"][0].startswith("train_")
    )
    assert content["batches"][0]["image"].dtype == torch.uint8 and not torch.isfinite(
        content["terms"]["cross_entropy"]
    )


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_learns_like_single_and_resumes_to_the_same_bits(
    precision: str, train: Train, street: Path, tmp_path: Path
) -> None:
    """With everything a checkpoint can hold: a scaler, averaged weights, accumulated batches."""
    changes: dict[str, Any] = {
        "runtime": {"precision": precision},
        "optim": {"ema_decay": 0.9, "accumulate": 2, "clip_norm": 10.0},
        "data": {"batch_size": 1},
    }
    config, broken = (
        small(tmp_path / "whole", street, **changes),
        small(tmp_path / "broken", street, **changes),
    )
    train(config)
    train(broken, faults=("kill:gradients:6",), status=-signal.SIGKILL)
    train(broken, "--resume")
    assert_same_bits(tmp_path / "broken" / "run", tmp_path / "whole" / "run")
    train(small(tmp_path / "fp32", street, **{**changes, "runtime": {"precision": "fp32"}}))
    losses = [
        [loss for kind, _, loss in rows_of(tmp_path / name / "run") if kind == "train"]
        for name in ("whole", "fp32")
    ]
    assert (
        len(losses[0]) == 12
        and losses[0][:6] == pytest.approx(losses[1][:6], rel=0.1)
        and losses[0] != losses[1]
    )
    assert (state_of(tmp_path / "whole" / "run")["scaler"] != {}) == (precision == "fp16")


def test_from_two_processes_to_one(train: Train, street: Path, tmp_path: Path) -> None:
    """With the global batch kept, the same images in the same steps, and weights equal to rounding.

    With another one it goes on at the same place.
    """
    changes: dict[str, Any] = {"data": {"batch_size": 1}, "runtime": {"precision": "fp64"}}
    whole, kept, other = (
        small(tmp_path / name, street, **changes) for name in ("whole", "kept", "other")
    )
    train(whole, processes=2)
    for config in (kept, other):
        train(config, processes=2, faults=("kill:step:5",), status=None)
    assert "as if it had not stopped" not in train(kept, "--resume", "data.batch_size=2").text
    expected, found = state_of(tmp_path / "whole" / "run"), state_of(tmp_path / "kept" / "run")
    assert found["progress"]["step"] == expected["progress"]["step"] == 12
    for key, value in expected["model"].items():
        torch.testing.assert_close(found["model"][key], value, rtol=1e-9, atol=1e-12, msg=key)
    assert "took 2 images a step and now takes 1" in train(other, "--resume").text
    progress = state_of(tmp_path / "other" / "run")["progress"]
    assert (
        progress["epoch"] == 4 and progress["step"] == 4 + (6 - 2) + 2 * 6
    )  # of epoch 1, two of six images had been seen


def test_any_number_of_processes_trains_the_same(
    train: Train, street: Path, tmp_path: Path
) -> None:
    """Losses and weights are equal to 1e-9 relative after 20 steps in fp64.

    The global batch is equal, batch norm is synchronised, and ranks differ in how much is ignored.
    """
    found = []
    for processes in (1, 2, 3):
        runtime = {"precision": "fp64", "val_every": 20, "checkpoint_minutes": 100}
        config = small(
            tmp_path / str(processes),
            street,
            data={"batch_size": 6 // processes},
            model={"decoder": "ocr", "dropout": 0.0},
            loss={"main": "rmi"},
            optim={"epochs": 20},
            runtime=runtime,
        )
        train(config, processes=processes)
        found.append(
            (
                rows_of(tmp_path / str(processes) / "run"),
                state_of(tmp_path / str(processes) / "run")["model"],
            )
        )
    (rows, weights), *others = found
    assert len(rows) == 21 and rows[0][2] != pytest.approx(rows[19][2], rel=0.1)
    for other_rows, other_weights in others:
        assert [row[2] for row in other_rows] == pytest.approx([row[2] for row in rows], rel=1e-9)
        for key, value in weights.items():
            torch.testing.assert_close(other_weights[key], value, rtol=1e-9, atol=1e-12, msg=key)


def test_accumulated_batches_are_one_batch(train: Train, street: Path, tmp_path: Path) -> None:
    """Two ranks equal one rank with two accumulated batches, but for batch norm.

    No weighting of the loss can mend that; hence the losses of step 1.
    """
    losses = []
    for processes, accumulate in ((1, 2), (2, 1), (1, 3)):
        folder = tmp_path / f"{processes}-{accumulate}"
        config = small(
            folder,
            street,
            data={"batch_size": 6 // (processes * accumulate)},
            optim={"epochs": 1, "accumulate": accumulate},
            runtime={"precision": "fp64", "sync_batchnorm": "off"},
        )
        train(config, processes=processes)
        losses.append(rows_of(folder / "run")[0][2])
    assert losses[0] == pytest.approx(losses[1], rel=1e-12)
    assert losses[0] == pytest.approx(losses[2], rel=0.3)


def test_early_steps_can_be_profiled(train: Train, street: Path, tmp_path: Path) -> None:
    outcome = train(small(tmp_path, street, runtime={"profile": True}))
    events = json.loads((tmp_path / "run" / "trace.json").read_text())["traceEvents"]
    names = [event.get("name", "") for event in events]
    assert (
        "aten::convolution" in names
        and len([name for name in set(names) if name.startswith("ProfilerStep#")]) == 4
    )
    assert "ui.perfetto.dev" in outcome.text


def test_a_restarted_rank_comes_to_the_same_result(
    train: Train, command: Command, street: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torchrun starts all ranks again when one dies; they go on from the last checkpoint."""
    whole, broken = (
        small(tmp_path / "whole", street, data={"batch_size": 1}),
        small(tmp_path / "broken", street, data={"batch_size": 1}),
    )
    train(whole, processes=2)
    monkeypatch.setenv("KILLED_ONCE", str(tmp_path / "killed"))
    done = command(
        "--max-restarts",
        "3",
        SMALL,
        "--fault",
        "kill_once:gradients:5:1",
        broken,
        processes=2,
        timeout=300,
    )
    assert (tmp_path / "killed").exists() and "going on from" in done.stdout + done.stderr
    assert_same_bits(tmp_path / "broken" / "run", tmp_path / "whole" / "run")


def test_an_exception_on_one_rank_ends_all_and_its_traceback_comes_last(
    command: Command, street: Path, tmp_path: Path
) -> None:
    """The others would wait for an hour (runtime.timeout_minutes).

    The limit on the run is what shows that they do not.
    """
    config = small(tmp_path, street, data={"batch_size": 1}, runtime={"timeout_minutes": 60})
    done = command(SMALL, "--fault", "fail:step:3:1", config, processes=2, check=1, timeout=300)
    last = done.stderr[done.stderr.rindex("Traceback (most recent call last)") - 1000 :]
    assert "AssertionError: this rank alone has failed" in done.stderr
    assert done.stderr.count("another process went away") <= 1
    assert "this rank alone has failed" in last, last


def test_sigterm_to_the_launcher_and_everything_below_it_saves(
    train: Train, command: Command, street: Path, tmp_path: Path
) -> None:
    """As SLURM does it: ranks get the signal from outside and again from torchrun.

    Loader workers get it too.
    """
    whole, config = (
        small(
            tmp_path / name,
            street,
            data={"batch_size": 1, "workers": 1},
            runtime={"checkpoint_minutes": 100},
        )
        for name in ("whole", "broken")
    )
    train(whole, processes=2)
    done = command(
        SMALL, "--fault", "terminate_all:step:5", config, processes=2, check=None, timeout=300
    )
    assert done.returncode != 0 and "stopped by a signal after step 5" in done.stdout + done.stderr
    assert state_of(tmp_path / "broken" / "run")["progress"]["step"] == 5
    train(config, "--resume", processes=2)
    assert_same_bits(tmp_path / "broken" / "run", tmp_path / "whole" / "run")
