"""Which network weights belong to, from their names and shapes alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ..layers import ModelError
from ..trunks.hrnet import SIZES
from .files import read_tensors
from .loading import recognise

# The last layer of each decoder, whose rows are the classes.
CLASS_LAYERS = (
    "decoder.classifier.weight",
    "decoder.classifier.output.weight",
    "decoder.head.output.weight",
)
_FIRST_ATTENTION = ("attention.hidden.0.conv.weight", "attention.hidden.weight")
_BRANCH = "trunk.stage4.0.branches.0.0.conv1.weight"


@dataclass(frozen=True)
class Recognised:
    """Weights of a whole model by our names, and the model that they fill.

    Attributes:
        kind: whose names the file has: "authors", "hrnet_ocr" or "ours".
        num_classes: rows of the last layer.
        options: keyword arguments of `build_model` beside `num_classes`, where they are not its
            defaults.
        tensors: the weights by our names.
    """

    kind: str
    num_classes: int
    options: dict[str, Any]
    tensors: dict[str, Tensor]


def recognise_model(
    source: str | Path | Mapping[str, object], *, known: Mapping[str, Any] | None = None
) -> Recognised:
    """Read the weights of a whole model and say which model it is.

    Trunk, decoder, number of classes, way of combining scales and widths follow from names and
    shapes. What leaves no trace in them has the value of the published weights: a stride of 8,
    aligned corners for HRNet-OCR's own files alone.

    Args:
        source: path of a torch or safetensors file, or what such a file holds.
        known: options that are known already; they are not looked for.

    Raises:
        ModelError: the file cannot be read, holds a trunk alone, or is of no kind known here.
    """
    name = "the state dict" if isinstance(source, Mapping) else str(source)
    kind, tensors = recognise(read_tensors(source), name=name)
    if kind == "trunk":
        raise ModelError(
            f"{name} holds a trunk alone, which says nothing about classes: train a network from "
            "it with model.trunk_weights."
        )

    options = dict(known or {})
    if "trunk" not in options:
        options["trunk"] = _trunk(tensors, name)
    options = {**_decoder(tensors, name), **options}
    options = {**_multiscale(tensors, decoder=options["decoder"], kind=kind), **options}
    if kind == "hrnet_ocr":
        options["align_corners"] = True
    return Recognised(kind, classes_of(tensors, name), options, tensors)


def classes_of(tensors: Mapping[str, Tensor], name: str) -> int:
    """The number of classes, from the last layer of the decoder.

    Raises:
        ModelError: there is no such layer.
    """
    for layer in CLASS_LAYERS:
        if layer in tensors and tensors[layer].ndim > 0:
            return int(tensors[layer].shape[0])
    raise ModelError(
        f"{name} has no class layer of a decoder known here: name the configuration it was trained "
        "with by --config."
    )


def _trunk(tensors: Mapping[str, Tensor], name: str) -> str:
    """The name of the trunk."""
    blocks = {key.rsplit(".", 3)[0] for key in tensors if key.startswith("trunk.layer3.")}
    third = {key.split(".")[2] for key in tensors if key.startswith("trunk.layer3.")}
    if blocks:
        # Bottlenecks have a third convolution; their number tells the depth.
        bottlenecks = "trunk.layer3.0.conv3.weight" in tensors
        depth = {(False, 2): 18, (False, 6): 34, (True, 6): 50, (True, 23): 101}
        found = depth.get((bottlenecks, len(third)))
        if found is not None:
            return f"resnet{found}"

    if _BRANCH in tensors:
        width = tensors[_BRANCH].shape[0]
        modules = {key.split(".")[2] for key in tensors if key.startswith("trunk.stage4.")}
        if len(modules) == 1:
            return "hrnet_w18_small"
        if f"hrnet_w{width}" in SIZES:
            return f"hrnet_w{width}"
    raise ModelError(
        f"{name}: its trunk is none that is known by its tensors: name the configuration it was "
        "trained with by --config."
    )


def _decoder(tensors: Mapping[str, Tensor], name: str) -> dict[str, Any]:
    """Decoder, its head and its width."""
    if "decoder.pixels.conv.weight" in tensors:
        options: dict[str, Any] = {"decoder": "ocr"}
        width, usual = tensors["decoder.pixels.conv.weight"].shape[0], 512
        if "decoder.classifier.output.weight" in tensors:
            options["head"] = "paper"
    elif "decoder.context.weight" in tensors:
        options = {"decoder": "deeplabv3plus"}
        width, usual = tensors["decoder.context.weight"].shape[0], 256
        # The paper's text lets the attention read the trunk, whose width the pyramid reads too.
        first = _first_attention(tensors)
        pyramid = tensors.get("decoder.aspp.branches.0.conv.weight")
        if "decoder.aspp.pooled.conv.weight" not in tensors:
            options["aspp_pooling"] = False
        joined = tensors["decoder.head.hidden.0.conv.weight"].shape[1]
        if first is not None and pyramid is not None:
            read = int(first.shape[1])
            if read == pyramid.shape[1] and read != joined:
                options["head"] = "paper"
    elif "decoder.head.hidden.0.conv.weight" in tensors:
        options = {"decoder": "fcn"}
        width, usual = tensors["decoder.head.hidden.0.conv.weight"].shape[0], 256
    else:
        raise ModelError(
            f"{name}: its decoder is none that is known by its tensors: name the configuration it "
            "was trained with by --config."
        )
    if width != usual:
        options["decoder_channels"] = int(width)
    return options


def _first_attention(tensors: Mapping[str, Tensor]) -> Tensor | None:
    for key in _FIRST_ATTENTION:
        if key in tensors:
            return tensors[key]
    return None


def _multiscale(tensors: Mapping[str, Tensor], *, decoder: str, kind: str) -> dict[str, Any]:
    """How scales are combined, from what the attention head reads and gives."""
    first, last = _first_attention(tensors), tensors.get("attention.output.weight")
    if first is None or last is None:
        return {"multiscale": "single"}

    # An explicit head has a map for each scale; a chain has one.
    options: dict[str, Any] = {"multiscale": "hierarchical"}
    with_norm = _FIRST_ATTENTION[0] in tensors
    channels, usual = int(first.shape[0]), 256
    if last.shape[0] > 1:
        options = {"multiscale": "explicit", "explicit_batchnorm": with_norm}
        if kind == "authors":
            options["explicit_softmax"] = False
        if not with_norm:
            channels //= 2
    elif first.shape[1] == 2 * _features(tensors, decoder):
        options["multiscale"] = "hierarchical_dual"
    if channels != usual:
        options["attention_channels"] = channels
    return options


def _features(tensors: Mapping[str, Tensor], decoder: str) -> int:
    """Channels of the features that attention reads at one scale in the published networks."""
    layer, axis = "decoder.head.hidden.0.conv.weight", 1
    if decoder == "ocr":
        layer, axis = "decoder.pixels.conv.weight", 0
    if layer not in tensors:
        return 0
    return int(tensors[layer].shape[axis])
