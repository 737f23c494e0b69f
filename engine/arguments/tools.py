"""The tools around a model: `hmsa export`, `check`, `compare`, `convert`, `panel`, `benchmark`."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from hmsa.utils.config.models import DECODERS, ModelSection

from ..command_line import at_least, file_ending_in, parse_with_overrides, run_command, say_loading
from .options import COMBINE, add_overrides, add_scales, new_parser

PICTURES = (".png", ".jpg", ".jpeg")
MULTISCALE = get_args(ModelSection.model_fields["multiscale"].annotation)
WEIGHTS = (".safetensors", ".pt", ".pth")
EXPORTED = (".onnx", ".pt2")

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

BENCHMARK = """Time a configuration's training steps on this machine.

    hmsa benchmark configs/cityscapes/hrnet_ocr_hierarchical.yaml [--steps 20] [--json FILE]
    torchrun --nproc-per-node 8 -m hmsa benchmark CONFIG

Prints images/s, peak memory, and the share of a step that data, network, loss, backward pass and
optimiser take. Neither data nor weights are needed: the images are noise and the weights random.
With --data the images of the data set are read. Nothing is written but FILE.
"""


def export_command(argv: Sequence[str] | None = None, *, program: str | None = None) -> int:
    """`hmsa export`: returns the exit status, 2 with one sentence for a user's mistake."""
    arguments = parse_export(argv, program=program)

    def run() -> int:
        say_loading("export")
        from ..export import main

        return main(arguments)

    return run_command(run)


def check_command(argv: Sequence[str] | None = None, *, program: str | None = None) -> int:
    """`hmsa check`: returns the exit status, 2 with one sentence for each kind of fault."""
    arguments = parse_check(argv, program=program)

    def run() -> int:
        say_loading("check")
        from ..check import main

        return main(arguments)

    return run_command(run)


def compare_command(argv: Sequence[str] | None = None, *, program: str | None = None) -> int:
    """`hmsa compare`: returns the exit status, 2 with one sentence for a user's mistake."""
    arguments = parse_compare(argv, program=program)

    def run() -> int:
        from ..compare import main

        return main(arguments)

    return run_command(run)


def convert_command(argv: Sequence[str] | None = None, *, program: str | None = None) -> int:
    """`hmsa convert`: returns the exit status, 2 with one sentence for a user's mistake."""
    arguments = parse_convert(argv, program=program)

    def run() -> int:
        say_loading("convert")
        from ..convert import main

        return main(arguments)

    return run_command(run)


def panel_command(argv: Sequence[str] | None = None, *, program: str | None = None) -> int:
    """`hmsa panel`: returns the exit status, 2 with one sentence for a user's mistake."""
    arguments = parse_panel(argv, program=program)

    def run() -> int:
        say_loading("panel")
        from ..panel import main

        return main(arguments)

    return run_command(run)


def benchmark_command(argv: Sequence[str] | None = None, *, program: str | None = None) -> int:
    """`hmsa benchmark`: returns the exit status, 2 with one sentence for a user's mistake."""
    arguments = parse_benchmark(argv, program=program)

    def run() -> int:
        say_loading("benchmark")
        from ..benchmark import main

        return main(arguments)

    return run_command(run)


def parse_export(
    argv: Sequence[str] | None = None, *, program: str | None = None
) -> argparse.Namespace:
    """The command line of `hmsa export`; outputs that would replace a file end the program."""
    parser = new_parser("export", EXPORT, program)
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
    add_scales(parser, default="those of the checkpoint's eval section")
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
    add_overrides(parser, example="eval.calibration=off")
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


def parse_check(
    argv: Sequence[str] | None = None, *, program: str | None = None
) -> argparse.Namespace:
    """The command line of `hmsa check`."""
    parser = new_parser("check", CHECK, program)
    parser.add_argument("config", help="YAML configuration whose data section is checked")
    add_overrides(parser, example="data.root=/data/cityscapes")
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
    parser = new_parser("compare", COMPARE, program)
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
    parser = new_parser("convert", CONVERT, program)
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
    parser = new_parser("panel", PANEL, program)
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
    add_scales(parser, default="eval.scales")
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
    add_overrides(parser, example="data.root=/data/cityscapes")
    arguments = parse_with_overrides(parser, argv)

    if arguments.output.exists() and not arguments.overwrite:
        parser.error(
            f"{arguments.output} is there already; name another --output, or use --overwrite"
        )
    return arguments


def parse_benchmark(
    argv: Sequence[str] | None = None, *, program: str | None = None
) -> argparse.Namespace:
    """The command line of `hmsa benchmark`."""
    parser = new_parser("benchmark", BENCHMARK, program)
    parser.add_argument("config", help="YAML configuration file")
    add_overrides(parser, example="runtime.precision=bf16")
    parser.add_argument(
        "--steps", type=at_least(1), default=20, help="steps to time (default: %(default)s)"
    )
    parser.add_argument(
        "--data", action="store_true", help="read images of the data set instead of noise"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures there")
    return parse_with_overrides(parser, argv)
