"""The miniatures of the paper's tables.

Which rows are kept, what is made of them, and that the charts are well-formed.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hmsa.utils.words import UserError
from scripts import table1, table2
from scripts.make_demo_data import main as draw
from scripts.tables import program
from scripts.tables import runs as table_runs
from scripts.tables.charts import cost_chart, gain_chart
from scripts.tables.runs import Run, Scoring, TableError, perform, perform_all

ROOT = table_runs.ROOT
RESULTS = ROOT / "results"
DEMO = ROOT / "configs" / "demo.yaml"


def run(folder: Path, *overrides: str, seed: int = 0, **changes: Any) -> Run:
    parts: dict[str, Any] = {
        "split": "test",
        "scorings": (Scoring(("0.5,1,2", "1")),),
        "data_recipe": "drawn so",
        **changes,
    }
    return Run(
        parts.pop("method", "hierarchical"),
        seed,
        DEMO,
        overrides,
        runs=folder / "runs",
        row=folder / f"row-{seed}.json",
        **parts,
    )


class FakePrograms:
    """Stands for train.py and eval.py: notes the calls, and writes what eval.py would."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, broken_seed: int | None = None) -> None:
        self.calls: list[tuple[str, ...]] = []
        self.broken_seed = broken_seed
        monkeypatch.setattr(table_runs, "run_program", self)

    def __call__(self, name: str, *arguments: str, threads: int, log: Path) -> None:
        self.calls.append((name, *arguments))
        if name == "train.py":
            log.parent.mkdir(parents=True, exist_ok=True)
            if f"experiment.seed={self.broken_seed}" in arguments:
                raise TableError("train.py ended with status 1")
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
    programs = FakePrograms(monkeypatch)
    row = perform(run(tmp_path))
    assert [call[0] for call in programs.calls] == ["train.py", "eval.py"] and row["scored"][0][
        "miou"
    ] == 0.6
    assert perform(run(tmp_path)) == row and len(programs.calls) == 2
    assert (
        not run(tmp_path, "optim.epochs=2").finished_row()
        and not run(tmp_path, data_recipe="drawn otherwise").finished_row()
    )
    assert run(tmp_path, "runtime.log_every=7", "data.root=elsewhere").finished_row()
    assert run(tmp_path, "data.crop=[96,192]").finished_row()  # the value it has already


def test_a_training_is_kept_when_only_the_scoring_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    programs = FakePrograms(monkeypatch)
    perform(run(tmp_path))
    folder = run(tmp_path).folder
    (tmp_path / "row-0.json").unlink()
    (folder / "test-0" / "metrics.json").unlink()
    (folder / "test-0").rmdir()
    perform(run(tmp_path))
    assert [call[0] for call in programs.calls] == ["train.py", "eval.py", "eval.py"]


def test_what_begins_with_another_run_leaves_its_checkpoint_and_trains_it_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    programs = FakePrograms(monkeypatch)
    parent = run(tmp_path)
    rows = {name: tmp_path / f"{name}.json" for name in ("attached", "calibrated", "again")}
    attached = run(tmp_path, method="attached", parent=parent, made_by=("attach", "--scales", "1"))
    attached = replace(attached, row=rows["attached"])
    made = {
        "attached": attached,
        "calibrated": replace(
            attached,
            method="calibrated",
            parent=attached,
            made_by=("calibrate",),
            row=rows["calibrated"],
        ),
        "again": replace(attached, method="again", made_by=(), row=rows["again"]),
    }
    assert len({one.recipe() for one in (parent, *made.values())}) == 4
    perform_all([*made.values(), parent], jobs=2)
    assert all(path.is_file() for path in rows.values())

    # Each command reads its parent's checkpoint and writes into a folder of its own.
    words = {call[1]: call for call in programs.calls if call[0] == "hmsa"}
    names = [call[0] for call in programs.calls]
    assert sorted(words) == ["attach", "calibrate"] and names.count("train.py") == 1
    assert names.count("hmsa") == 2 and names.count("eval.py") == 4
    assert words["attach"][2:4] == ("--checkpoint", str(parent.best_checkpoint))
    # Rows that are published keep what attaching did when they were made.
    assert words["attach"][-3:] == (
        "optim.epochs=6",
        "loss.aux_weight=0.4",
        "runtime.val_every=12",
    )
    assert words["calibrate"][2:4] == ("--checkpoint", str(attached.best_checkpoint))
    output = words["calibrate"].index("--output") + 1
    assert words["calibrate"][output] == str(made["calibrated"].best_checkpoint)
    scored = [call[call.index("--checkpoint") + 1] for call in programs.calls if "--split" in call]
    assert scored.count(str(parent.best_checkpoint)) == 2


def test_one_failure_leaves_the_other_rows_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    FakePrograms(monkeypatch, broken_seed=1)
    with pytest.raises(TableError, match="status 1"):
        perform_all([run(tmp_path, seed=seed) for seed in range(3)], jobs=1)
    assert [bool(run(tmp_path, seed=seed).finished_row()) for seed in range(3)] == [
        True,
        False,
        True,
    ]


def test_a_program_that_fails_shows_the_end_of_its_log(tmp_path: Path) -> None:
    with pytest.raises(TableError, match=r"(?s)train.py .*status 2.*no such file"):
        missing = str(tmp_path / "missing.yaml")
        table_runs.run_program("train.py", missing, threads=1, log=tmp_path / "log")


def test_data_of_a_recipe_is_drawn_once_and_its_size_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = str(tmp_path / "drawn")
    words = "--size 64 128 --train 2 --val 0 --test 1 --extra 0 --workers 1"
    monkeypatch.setitem(program.DRAWINGS, root, words)
    program.draw(root)
    first = program.describe_drawing(root)
    assert '"size": [64, 128]' in first and first.endswith(" 2")

    image = next((tmp_path / "drawn" / "leftImg8bit" / "train").rglob("*.png"))
    written = image.stat().st_mtime_ns
    program.draw(root)
    assert program.describe_drawing(root) == first and image.stat().st_mtime_ns == written
    image.unlink()
    program.draw(root)
    assert program.describe_drawing(root) == first and image.exists()  # what is missing is drawn

    monkeypatch.setitem(program.DRAWINGS, root, words.replace("--train 2", "--train 3"))
    program.draw(root)
    assert program.describe_drawing(root) == first[:-1] + "3"
    assert program.describe_drawing(str(tmp_path)) == ""
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").touch()
    monkeypatch.setitem(program.DRAWINGS, str(tmp_path / "taken"), "")
    with pytest.raises(TableError, match="could not be drawn"):
        program.draw(str(tmp_path / "taken"))


def test_scenes_of_version_1_are_those_that_published_rows_name_by_a_hash(tmp_path: Path) -> None:
    """A comment in the code that draws may not invalidate a published row."""
    texts = []
    for drawing in (1, "9c331d59265c", 2):
        recipe = {"seed": 0, "size": [192, 384], "drawing": drawing}
        (tmp_path / "demo.json").write_text(json.dumps({"recipe": recipe}))
        texts.append(program.describe_drawing(str(tmp_path)))
    assert texts[0] == texts[1] == published_drawing((192, 384), 0) and texts[2] != texts[0]

    for damaged in ("{", "[]", '{"recipe": {}}'):
        (tmp_path / "demo.json").write_text(damaged)
        with pytest.raises(TableError, match="demo.json: .*draw it again"):
            program.describe_drawing(str(tmp_path))


def published_drawing(size: tuple[int, int], images: int) -> str:
    """What stands for drawn data in the recipes of published rows."""
    recipe = {"seed": 0, "size": list(size), "drawing": "9c331d59265c"}
    return f"{json.dumps({'recipe': recipe})} {images}"


PUBLISHED = {  # folder: the words of its command, and how its data was drawn
    "table1": ([], published_drawing((192, 384), 768)),
    "table1_long": (
        ["--config", "configs/demo/table1_long.yaml", "--attach-epochs", "2"],
        published_drawing((192, 384), 768),
    ),
    "table1_ratios": (
        ["model.random_ratio=[0.25,0.75]", "loss.scale_weight=0.05"],
        published_drawing((192, 384), 768),
    ),
    "demo": (["--config", "configs/demo/large.yaml"], published_drawing((256, 512), 192)),
    "cross_entropy": (
        ["--config", "configs/demo/large.yaml", "loss.main=cross_entropy"],
        published_drawing((256, 512), 192),
    ),
    "camvid": (["--config", "configs/camvid/table1.yaml", "--split", "val"], ""),
    "camvid_pretrained/attached": (
        [
            *("--config", "configs/camvid/efficientnet.yaml", "--split", "val", "--no-flip"),
            *("--judge", "train", "--attach-epochs", "2"),
            *("--lists", "0.5,1,2", "1", "0.5,1", "0.25,0.5,1,2"),
        ],
        "",
    ),
    "camvid_pretrained/table": (
        [
            *("--config", "configs/camvid/efficientnet_hierarchical.yaml", "--split", "val"),
            *("--no-flip", "--judge", "train", "--lists", "0.5,1,2", "1", "0.5,1", "0.25,0.5,1,2"),
            *("loss.binary_class_weights=log", "optim.epochs=20"),
            *("runtime.val_every=20", "runtime.image_every=20"),
        ],
        "",
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_rows_of_table1_are_kept_and_make_the_published_table(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their recipes are those of the configurations as they are now."""
    monkeypatch.chdir(ROOT)
    words, drawing = PUBLISHED[name]
    options = table1.parse([*words, "--output", str(RESULTS / name)])
    found = table1.runs_of(options, drawing, list(table1.MODELS), None)
    files = sorted((RESULTS / name / "rows").glob("*.json"))
    kept = {run.row: run.finished_row() for run in found if run.row in files}
    assert sorted(kept) == files and all(kept.values())

    published = json.loads((RESULTS / name / "table1.json").read_text())
    costs = {line["model"]: line["cost"] for line in published["lines"]}
    summary = table1.summarise([kept[file] for file in files], costs)
    for part in ("lines", "differences", "gains", "attention"):
        assert json.loads(json.dumps(summary[part])) == published[part]
    assert table1.markdown(summary) == (RESULTS / name / "table1.md").read_text()
    for file, chart in (
        ("cost.svg", lambda: cost_chart(summary["lines"])),
        ("gains.svg", lambda: gain_chart(summary["gains"], table1.THIN)),
    ):
        if (RESULTS / name / file).exists():
            assert chart() == (RESULTS / name / file).read_text()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("table2", []),
        (
            "table2_long",
            ["--config", "configs/demo/table2_long.yaml", "--attach-epochs", "8"],
        ),
        (
            "table2_long_threshold",
            ["--config", "configs/demo/table2_long.yaml", "--attach-epochs", "8"],
        ),
    ],
)
def test_published_rows_of_table2_are_kept_and_make_the_published_table(
    name: str, words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    options = table2.parse([*words, "--output", str(RESULTS / name)])
    drawing, rows = published_drawing((192, 384), 192), []
    for file in sorted((RESULTS / name / "rows").glob("*.json")):
        row = json.loads(file.read_text())
        rows.append(row)
        if table2.ROWS[row["method"]].labels == "coarse":  # others name their teacher's labels
            run = table2.run_of(options, row["method"], row["seed"], drawing)
            assert run.row == file and run.finished_row() == row
    assert sorted({row["method"] for row in rows}) == sorted(table2.ROWS)
    text = table2.markdown(table2.summarise(rows))
    assert text == (RESULTS / name / "table2.md").read_text()


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
    assert not any(line["scales"] == [0.5, 1.0] for line in summary["lines"])
    rows = rows_of_table1()
    rows[0]["scored"].append({"scales": [0.5, 1.0], "combine": "average", "miou": 0.48})
    (line,) = (line for line in table1.summarise(rows, {})["lines"] if len(line["scales"]) == 2)
    assert line["name"] == "average" and line["by_seed"] == {0: 0.48}
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
            (text, "max" if "eval.combine=max" in scoring.overrides else "average")
            for scoring in table1.MODELS[model].scorings
            for text in scoring.lists
        ]
        assert (scales, combine) in lists


def test_a_table_trains_seed_by_seed_with_distinct_recipes(tmp_path: Path) -> None:
    options = table1.parse(["--output", str(tmp_path), "--runs", str(tmp_path), "optim.epochs=2"])
    runs = table1.runs_of(options, "drawn so", options.models, options.seeds)
    assert len(runs) == sum(model.seeds for model in table1.MODELS.values()) and [
        found.seed for found in runs
    ] == sorted(found.seed for found in runs)
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


def test_table2_attaches_attention_to_the_networks_without_it_where_it_is_asked_to(
    tmp_path: Path,
) -> None:
    words = ["--output", str(tmp_path), "--attach-epochs", "8"]
    options = table2.parse(words)
    labels = table2.TeacherLabels(tmp_path / "labels", 0.7)
    baseline, student = (
        table2.run_of(options, "baseline", 1, ""),
        table2.run_of(options, "auto-labels", 1, "", labels),
    )
    assert baseline.parent is student.parent is None

    for name, parent, given in (("attention", baseline, None), ("both", student, labels)):
        run = table2.run_of(options, name, 1, "", given)
        assert run.parent == parent and run.overrides == parent.overrides
        assert run.made_by == ("attach", "--scales", "0.5", "1", "2", "optim.epochs=8")
        together = table2.run_of(table2.parse(words[:2]), name, 1, "", given)
        assert together.parent is None and together.recipe() != run.recipe()

    with pytest.raises(UserError, match="--output: the published table trains attention and"):
        table2.make_table(table2.parse(words[2:]))


def test_table1_scores_the_lists_that_are_asked_for_and_keeps_such_rows_apart(
    tmp_path: Path,
) -> None:
    into = ["--output", str(tmp_path)]
    usual = table1.run_of_model(table1.parse(into), "", "single", 0)
    words = [*into, "--lists", "1", "[0.5, 1]", "--no-flip"]
    options = table1.parse(words)
    run = table1.run_of_model(options, "", "single", 0)
    assert run.scorings == (table1.Scoring(("1", "0.5,1"), ("eval.flip=false",)),)
    assert run.overrides == usual.overrides and run.recipe() != usual.recipe()

    # Without lists every scoring of the table changes so.
    run = table1.run_of_model(table1.parse([*into, "--no-flip"]), "", "single", 0)
    assert [scoring.lists for scoring in run.scorings] == [s.lists for s in usual.scorings]
    assert run.scorings[1].overrides == ("eval.combine=max", "eval.flip=false")

    # Calibrations may be judged by another split.
    options = table1.parse([*into, "--judge", "train"])
    for model, words in (("calibrated", ("--judge", "train")), ("attached", ("1", "2"))):
        assert table1.run_of_model(options, "", model, 0).made_by[-2:] == words

    # Attached rows may be made as `hmsa attach` makes them today.
    options = table1.parse([*into, "--attach-epochs", "2"])
    attached = table1.run_of_model(options, "", "attached", 0)
    assert attached.made_by[-1] == "optim.epochs=2"
    assert table1.run_of_model(options, "", "attached calibrated", 0).parent == attached
    words = table_runs._training_words(attached)[1]
    assert [word for word in words if "epochs" in word or "aux" in word] == ["optim.epochs=2"]

    with pytest.raises(UserError, match="--output: the published table keeps the way"):
        table1.make_table(table1.parse(["--lists", "1"]))
    with pytest.raises(SystemExit):
        table1.parse([*into, "--lists", "one"])


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
    programs = FakePrograms(monkeypatch)
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
            ["--output", str(tmp_path / "scenes"), "--runs", str(tmp_path / "runs"), scenes],
            "scenes holds something else than a table",
        ),
        (
            ["--output", str(tmp_path / "out"), "--runs", str(tmp_path / "file"), scenes],
            "file: cannot be made .*--runs",
        ),
    ):
        with pytest.raises(UserError, match=said):
            module.make_table(module.parse(words))
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
    assert not programs.calls


def test_a_table_that_is_stopped_takes_its_trainings_along(tmp_path: Path) -> None:
    """SIGTERM to the script alone: the child ends too, and nothing further is begun."""
    code = """
import signal, sys
from pathlib import Path
from scripts.tables import runs
signal.signal(signal.SIGTERM, runs.stop_children)
runs.ROOT = Path(sys.argv[1])
runs.run_program("child.py", threads=1, log=Path(sys.argv[1]) / "log")
print("went on")
"""
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
    FakePrograms(monkeypatch)

    def make(*models: str) -> set[str]:
        words = [
            "--seeds",
            "1",
            "--no-costs",
            "--runs",
            str(tmp_path / "runs"),
            "--output",
            str(tmp_path / "table"),
            scenes,
        ]
        assert table1.make_table(table1.parse(["--models", *models, *words])) == 0
        summary = json.loads((tmp_path / "table" / "table1.json").read_text())
        return {line["model"] for line in summary["lines"]}

    assert make("explicit") == {"explicit"}
    assert make("hierarchical") == {"explicit", "hierarchical"}


def test_a_row_that_is_damaged_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever a power cut or a hand left of it, or of the note of its time."""
    programs = FakePrograms(monkeypatch)
    row = perform(run(tmp_path))
    whole = (tmp_path / "row-0.json").read_text()
    for damaged in (whole[:-40], "", "[]", "null", whole.replace('"scored"', '"scores"')):
        (tmp_path / "row-0.json").write_text(damaged)
        assert run(tmp_path).finished_row() is None
    (run(tmp_path).folder / "trained.json").write_text('{"train_')
    shutil.rmtree(run(tmp_path).folder / "test-0")
    assert {**perform(run(tmp_path)), "train_s": row["train_s"]} == row
    assert [call[0] for call in programs.calls] == ["train.py", "eval.py"] * 2


def test_damaged_costs_are_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scenes: str
) -> None:
    FakePrograms(monkeypatch)
    (tmp_path / "table" / "rows").mkdir(parents=True)
    (tmp_path / "table" / "costs.json").write_text('{"single": {')
    into = ["--output", str(tmp_path / "table"), "--runs", str(tmp_path / "runs")]
    words = ["--models", "explicit", "--seeds", "1", "--no-costs", *into, scenes]
    with pytest.raises(TableError, match="costs.json: is damaged; remove it"):
        table1.make_table(table1.parse(words))
