"""Compare the speed of two checkouts on the CPU: train, eval, autolabel and rmi, alternately.

    git worktree add /tmp/before COMMIT
    python scripts/compare_checkouts.py /tmp/before [--data data/demo_large] [--json FILE]

Each checkout runs in a process of its own on one thread. They take turns: one does its round while
the other waits, and who begins changes with every round. What is compared are CPU seconds, which a
busy machine changes less than the time on the clock. The network is the demo's. "train" is a step
of a real training of the demo, with reading and augmenting its images; the others are the rounds of
scripts/benchmark.py. The exit status is 1 where the median ratio is above --most.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO
from unittest import mock

# A script runs from any folder: the checkout it lies in comes before what may be installed. One
# that is compared is put before it.
sys.path.insert(1, str(Path(__file__).resolve().parents[1]))

from hmsa.engine.command_line import run_command
from hmsa.utils.words import UserError

ROOT = Path(__file__).resolve().parents[1]
PARTS = ("train", "eval", "autolabel", "rmi")
READY = "ready"


class _AskedEnough(Exception):
    """Ends the training when the other side asks for no further step."""


# --- in the process of one checkout ---


def serve(part: str, data: str) -> None:
    """Do a round whenever a line is read, and print the CPU seconds that it took.

    What is imported is that of the checkout that stands first on sys.path.
    """
    import torch

    # What is printed otherwise, such as the log of the training, is no answer.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        if part == "train":
            train_when_asked(Path(data), Path(folder), answers)
            return
        work = workload_of(part, Path(folder))
        work()

        print(READY, file=answers, flush=True)
        while sys.stdin.readline():
            began = time.process_time()
            work()
            print(time.process_time() - began, file=answers, flush=True)


def workload_of(part: str, folder: Path) -> Callable[[], Any]:
    """One round of a part: an image, some images, or a loss with its gradient."""
    benchmark: Any = importlib.import_module(f"scripts.benchmarks.{part}")
    if part == "rmi":
        workload: Callable[[], Any] = benchmark.build_ours(shape=(1, 19, 256, 512), device="cpu")
        return workload
    if part == "eval":
        from hmsa.network import InferenceOptions

        parts = {"trunk": "hrnet_w18_small", "decoder": "fcn"}
        material = benchmark.Material(parts, (256, 512))
        options = InferenceOptions(scales=(0.5, 1.0, 2.0), flip=True)
        workload = benchmark.ours(material=material, options=options, against=None)
        return workload

    from scripts.measuring.drawn_images import draw_files

    files = draw_files(folder, size=(256, 512), count=4)
    arguments = argparse.Namespace(
        trunk="hrnet_w18_small",
        decoder="fcn",
        precision="fp32",
        workers=1,
        confidence=False,
        device="cpu",
    )
    workload = benchmark.ours(arguments=arguments, files=files, output=folder / "out")
    return workload


def train_when_asked(data: Path, folder: Path, answers: TextIO) -> None:
    """Train the demo; it pauses after each update until the next step is asked for."""
    from hmsa.engine import train
    from hmsa.utils.config import load_config
    from hmsa.utils.training.training_state import TrainingState

    # The crops of configs/demo/large.yaml: checkouts of before that file trained the demo on them.
    overrides = [
        "data.crop=[128,256]",
        "data.class_uniform.tile=128",
        "runtime.device=cpu",
        "runtime.threads=1",
        "data.workers=0",
        "eval.workers=0",
        f"data.root={data}",
        f"data.cache_dir={folder}/cache",
        f"experiment.output={folder}/run",
    ]
    config = load_config("demo", overrides)
    update, began = TrainingState.step, [0.0]

    def paced(state: TrainingState) -> None:
        update(state)
        # The first step ends what is done once.
        answer: object = READY
        if began[0]:
            answer = time.process_time() - began[0]
        print(answer, file=answers, flush=True)
        if not sys.stdin.readline():
            raise _AskedEnough
        began[0] = time.process_time()

    with mock.patch.object(TrainingState, "step", paced), contextlib.suppress(_AskedEnough):
        train.main(config)


# --- in the process that compares ---


@contextlib.contextmanager
def served(checkout: Path, part: str, data: Path) -> Iterator[Callable[[], float]]:
    """A function that lets `checkout` do a round and returns its CPU seconds."""
    program = (
        f"import runpy, sys; sys.path.insert(0, {str(checkout)!r}); "
        f"runpy.run_path({str(Path(__file__).resolve())!r})['serve']({part!r}, {str(data)!r})"
    )
    said = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed below
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=checkout,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=said,
        text=True,
    )
    assert process.stdin is not None and process.stdout is not None
    asking, answers = process.stdin, process.stdout

    def answer() -> str:
        line = answers.readline().strip()
        if not line:
            process.wait()
            said.seek(0)
            last = " ".join(said.read().strip().splitlines()[-1:])
            raise UserError(f"{part} of {checkout} does not run: {last}")
        return line

    def do_round() -> float:
        asking.write("\n")
        asking.flush()
        return float(answer())

    try:
        assert answer() == READY
        yield do_round
    finally:
        asking.close()
        process.wait()
        said.close()


def compare_part(part: str, before: Path, *, data: Path, rounds: int) -> dict[str, Any]:
    """One row: median CPU seconds of both checkouts, and the median ratio of their rounds."""
    pairs = []
    with served(before, part, data) as do_before, served(ROOT, part, data) as do_after:
        # One round each is not counted: caches fill in it.
        do_before(), do_after()
        for number in range(rounds):
            if number % 2:
                after_s, before_s = do_after(), do_before()
            else:
                before_s, after_s = do_before(), do_after()
            pairs.append((before_s, after_s))
    return row_of(part, pairs)


def row_of(part: str, pairs: Sequence[tuple[float, float]]) -> dict[str, Any]:
    """The row of pairs (seconds before, seconds after); a ratio above 1 is slower than before."""
    ratios = [after_s / before_s for before_s, after_s in pairs]
    return {
        "name": part,
        "before_cpu_s": statistics.median(before_s for before_s, _ in pairs),
        "after_cpu_s": statistics.median(after_s for _, after_s in pairs),
        "ratio": statistics.median(ratios),
        "lowest_ratio": min(ratios),
        "highest_ratio": max(ratios),
        "ratio_of_quickest": min(after_s for _, after_s in pairs)
        / min(before_s for before_s, _ in pairs),
        "rounds": len(pairs),
    }


def commit_of(checkout: Path) -> str:
    """The commit of a checkout, with a plus sign where files differ from it."""
    command = ["git", "-C", str(checkout), "describe", "--always", "--dirty=+", "--exclude=*"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    return found.stdout.strip() or str(checkout)


def main(argv: Sequence[str] | None = None) -> int:
    """Compare, print a table, write JSON; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("before", type=Path, help="a checkout of the earlier commit")
    parser.add_argument("--data", type=Path, default=ROOT / "data" / "demo_large", metavar="DIR")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--rounds", type=int, default=7, help="of each side (default: 7)")
    parser.add_argument("--most", type=float, default=1.03, help="ratio allowed (default: 1.03)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the rows there")
    arguments = parser.parse_args(argv)
    if not (arguments.before / "hmsa").is_dir():
        parser.error(f"{arguments.before}: is no checkout of hmsa")
    if "train" in arguments.parts and not arguments.data.is_dir():
        parser.error(f"{arguments.data}: is missing; draw it with scripts/make_demo_data.py")

    return run_command(lambda: compare_all(arguments))


def compare_all(arguments: argparse.Namespace) -> int:
    """Compare the parts one after the other; returns the exit status."""
    rows = []
    for part in arguments.parts:
        row = compare_part(
            part,
            arguments.before.resolve(),
            data=arguments.data.resolve(),
            rounds=arguments.rounds,
        )
        rows.append(row)
        print(
            f"{part:<10} {row['before_cpu_s']:.3f} s before, {row['after_cpu_s']:.3f} s after: "
            f"{row['ratio']:.3f} ({row['lowest_ratio']:.3f} to {row['highest_ratio']:.3f} in "
            f"{row['rounds']} rounds), of the quickest rounds {row['ratio_of_quickest']:.3f}",
            flush=True,
        )

    if arguments.json is not None:
        content = {
            "before": commit_of(arguments.before),
            "after": commit_of(ROOT),
            "device": "cpu, 1 thread",
            "rows": rows,
        }
        arguments.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return int(max(row["ratio"] for row in rows) > arguments.most)


if __name__ == "__main__":
    sys.exit(main())
