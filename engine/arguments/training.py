"""What makes a model: `hmsa init`, `train`, `calibrate` and `attach`."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from hmsa.utils.config import dump, load_config

from ..command_line import (
    at_least,
    parse_with_overrides,
    positive_share,
    run_command,
    say,
    say_loading,
)
from ..launch import is_launched, launch
from .options import add_overrides, add_processes, add_scales, new_parser

INIT = """Look at a folder of images and masks, and write what a training of them needs.

    hmsa init FOLDER [--classes NAME ...] [--val 0.2] [--epochs N]
              [--output my.yaml]

Masks may hold ids, colours, 0 and 255 or polygons, beside the images, in folders or by lists; they
are read as they are. FOLDER then has a classes.yaml (and, where its files name no splits, two
lists), and --output is a complete configuration that suits the images and this machine. No file of
yours is changed.
"""

TRAIN = """Train a network as a YAML configuration says.

    hmsa train configs/demo.yaml [section.key=value ...] [--resume] [--dry-run]
    hmsa train configs/demo.yaml --processes 8
    torchrun --nproc-per-node 8 -m hmsa train configs/cityscapes/hrnet_ocr_hierarchical.yaml

In a checkout `python train.py ...` is the same command.
"""

CALIBRATE = """Calibrate the attention of a checkpoint for a list of scales, in a minute or two.

    hmsa calibrate --checkpoint runs/x [--scales 0.25 0.5 1 2] [--images 100]

Attention is trained on few pairs of scales. For each pair of the list, numbers for each class are
fitted on some training images, and kept where they help on validation images. The lowest
scale is switched off where it does not help. The checkpoint then holds all that, and its weights
stay as they are. Evaluation and auto-labelling use it; eval.calibration=off does not.
"""

ATTACH = """Give a trained single-scale model hierarchical attention; its weights stay untouched.

    hmsa attach --checkpoint runs/single [--scales 0.25 0.5 1 2] [--output DIR]

An attention head is trained on the frozen network, on some hundred crops; optim.epochs=N trains it
longer. DIR then holds a run like any other, by default beside the run of the model.
"""


def init_command(argv: Sequence[str] | None = None, *, program: str | None = None) -> int:
    """`hmsa init`: returns the exit status, 2 with one sentence for a user's mistake."""
    arguments = parse_init(argv, program=program)

    def run() -> int:
        say_loading("init")
        from ..init.command import main

        return main(arguments)

    return run_command(run)


def train_command(argv: Sequence[str] | None = None, *, program: str | None = None) -> int:
    """`hmsa train`: returns the exit status, 2 with one sentence for a user's mistake."""
    arguments = parse_train(argv, program=program)

    def run() -> int:
        config = load_config(arguments.config, arguments.overrides)

        # Only now what takes seconds to import: a misspelt key is answered before that.
        say_loading("train")
        from ..recipe import suited

        config, chosen = suited(config)
        if arguments.print_config:
            print(dump(config), end="")
            return 0
        if arguments.processes > 1 and not is_launched():
            return launch(arguments.processes)
        from ..train import main

        if chosen is not None and os.environ.get("RANK", "0") == "0":
            say(chosen)
        return main(config, resume=arguments.resume, dry_run=arguments.dry_run)

    return run_command(run)


def calibrate_command(argv: Sequence[str] | None = None, *, program: str | None = None) -> int:
    """`hmsa calibrate`: returns the exit status, 2 with one sentence for a user's mistake."""
    arguments = parse_calibrate(argv, program=program)

    def run() -> int:
        say_loading("calibrate")
        from ..calibrate import main

        return main(arguments)

    return run_command(run)


def attach_command(argv: Sequence[str] | None = None, *, program: str | None = None) -> int:
    """`hmsa attach`: returns the exit status, 2 with one sentence for a user's mistake."""
    arguments = parse_attach(argv, program=program)

    def run() -> int:
        say_loading("attach")
        from ..attach import main

        return main(arguments)

    return run_command(run)


def parse_init(
    argv: Sequence[str] | None = None, *, program: str | None = None
) -> argparse.Namespace:
    """The command line of `hmsa init`."""
    parser = new_parser("init", INIT, program)
    parser.add_argument("folder", help="folder with images and masks, however they lie in it")
    parser.add_argument(
        "--output",
        type=Path,
        metavar="YAML",
        help="the configuration to write (default: the folder's name, here)",
    )
    parser.add_argument(
        "--classes",
        nargs="+",
        metavar="NAME",
        help="names of the classes in the order of their ids, of colours the commonest first "
        "(default: by their colours or ids)",
    )
    parser.add_argument(
        "--ignore",
        nargs="+",
        type=read_ignored,
        metavar="VALUE",
        help="ids or colours of masks that are no class, e.g. 0 or 0,0,0 (255 is known)",
    )
    parser.add_argument(
        "--val",
        type=positive_share(),
        default=0.2,
        metavar="SHARE",
        help="share of the images to validate on where the folder names none (default: 0.2)",
    )
    parser.add_argument(
        "--epochs",
        type=at_least(1),
        metavar="N",
        help="length of the training (default: as suits the number of images)",
    )
    parser.add_argument("--force", action="store_true", help="write files anew that are there")

    return parser.parse_args(argv)


def parse_train(
    argv: Sequence[str] | None = None, *, program: str | None = None
) -> argparse.Namespace:
    """The command line of `hmsa train`."""
    parser = new_parser("train", TRAIN, program)
    parser.add_argument("config", help="YAML configuration file")
    add_overrides(parser, example="optim.lr=0.02")
    parser.add_argument(
        "--resume",
        action="store_true",
        help="go on from the newest valid checkpoint in experiment.output",
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="one step of training and validation; print what they cost",
    )
    parser.add_argument(
        "--print-config", action="store_true", help="print the resolved configuration and stop"
    )
    add_processes(parser)

    return parse_with_overrides(parser, argv)


def parse_calibrate(
    argv: Sequence[str] | None = None, *, program: str | None = None
) -> argparse.Namespace:
    """The command line of `hmsa calibrate`."""
    parser = new_parser("calibrate", CALIBRATE, program)
    parser.add_argument(
        "--checkpoint",
        required=True,
        type=Path,
        help="a run folder or a checkpoint with hierarchical attention",
    )
    add_scales(parser, default="eval.scales")
    parser.add_argument(
        "--images",
        type=at_least(4),
        default=100,
        metavar="N",
        help="images that judge; half as many fit (default: %(default)s)",
    )
    parser.add_argument(
        "--split", help="split whose labelled images fit the numbers (default: data.train_split)"
    )
    parser.add_argument(
        "--judge",
        metavar="SPLIT",
        help="split whose images judge them (default: data.val_split); that of --split: its other "
        "half",
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help="write another checkpoint instead of the one that was read",
    )
    add_overrides(parser, example="data.root=/data/cityscapes")

    return parse_with_overrides(parser, argv)


def parse_attach(
    argv: Sequence[str] | None = None, *, program: str | None = None
) -> argparse.Namespace:
    """The command line of `hmsa attach`."""
    parser = new_parser("attach", ATTACH, program)
    parser.add_argument(
        "--checkpoint",
        required=True,
        type=Path,
        help="a run folder or a checkpoint of a single-scale model",
    )
    add_scales(parser, default="0.25 0.5 1 2")
    parser.add_argument(
        "--output", type=Path, metavar="DIR", help="run folder of the model with attention"
    )
    parser.add_argument("--resume", action="store_true", help="go on with an interrupted one")
    add_overrides(parser, example="data.root=/data/cityscapes")

    return parse_with_overrides(parser, argv)


def read_ignored(text: str) -> int | tuple[int, int, int]:
    """An argparse type: an id such as 0, or a colour such as 0,0,0."""
    parts = text.split(",")
    if len(parts) in (1, 3) and all(part.isdecimal() and int(part) <= 255 for part in parts):
        if len(parts) == 1:
            return int(text)
        return int(parts[0]), int(parts[1]), int(parts[2])
    raise argparse.ArgumentTypeError(
        f"'{text}' is neither an id such as 0 nor a colour such as 0,0,0"
    )
