"""Our names of tensors to the authors', so that tests can make checkpoints like theirs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from hmsa.network.weights.key_names import (
    ATTENTION_HEADS,
    AUTHORS_DEEPLAB,
    AUTHORS_OCR,
    renamed,
)

Value = TypeVar("Value")


def to_authors(tensors: Mapping[str, Value], *, multiscale: str) -> dict[str, Value]:
    """The tensors of a model with the `ocr` or `deeplabv3plus` decoder by the authors' names."""
    decoder = AUTHORS_OCR if "decoder.aux_head.classifier.weight" in tensors else AUTHORS_DEEPLAB
    last_tensor = "scale_attn.6.weight"
    if multiscale == "hierarchical":
        last_tensor = "scale_attn.conv2.weight"
    elif "attention.hidden.weight" in tensors:
        last_tensor = "scale_attn.2.weight"
    pairs = decoder + ATTENTION_HEADS[last_tensor]
    return renamed(tensors, tuple((ours, theirs) for theirs, ours in pairs))
