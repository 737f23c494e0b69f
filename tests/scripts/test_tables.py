"""The miniatures of the paper's tables: which rows are kept, what is made of them, and that the charts are well-formed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest

from scripts import table1, table2
from scripts.make_demo_data import main as draw
from scripts.tables import runs as table_runs
from scripts.tables.charts import cost_chart, gain_chart
from scripts.tables.runs import Run, RunError, Scoring, perform, perform_all

ROOT = table_runs.ROOT
DEMO = ROOT / "configs" / "demo.yaml"


def run(folder: Path, *overrides: str, seed: int = 0, **changes: Any) -> Run:
    parts: dict[str, Any] = {
        "split": "test",
        "scorings": (Scoring(("0.5,1,2", "1")),),
        "data_recipe": "drawn so",
        **changes,
    }
    return Run(
        "hierarchical",
        seed,
        DEMO,
        overrides,
        folder=folder / "runs",
        row=folder / f"row-{seed}.json",
        **parts,
    )


class FakeDoors:
    """Stands for train.py and eval.py: notes the calls, and writes what eval.py would."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, broken_seed: int | None = None) -> None:
        self.calls: list[tuple[str, ...]] = []
        self.broken_seed = broken_seed
        monkeypatch.setattr(table_runs, "door", self)

    def __call__(self, name: str, *arguments: str, threads: int, log: Path) -> None:
        self.calls.append((name, *arguments))
        if name == "train.py":
            log.parent.mkdir(parents=True, exist_ok=True)
            if f"experiment.seed={self.broken_seed}" in arguments:
                raise RunError("train.py ended with status 1")
        else:
            output = Path(arguments[arguments.index("--output") + 1])
            output.mkdir(parents=True)
            compared = [{"scales": [0.5, 1.0, 2.0], "miou": 0.6, "per_class": {"pole": 0.4}}]
            (output / "metrics.json").write_text(
                json.dumps(
                    {
                        "images": 4,
                        "checkpoint_sha256": "ab",
                        "combine": "average",
                        "compared": compared,
                    }
                )
            )


def test_a_row_is_made_once_and_again_when_its_recipe_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    doors = FakeDoors(monkeypatch)
    row = perform(run(tmp_path))
    assert [call[0] for call in doors.calls] == ["train.py", "eval.py"] and row["scored"][0][
        "miou"
    ] == 0.6
    assert perform(run(tmp_path)) == row and len(doors.calls) == 2
    assert (
        not run(tmp_path, "optim.epochs=2").is_done()
        and not run(tmp_path, data_recipe="drawn otherwise").is_done()
    )
    assert run(tmp_path, "runtime.log_every=7", "data.root=elsewhere").is_done()
    assert run(tmp_path, "data.crop=[128,256]").is_done()  # the value it has already


def test_a_training_is_kept_when_only_the_scoring_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    doors = FakeDoors(monkeypatch)
    perform(run(tmp_path))
    folder = table_runs.folder_of(run(tmp_path))
    (tmp_path / "row-0.json").unlink()
    (folder / "test-0" / "metrics.json").unlink()
    (folder / "test-0").rmdir()
    perform(run(tmp_path))
    assert [call[0] for call in doors.calls] == ["train.py", "eval.py", "eval.py"]


def test_how_far_a_run_is(tmp_path: Path) -> None:
    one = run(tmp_path, "optim.epochs=8")
    folder = table_runs.folder_of(one)
    assert table_runs.stage(one) == "starting"
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text(
        '{"kind": "train", "step": 24, "epoch": 2}\n{"kind": "tr'
    )  # a line that is being written
    assert table_runs.stage(one) == "epoch 3 of 8"
    (folder / "metrics.jsonl").write_text('{"kind": "val", "step": 1536, "epoch": 8}\n')
    assert table_runs.stage(one) == "epoch 8 of 8"
    (folder / "trained.json").touch()
    assert table_runs.stage(one) == "scoring"


def test_one_failure_leaves_the_other_rows_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    FakeDoors(monkeypatch, broken_seed=1)
    with pytest.raises(RunError, match="status 1"):
        perform_all([run(tmp_path, seed=seed) for seed in range(3)], jobs=1)
    assert [run(tmp_path, seed=seed).is_done() for seed in range(3)] == [True, False, True]


def test_a_door_that_fails_shows_the_end_of_its_log(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"(?s)train.py .*status 2.*no such file"):
        table_runs.door("train.py", str(tmp_path / "missing.yaml"), threads=1, log=tmp_path / "log")


def test_data_of_a_recipe_is_drawn_once_and_its_size_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = str(tmp_path / "drawn")
    words = "--size 64 128 --train 2 --val 0 --test 1 --extra 0 --workers 1"
    monkeypatch.setitem(table_runs.DRAWINGS, root, tuple(words.split()))
    first = table_runs.drawing(root)
    assert '"size": [64, 128]' in first and first.endswith(" 2")
    image = next((tmp_path / "drawn" / "leftImg8bit" / "train").rglob("*.png"))
    written = image.stat().st_mtime_ns
    assert table_runs.drawing(root) == first and image.stat().st_mtime_ns == written
    image.unlink()
    assert table_runs.drawing(root) == first and image.exists()  # what is missing is drawn
    monkeypatch.setitem(
        table_runs.DRAWINGS, root, tuple(words.replace("--train 2", "--train 3").split())
    )
    assert table_runs.drawing(root) == first[:-1] + "3"
    assert table_runs.drawing(str(tmp_path)) == ""
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").touch()
    monkeypatch.setitem(table_runs.DRAWINGS, str(tmp_path / "taken"), ())
    with pytest.raises(RunError, match="could not be drawn"):
        table_runs.drawing(str(tmp_path / "taken"))


def rows_of_table1() -> list[dict[str, Any]]:
    def entry(scales: list[float], miou: float, pole: float, road: float) -> dict[str, Any]:
        return {
            "scales": scales,
            "combine": "average",
            "miou": miou,
            "per_class": {"pole": pole, "road": road},
        }

    rows: list[dict[str, Any]] = []
    for seed in range(3):
        noise = 0.01 * seed
        share = {"1": {"pole": 0.7, "road": 0.2}, "0.5": {"pole": 0.3, "road": 0.8}}
        rows.append(
            {
                "method": "single",
                "seed": seed,
                "attention_share": None,
                "scored": [
                    entry([1.0], 0.50 + noise, 0.3, 0.8),
                    entry([0.5, 1.0, 2.0], 0.52 + noise, 0.3, 0.8),
                    entry([0.25, 0.5, 1.0, 2.0], 0.51 + noise, 0.3, 0.8),
                ],
            }
        )
        rows.append(
            {
                "method": "hierarchical",
                "seed": seed,
                "attention_share": share,
                "scored": [
                    entry([0.5, 1.0, 2.0], 0.56 + 2 * noise, 0.4, 0.81),
                    entry([0.25, 0.5, 1.0, 2.0], 0.57 + 2 * noise, 0.4, 0.81),
                ],
            }
        )
    return rows


def test_table1_means_paired_differences_gains_and_attention() -> None:
    summary = table1.summarise(
        rows_of_table1(),
        {
            "single": {"flops": 1, "step_s": 0.1, "step": 1, "memory": 1},
            "hierarchical": {"flops": 1.25, "step_s": 0.13, "step": 1.3, "memory": 1.2},
        },
    )
    found = summary["differences"]["hierarchical {0.5,1,2} - average {0.5,1,2}"]
    assert (
        found["mean"] == pytest.approx(0.05)
        and found["standard_error"] == pytest.approx(0.01 / 3**0.5)
        and found["seeds"] == 3
    )
    assert summary["differences"]["adding 0.25 to average"]["mean"] == pytest.approx(-0.01)
    assert summary["gains"] == {"pole": pytest.approx(0.1), "road": pytest.approx(0.01)}
    assert summary["attention"]["1"] == pytest.approx({"thin": 0.7, "large": 0.2}) and summary[
        "attention"
    ]["0.5"]["large"] == pytest.approx(0.8)
    text = table1.markdown(summary)
    assert (
        "| hierarchical | 0.5 1 2 | 58.0 ± 2.0 | 3 | 1.25x | 0.130 | 1.30x | 1.20x |" in text
        and "| 0.5x | 0.30 | 0.80 |" in text
    )
    for chart in (cost_chart(summary["lines"]), gain_chart(summary["gains"], table1.THIN)):
        assert ElementTree.fromstring(chart).tag.endswith("svg")
    assert "hierarchical {0.5, 1, 2}" in cost_chart(summary["lines"]) and "+10.0" in gain_chart(
        summary["gains"], table1.THIN
    )


def test_every_line_of_table1_is_scored_by_its_model() -> None:
    for _, model, scales, combine in table1.LINES:
        lists = [
            (
                tuple(map(float, text.split(","))),
                "max" if "eval.combine=max" in scoring.overrides else "average",
            )
            for scoring in table1.MODELS[model][1]
            for text in scoring.lists
        ]
        assert (scales, combine) in lists


def test_a_table_trains_seed_by_seed_with_distinct_recipes(tmp_path: Path) -> None:
    options = table1.parse(["--output", str(tmp_path), "--runs", str(tmp_path), "optim.epochs=2"])
    runs = table1.runs_of(options, "drawn so")
    assert len(runs) == sum(table1.SEEDS.values()) and [found.seed for found in runs] == sorted(
        found.seed for found in runs
    )
    assert len({found.recipe() for found in runs}) == len(table1.MODELS) and len(
        {found.row for found in runs}
    ) == len(runs)


def test_table2_pairs_rows_with_the_baseline_and_its_rows_differ_in_two_options(
    tmp_path: Path,
) -> None:
    rows = [
        {"method": name, "seed": seed, "scored": [{"miou": base + 0.01 * seed}]}
        for name, base in (
            ("baseline", 0.5),
            ("attention", 0.53),
            ("auto-labels", 0.54),
            ("both", 0.58),
        )
        for seed in range(2)
    ]
    text = table2.markdown(table2.summarise(rows))
    assert "| both | yes | yes | 58.5 ± 0.7 | +8.00 (0.00) | 2 |" in text
    options = table2.parse(["--output", str(tmp_path)])
    one, other = (table2.run_of(options, name, 0, "") for name in ("baseline", "both"))
    assert set(one.overrides) ^ set(other.overrides) == {
        "model.multiscale=single",
        "data.extra.labels=coarse",
        "model.multiscale=hierarchical",
        "data.extra.labels=auto",
    }


@pytest.fixture
def scenes(tmp_path: Path) -> str:
    """An override that names three drawn scenes."""
    one_each = (f"--{split}=1" for split in ("train", "val", "test", "workers"))
    assert draw([str(tmp_path / "scenes"), "--size", "64", "128", *one_each, "--extra=0"]) == 0
    return f"data.root={tmp_path / 'scenes'}"


@pytest.mark.parametrize("module", [table1, table2])
def test_what_a_user_can_get_wrong_ends_before_anything_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scenes: str, module: Any
) -> None:
    doors = FakeDoors(monkeypatch)
    (tmp_path / "file").touch()
    into = ["--output", str(tmp_path / "out"), "--runs", str(tmp_path / "runs")]
    for words, said in (
        (
            ["optim.epochs=2"],
            "--output: .*holds the table of table[12].yaml as it is.*name a folder",
        ),
        (["--split", "val"], "--output: .*name a folder"),
        ([*into, "--split", "nope", scenes], "no split 'nope'"),
        ([*into, "data.root=nowhere"], "data root .*nowhere does not exist"),
        (
            ["--output", str(tmp_path / "file"), "--runs", str(tmp_path / "runs"), scenes],
            "file/rows: cannot be made .*--output",
        ),
        (
            ["--output", str(tmp_path / "out"), "--runs", str(tmp_path / "file"), scenes],
            "file: cannot be made .*--runs",
        ),
    ):
        with pytest.raises(table_runs.user_errors(), match=said):
            module.main(module.parse(words))
    for words in (
        ["--seeds", "0"],
        ["--seeds", "-1"],
        ["--jobs", "0"],
        ["--threads", "x"],
        *([["--threshold", "2"]] if module is table2 else []),
    ):
        with pytest.raises(SystemExit) as ended:
            module.parse(words)
        assert ended.value.code == 2
    assert not doors.calls


def test_a_table_that_is_stopped_takes_its_trainings_along(tmp_path: Path) -> None:
    """SIGTERM to the script alone: the child ends too, and nothing further is begun."""
    code = (
        "import signal, sys\nfrom pathlib import Path\nfrom scripts import table_runs\nsignal.signal(signal.SIGTERM, table_runs._stop)\n"
        "table_runs.ROOT = Path(sys.argv[1])\ntable_runs.door('child.py', threads=1, log=Path(sys.argv[1]) / 'log')\nprint('went on')"
    )
    (tmp_path / "child.py").write_text(
        "import os, sys, time\nopen('pid', 'w').write(str(os.getpid()))\ntime.sleep(60)"
    )
    script = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    while not ((tmp_path / "pid").is_file() and (tmp_path / "pid").read_text()):
        time.sleep(0.05)
    script.terminate()
    assert script.communicate(timeout=30)[0] == "" and script.returncode == 128 + signal.SIGTERM
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def test_the_table_holds_the_rows_that_are_there_besides_those_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scenes: str
) -> None:
    FakeDoors(monkeypatch)

    def make(*models: str) -> set[str]:
        words = [
            "--seeds",
            "1",
            "--no-costs",
            "--runs",
            str(tmp_path / "runs"),
            "--output",
            str(tmp_path),
            scenes,
        ]
        assert table1.main(table1.parse(["--models", *models, *words])) == 0
        return {
            line["model"] for line in json.loads((tmp_path / "table1.json").read_text())["lines"]
        }

    assert make("explicit") == {"explicit"}
    assert make("hierarchical") == {"explicit", "hierarchical"}
