"""Convert weights: the authors', HRNet-OCR's or our checkpoints to files of plain tensors by our names, and between formats.

    python scripts/convert_weights.py INPUT OUTPUT [--trunk hrnet_w48 --decoder ocr --multiscale hierarchical] [--trunk-only]

OUTPUT ends in .safetensors or .pth; INPUT is anything that `network.load_weights` reads, or safetensors. A checkpoint of
train.py says itself which model it belongs to; of other files trunk, decoder and multiscale say so (the defaults are the
paper's), and the number of classes is read from the file. With `--trunk-only` the trunk's tensors are written, by the
names of its ImageNet files.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor

from hmsa.network import DECODERS, MULTISCALE, ModelError, build_model, load_weights
from hmsa.network.weights.files import read_tensors
from hmsa.network.weights.loading import recognise
from hmsa.utils.training.checkpoint import is_ours

SUFFIXES = (".safetensors", ".pth")


def main(command_line: Sequence[str] | None = None) -> int:
    arguments = build_parser().parse_args(command_line)
    from hmsa.engine.build import USER_ERRORS

    try:
        tensors = convert(
            arguments.input,
            trunk=arguments.trunk,
            decoder=arguments.decoder,
            multiscale=arguments.multiscale,
            trunk_only=arguments.trunk_only,
        )
        write(tensors, arguments.output)
    except (*USER_ERRORS, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    count = sum(tensor.numel() for tensor in tensors.values())
    print(f"{arguments.output}: {len(tensors)} tensors, {count / 1e6:.2f} million numbers")
    return 0


def build_parser() -> argparse.ArgumentParser:
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
    return parser


def _output(text: str) -> Path:
    path = Path(text)
    if path.suffix not in SUFFIXES:
        raise argparse.ArgumentTypeError(f"{text} must end in {' or '.join(SUFFIXES)}")
    return path


def convert(
    source: Path, *, trunk: str, decoder: str, multiscale: str, trunk_only: bool = False
) -> dict[str, Tensor]:
    """The tensors of `source` by our names, complete for that model. Raises ModelError where they are not."""
    if is_ours(source):
        from hmsa.engine.build import load_model

        model = load_model(source, config_file=None, overrides=(), device=torch.device("cpu")).model
        return dict((model.trunk if trunk_only else model).state_dict())
    kind, tensors = recognise(read_tensors(source), name=str(source))
    if kind == "trunk":
        model = build_model(trunk=trunk, decoder="fcn", multiscale="single", num_classes=1)
        trunk_only = True
    else:
        model = build_model(
            trunk=trunk,
            decoder=decoder,
            multiscale=multiscale,
            num_classes=_classes(tensors, decoder, source),
            align_corners=kind == "hrnet_ocr",
        )
    load_weights(model, source)
    return dict((model.trunk if trunk_only else model).state_dict())


def _classes(tensors: Mapping[str, Tensor], decoder: str, source: Path) -> int:
    """The number of classes, from the last layer of the head."""
    for name in (
        "decoder.classifier.weight",
        "decoder.classifier.output.weight",
        "decoder.head.output.weight",
    ):
        if name in tensors:
            return tensors[name].shape[0]
    raise ModelError(
        f"{source} has no class layer of the decoder {decoder}: name the decoder it was trained with."
    )


def write(tensors: Mapping[str, Tensor], output: Path) -> None:
    """Whole or not at all: into a temporary file beside `output`, which is then renamed."""
    plain = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    output.parent.mkdir(parents=True, exist_ok=True)
    handle, part = tempfile.mkstemp(dir=output.parent, prefix=f".{output.name}.", suffix=".part")
    os.close(handle)
    try:
        if output.suffix == ".safetensors":
            _write_safetensors(plain, part)
        else:
            torch.save(plain, part)
        os.chmod(part, 0o644)
        os.replace(part, output)
    finally:
        Path(part).unlink(missing_ok=True)


def _write_safetensors(tensors: dict[str, Tensor], path: str) -> None:
    try:
        from safetensors.torch import save_file
    except ImportError as error:
        raise ModelError(
            "writing .safetensors needs the safetensors library: pip install safetensors, or write .pth."
        ) from error
    save_file(tensors, path, metadata={"format": "pt"})


if __name__ == "__main__":
    sys.exit(main())
