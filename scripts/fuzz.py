"""Damage inputs in many ways, give them to the real commands, and report what a user must not meet.

    python scripts/fuzz.py --minutes 10 [--seed 7]
    python scripts/fuzz.py --count 1000 --seed 7
    python scripts/fuzz.py --case 7:123

Configurations, class lists, lists of images, photos, labels, checkpoints, manifests of automatic
labels, videos and command lines are damaged; train, eval, autolabel, calibrate, attach,
check_dataset, convert_weights, export and panel read them. Reported are tracebacks, hangs of more
than 60 seconds, damage that a command takes without a word although it matters, inputs that a
command changes, and files that it writes outside its output. Inputs are made in a temporary folder.
A case depends on its seed and number alone: `--case` repeats one and shows its output. The exit
status is 1 when something was found.
"""

from __future__ import annotations

import argparse
import re
import secrets
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path

import torch

# A script runs from any folder: the checkout it lies in comes before what may be installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

# Forked commands find these ready.
from hmsa.engine import attach, autolabel, calibrate, evaluate, train  # noqa: F401
from hmsa.engine.command_line import at_least, run_command
from scripts.fuzzing.cases import Case, make_case
from scripts.fuzzing.material import make_material
from scripts.fuzzing.running import Outcome, findings, run_forked, run_process, snapshot

# One case in so many runs as a process of its own, which takes seconds to start.
PROCESS_EVERY = 25


def main(argv: Sequence[str] | None = None) -> int:
    """Fuzz as the command line says; the exit status is 1 when something was found."""
    options = parse(argv)
    return run_command(lambda: fuzz(options))


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    length = parser.add_mutually_exclusive_group(required=True)
    length.add_argument("--minutes", type=_minutes, help="how long to go on")
    length.add_argument("--count", type=at_least(1), help="how many cases to try")
    length.add_argument(
        "--case", type=_case, metavar="SEED:NUMBER", help="repeat one case and show its output"
    )

    # Without a seed every run tries new cases; it is printed, so that each can be repeated.
    parser.add_argument(
        "--seed", type=at_least(0), help="of all cases (default: another one in each run)"
    )
    parser.add_argument(
        "--first", type=at_least(0), default=0, help="number of the first case (default: 0)"
    )
    parser.add_argument(
        "--keep", type=Path, metavar="DIR", help="keep the folders of what is found"
    )

    options = parser.parse_args(argv)
    if options.seed is None:
        options.seed = secrets.randbelow(10**6)
    if options.keep is not None and options.keep.exists():
        parser.error(f"--keep {options.keep}: is there already; name a new folder")
    return options


def _minutes(text: str) -> float:
    """An argparse type: a time above zero."""
    try:
        minutes = float(text)
    except ValueError:
        minutes = 0.0
    if not 0 < minutes < 1e6:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of minutes")
    return minutes


def _case(text: str) -> tuple[int, int]:
    """An argparse type: the seed and the number of a case."""
    found = re.fullmatch(r"(\d+):(\d+)", text)
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not SEED:NUMBER, such as 7:123")
    return int(found[1]), int(found[2])


def fuzz(options: argparse.Namespace) -> int:
    """Make the inputs, try the cases, print what is found and a summary."""
    # Forks inherit no threads, so that none may be started here.
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="hmsa-fuzz-") as temporary:
        material = Path(temporary) / "material"
        make_material(material)
        if options.case is not None:
            seed, number = options.case
            return show_case(material, Path(temporary) / "case", seed, number)

        print(f"seed {options.seed}", flush=True)
        tried: Counter[str] = Counter()
        faulty = 0
        for number in numbers(options):
            folder = Path(temporary) / "case"
            case, _, found = try_case(material, folder, options.seed, number)
            tried[case.command] += 1
            if found:
                faulty += 1
                report(case, found, options.seed)
                if options.keep is not None:
                    kept = options.keep / f"{options.seed}-{number}"
                    shutil.copytree(folder, kept, symlinks=True, ignore=_special_files)
            shutil.rmtree(folder, ignore_errors=True)

    commands = ", ".join(f"{name} {times}" for name, times in sorted(tried.items()))
    print(f"{tried.total()} cases of seed {options.seed}, {faulty} with a finding ({commands})")
    return int(faulty > 0)


def numbers(options: argparse.Namespace) -> Iterator[int]:
    """The numbers of the cases, until the time is over or enough were tried."""
    begin = time.monotonic()
    for number in count(options.first):
        if options.count is not None and number >= options.first + options.count:
            return
        if options.minutes is not None and time.monotonic() - begin > 60 * options.minutes:
            return
        yield number


def try_case(
    material: Path, folder: Path, seed: int, number: int
) -> tuple[Case, Outcome, list[str]]:
    """Make a case, run it, and judge it."""
    case = make_case(material, folder, seed=seed, number=number)
    before = snapshot(folder)
    run = run_forked
    if number % PROCESS_EVERY == 0:
        run = run_process
    outcome = run(case, folder)
    return case, outcome, findings(case, outcome, before, snapshot(folder))


def show_case(material: Path, folder: Path, seed: int, number: int) -> int:
    """Repeat one case with all that it says."""
    case, outcome, found = try_case(material, folder, seed, number)
    print(f"{case.changed}: {case.damage.what}")
    print(f"$ python {case.program} {' '.join(case.words)}")
    print(outcome.text.rstrip())
    print(f"status {outcome.status} after {outcome.seconds:.1f} s")
    report(case, found, seed)
    return int(bool(found))


def report(case: Case, found: Sequence[str], seed: int) -> None:
    """Print what is wrong and how to see it again."""
    for sentence in found:
        print(
            f"{case.command}, {case.changed} ({case.damage.what}): {sentence}\n"
            f"    python scripts/fuzz.py --case {seed}:{case.number}",
            flush=True,
        )


def _special_files(folder: str, names: list[str]) -> list[str]:
    """Names in a folder that cannot be copied, such as those of fifos."""
    paths = {name: Path(folder) / name for name in names}
    return [
        name
        for name, path in paths.items()
        if not (path.is_symlink() or path.is_file() or path.is_dir())
    ]


if __name__ == "__main__":
    sys.exit(main())
