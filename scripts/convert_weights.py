"""Convert weights to files of plain tensors by our names: the authors', HRNet-OCR's, or our own.

    python scripts/convert_weights.py INPUT OUTPUT
                                      [--trunk hrnet_w48 --decoder ocr --multiscale hierarchical]
                                      [--trunk-only]

OUTPUT ends in .safetensors or .pth; INPUT is the folder of a run, or anything that
`hmsa.network.load_weights` reads. A checkpoint of train.py says itself which model it belongs to.
Of other files, trunk, decoder and multiscale say so (the defaults are the paper's), and the number
of classes is read from the file. With `--trunk-only` the trunk's tensors are written, by the names
of its ImageNet files.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

# A script runs from any folder: the checkout it lies in comes before what may be installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from hmsa.engine.build import load_model
from hmsa.engine.command_line import run_command
from hmsa.network import DECODERS, MULTISCALE, ModelError, build_model, load_weights
from hmsa.network.weights.files import read_file, read_tensors
from hmsa.network.weights.loading import recognise
from hmsa.utils.files.writing import write_file_with
from hmsa.utils.training.checkpoint import FORMAT

SUFFIXES = (".safetensors", ".pth")
# The last layer of each decoder, whose rows are the classes.
CLASS_LAYERS = (
    "decoder.classifier.weight",
    "decoder.classifier.output.weight",
    "decoder.head.output.weight",
)


def main(argv: Sequence[str] | None = None) -> int:
    """Convert a file; returns the exit status."""
    parser = build_parser()
    options = parser.parse_args(argv)
    same = os.path.realpath(options.output) == os.path.realpath(options.input)
    if options.input.exists() and same:
        parser.error(f"{options.output} is the file to read; name another file to write")
    if options.output.exists() and not options.overwrite:
        parser.error(f"{options.output} is there already; name another file, or use --overwrite")
    return run_command(lambda: convert_file(options))


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("input", type=Path, metavar="INPUT")
    parser.add_argument("output", type=_output, metavar="OUTPUT")
    parser.add_argument("--trunk", default="hrnet_w48", help="(default: %(default)s)")
    parser.add_argument("--decoder", choices=DECODERS, default="ocr", help="(default: %(default)s)")
    parser.add_argument(
        "--multiscale", choices=MULTISCALE, default="hierarchical", help="(default: %(default)s)"
    )
    parser.add_argument("--trunk-only", action="store_true", help="leave the heads out")
    parser.add_argument("--overwrite", action="store_true", help="replace OUTPUT if it is there")
    return parser


def _output(text: str) -> Path:
    """An argparse type: a file whose name ends as one of the formats that can be written."""
    path = Path(text)
    if path.suffix not in SUFFIXES:
        raise argparse.ArgumentTypeError(f"{text} must end in {' or '.join(SUFFIXES)}")
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"{text} is a folder; name a file")
    return path


def convert_file(options: argparse.Namespace) -> int:
    """Read, convert and write as the command line says; returns the exit status."""
    tensors = convert(
        options.input,
        trunk=options.trunk,
        decoder=options.decoder,
        multiscale=options.multiscale,
        trunk_only=options.trunk_only,
    )
    write(tensors, options.output)

    count = sum(tensor.numel() for tensor in tensors.values())
    print(f"{options.output}: {len(tensors)} tensors, {count / 1e6:.2f} million numbers")
    return 0


def convert(
    source: Path, *, trunk: str, decoder: str, multiscale: str, trunk_only: bool = False
) -> dict[str, Tensor]:
    """The tensors of `source` by our names, complete for that model.

    Raises:
        ModelError: the file cannot be read, or its tensors are not those of this model.
    """
    # A checkpoint of train.py carries its configuration, and its model is built from that. What is
    # damaged in such a file is said, and never passed over by reading only its tensors.
    if source.is_dir() or read_file(source).get("format") == FORMAT:
        model = load_model(source, config_file=None, overrides=(), device=torch.device("cpu")).model
        return _named_tensors(model, trunk_only=trunk_only)

    kind, tensors = recognise(read_tensors(source), name=str(source))
    if kind == "trunk":
        # Any decoder will do: only the trunk of this model is written.
        model = build_model(trunk=trunk, decoder="fcn", multiscale="single", num_classes=1)
        trunk_only = True
    else:
        # HRNet-OCR's own weights were trained with aligned corners, all others without.
        model = build_model(
            trunk=trunk,
            decoder=decoder,
            multiscale=multiscale,
            num_classes=_classes(tensors, decoder, source),
            align_corners=kind == "hrnet_ocr",
        )

    load_weights(model, source)
    return _named_tensors(model, trunk_only=trunk_only)


def _named_tensors(model: torch.nn.Module, *, trunk_only: bool) -> dict[str, Tensor]:
    """The state dict of the model or of its trunk."""
    if trunk_only:
        return dict(model.get_submodule("trunk").state_dict())
    return dict(model.state_dict())


def _classes(tensors: Mapping[str, Tensor], decoder: str, source: Path) -> int:
    """The number of classes, from the last layer of the decoder."""
    for name in CLASS_LAYERS:
        if name in tensors and tensors[name].ndim > 0:
            return tensors[name].shape[0]
    raise ModelError(
        f"{source} has no class layer of the decoder {decoder}; name the decoder it was trained "
        "with by --decoder"
    )


def write(tensors: Mapping[str, Tensor], output: Path) -> None:
    """Write tensors whole or not at all, in the format that the ending of `output` names.

    Raises:
        WriteError: the file cannot be written.
        ModelError: safetensors is not installed.
    """
    plain = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    if output.suffix == ".pth":
        write_file_with(output, lambda temporary: torch.save(plain, temporary))
        return

    try:
        from safetensors.torch import save_file
    except ImportError as error:
        raise ModelError(
            f"{output} needs the safetensors library: pip install safetensors, or write .pth"
        ) from error
    write_file_with(
        output, lambda temporary: save_file(plain, temporary, metadata={"format": "pt"})
    )


if __name__ == "__main__":
    sys.exit(main())
