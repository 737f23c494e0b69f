"""Convert weights to files by our names: `hmsa convert`.

They are the authors', HRNet-OCR's, or our own. The result is usable alone where it says so.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hmsa.datasets.layouts.class_list import load_class_list
from hmsa.network import ModelError, build_model, load_weights
from hmsa.network.weights.files import read_file, read_tensors
from hmsa.network.weights.loading import recognise
from hmsa.network.weights.recognition import recognise_model
from hmsa.utils.files.writing import write_file_with
from hmsa.utils.training.checkpoint import FORMAT, save_checkpoint

from .build import attention_bias_of, build_loaded, model_from, open_checkpoint, rows_of_bias
from .model_source import (
    KEY,
    carried_description,
    classes_by_number,
    configuration_of,
    description,
    is_safetensors,
    model_file,
)


@dataclass(frozen=True)
class Converted:
    """Tensors by our names, and what makes them usable alone; None for a trunk."""

    tensors: dict[str, Tensor]
    description: dict[str, Any] | None


def main(options: argparse.Namespace) -> int:
    """Read, convert and write as the command line says; returns the exit status."""
    named = {name: getattr(options, name) for name in ("trunk", "decoder", "multiscale")}
    converted = convert(
        options.input,
        known={name: value for name, value in named.items() if value is not None},
        classes=options.classes,
        trunk_only=options.trunk_only,
    )
    write(converted, options.output)

    tensors = converted.tensors
    count = sum(tensor.numel() for tensor in tensors.values())
    print(f"{options.output}: {len(tensors)} tensors, {count / 1e6:.2f} million numbers")
    return 0


def convert(
    source: Path,
    *,
    known: Mapping[str, str] | None = None,
    classes: Path | None = None,
    trunk_only: bool = False,
) -> Converted:
    """The tensors of `source` by our names, complete for their model, and its description.

    Args:
        source: anything that `model_file` knows.
        known: trunk, decoder and multiscale, where names and shapes shall not decide.
        classes: class list of weights that carry none.
        trunk_only: leave the heads out.

    Raises:
        UserError: the file cannot be read, or its tensors are not those of this model.
    """
    path, known = model_file(source), dict(known or {})

    # What describes itself is built from that. What is damaged in such a file is said, and never
    # passed over by reading only its tensors.
    ours = not is_safetensors(path) and read_file(path).get("format") == FORMAT
    if ours or carried_description(path) is not None:
        opened = open_checkpoint(path, config_file=None, overrides=())
        loaded = build_loaded(opened, device=torch.device("cpu"))
        rows = rows_of_bias(attention_bias_of(opened.weights or {}))
        values = description(loaded.config, loaded.spec, rows)
        return _converted(loaded.model, values, trunk_only=trunk_only)

    kind, _ = recognise(read_tensors(path), name=str(path))
    if kind == "trunk":
        # Any decoder will do: only the trunk of this model is written.
        trunk = known.get("trunk", "hrnet_w48")
        model = build_model(trunk=trunk, decoder="fcn", multiscale="single", num_classes=1)
        load_weights(model, path)
        return _converted(model, None, trunk_only=True)

    found = recognise_model(path, known=known)
    config = configuration_of(found, (), source=str(path))
    spec = classes_by_number(found.num_classes)
    if classes is not None:
        spec, _ = load_class_list(classes)
        if spec.num_classes != found.num_classes:
            raise ModelError(
                f"{classes} lists {spec.num_classes} classes and {path} was trained for "
                f"{found.num_classes}: give the class list it was trained with."
            )
    whole = model_from(config, num_classes=found.num_classes, trunk_weights=False)
    load_weights(whole, path)
    return _converted(whole, description(config, spec), trunk_only=trunk_only)


def _converted(
    model: torch.nn.Module, values: dict[str, Any] | None, *, trunk_only: bool
) -> Converted:
    """The state dict of the model with its description, or that of its trunk."""
    if trunk_only:
        return Converted(dict(model.get_submodule("trunk").state_dict()), None)
    return Converted(dict(model.state_dict()), values)


def write(converted: Converted, output: Path) -> None:
    """Write whole or not at all, in the format that the ending of `output` names.

    Raises:
        WriteError: the file cannot be written.
        ModelError: safetensors is not installed, or a trunk was to become a checkpoint.
    """
    plain = {name: tensor.detach().contiguous() for name, tensor in converted.tensors.items()}
    if output.suffix == ".pth":
        write_file_with(output, lambda temporary: torch.save(plain, temporary))
        return
    if output.suffix == ".pt":
        if converted.description is None:
            raise ModelError(f"{output}: a trunk alone is no checkpoint: write .pth.")
        save_checkpoint(output, {**converted.description, "model": plain}, sidecar=False)
        return

    try:
        from safetensors.torch import save_file
    except ImportError as error:
        raise ModelError(
            f"{output} needs the safetensors library: pip install safetensors, or write .pth"
        ) from error
    metadata = {"format": "pt"}
    if converted.description is not None:
        metadata[KEY] = json.dumps(converted.description)
    write_file_with(output, lambda temporary: save_file(plain, temporary, metadata=metadata))
