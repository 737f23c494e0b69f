"""Names of tensors in the authors' and in HRNet-OCR's checkpoints, and ours.

docs/release_notes.md, checkpoints, describes these files.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TypeVar

Value = TypeVar("Value")
Prefixes = tuple[tuple[str, str], ...]  # pairs (beginning of a name of theirs, of ours)


def _conv_norm(conv: str, norm: str, ours: str) -> Prefixes:
    """A convolution and its batch norm, which here are one layer `ours`."""
    return (f"{conv}.", f"{ours}.conv."), (f"{norm}.", f"{ours}.norm.")


_CONTEXT = "ocr.ocr_distri_head.object_context_block"
_MERGE = "ocr.ocr_distri_head.conv_bn_dropout"
_ATTENTION = "decoder.object_attention"

# Of their networks with OCR, whose batch norms are the first element of a sequential.
AUTHORS_OCR: Prefixes = (
    ("backbone.", "trunk."),
    *_conv_norm("ocr.conv3x3_ocr.0", "ocr.conv3x3_ocr.1.0", "decoder.pixels"),
    *_conv_norm(f"{_CONTEXT}.f_pixel.0", f"{_CONTEXT}.f_pixel.1.0", f"{_ATTENTION}.query.0"),
    *_conv_norm(f"{_CONTEXT}.f_pixel.2", f"{_CONTEXT}.f_pixel.3.0", f"{_ATTENTION}.query.1"),
    *_conv_norm(f"{_CONTEXT}.f_object.0", f"{_CONTEXT}.f_object.1.0", f"{_ATTENTION}.key.0"),
    *_conv_norm(f"{_CONTEXT}.f_object.2", f"{_CONTEXT}.f_object.3.0", f"{_ATTENTION}.key.1"),
    *_conv_norm(f"{_CONTEXT}.f_down.0", f"{_CONTEXT}.f_down.1.0", f"{_ATTENTION}.value"),
    *_conv_norm(f"{_CONTEXT}.f_up.0", f"{_CONTEXT}.f_up.1.0", f"{_ATTENTION}.output"),
    *_conv_norm(f"{_MERGE}.0", f"{_MERGE}.1.0", "decoder.merge"),
    ("ocr.cls_head.", "decoder.classifier."),
    *_conv_norm("ocr.aux_head.0", "ocr.aux_head.1.0", "decoder.aux_head.hidden"),
    ("ocr.aux_head.2.", "decoder.aux_head.classifier."),
)

# Of their DeepLabV3+ networks.
AUTHORS_DEEPLAB: Prefixes = (
    ("backbone.layer0.0.", "trunk.conv1."),
    ("backbone.layer0.1.", "trunk.bn1."),
    ("backbone.", "trunk."),
    *_conv_norm("aspp.features.0.0", "aspp.features.0.1", "decoder.aspp.branches.0"),
    *_conv_norm("aspp.features.1.0", "aspp.features.1.1", "decoder.aspp.branches.1"),
    *_conv_norm("aspp.features.2.0", "aspp.features.2.1", "decoder.aspp.branches.2"),
    *_conv_norm("aspp.features.3.0", "aspp.features.3.1", "decoder.aspp.branches.3"),
    *_conv_norm("aspp.img_conv.0", "aspp.img_conv.1", "decoder.aspp.pooled"),
    ("bot_fine.", "decoder.fine."),
    ("bot_aspp.", "decoder.context."),
    *_conv_norm("final.0", "final.1", "decoder.head.hidden.0"),
    *_conv_norm("final.3", "final.4", "decoder.head.hidden.1"),
    ("final.6.", "decoder.head.output."),
)

# The authors' attention head has three forms. The name of its last tensor says which one it is.
ATTENTION_HEADS: dict[str, Prefixes] = {
    "scale_attn.conv2.weight": (
        *_conv_norm("scale_attn.conv0", "scale_attn.bn0", "attention.hidden.0"),
        *_conv_norm("scale_attn.conv1", "scale_attn.bn1", "attention.hidden.1"),
        ("scale_attn.conv2.", "attention.output."),
    ),
    "scale_attn.6.weight": (
        *_conv_norm("scale_attn.0", "scale_attn.1", "attention.hidden.0"),
        *_conv_norm("scale_attn.3", "scale_attn.4", "attention.hidden.1"),
        ("scale_attn.6.", "attention.output."),
    ),
    "scale_attn.2.weight": (
        ("scale_attn.0.", "attention.hidden."),
        ("scale_attn.2.", "attention.output."),
    ),
}


def from_authors(tensors: Mapping[str, Value]) -> dict[str, Value]:
    """The authors' names (`backbone.`, `ocr.` or `aspp.` ..., `scale_attn.`) to ours."""
    prefixes = AUTHORS_DEEPLAB
    if any(key.startswith("ocr.") for key in tensors):
        prefixes = AUTHORS_OCR
    for last_tensor, head in ATTENTION_HEADS.items():
        if last_tensor in tensors:
            prefixes += head
    return renamed(tensors, prefixes)


def renamed(tensors: Mapping[str, Value], prefixes: Prefixes) -> dict[str, Value]:
    """The mapping with the longest prefix that fits a key replaced; other keys stay."""
    longest_first = sorted(prefixes, key=lambda pair: -len(pair[0]))

    def name(key: str) -> str:
        for old, new in longest_first:
            if key.startswith(old):
                return new + key[len(old) :]
        return key

    return {name(key): value for key, value in tensors.items()}


def without_prefixes(tensors: Mapping[str, Value], prefixes: Iterable[str]) -> dict[str, Value]:
    """The mapping without what data parallelism, compilation and the like put before names.

    Prefixes are taken off as often as they occur, in any order.
    """
    result = dict(tensors)
    chosen = tuple(prefixes)
    while any(key.startswith(chosen) for key in result):
        for prefix in chosen:
            result = {key.removeprefix(prefix): value for key, value in result.items()}
    return result
