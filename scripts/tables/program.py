"""What the tables' programs share: their command line, and the look at it before anything runs."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from hmsa.engine.build import split_files
from hmsa.engine.command_line import at_least, run_command
from hmsa.utils.config import load_config

from .runs import ROOT, TableError, stop_children

# data.root of a recipe: what scripts/make_demo_data.py is asked for.
DRAWINGS = {
    "data/table1": "--size 192 384 --train 768 --val 100 --test 100 --extra 0",
    "data/table2": "--size 192 384 --train 192 --val 40 --test 100 --extra 576",
}
# Scenes were named by a hash of the code that draws them before they got version numbers, and so
# they stand in the recipes of published rows.
NAMES_IN_RECIPES = {1: "9c331d59265c"}


# What scripts/make_coarse_data.py leaves in a data set that it made.
COARSE_MARKER = "coarse.json"


def table_parser(doc: str | None, *, name: str) -> argparse.ArgumentParser:
    """The command line that the tables share.

    The recipe of that name has results/NAME as its --output; others have none (see `prepare`).
    """
    recipe = ROOT / "configs" / "demo" / f"{name}.yaml"
    output = ROOT / "results" / name
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

    # How much of the machine is used, and where; none of it changes a row.
    parser.add_argument(
        "--runs",
        type=Path,
        default=ROOT / "runs" / name,
        help="run folders (default: %(default)s)",
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

    # For `prepare`, which knows whether the default recipe was changed.
    parser.set_defaults(published=(recipe, output))
    return parser


def run_table(make: Callable[[argparse.Namespace], int], options: argparse.Namespace) -> int:
    """Run a table's `make` as a program: user errors in one sentence, and the exit status.

    SIGTERM ends the trainings that run as well.
    """
    signal.signal(signal.SIGTERM, stop_children)
    return run_command(lambda: make(options))


def prepare(options: argparse.Namespace) -> str:
    """Look at all that can be wrong before anything is trained, and draw what data is missing.

    Paths become absolute, and the checkout becomes the working folder, as it is for train.py.

    Returns:
        How the data was drawn (see `describe_drawing`).

    Raises:
        UserError: the recipe, the data, or a folder to write.
    """
    settings = load_config(options.config, options.overrides)
    recipe, published = options.published

    # A published table is not mixed with rows of another recipe.
    if options.output is None:
        if options.config.resolve() != recipe or options.overrides or options.split != "test":
            raise TableError(
                f"--output: {published} holds the table of {recipe.name} as it is, on the test "
                "split; name a folder for this other table"
            )
        options.output = published

    options.config = options.config.absolute()
    options.output = options.output.absolute()
    options.runs = options.runs.absolute()

    # Nor are files of somebody else.
    is_used = options.output.is_dir() and any(options.output.iterdir())
    if is_used and not (options.output / "rows").is_dir():
        raise TableError(
            f"--output: {options.output} holds something else than a table; "
            "name a new or empty folder"
        )
    for folder in (options.output / "rows", options.runs):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise TableError(
                f"{folder}: cannot be made ({error.strerror}); "
                "name other folders with --output and --runs"
            ) from error

    os.chdir(ROOT)
    draw(settings.data.root)
    split_files(settings, options.split)
    return describe_drawing(settings.data.root)


def draw(root: str) -> None:
    """Draw what is missing of a data set of DRAWINGS; other data is left alone.

    Raises:
        TableError: it cannot be drawn.
    """
    if root not in DRAWINGS:
        return
    program = str(ROOT / "scripts" / "make_demo_data.py")
    command = [sys.executable, program, str(ROOT / root), *DRAWINGS[root].split()]
    if subprocess.run(command, check=False).returncode:
        raise TableError(
            f"{ROOT / root} could not be drawn (the reason stands above); remove it, "
            "or draw elsewhere and name that with data.root="
        )


def describe_drawing(root: str) -> str:
    """How a drawn data set was drawn and how many images it trains on; "" where it was not drawn.

    Of one that scripts/make_coarse_data.py made it is how coarse labels were made. It is part of a
    row's recipe, so that a row of other scenes is not taken for one of these.

    Raises:
        TableError: the data set's own note of its drawing is damaged.
    """
    folder = ROOT / root
    coarse = folder / COARSE_MARKER
    if coarse.is_file():
        return coarse.read_text(encoding="utf-8")

    marker = folder / "demo.json"
    if not marker.is_file():
        return ""

    try:
        recipe = json.loads(marker.read_text(encoding="utf-8"))["recipe"]
        drawing = NAMES_IN_RECIPES.get(recipe["drawing"], recipe["drawing"])
        named = {"seed": recipe["seed"], "size": recipe["size"], "drawing": drawing}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TableError(
            f"{marker}: does not say how the scenes were drawn; "
            "remove the folder and draw it again with scripts/make_demo_data.py"
        ) from error

    images = sum(1 for _ in (folder / "leftImg8bit" / "train").rglob("*.png"))
    return f"{json.dumps({'recipe': named})} {images}"
