"""The command lines of `hmsa train`, `hmsa eval` and `hmsa autolabel`.

Nothing here imports torch at the top, so that `--help`, a mistyped option and a mistake in the
configuration are answered at once. Each command imports what it needs when it runs.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from hmsa.utils.config import dump, load_config

from .command_line import at_least, parse_with_overrides, run_command

SAVES = ("labels", "colour", "overlay", "attention", "confidence", "probabilities", "scales")
SAVED_BY_DEFAULT = ("labels", "colour", "overlay")
COMBINE = ("average", "max")
OVER = ("logits", "probabilities")
LARGEST_SCALE = 16.0

TRAIN = """Train a network as a YAML configuration says.

    hmsa train configs/demo.yaml [section.key=value ...] [--resume] [--dry-run]
    torchrun --nproc-per-node 8 -m hmsa train configs/cityscapes/hrnet_ocr_hierarchical.yaml

In a checkout `python train.py ...` is the same command.
"""

EVAL = """Evaluate a checkpoint on a split, hand a split in to a benchmark, or predict any images.

    hmsa eval --checkpoint runs/x [--split val] [--scales 0.5 1 2] [--flip] [--output DIR]
    hmsa eval --checkpoint runs/x/checkpoints/best.pt --split test --submit test.zip
    hmsa eval --checkpoint best.pt --images DIR_OR_FILES --output DIR

A checkpoint carries its configuration and its classes, so that it is all that is needed. The
command runs alone or under torchrun, on CPU or GPUs, from the same command line. In a checkout
`python eval.py ...` is the same command.
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


CALIBRATE = """Calibrate the attention of a checkpoint for a list of scales, in a minute or two.

    hmsa calibrate --checkpoint runs/x [--scales 0.25 0.5 1 2] [--images 100]

Attention is trained on few pairs of scales. For the others one number each is fitted on some
training images, and kept where it helps on validation images; the checkpoint then holds it, and its
weights stay as they are. Evaluation and auto-labelling use it; eval.calibration=off does not.
"""

ATTACH = """Give a trained single-scale model hierarchical attention; its weights stay untouched.

    hmsa attach --checkpoint runs/single [--scales 0.25 0.5 1 2] [--output DIR]

An attention head is trained on the frozen network, a quarter as long as the network was. DIR then
holds a run like any other, by default beside the run of the model.
"""


def train_command(argv: Sequence[str] | None = None, *, program: str | None = None) -> int:
    """`hmsa train`: returns the exit status, 2 with one sentence for a user's mistake."""
    arguments = parse_train(argv, program=program)

    def run() -> int:
        config = load_config(arguments.config, arguments.overrides)
        if arguments.print_config:
            print(dump(config), end="")
            return 0

        # Only now what takes seconds to import: a misspelt key is answered before that.
        from .train import main

        return main(config, resume=arguments.resume, dry_run=arguments.dry_run)

    return run_command(run)


def eval_command(argv: Sequence[str] | None = None, *, program: str | None = None) -> int:
    """`hmsa eval`: returns the exit status, 2 with one sentence for a user's mistake."""
    arguments = parse_eval(argv, program=program)

    def run() -> int:
        from .evaluate import main

        return main(arguments)

    return run_command(run)


def autolabel_command(argv: Sequence[str] | None = None, *, program: str | None = None) -> int:
    """`hmsa autolabel`: returns the exit status, 2 with one sentence for a user's mistake."""
    arguments = parse_autolabel(argv, program=program)

    def run() -> int:
        from .autolabel import main

        return main(arguments)

    return run_command(run)


def calibrate_command(argv: Sequence[str] | None = None, *, program: str | None = None) -> int:
    """`hmsa calibrate`: returns the exit status, 2 with one sentence for a user's mistake."""
    arguments = parse_calibrate(argv, program=program)

    def run() -> int:
        from .calibrate import main

        return main(arguments)

    return run_command(run)


def attach_command(argv: Sequence[str] | None = None, *, program: str | None = None) -> int:
    """`hmsa attach`: returns the exit status, 2 with one sentence for a user's mistake."""
    arguments = parse_attach(argv, program=program)

    def run() -> int:
        from .attach import main

        return main(arguments)

    return run_command(run)


def parse_train(
    argv: Sequence[str] | None = None, *, program: str | None = None
) -> argparse.Namespace:
    """The command line of `hmsa train`."""
    parser = _parser("train", TRAIN, program)
    parser.add_argument("config", help="YAML configuration file")
    _add_overrides(parser, example="optim.lr=0.02")
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
    return parse_with_overrides(parser, argv)


def parse_eval(
    argv: Sequence[str] | None = None, *, program: str | None = None
) -> argparse.Namespace:
    """The command line of `hmsa eval`; options that contradict each other end the program."""
    parser = _parser("eval", EVAL, program)
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
    _add_scales_and_flip(parser, section="eval")
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
        "e.g. 1 0.5,1,2 0.5,1,2+flip 0.5,1,2+max",
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
        f"are labels to score, else {' '.join(SAVED_BY_DEFAULT)})",
    )
    parser.add_argument(
        "--submit",
        type=Path,
        metavar="FILE.zip",
        help="predictions of the split as its benchmark wants them, checked and zipped",
    )
    _add_overrides(parser, example="data.root=/data/cityscapes")
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


def parse_autolabel(
    argv: Sequence[str] | None = None, *, program: str | None = None
) -> argparse.Namespace:
    """The command line of `hmsa autolabel`; what it lacks ends the program."""
    parser = _parser("autolabel", AUTOLABEL, program)
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
    _add_scales_and_flip(parser, section="autolabel")
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
    _add_overrides(parser, example="data.root=/data/cityscapes")
    arguments = parse_with_overrides(parser, argv)

    # Checking finished labels needs neither the teacher nor the images.
    if arguments.verify:
        return arguments
    if arguments.checkpoint is None:
        parser.error("--checkpoint is needed: the teacher")
    if not (arguments.images or arguments.list or arguments.split):
        parser.error("one of --images, --list and --split is needed: what to label")
    return arguments


def parse_calibrate(
    argv: Sequence[str] | None = None, *, program: str | None = None
) -> argparse.Namespace:
    """The command line of `hmsa calibrate`."""
    parser = _parser("calibrate", CALIBRATE, program)
    parser.add_argument(
        "--checkpoint",
        required=True,
        type=Path,
        help="a run folder or a checkpoint with hierarchical attention",
    )
    _add_scales(parser, default="eval.scales")
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
    _add_overrides(parser, example="data.root=/data/cityscapes")
    return parse_with_overrides(parser, argv)


def parse_attach(
    argv: Sequence[str] | None = None, *, program: str | None = None
) -> argparse.Namespace:
    """The command line of `hmsa attach`."""
    parser = _parser("attach", ATTACH, program)
    parser.add_argument(
        "--checkpoint",
        required=True,
        type=Path,
        help="a run folder or a checkpoint of a single-scale model",
    )
    _add_scales(parser, default="0.25 0.5 1 2")
    parser.add_argument(
        "--output", type=Path, metavar="DIR", help="run folder of the model with attention"
    )
    parser.add_argument("--resume", action="store_true", help="go on with an interrupted one")
    _add_overrides(parser, example="data.root=/data/cityscapes")
    return parse_with_overrides(parser, argv)


def read_scale(text: str) -> float:
    """An argparse type: a scale of inference, above 0 and at most 16 as in a configuration."""
    try:
        scale = float(text)
    except ValueError:
        scale = math.nan

    # Not a number is neither above 0 nor at most 16.
    if not 0 < scale <= LARGEST_SCALE:
        raise argparse.ArgumentTypeError(
            f"'{text}' is not a scale; give numbers above 0 and up to {LARGEST_SCALE:g}, "
            "e.g. 0.5 1 2"
        )
    return scale


def _parser(command: str, description: str, program: str | None) -> argparse.ArgumentParser:
    return argparse.ArgumentParser(
        prog=program or f"hmsa {command}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def _add_scales(parser: argparse.ArgumentParser, *, default: str) -> None:
    parser.add_argument(
        "--scales",
        nargs="+",
        type=read_scale,
        metavar="S",
        help=f"scales of inference (default: {default})",
    )


def _add_scales_and_flip(parser: argparse.ArgumentParser, *, section: str) -> None:
    _add_scales(parser, default=f"{section}.scales")
    parser.add_argument(
        "--flip",
        action=argparse.BooleanOptionalAction,
        default=None,
        help=f"average with the mirrored image (default: {section}.flip)",
    )


def _add_overrides(parser: argparse.ArgumentParser, *, example: str) -> None:
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="section.key=value",
        help=f"change the configuration, e.g. {example}",
    )


# The commands by name, each with one phrase for the usage of `hmsa`.
COMMANDS: dict[str, tuple[Callable[..., int], str]] = {
    "train": (train_command, "train a network as a YAML configuration says"),
    "eval": (eval_command, "score a checkpoint, hand a split in, or predict any images"),
    "autolabel": (autolabel_command, "label images with a trained network"),
    "calibrate": (calibrate_command, "fit the attention to a list of scales, in a minute or two"),
    "attach": (attach_command, "give a trained single-scale model hierarchical attention"),
}


def hmsa_command(argv: Sequence[str] | None = None, *, program: str | None = None) -> int:
    """The `hmsa` command: run the command that the first argument names.

    Args:
        argv: the words after `hmsa`; by default those this program was started with.
        program: the name to show in usages instead of `hmsa COMMAND`.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if words and words[0] in COMMANDS:
        command, _ = COMMANDS[words[0]]
        return command(words[1:], program=program)

    from hmsa import __version__
    from hmsa.utils.words import did_you_mean

    usage = "usage: hmsa COMMAND ...\n\n" + "\n".join(
        f"  hmsa {name:<12}{phrase}" for name, (_, phrase) in COMMANDS.items()
    )
    usage += "\n\n`hmsa COMMAND --help` tells the options of a command."
    if words and words[0] in ("--version", "-V"):
        print(f"hmsa {__version__}")
        return 0
    if words and words[0] in ("--help", "-h", "help"):
        print(usage)
        return 0

    # No command, or one that does not exist.
    print(usage, file=sys.stderr)
    if words:
        print(
            f"error: '{words[0]}' is not a command of hmsa{did_you_mean(words[0], COMMANDS)}; "
            f"choose one of {', '.join(COMMANDS)}",
            file=sys.stderr,
        )
    return 2
