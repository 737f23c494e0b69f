"""Many trainings and evaluations for one table: each is a run of train.py and eval.py, restartable, and leaves a row of JSON.

A row is made once: it is kept as long as its recipe (the resolved configuration, the evaluations and the drawing of the data) is the same.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread
from types import FrameType
from typing import Any

from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from hmsa.engine.command_line import at_least, run_door
from hmsa.utils.config import load_config

COSMETIC = {
    "experiment": ("name", "output", "seed"),
    "data": ("root", "workers"),
    "runtime": ("threads", "log_every", "image_every", "checkpoint_minutes"),
}

DRAWINGS = {  # data.root of a recipe: what scripts/make_demo_data.py is asked for
    "data/table1": (
        "--size",
        "192",
        "384",
        "--train",
        "768",
        "--val",
        "100",
        "--test",
        "100",
        "--extra",
        "0",
    ),
    "data/table2": (
        "--size",
        "192",
        "384",
        "--train",
        "192",
        "--val",
        "40",
        "--test",
        "100",
        "--extra",
        "576",
    ),
}


class RunError(RuntimeError):
    """A table cannot be made as asked, or a training or an evaluation ended with an error."""


def table_parser(doc: str | None, *, name: str) -> argparse.ArgumentParser:
    """The command line that the tables share; the recipe of that name has results/NAME as its --output, others have none (`prepare`)."""
    recipe, output, runs = (
        ROOT / "configs" / "demo" / f"{name}.yaml",
        ROOT / "results" / name,
        ROOT / "runs" / name,
    )
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--config",
        type=Path,
        default=recipe,
        help="recipe that all rows share (default: %(default)s)",
    )
    parser.add_argument("--split", default="test", help="split to score (default: %(default)s)")
    parser.add_argument(
        "--output", type=Path, help=f"rows and tables (default, for the default recipe: {output})"
    )
    parser.add_argument(
        "--runs", type=Path, default=runs, help="run folders (default: %(default)s)"
    )
    parser.add_argument(
        "--jobs", type=at_least(1), default=2, help="trainings at a time (default: %(default)s)"
    )
    parser.add_argument(
        "--threads", type=at_least(1), default=1, help="threads of each (default: %(default)s)"
    )
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="section.key=value",
        help="change the recipe, e.g. optim.epochs=10",
    )
    parser.set_defaults(published=(recipe, output))
    return parser


def prepare(options: argparse.Namespace) -> str:
    """Look at all that can be wrong before anything is trained, make the folders, draw missing data; how the data was drawn (`drawing`).

    Paths become absolute and the checkout the working folder, as it is for the doors.
    """
    from hmsa.engine import build as assemble

    recipe, output = options.published
    settings = load_config(options.config, options.overrides)
    if options.output is None:
        if options.config.resolve() != recipe or options.overrides or options.split != "test":
            raise RunError(
                f"--output: {output} holds the table of {recipe.name} as it is, on the test split; name a folder for this other table"
            )
        options.output = output
    options.config, options.output, options.runs = (
        options.config.absolute(),
        options.output.absolute(),
        options.runs.absolute(),
    )
    for folder in (options.output / "rows", options.runs):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(
                f"{folder}: cannot be made ({error.strerror}); name other folders with --output and --runs"
            ) from error
    os.chdir(ROOT)
    drawn = drawing(settings.data.root)
    assemble.split_files(settings, options.split)
    return drawn


def run_table(main: Callable[[argparse.Namespace], int], options: argparse.Namespace) -> int:
    """Run a table's `main` as a program: its exit status, its errors in one sentence, and SIGTERM takes the trainings along."""
    signal.signal(signal.SIGTERM, _stop)
    return run_door(lambda: main(options), user_errors=user_errors)


def user_errors() -> tuple[type[Exception], ...]:
    """What ends a table in one sentence."""
    from hmsa.engine import build as assemble

    return (*assemble.USER_ERRORS, RunError)


@dataclass(frozen=True)
class Scoring:
    """One call of eval.py: a first list of scales, others beside it, and overrides such as eval.combine=max."""

    lists: tuple[str, ...]
    overrides: tuple[str, ...] = ()


@dataclass(frozen=True)
class Run:
    """A training and what is scored after it. `method` and `seed` name it; `folder` keeps the run, `row` what came out."""

    method: str
    seed: int
    config: Path
    overrides: tuple[str, ...]
    scorings: tuple[Scoring, ...]
    split: str
    folder: Path
    row: Path
    threads: int = 1
    data_recipe: str = ""

    def recipe(self) -> str:
        """A hash of all that the result depends on, apart from the seed; what has its default does not count, so that new options change nothing."""
        resolved = load_config(self.config, self.overrides).model_dump(
            mode="json", exclude_defaults=True
        )
        for section, names in COSMETIC.items():
            for name in names:
                resolved.get(section, {}).pop(name, None)
        (resolved.get("data", {}).get("extra") or {}).pop(
            "root", None
        )  # a place, not a content: `data_recipe` tells what lies there
        content = [
            resolved,
            [[list(scoring.lists), list(scoring.overrides)] for scoring in self.scorings],
            self.split,
            self.data_recipe,
        ]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]

    def is_done(self) -> bool:
        """Whether its row is there and was made with the same recipe."""
        try:
            return bool(json.loads(self.row.read_text(encoding="utf-8"))["recipe"] == self.recipe())
        except (OSError, ValueError, KeyError):
            return False


_children: set[subprocess.Popen[bytes]] = set()


def _stop(number: int, frame: FrameType | None) -> None:
    """End with the trainings that run, which keep what they learnt, instead of leaving them behind."""
    for child in list(_children):
        child.terminate()
    sys.exit(128 + number)


def door(name: str, *arguments: str, threads: int, log: Path) -> None:
    """Run a door with its output in `log`; RunError, with what it said last, where it fails."""
    log.parent.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    command = [sys.executable, str(ROOT / name), *arguments]
    with (
        open(log, "a", encoding="utf-8") as stream,
        subprocess.Popen(command, cwd=ROOT, env=environment, stdout=stream, stderr=stream) as child,
    ):
        _children.add(child)
        status = child.wait()
        _children.discard(child)
    if status:
        last = " ".join(log.read_text(encoding="utf-8").splitlines()[-1:])
        raise RunError(f"{name} ended with status {status}: {last} (all of it in {log})")


def drawing(root: str) -> str:
    """How a drawn data set was drawn and how many images it trains on, so that rows of another one are not taken for this one's ("" where it is
    not a drawn one). What is missing of one of DRAWINGS is drawn now; RunError where that fails."""
    folder = ROOT / root
    if root in DRAWINGS:
        done = subprocess.run(
            [
                sys.executable,
                str(ROOT / "scripts" / "make_demo_data.py"),
                str(folder),
                *DRAWINGS[root],
            ],
            check=False,
        )
        if done.returncode:
            raise RunError(
                f"{folder} could not be drawn (the reason stands above); remove it, or draw elsewhere and name that with data.root="
            )
    marker = folder / "demo.json"
    if not marker.is_file():
        return ""
    return f"{marker.read_text(encoding='utf-8').strip()} {sum(1 for _ in (folder / 'leftImg8bit' / 'train').rglob('*.png'))}"


def folder_of(run: Run) -> Path:
    """Where train.py keeps the run."""
    return run.folder / f"{run.method.replace(' ', '_')}-{run.seed}-{run.recipe()}"


def best_checkpoint(run: Run) -> Path:
    """The best checkpoint of a run, which is what is scored, and what labels images for others."""
    return folder_of(run) / "checkpoints" / "best.pt"


def perform(run: Run) -> dict[str, Any]:
    """Train (going on where a killed one stopped), score, write the row; returns it."""
    if run.is_done():
        return dict(json.loads(run.row.read_text(encoding="utf-8")))
    recipe, folder = run.recipe(), folder_of(run)
    overrides = [
        *run.overrides,
        f"experiment.output={folder}",
        f"experiment.seed={run.seed}",
        f"runtime.threads={run.threads}",
    ]
    trained, start = folder / "trained.json", time.monotonic()
    if not trained.is_file():
        door(
            "train.py",
            str(run.config),
            "--resume",
            *overrides,
            threads=run.threads,
            log=folder / "stdout.log",
        )
        trained.write_text(json.dumps({"train_s": round(time.monotonic() - start, 1)}))
    checkpoint = best_checkpoint(run)
    scored = []
    for number, scoring in enumerate(run.scorings):
        output = folder / f"{run.split}-{number}"
        first, *others = scoring.lists
        compare = ["--compare", *others] if others else []
        door(
            "eval.py",
            "--checkpoint",
            str(checkpoint),
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
            log=folder / "stdout.log",
        )
        scored.append(json.loads((output / "metrics.json").read_text(encoding="utf-8")))
    compared = [
        {**entry, "combine": metrics["combine"]}
        for metrics in scored
        for entry in metrics["compared"]
    ]
    row = {
        "method": run.method,
        "seed": run.seed,
        "recipe": recipe,
        "split": run.split,
        "images": scored[0]["images"],
        "commit": commit(),
        "threads": run.threads,
        **json.loads(trained.read_text()),
        "checkpoint_sha256": scored[0]["checkpoint_sha256"],
        "attention_share": scored[0].get("attention_share"),
        "scored": compared,
    }
    run.row.parent.mkdir(parents=True, exist_ok=True)
    run.row.write_text(json.dumps(row, indent=1) + "\n", encoding="utf-8")
    return row


def perform_all(runs: Sequence[Run], *, jobs: int) -> list[dict[str, Any]]:
    """Perform what is missing, `jobs` at a time, with a bar that tells how far each is; returns the rows in the order of `runs`.

    Raises RunError for the first failure, after the other runs are done.
    """
    missing = [run for run in runs if not run.is_done()]
    print(
        f"{len(runs) - len(missing)} of {len(runs)} rows are there; {len(missing)} to make, {jobs} at a time",
        flush=True,
    )
    failures: list[RunError] = []
    running: list[Run] = []
    bar = tqdm(total=len(missing), unit="run", disable=not missing)
    with ThreadPoolExecutor(max(1, jobs)) as pool, bar, _every(5, lambda: _show(bar, running)):

        def one(run: Run) -> None:
            running.append(run)
            try:
                row = perform(run)
                best = max(row["scored"], key=lambda entry: entry["miou"])
                bar.write(
                    f"{run.method} seed {run.seed}: {100 * best['miou']:.1f} % at {best['scales']} after {row['train_s']:.0f} s"
                )
            except RunError as error:
                failures.append(error)
                bar.write(f"{run.method} seed {run.seed}: failed")
            running.remove(run)
            bar.update()

        list(pool.map(one, missing))
    if failures:
        raise failures[0]
    return [perform(run) for run in runs]


@contextmanager
def _every(seconds: float, do: Callable[[], None]) -> Iterator[None]:
    """Call `do` every so many seconds, from a thread, while the block runs."""
    over = Event()

    def repeat() -> None:
        while not over.wait(seconds):
            do()

    thread = Thread(target=repeat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _show(bar: Any, running: Sequence[Run]) -> None:
    bar.set_postfix_str(", ".join(f"{run.method} {run.seed} {stage(run)}" for run in list(running)))


def stage(run: Run) -> str:
    """How far a run is, in a few words, from what train.py has written about it so far."""
    folder = folder_of(run)
    if (folder / "trained.json").is_file():
        return "scoring"
    try:
        written = (folder / "metrics.jsonl").read_text(encoding="utf-8")
        epoch = json.loads(written[: written.rindex("\n")].splitlines()[-1])["epoch"]
    except (OSError, ValueError, KeyError, IndexError):
        return "starting"
    epochs = load_config(run.config, run.overrides).optim.epochs
    return f"epoch {min(epoch + 1, epochs)} of {epochs}"


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
