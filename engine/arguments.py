"""The command lines of `hmsa train`, `hmsa eval` and the other commands.

Nothing here imports torch at the top, so that `--help`, a mistyped option and a mistake in the
configuration are answered at once. Each command imports what it needs when it runs.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_args

from hmsa.utils.config import dump, load_config
from hmsa.utils.config.models import DECODERS, ModelSection
from hmsa.utils.words import words_of_list

from .command_line import (
    CommandParser,
    at_least,
    file_ending_in,
    parse_with_overrides,
    run_command,
    say,
    say_loading,
)
from .launch import is_launched, launch

SAVES = (
    *("labels", "colour", "overlay", "video"),
    *("attention", "confidence", "probabilities", "scales"),
)
SAVED_BY_DEFAULT = ("labels", "colour", "overlay")
COMBINE = ("average", "max")
OVER = ("logits", "probabilities")
LARGEST_SCALE = 16.0
PICTURES = (".png", ".jpg", ".jpeg")
MULTISCALE = get_args(ModelSection.model_fields["multiscale"].annotation)
WEIGHTS = (".safetensors", ".pt", ".pth")
EXPORTED = (".onnx", ".pt2")

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


CALIBRATE = """Calibrate the attention of a checkpoint for a list of scales, in a minute or two.

    hmsa calibrate --checkpoint runs/x [--scales 0.25 0.5 1 2] [--images 100]

Attention is trained on few pairs of scales. For the others one number each is fitted on some
training images, and kept where it helps on validation images; the checkpoint then holds it, and its
weights stay as they are. Evaluation and auto-labelling use it; eval.calibration=off does not.
"""

ATTACH = """Give a trained single-scale model hierarchical attention; its weights stay untouched.

    hmsa attach --checkpoint runs/single [--scales 0.25 0.5 1 2] [--output DIR]

An attention head is trained on the frozen network, on some hundred crops; optim.epochs=N trains it
longer. DIR then holds a run like any other, by default beside the run of the model.
"""

EXPORT = """Export a checkpoint as ONNX (.onnx) or as a PyTorch program (.pt2), and check the file.

    hmsa export --checkpoint runs/x --size 512 1024 --output model.onnx
                [--output model.pt2] [--scales 0.5 1 2] [--batch 1] [--dynamic]
                [--combine average] [--config FILE] [section.key=value ...]

Input `image`: float32 [N, 3, H, W], RGB in 0..1, normalised by ImageNet's mean and deviation
(`hmsa.datasets.normalise`). Output `logits`: float32 [N, C, H, W], at the size of the image, all
scales fused. Scales are fixed in the file; so is the size, unless `--dynamic` leaves batch, height
and width open. The file carries its classes, their colours, mean, deviation and scales as JSON
under "hmsa": `session.get_modelmeta().custom_metadata_map` in onnxruntime, `extra_files` of
`torch.export.load`. The exit status is 1 when file and model differ by more than 1e-3.
"""

BENCHMARK = """Time a configuration's training steps on this machine.

    hmsa benchmark configs/cityscapes/hrnet_ocr_hierarchical.yaml [--steps 20] [--json FILE]
    torchrun --nproc-per-node 8 -m hmsa benchmark CONFIG

Prints images/s, peak memory, and the share of a step that data, network, loss, backward pass and
optimiser take. Neither data nor weights are needed: the images are noise and the weights random.
With --data the images of the data set are read. Nothing is written but FILE.
"""

CHECK = """Look at every file of a configuration's splits before a training does.

    hmsa check my.yaml [data.root=/path/to/data] [--sample 200] [--output DIR]

Prints counts, sizes, pixels and images per class, absent classes and, one sentence for each kind,
every fault: unreadable or mismatched files, values outside the classes, images that two splits
share. Draws the class table as a bar chart and, where the configuration names no data.crop, prints
one that suits the data. Exit status 2 where there is a fault.
"""

COMPARE = """Put several evaluations side by side: a table in the terminal, with --html a page.

    hmsa compare runs/a runs/b/eval/metrics.json [--every-way] [--html compare.html]

Each argument is a metrics.json of `hmsa eval --output` or a folder that holds one (in itself or in
eval/). The first is the reference of all differences. Scores are printed in percent. With
--every-way each list of scales that `hmsa eval --compare` scored is a column of its own. The page
also has pictures of the same images by every run.
"""

CONVERT = """Convert weights to files by our names: the authors', HRNet-OCR's, or our own.

    hmsa convert INPUT OUTPUT [--classes classes.yaml] [--trunk-only]

INPUT is a run folder, a checkpoint, a name of published weights, hf:owner/name, or any file of
weights that `hmsa.network.load_weights` reads. A checkpoint of ours says itself which model it
belongs to; of other files names and shapes do, and --trunk, --decoder and --multiscale say
otherwise. OUTPUT is usable alone, with network, classes, mean and standard deviation inside, when
it ends in .safetensors (under "hmsa" in its metadata) or in .pt (a checkpoint); .pth holds plain
tensors. With --trunk-only the trunk's tensors are written, by the names of its ImageNet files.
"""

PANEL = """Draw what a network sees in one image of a split, as one picture.

    hmsa panel --checkpoint runs/x --index 4 --output panel.png

Image, label, prediction, error, what each scale says alone, how much it counts, and which scale
counts most (figure 3 of the paper), with the colours of classes and scales below.
"""


def init_command(argv: Sequence[str] | None = None, *, program: str | None = None) -> int:
    """`hmsa init`: returns the exit status, 2 with one sentence for a user's mistake."""
    arguments = parse_init(argv, program=program)

    def run() -> int:
        say_loading("init")
        from .init.command import main

        return main(arguments)

    return run_command(run)


def train_command(argv: Sequence[str] | None = None, *, program: str | None = None) -> int:
    """`hmsa train`: returns the exit status, 2 with one sentence for a user's mistake."""
    arguments = parse_train(argv, program=program)

    def run() -> int:
        config = load_config(arguments.config, arguments.overrides)

        # Only now what takes seconds to import: a misspelt key is answered before that.
        say_loading("train")
        from .recipe import suited

        config, chosen = suited(config)
        if arguments.print_config:
            print(dump(config), end="")
            return 0
        if arguments.processes > 1 and not is_launched():
            return launch(arguments.processes)
        from .train import main

        if chosen is not None and os.environ.get("RANK", "0") == "0":
            say(chosen)
        return main(config, resume=arguments.resume, dry_run=arguments.dry_run)

    return run_command(run)


def eval_command(argv: Sequence[str] | None = None, *, program: str | None = None) -> int:
    """`hmsa eval`: returns the exit status, 2 with one sentence for a user's mistake."""
    arguments = parse_eval(argv, program=program)

    def run() -> int:
        if arguments.processes > 1 and not is_launched():
            return launch(arguments.processes)
        say_loading("eval")
        from .evaluate import main

        return main(arguments)

    return run_command(run)


def predict_command(argv: Sequence[str] | None = None, *, program: str | None = None) -> int:
    """`hmsa predict`: returns the exit status, 2 with one sentence for a user's mistake."""
    arguments = parse_predict(argv, program=program)

    def run() -> int:
        if arguments.processes > 1 and not is_launched():
            return launch(arguments.processes)
        say_loading("predict")
        from .evaluate import main

        return main(arguments)

    return run_command(run)


def autolabel_command(argv: Sequence[str] | None = None, *, program: str | None = None) -> int:
    """`hmsa autolabel`: returns the exit status, 2 with one sentence for a user's mistake."""
    arguments = parse_autolabel(argv, program=program)

    def run() -> int:
        if arguments.processes > 1 and not (arguments.verify or is_launched()):
            return launch(arguments.processes)
        say_loading("autolabel")
        from .autolabel import main

        return main(arguments)

    return run_command(run)


def calibrate_command(argv: Sequence[str] | None = None, *, program: str | None = None) -> int:
    """`hmsa calibrate`: returns the exit status, 2 with one sentence for a user's mistake."""
    arguments = parse_calibrate(argv, program=program)

    def run() -> int:
        say_loading("calibrate")
        from .calibrate import main

        return main(arguments)

    return run_command(run)


def attach_command(argv: Sequence[str] | None = None, *, program: str | None = None) -> int:
    """`hmsa attach`: returns the exit status, 2 with one sentence for a user's mistake."""
    arguments = parse_attach(argv, program=program)

    def run() -> int:
        say_loading("attach")
        from .attach import main

        return main(arguments)

    return run_command(run)


def export_command(argv: Sequence[str] | None = None, *, program: str | None = None) -> int:
    """`hmsa export`: returns the exit status, 2 with one sentence for a user's mistake."""
    arguments = parse_export(argv, program=program)

    def run() -> int:
        say_loading("export")
        from .export import main

        return main(arguments)

    return run_command(run)


def benchmark_command(argv: Sequence[str] | None = None, *, program: str | None = None) -> int:
    """`hmsa benchmark`: returns the exit status, 2 with one sentence for a user's mistake."""
    arguments = parse_benchmark(argv, program=program)

    def run() -> int:
        say_loading("benchmark")
        from .benchmark import main

        return main(arguments)

    return run_command(run)


def check_command(argv: Sequence[str] | None = None, *, program: str | None = None) -> int:
    """`hmsa check`: returns the exit status, 2 with one sentence for each kind of fault."""
    arguments = parse_check(argv, program=program)

    def run() -> int:
        say_loading("check")
        from .check import main

        return main(arguments)

    return run_command(run)


def compare_command(argv: Sequence[str] | None = None, *, program: str | None = None) -> int:
    """`hmsa compare`: returns the exit status, 2 with one sentence for a user's mistake."""
    arguments = parse_compare(argv, program=program)

    def run() -> int:
        from .compare import main

        return main(arguments)

    return run_command(run)


def convert_command(argv: Sequence[str] | None = None, *, program: str | None = None) -> int:
    """`hmsa convert`: returns the exit status, 2 with one sentence for a user's mistake."""
    arguments = parse_convert(argv, program=program)

    def run() -> int:
        say_loading("convert")
        from .convert import main

        return main(arguments)

    return run_command(run)


def panel_command(argv: Sequence[str] | None = None, *, program: str | None = None) -> int:
    """`hmsa panel`: returns the exit status, 2 with one sentence for a user's mistake."""
    arguments = parse_panel(argv, program=program)

    def run() -> int:
        say_loading("panel")
        from .panel import main

        return main(arguments)

    return run_command(run)


def parse_init(
    argv: Sequence[str] | None = None, *, program: str | None = None
) -> argparse.Namespace:
    """The command line of `hmsa init`."""
    parser = _parser("init", INIT, program)
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
        type=read_share,
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
    _add_processes(parser)
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
    _add_processes(parser)
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


def parse_predict(
    argv: Sequence[str] | None = None, *, program: str | None = None
) -> argparse.Namespace:
    """The command line of `hmsa predict`, as that of `hmsa eval --images`."""
    parser = _parser("predict", PREDICT, program)
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
    _add_scales_and_flip(parser, section="eval")
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
    _add_processes(parser)
    _add_overrides(parser, example="eval.tile=[1024,1024]")
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
    _add_processes(parser)
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


def parse_export(
    argv: Sequence[str] | None = None, *, program: str | None = None
) -> argparse.Namespace:
    """The command line of `hmsa export`; outputs that would replace a file end the program."""
    parser = _parser("export", EXPORT, program)
    parser.add_argument(
        "--checkpoint",
        type=Path,
        required=True,
        help="a run folder or a checkpoint of hmsa train, or other weights together with --config",
    )
    parser.add_argument(
        "--config", type=Path, help="the configuration, for weights that carry none"
    )
    parser.add_argument(
        "--output",
        type=file_ending_in(*EXPORTED),
        action="append",
        required=True,
        metavar="FILE",
        help="*.onnx or *.pt2; may be repeated",
    )

    # What is fixed in the exported file.
    parser.add_argument(
        "--size",
        type=at_least(1),
        nargs=2,
        required=True,
        metavar=("H", "W"),
        help="height and width of the image",
    )
    _add_scales(parser, default="those of the checkpoint's eval section")
    parser.add_argument(
        "--batch", type=at_least(1), default=1, help="images per call (default: %(default)s)"
    )
    parser.add_argument("--dynamic", action="store_true", help="leave batch, height and width open")
    parser.add_argument(
        "--combine",
        choices=COMBINE,
        help="how the scales of a single-scale model are combined (default: eval.combine)",
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace files of --output that are there"
    )
    _add_overrides(parser, example="eval.calibration=off")
    arguments = parse_with_overrides(parser, argv)

    # What would be lost is said before anything is loaded.
    written = [os.path.realpath(output) for output in arguments.output]
    if os.path.realpath(arguments.checkpoint) in written:
        parser.error(f"{arguments.checkpoint} is the checkpoint to read; name another --output")
    if len(set(written)) < len(written):
        parser.error("--output names one file twice")
    for output in arguments.output:
        if output.exists() and not arguments.overwrite:
            parser.error(f"{output} is there already; name another --output, or use --overwrite")
    return arguments


def parse_benchmark(
    argv: Sequence[str] | None = None, *, program: str | None = None
) -> argparse.Namespace:
    """The command line of `hmsa benchmark`."""
    parser = _parser("benchmark", BENCHMARK, program)
    parser.add_argument("config", help="YAML configuration file")
    _add_overrides(parser, example="runtime.precision=bf16")
    parser.add_argument(
        "--steps", type=at_least(1), default=20, help="steps to time (default: %(default)s)"
    )
    parser.add_argument(
        "--data", action="store_true", help="read images of the data set instead of noise"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures there")
    return parse_with_overrides(parser, argv)


def parse_check(
    argv: Sequence[str] | None = None, *, program: str | None = None
) -> argparse.Namespace:
    """The command line of `hmsa check`."""
    parser = _parser("check", CHECK, program)
    parser.add_argument("config", help="YAML configuration whose data section is checked")
    _add_overrides(parser, example="data.root=/data/cityscapes")
    parser.add_argument(
        "--sample",
        type=at_least(1),
        metavar="N",
        help="look at N files of each split (default: all; small splits always whole)",
    )
    parser.add_argument(
        "--workers",
        type=at_least(1),
        default=4,
        metavar="N",
        help="threads that decode (default: %(default)s)",
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("runs/check_dataset"),
        metavar="DIR",
        help="where classes.png goes (default: %(default)s)",
    )
    return parse_with_overrides(parser, argv)


def parse_compare(
    argv: Sequence[str] | None = None, *, program: str | None = None
) -> argparse.Namespace:
    """The command line of `hmsa compare`."""
    parser = _parser("compare", COMPARE, program)
    parser.add_argument(
        "runs",
        nargs="+",
        type=Path,
        metavar="RUN",
        help="metrics.json files, or folders that hold one",
    )
    parser.add_argument(
        "--every-way",
        action="store_true",
        help="a column for each list of scales that `hmsa eval --compare` scored",
    )
    parser.add_argument(
        "--html", type=Path, metavar="FILE", help="also write the comparison as a page"
    )
    return parser.parse_args(argv)


def parse_convert(
    argv: Sequence[str] | None = None, *, program: str | None = None
) -> argparse.Namespace:
    """The command line of `hmsa convert`; an output that is there ends the program."""
    parser = _parser("convert", CONVERT, program)
    parser.add_argument("input", type=Path, metavar="INPUT", help="weights to read")
    parser.add_argument(
        "output",
        type=file_ending_in(*WEIGHTS),
        metavar="OUTPUT",
        help=f"file to write, {', '.join(WEIGHTS)}",
    )
    parser.add_argument("--trunk", help="(default: by names and shapes of the tensors)")
    parser.add_argument("--decoder", choices=DECODERS, help="(default: the same way)")
    parser.add_argument("--multiscale", choices=MULTISCALE, help="(default: the same way)")
    parser.add_argument(
        "--classes",
        type=Path,
        metavar="YAML",
        help="class list of weights that carry none (default: Cityscapes for 19 classes, Mapillary "
        "Vistas for 65)",
    )
    parser.add_argument("--trunk-only", action="store_true", help="leave the heads out")
    parser.add_argument("--overwrite", action="store_true", help="replace OUTPUT if it is there")
    arguments = parser.parse_args(argv)

    same = os.path.realpath(arguments.output) == os.path.realpath(arguments.input)
    if arguments.input.exists() and same:
        parser.error(f"{arguments.output} is the file to read; name another file to write")
    if arguments.output.exists() and not arguments.overwrite:
        parser.error(f"{arguments.output} is there already; name another file, or use --overwrite")
    return arguments


def parse_panel(
    argv: Sequence[str] | None = None, *, program: str | None = None
) -> argparse.Namespace:
    """The command line of `hmsa panel`; an output that is there ends the program."""
    parser = _parser("panel", PANEL, program)
    parser.add_argument(
        "--checkpoint",
        type=Path,
        required=True,
        help="a run folder or a checkpoint of hmsa train",
    )
    parser.add_argument("--split", help="default: data.val_split of the configuration")
    parser.add_argument(
        "--index",
        type=at_least(0),
        default=0,
        metavar="N",
        help="which image of the split, from 0 (default: %(default)s)",
    )
    _add_scales(parser, default="eval.scales")
    parser.add_argument(
        "--width",
        type=at_least(16),
        default=420,
        metavar="PIXELS",
        help="of each picture (default: %(default)s)",
    )
    parser.add_argument(
        "--output",
        type=file_ending_in(*PICTURES),
        required=True,
        metavar="FILE",
        help="picture to write, .png or .jpg",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace it if it is there")
    _add_overrides(parser, example="data.root=/data/cityscapes")
    arguments = parse_with_overrides(parser, argv)

    if arguments.output.exists() and not arguments.overwrite:
        parser.error(
            f"{arguments.output} is there already; name another --output, or use --overwrite"
        )
    return arguments


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


def read_share(text: str) -> float:
    """An argparse type: a part of a whole, above 0 and below 1."""
    try:
        share = float(text)
    except ValueError:
        share = math.nan
    if not 0 < share < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is no share between 0 and 1, such as 0.2")
    return share


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


def read_scales(text: str) -> tuple[float, ...]:
    """A list of scales: 0.5,1,2 or [0.5,1,2] or, in quotes, 0.5 1 2.

    Raises:
        ArgumentTypeError: a word of it is not a scale, or there is none.
    """
    scales = tuple(read_scale(word) for word in words_of_list(text))
    if not scales:
        raise argparse.ArgumentTypeError(f"'{text}' names no scale; write e.g. 0.5,1,2")
    return scales


class ScalesAction(argparse.Action):
    """Takes the words of an option with `nargs="+"` together as one list of scales."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        try:
            scales = list(read_scales(" ".join(values)))
        except argparse.ArgumentTypeError as error:
            raise argparse.ArgumentError(self, str(error)) from error
        setattr(namespace, self.dest, scales)


def read_refine(text: str) -> float | str:
    """An argparse type: a share of the image from 0 to 1, or auto."""
    if text == "auto":
        return text
    try:
        share = float(text)
    except ValueError:
        share = math.nan

    if not 0 <= share <= 1:
        raise argparse.ArgumentTypeError(
            f"'{text}' is no share of the image; give a number from 0 to 1, e.g. 0.3, or auto"
        )
    return share


def _parser(command: str, description: str, program: str | None) -> argparse.ArgumentParser:
    return CommandParser(
        prog=program or f"hmsa {command}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def _add_scales(parser: argparse.ArgumentParser, *, default: str) -> None:
    parser.add_argument(
        "--scales",
        nargs="+",
        action=ScalesAction,
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
    parser.add_argument(
        "--refine",
        type=read_refine,
        metavar="SHARE",
        help="compute scales above 1 only on this share of each image, 0 to 1, where the attention "
        f"leaves most to them; auto: as much as it asks for (default: {section}.refine)",
    )


def _add_processes(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--processes",
        type=at_least(1),
        default=1,
        metavar="N",
        help="run as N processes of this machine, one for each GPU (torchrun, too, starts it)",
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
    "init": (init_command, "look at a folder of images and masks, write a configuration for it"),
    "train": (train_command, "train a network as a YAML configuration says"),
    "eval": (eval_command, "score a checkpoint, hand a split in, or predict any images"),
    "predict": (predict_command, "predict images and videos with any model"),
    "autolabel": (autolabel_command, "label images with a trained network"),
    "calibrate": (calibrate_command, "fit the attention to a list of scales, in a minute or two"),
    "attach": (attach_command, "give a trained single-scale model hierarchical attention"),
    "export": (export_command, "write a model as ONNX or as a PyTorch program"),
    "check": (check_command, "look at every file of a data set before a training does"),
    "compare": (compare_command, "put several evaluations side by side, as a table or a page"),
    "convert": (convert_command, "make weights of any kind one file that is usable alone"),
    "panel": (panel_command, "draw what a network sees in one image, scale by scale"),
    "benchmark": (benchmark_command, "time a configuration's training steps on this machine"),
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
