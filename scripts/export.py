"""Export a checkpoint as ONNX (.onnx) or as a PyTorch program (.pt2), and check that the file answers as the model does.

    python scripts/export.py --checkpoint best.pt --size 512 1024 [--scales 0.5 1 2] --output model.onnx [--output model.pt2]
                             [--batch 1] [--dynamic] [--config FILE]

Input `image`: float32 [N, 3, H, W], RGB in 0..1, normalised by ImageNet's mean and deviation (`datasets.normalise`).
Output `logits`: float32 [N, C, H, W], at the size of the image, all scales fused. Scales are fixed in the file; so is
the size, unless `--dynamic` leaves height and width open. Exit status 1 when file and model differ by more than 1e-3.
"""

from __future__ import annotations

import argparse
import logging
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor, nn

from hmsa.network import ModelError
from hmsa.network.inference.folding import prepare_for_inference

TOLERANCE = 1e-3  # largest absolute difference of logits between the file and the model
SUFFIXES = (".onnx", ".pt2")


class Fused(nn.Module):
    """A model with its scales fixed: image `[N, 3, H, W]` to logits `[N, C, H, W]`."""

    def __init__(self, model: nn.Module, scales: Sequence[float] | None) -> None:
        super().__init__()
        self.model = model
        self.scales = None if scales is None else tuple(scales)

    def forward(self, image: Tensor) -> Tensor:
        return self.model(image, scales=self.scales).logits


def main(command_line: Sequence[str] | None = None) -> int:
    arguments = build_parser().parse_args(command_line)
    from hmsa.engine.build import USER_ERRORS, load_model

    try:
        loaded = load_model(
            arguments.checkpoint,
            config_file=arguments.config,
            overrides=arguments.overrides,
            device=torch.device("cpu"),
        )
        scales = arguments.scales or loaded.config.eval.scales
        differences = [
            export_model(
                loaded.model,
                output=output,
                size=tuple(arguments.size),
                scales=scales,
                batch=arguments.batch,
                dynamic=arguments.dynamic,
            )
            for output in arguments.output
        ]
    except USER_ERRORS as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    listed = " ".join(f"{scale:g}" for scale in scales)
    for output, difference in zip(arguments.output, differences, strict=True):
        print(
            f"{output}: {output.stat().st_size / 2**20:.1f} MiB, scales {{{listed}}}, largest difference of a logit {difference:.1e}"
        )
    worst = max(differences)
    if worst > TOLERANCE:
        print(
            f"error: the exported file differs from the model by {worst:.1e}, more than {TOLERANCE:g}",
            file=sys.stderr,
        )
        return 1
    return 0


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--checkpoint",
        type=Path,
        required=True,
        help="a checkpoint of train.py, or other weights together with --config",
    )
    parser.add_argument(
        "--config", type=Path, help="the configuration, for weights that carry none"
    )
    parser.add_argument(
        "--output",
        type=_output,
        action="append",
        required=True,
        metavar="FILE",
        help="*.onnx or *.pt2; may be repeated",
    )
    parser.add_argument(
        "--size",
        type=int,
        nargs=2,
        required=True,
        metavar=("H", "W"),
        help="height and width of the image",
    )
    parser.add_argument(
        "--scales",
        type=float,
        nargs="+",
        metavar="S",
        help="default: those of the checkpoint's eval section",
    )
    parser.add_argument("--batch", type=int, default=1, help="images per call (default: 1)")
    parser.add_argument("--dynamic", action="store_true", help="leave height and width open")
    parser.add_argument(
        "overrides", nargs="*", metavar="section.key=value", help="overrides of the configuration"
    )
    return parser


def _output(text: str) -> Path:
    path = Path(text)
    if path.suffix not in SUFFIXES:
        raise argparse.ArgumentTypeError(f"{text} must end in {' or '.join(SUFFIXES)}")
    return path


def export_model(
    model: nn.Module,
    *,
    output: Path,
    size: tuple[int, int],
    scales: Sequence[float] | None = None,
    batch: int = 1,
    dynamic: bool = False,
) -> float:
    """Write `output` and return the largest absolute difference between its logits and the model's, on noise.

    Batch norms are folded first. With `dynamic`, another size is compared as well. Raises ModelError where the model
    does not take these scales or a library is missing.
    """
    fused = Fused(prepare_for_inference(model), scales).eval()
    image = torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        fused(image)  # what the model refuses, it refuses here, in a sentence of its own
    output.parent.mkdir(parents=True, exist_ok=True)
    run = (_write_onnx if output.suffix == ".onnx" else _write_program)(
        fused, image, output, dynamic
    )
    images = [image]
    if dynamic:
        images.append(
            torch.randn(
                batch, 3, size[0] + 40, size[1] + 72, generator=torch.Generator().manual_seed(1)
            )
        )
    reference = Fused(model, scales).eval()
    with torch.no_grad():
        return max(float((run(one) - reference(one)).abs().max()) for one in images)


def _dimensions(dynamic: bool) -> dict[str, dict[int, Any]] | None:
    """Height and width left open, except that no map may shrink to one pixel or to the size of another."""
    return {"image": {2: torch.export.Dim.AUTO, 3: torch.export.Dim.AUTO}} if dynamic else None


def _write_program(
    fused: Fused, image: Tensor, output: Path, dynamic: bool
) -> Callable[[Tensor], Tensor]:
    program = torch.export.export(
        fused, (image,), dynamic_shapes=_dimensions(dynamic), strict=False
    )
    torch.export.save(program, output)
    return torch.export.load(output).module()


def _write_onnx(
    fused: Fused, image: Tensor, output: Path, dynamic: bool
) -> Callable[[Tensor], Tensor]:
    try:
        import onnxruntime
        import onnxscript  # noqa: F401  (the exporter needs it)
    except ImportError as error:
        raise ModelError(
            f"{output} needs the {error.name} library: pip install onnx onnxscript onnxruntime."
        ) from error
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter, about its own future
        program = torch.onnx.export(
            fused,
            (image,),
            dynamo=True,
            dynamic_shapes=_dimensions(dynamic),
            input_names=["image"],
            output_names=["logits"],
            external_data=False,
            verbose=False,
        )
    assert program is not None
    program.save(output)
    session = onnxruntime.InferenceSession(output, providers=["CPUExecutionProvider"])
    return lambda one: torch.from_numpy(session.run(["logits"], {"image": one.numpy()})[0])


if __name__ == "__main__":
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    sys.exit(main())
