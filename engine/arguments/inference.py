"""What a model says of images: `hmsa eval`, `predict` and `autolabel`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from ..command_line import parse_with_overrides, run_command, say_loading
from ..launch import is_launched, launch
from .options import (
    COMBINE,
    OVER,
    SAVED_BY_DEFAULT,
    SAVES,
    add_overrides,
    add_processes,
    add_scales_and_flip,
    new_parser,
)

EVAL = """Evaluate a checkpoint on a split, hand a split in to a benchmark, or predict any images.

    hmsa eval --checkpoint runs/x [--split val] [--scales 0.5 1 2] [--flip] [--output DIR]
    hmsa eval --checkpoint runs/x/checkpoints/best.pt --split test --submit test.zip
    hmsa eval --checkpoint best.pt --images DIR_OR_FILES --output DIR

A checkpoint carries its configuration and its classes, so that it is all that is needed. The
command runs alone or under torchrun, on CPU or GPUs, from the same command line. In a checkout
`python eval.py ...` is the same command.
"""

PREDICT = """Predict images and videos with a model; no data set is needed.

    hmsa predict runs/x photos/ [film.mp4 ...] [--output DIR] [--scales 0.5 1 2] [--flip]
    hmsa predict cityscapes_ocrnet.HRNet_Mscale_outstanding-turtle.pth photos/
    hmsa predict hf:owner/name photo.jpg

MODEL is a run folder, a checkpoint, a folder of save_pretrained, hf:owner/name, or a name or file
of published weights, whose network is known by their tensors. DIR then holds labels, colours and
overlays under the images' names, and classes.json, which says what they mean.
"""

AUTOLABEL = """Label images with a trained network, as section 4 of the paper does.

    hmsa autolabel --checkpoint teacher.pt --images DIR --output DIR --threshold 0.9
    torchrun --nproc-per-node 8 -m hmsa autolabel --checkpoint teacher.pt --split train_extra \\
        data.root=/data/cityscapes --output DIR
    hmsa autolabel --verify --output DIR

Pixels get a hard label where the network is sure enough and are ignored elsewhere. The job may
be killed and started again at any moment, also with another number of processes: finished labels
are kept when they were made with the same checkpoint and settings. DIR then holds the labels
under the images' names, manifest.json, a line per image in images.jsonl, and report.html. In a
checkout `python autolabel.py ...` is the same command.
"""


def eval_command(argv: Sequence[str] | None = None, *, program: str | None = None) -> int:
    """`hmsa eval`: returns the exit status, 2 with one sentence for a user's mistake."""
    arguments = parse_eval(argv, program=program)

    def run() -> int:
        if arguments.processes > 1 and not is_launched():
            return launch(arguments.processes)
        say_loading("eval")
        from ..evaluate import main

        return main(arguments)

    return run_command(run)


def predict_command(argv: Sequence[str] | None = None, *, program: str | None = None) -> int:
    """`hmsa predict`: returns the exit status, 2 with one sentence for a user's mistake."""
    arguments = parse_predict(argv, program=program)

    def run() -> int:
        if arguments.processes > 1 and not is_launched():
            return launch(arguments.processes)
        say_loading("predict")
        from ..evaluate import main

        return main(arguments)

    return run_command(run)


def autolabel_command(argv: Sequence[str] | None = None, *, program: str | None = None) -> int:
    """`hmsa autolabel`: returns the exit status, 2 with one sentence for a user's mistake."""
    arguments = parse_autolabel(argv, program=program)

    def run() -> int:
        if arguments.processes > 1 and not (arguments.verify or is_launched()):
            return launch(arguments.processes)
        say_loading("autolabel")
        from ..autolabel import main

        return main(arguments)

    return run_command(run)


def parse_eval(
    argv: Sequence[str] | None = None, *, program: str | None = None
) -> argparse.Namespace:
    """The command line of `hmsa eval`; options that contradict each other end the program."""
    parser = new_parser("eval", EVAL, program)
    parser.add_argument(
        "--checkpoint",
        required=True,
        type=Path,
        help="a run folder or a checkpoint of hmsa train, or published weights with --config",
    )
    parser.add_argument(
        "--config", type=Path, help="YAML configuration, for weights that carry none"
    )
    parser.add_argument(
        "--split",
        help="split to score (default: data.val_split of the configuration); one without labels "
        "is predicted",
    )
    parser.add_argument(
        "--images",
        nargs="+",
        metavar="PATH",
        help="folders, files, globs, .txt lists or videos: predict these instead of a split",
    )
    add_scales_and_flip(parser, section="eval")
    parser.add_argument(
        "--combine",
        choices=COMBINE,
        help="how the scales of a single-scale model are combined (default: eval.combine)",
    )
    parser.add_argument(
        "--over", choices=OVER, help="what is averaged over scales and flip (default: eval.over)"
    )
    parser.add_argument(
        "--compare",
        nargs="+",
        default=[],
        metavar="LIST",
        help="further ways to score beside it: scales, and after a plus what else differs, "
        "e.g. 1 0.5,1,2 0.5,1,2+flip 0.5,1,2+refine=0.3 0.5,1,2+max",
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="DIR",
        help="where metrics.json, report.html and the pictures go",
    )
    parser.add_argument(
        "--save",
        nargs="+",
        choices=SAVES,
        metavar="KIND",
        help=f"pictures to write for every image: {', '.join(SAVES)} (default: none where there "
        f"are labels to score, else {' '.join(SAVED_BY_DEFAULT)}, and video of videos)",
    )
    parser.add_argument(
        "--submit",
        type=Path,
        metavar="FILE.zip",
        help="predictions of the split as its benchmark wants them, checked and zipped",
    )
    add_processes(parser)
    add_overrides(parser, example="data.root=/data/cityscapes")
    arguments = parse_with_overrides(parser, argv)

    # What makes no sense together is said before anything is loaded.
    if arguments.images and arguments.output is None:
        parser.error("--images needs --output DIR for the predictions")
    if arguments.images and (arguments.split or arguments.submit):
        parser.error("--images goes with neither --split nor --submit")
    if arguments.images and arguments.compare:
        parser.error("--compare compares scores, and --images have none")
    if arguments.save and arguments.output is None:
        parser.error("--save needs --output DIR for the pictures")
    if arguments.submit and arguments.submit.suffix != ".zip":
        parser.error(f"--submit {arguments.submit}: the file must end in .zip")
    return arguments


def parse_predict(
    argv: Sequence[str] | None = None, *, program: str | None = None
) -> argparse.Namespace:
    """The command line of `hmsa predict`, as that of `hmsa eval --images`."""
    parser = new_parser("predict", PREDICT, program)
    parser.add_argument("checkpoint", type=Path, metavar="MODEL", help="what to predict with")
    parser.add_argument(
        "images",
        nargs="+",
        metavar="PATH",
        help="folders, files, globs, .txt lists or videos",
    )
    parser.add_argument(
        "--config", type=Path, help="YAML configuration, for weights that no tensor tells about"
    )
    add_scales_and_flip(parser, section="eval")
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("predictions"),
        metavar="DIR",
        help="where the pictures go (default: %(default)s)",
    )
    parser.add_argument(
        "--save",
        nargs="+",
        choices=SAVES,
        metavar="KIND",
        help=f"pictures to write for every image: {', '.join(SAVES)} (default: "
        f"{' '.join(SAVED_BY_DEFAULT)}, and video of videos)",
    )
    add_processes(parser)
    add_overrides(parser, example="eval.tile=[1024,1024]")
    arguments = parse_with_overrides(parser, argv)

    # What a split can have and images cannot.
    nothing: dict[str, object] = {
        "split": None,
        "submit": None,
        "compare": [],
        "combine": None,
        "over": None,
    }
    return argparse.Namespace(**vars(arguments), **nothing)


def parse_autolabel(
    argv: Sequence[str] | None = None, *, program: str | None = None
) -> argparse.Namespace:
    """The command line of `hmsa autolabel`; what it lacks ends the program."""
    parser = new_parser("autolabel", AUTOLABEL, program)
    parser.add_argument(
        "--checkpoint",
        type=Path,
        help="the teacher: a run folder or a checkpoint of hmsa train, or weights with --config",
    )
    parser.add_argument(
        "--config", type=Path, help="YAML configuration, for weights that carry none"
    )
    source = parser.add_mutually_exclusive_group()
    source.add_argument(
        "--images", nargs="+", metavar="PATH", help="folders, files or globs of images"
    )
    source.add_argument(
        "--list", type=Path, metavar="FILE", help="a .txt file with one image a line"
    )
    source.add_argument(
        "--split",
        help="a split of the configuration's data set, e.g. train_extra, or of another one: "
        "cityscapes:train_extra",
    )
    parser.add_argument(
        "--output",
        required=True,
        type=Path,
        metavar="DIR",
        help="where the labels and manifest.json go",
    )
    parser.add_argument(
        "--threshold",
        type=float,
        help="keep a pixel at this probability or above (default: autolabel.threshold)",
    )
    add_scales_and_flip(parser, section="autolabel")
    parser.add_argument(
        "--shard",
        default="0/1",
        metavar="I/N",
        help="label the I-th (from 0) of N parts: for independent array jobs",
    )
    parser.add_argument(
        "--verify",
        action="store_true",
        help="only check the finished labels in --output, to the last pixel",
    )
    add_processes(parser)
    add_overrides(parser, example="data.root=/data/cityscapes")
    arguments = parse_with_overrides(parser, argv)

    # Checking finished labels needs neither the teacher nor the images.
    if arguments.verify:
        return arguments
    if arguments.checkpoint is None:
        parser.error("--checkpoint is needed: the teacher")
    if not (arguments.images or arguments.list or arguments.split):
        parser.error("one of --images, --list and --split is needed: what to label")
    return arguments
