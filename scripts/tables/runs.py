"""Many trainings and evaluations for one table: each is a run of train.py and of eval.py.

A run leaves a row of JSON. A row is made once: it is kept as long as its recipe (the resolved
configuration, the evaluations and the drawing of the data) is the same. A run that was stopped goes
on where it was. A run may begin with the checkpoint of another one, its parent, which stays as it
is: `hmsa calibrate` and `hmsa attach` make a further one of it.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from types import FrameType
from typing import Any

from hmsa.utils.config import load_config
from hmsa.utils.files.writing import write_file
from hmsa.utils.words import UserError

ROOT = Path(__file__).resolve().parents[2]
# Settings that change where and how quickly a row is made, but not what is in it.
COSMETIC = {
    "experiment": ("name", "output", "seed"),
    "data": ("root", "workers"),
    "runtime": ("threads", "log_every", "image_every", "checkpoint_minutes"),
}


# Calibration is a row of its own: the others are scored as they were trained.
UNCALIBRATED = "runtime.calibrate=false"


class TableError(UserError, RuntimeError):
    """A table cannot be made as asked, or a training or an evaluation ended with an error."""


@dataclass(frozen=True)
class Scoring:
    """One call of eval.py: a first list of scales, others beside it, and overrides.

    Such an override is eval.combine=max.
    """

    lists: tuple[str, ...]
    overrides: tuple[str, ...] = ()


@dataclass(frozen=True)
class Run:
    """A training and what is scored after it.

    `method` and `seed` name it, `runs` is the folder of all run folders, and `row` the file of what
    came out. `data_recipe` says how the data was made, where `config` does not.
    """

    method: str
    seed: int
    config: Path
    overrides: tuple[str, ...]
    scorings: tuple[Scoring, ...]
    split: str
    runs: Path
    row: Path
    threads: int = 1
    data_recipe: str = ""
    parent: Run | None = None
    made_by: tuple[str, ...] = ()

    def recipe(self) -> str:
        """A hash of all that the result depends on, apart from the seed.

        What has its default does not count, so that a new option changes no recipe.
        """
        config = load_config(self.config, (*self.overrides, UNCALIBRATED))
        resolved = config.model_dump(mode="json", exclude_defaults=True)

        # Random trunks were the default when the first rows were made, so that they are not named.
        model = resolved.setdefault("model", {})
        model["trunk_weights"] = config.model.trunk_weights
        if config.model.trunk_weights is None:
            del model["trunk_weights"]
        for section, names in COSMETIC.items():
            for name in names:
                resolved.get(section, {}).pop(name, None)

        # Where further labels lie does not count either; `data_recipe` says what they are.
        extra = resolved.get("data", {}).get("extra") or {}
        extra.pop("root", None)
        # What was the default when the first rows were made is not named.
        if extra.get("split") == "train_extra":
            del extra["split"]

        scorings = [[list(scoring.lists), list(scoring.overrides)] for scoring in self.scorings]
        content = [resolved, scorings, self.split, self.data_recipe]
        if self.parent is not None:
            content += [self.parent.recipe(), list(self.made_by)]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]

    def finished_row(self) -> dict[str, Any] | None:
        """Its row, where it is there and was made with the same recipe."""
        try:
            row = json.loads(self.row.read_text(encoding="utf-8"))
            is_whole = all(isinstance(entry["miou"], float) for entry in row["scored"])
        except (OSError, ValueError, KeyError, TypeError):
            return None
        if not is_whole or row.get("recipe") != self.recipe():
            return None
        return dict(row)

    @property
    def folder(self) -> Path:
        """Where train.py keeps the run."""
        return self.runs / f"{self.method.replace(' ', '_')}-{self.seed}-{self.recipe()}"

    @property
    def best_checkpoint(self) -> Path:
        """What is scored, what labels images for others, and what other runs begin with."""
        if self.parent is not None and not self.made_by:
            return self.parent.best_checkpoint
        return self.folder / "checkpoints" / "best.pt"


def perform_all(runs: Sequence[Run], *, jobs: int) -> list[dict[str, Any]]:
    """Perform what is missing, `jobs` at a time; returns the rows in the order of `runs`.

    Raises:
        TableError: the first failure, after the other runs are done.
    """
    missing = [run for run in runs if run.finished_row() is None]
    print(
        f"{len(runs) - len(missing)} of {len(runs)} rows are there; "
        f"{len(missing)} to make, {jobs} at a time",
        flush=True,
    )
    failures: list[TableError] = []

    def perform_one(run: Run) -> None:
        title = f"{run.method} seed {run.seed}"
        print(f"{title}: begins, log in {run.folder / 'stdout.log'}", flush=True)
        try:
            row = perform(run)
        except TableError as error:
            failures.append(error)
            print(f"{title}: failed", flush=True)
            return

        best = max(row["scored"], key=lambda entry: entry["miou"])
        print(
            f"{title}: {100 * best['miou']:.1f} % at {best['scales']} "
            f"after {row['train_s']:.0f} s of training",
            flush=True,
        )

    # Threads are enough: each waits for a process of its own.
    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(perform_one, missing))
    if failures:
        raise failures[0]
    return [perform(run) for run in runs]


def perform(run: Run) -> dict[str, Any]:
    """Train, going on where a stopped run was, then score and write the row; returns the row."""
    finished = run.finished_row()
    if finished is not None:
        return finished

    train_s = _trained(run)
    scored = [_score(run, number) for number in range(len(run.scorings))]
    compared = [
        {**entry, "combine": metrics["combine"]}
        for metrics in scored
        for entry in metrics["compared"]
    ]
    row = {
        "method": run.method,
        "seed": run.seed,
        "recipe": run.recipe(),
        "split": run.split,
        "images": scored[0]["images"],
        "commit": commit(),
        "threads": run.threads,
        "train_s": train_s,
        "checkpoint_sha256": scored[0]["checkpoint_sha256"],
        "attention_share": scored[0].get("attention_share"),
        "scored": compared,
    }
    write_file(run.row, json.dumps(row, indent=1) + "\n", durable=True)
    return row


# One run is trained once, also where several others begin with it at the same time.
_locks: defaultdict[Path, Lock] = defaultdict(Lock)


def _trained(run: Run) -> float:
    """Train, or make the checkpoint of the parent's; returns the seconds that it took.

    What is done already is kept, with the seconds that it took.
    """
    if run.parent is not None:
        parent_s = _trained(run.parent)
        if not run.made_by:
            return parent_s

    marker = run.folder / "trained.json"
    with _locks[run.folder]:
        try:
            return float(json.loads(marker.read_text(encoding="utf-8"))["train_s"])
        except (OSError, ValueError, KeyError, TypeError):
            pass  # not there, or cut off by a power cut: the command itself knows what is done

        begin = time.monotonic()
        name, words = _training_words(run)
        log = run.folder / "stdout.log"
        run_program(name, *words, threads=run.threads, log=log)

        # The time of a run that was stopped and went on is that of its last part.
        train_s = round(time.monotonic() - begin, 1)
        write_file(marker, json.dumps({"train_s": train_s}), durable=True)
    return train_s


def _training_words(run: Run) -> tuple[str, list[str]]:
    """The program that makes a run's checkpoint, and its arguments."""
    threads = f"runtime.threads={run.threads}"
    if run.parent is None:
        folder = [f"experiment.output={run.folder}", f"experiment.seed={run.seed}"]
        words = [str(run.config), "--resume", *run.overrides, *folder, threads, UNCALIBRATED]
        return "train.py", words

    # Data and seed are those of the parent, whose checkpoint carries them.
    command, *options = run.made_by
    words = [command, "--checkpoint", str(run.parent.best_checkpoint), *options]
    if command == "attach":
        words += ["--resume", "--output", str(run.folder), threads, UNCALIBRATED]

        # Rows that state no length are attached as the first published ones were.
        if not any("=" in option for option in options):
            words += _first_recipe_of_attach(run.parent)
        return "hmsa", words
    return "hmsa", [*words, "--output", str(run.best_checkpoint), threads]


def _first_recipe_of_attach(parent: Run) -> list[str]:
    """What `hmsa attach` did when the first rows were made: no part of the recipe's hash."""
    config = load_config(parent.config, (*parent.overrides, UNCALIBRATED))
    return [
        f"optim.epochs={max(1, round(config.optim.epochs / 4))}",
        f"loss.aux_weight={config.loss.aux_weight}",
        f"runtime.val_every={config.runtime.val_every}",
    ]


def _score(run: Run, number: int) -> dict[str, Any]:
    """The metrics.json of one evaluation."""
    scoring = run.scorings[number]
    output = run.folder / f"{run.split}-{number}"
    first, *others = scoring.lists
    compare = []
    if others:
        compare = ["--compare", *others]

    run_program(
        "eval.py",
        "--checkpoint",
        str(run.best_checkpoint),
        "--split",
        run.split,
        "--scales",
        *first.split(","),
        *compare,
        "--output",
        str(output),
        f"runtime.threads={run.threads}",
        *scoring.overrides,
        threads=run.threads,
        log=run.folder / "stdout.log",
    )
    return dict(json.loads((output / "metrics.json").read_text(encoding="utf-8")))


# The programs that run now, for `stop_children`.
_children: set[subprocess.Popen[bytes]] = set()


def run_program(name: str, *arguments: str, threads: int, log: Path) -> None:
    """Run a program of the checkout, such as train.py, with its output appended to `log`.

    "hmsa" stands for the command of that name.

    Raises:
        TableError: it failed; the message holds the last line that it wrote.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    program = [str(ROOT / name)]
    if name == "hmsa":
        program = ["-m", "hmsa"]
    command = [sys.executable, *program, *arguments]
    with (
        open(log, "a", encoding="utf-8") as stream,
        subprocess.Popen(command, cwd=ROOT, env=environment, stdout=stream, stderr=stream) as child,
    ):
        _children.add(child)
        status = child.wait()
        _children.discard(child)

    if status:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
        last = " ".join(lines[-1:])
        raise TableError(f"{name} ended with status {status}: {last} (all of it in {log})")


def stop_children(number: int, frame: FrameType | None) -> None:
    """A signal handler: end, and let the trainings that run save what they learnt and end, too."""
    for child in list(_children):
        child.terminate()
    sys.exit(128 + number)


def commit() -> str:
    """The checkout's commit, with + where files that git tracks were changed."""
    described = subprocess.run(
        ["git", "describe", "--always", "--dirty=+", "--abbrev=10"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    return described.stdout.strip() or "unknown"
