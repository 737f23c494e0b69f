"""Export a checkpoint as ONNX (.onnx) or as a PyTorch program (.pt2): what `hmsa export` does.

A file is written whole, run, and compared with the model.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hmsa.datasets import DatasetSpec
from hmsa.datasets.augment.normalisation import MEAN, STD
from hmsa.network import ModelError
from hmsa.network.inference import out_of_memory, prepare_for_inference
from hmsa.utils.files.writing import written_whole
from hmsa.utils.processes import first_line
from hmsa.utils.words import UserError, shortened

from .build import load_model

TOLERANCE = 1e-3  # largest absolute difference of a logit between the file and the model


class FusedLogits(nn.Module):
    """A model with its scales fixed: image [N, 3, H, W] to logits [N, C, H, W].

    `combine`, for a model of one scale, is how those of several are combined: average or max.
    """

    def __init__(
        self, model: nn.Module, scales: Sequence[float] | None, *, combine: str | None = None
    ) -> None:
        super().__init__()
        self.model = model
        self.combine = combine
        self.scales = None
        if scales is not None:
            self.scales = tuple(scales)

    def forward(self, image: Tensor) -> Tensor:
        if self.combine is None or self.scales is None or len(self.scales) == 1:
            return self.model(image, scales=self.scales).logits

        logits = torch.stack([self.model(image, scales=(one,)).logits for one in self.scales])
        if self.combine == "max":
            return logits.amax(0)
        return logits.mean(0)


def main(arguments: argparse.Namespace) -> int:
    """Write every output that the command line names and say how exact it is."""
    # The exporter tells of every pass; what matters is checked below.
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)

    loaded = load_model(
        arguments.checkpoint,
        config_file=arguments.config,
        overrides=arguments.overrides,
        device=torch.device("cpu"),
    )
    scales = arguments.scales or loaded.config.eval.scales
    listed = " ".join(f"{scale:g}" for scale in scales)

    # Only a model of one scale leaves open how several are combined.
    combine = None
    if getattr(loaded.model, "multiscale", None) == "single":
        combine = arguments.combine or loaded.config.eval.combine
    elif arguments.combine is not None:
        raise ModelError("--combine is for single-scale models; this one fuses its scales itself")

    worst = 0.0
    for output in arguments.output:
        difference = export_model(
            loaded.model,
            output=output,
            size=tuple(arguments.size),
            scales=scales,
            batch=arguments.batch,
            dynamic=arguments.dynamic,
            combine=combine,
            description=export_description(loaded.spec, scales),
        )
        mebibytes = output.stat().st_size / 2**20
        print(
            f"{output}: {mebibytes:.1f} MiB, scales {{{listed}}}, "
            f"largest difference of a logit {difference:.1e}"
        )

        # Written so that a difference which is not a number counts as too large.
        if not difference <= worst:
            worst = difference

    if not worst <= TOLERANCE:
        print(
            f"error: the exported file differs from the model by {worst:.1e}, "
            f"more than {TOLERANCE:g}",
            file=sys.stderr,
        )
        return 1
    return 0


def export_description(spec: DatasetSpec, scales: Sequence[float]) -> dict[str, Any]:
    """What a program needs beside the file, as plain values."""
    return {
        "classes": list(spec.names),
        "colours": [list(item.color) for item in spec.classes],
        "mean": list(MEAN),
        "std": list(STD),
        "scales": list(scales),
    }


def export_model(
    model: nn.Module,
    *,
    output: Path,
    size: tuple[int, int],
    scales: Sequence[float] | None = None,
    batch: int = 1,
    dynamic: bool = False,
    combine: str | None = None,
    description: Mapping[str, Any] | None = None,
) -> float:
    """Write `output`, whole or not at all; batch norms are folded first.

    Returns:
        The largest absolute difference between the logits of the file and those of the model, on
        noise. With `dynamic`, another size of one image is compared as well.

    Raises:
        ModelError: the model does not take these scales, or a library is missing.
        WriteError: the file cannot be written.
    """
    fused = FusedLogits(prepare_for_inference(model), scales, combine=combine).eval()
    if dynamic:
        # From a batch of one torch would take it for fixed.
        batch = max(batch, 2)
    image = torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(0))

    images = [image]
    if dynamic:
        # Neither side is a multiple of the first size or of a stride.
        other = (size[0] + 40, size[1] + 72)
        images.append(torch.randn(1, 3, *other, generator=torch.Generator().manual_seed(1)))

    # What the model refuses, it refuses here with its own sentence, not inside the exporter. The
    # reference is the model itself, whose batch norms are not folded.
    reference = FusedLogits(model, scales, combine=combine).eval()
    with _explained(output), torch.no_grad():
        fused(image)
        expected = [reference(one) for one in images]
    if not all(torch.isfinite(logits).all() for logits in expected):
        raise ModelError("the network's logits are no finite numbers; nothing was exported")

    write = _write_program
    if output.suffix == ".onnx":
        write = _write_onnx

    # A file that cannot be run never takes the name.
    with written_whole(output) as temporary, _explained(output), torch.no_grad():
        run = write(fused, image, temporary, dynamic, json.dumps(description or {}))
        differences = [
            (run(one) - logits).abs().max() for one, logits in zip(images, expected, strict=True)
        ]
    return float(torch.stack(differences).max())


@contextmanager
def _explained(output: Path) -> Iterator[None]:
    """Errors of torch and of its exporters as one sentence.

    They depend on size, batch and `--dynamic`, which a user chooses, and come in many classes.
    """
    try:
        yield
    except (UserError, OSError):
        raise
    except Exception as error:
        if out_of_memory(error):
            advice = "memory ran out: choose a smaller --size or --batch"
        else:
            reason = shortened(first_line(error), 200)
            advice = f"torch fails ({reason}); try another --size, or without --dynamic"
        raise ModelError(f"{output}: cannot be exported: {advice}") from error


def _dimensions(dynamic: bool) -> dict[str, dict[int, Any]] | None:
    """Batch, height and width left open, but no map may shrink to one pixel or to another's."""
    if not dynamic:
        return None
    return {"image": dict.fromkeys((0, 2, 3), torch.export.Dim.AUTO)}


def _write_program(
    fused: FusedLogits, image: Tensor, output: Path, dynamic: bool, description: str
) -> Callable[[Tensor], Tensor]:
    """Write a .pt2 file; returns a function that runs what was written."""
    program = torch.export.export(
        fused, (image,), dynamic_shapes=_dimensions(dynamic), strict=False
    )

    with warnings.catch_warnings():
        # Of tensors that share memory, one by one; what was written is compared below.
        warnings.simplefilter("ignore")

        # An open file, because torch warns of names that do not end in .pt2.
        with open(output, "wb") as file:
            torch.export.save(program, file, extra_files={"hmsa": description})
    with open(output, "rb") as file:
        return torch.export.load(file).module()


def _write_onnx(
    fused: FusedLogits, image: Tensor, output: Path, dynamic: bool, description: str
) -> Callable[[Tensor], Tensor]:
    """Write an .onnx file; returns a function that runs what was written."""
    try:
        import onnxruntime
        import onnxscript  # noqa: F401  (the exporter needs it)
    except ImportError as error:
        raise ModelError(
            f"--output *.onnx needs the {error.name} library: "
            "pip install onnx onnxscript onnxruntime"
        ) from error

    # Here the open axes get names, which the exporter would else make up.
    axes = None
    if dynamic:
        axes = {"image": {0: "batch", 2: "height", 3: "width"}}
    with warnings.catch_warnings():
        # The exporter warns about its own future.
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            fused,
            (image,),
            dynamo=True,
            dynamic_shapes=axes,
            input_names=["image"],
            output_names=["logits"],
            external_data=False,
            verbose=False,
        )
    assert program is not None
    program.model.metadata_props["hmsa"] = description
    program.save(output)

    session = onnxruntime.InferenceSession(output, providers=["CPUExecutionProvider"])
    return lambda one: torch.from_numpy(session.run(["logits"], {"image": one.numpy()})[0])
