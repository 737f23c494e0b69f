"""Names of tensors in other people's checkpoints, and ours (RELEASE.md section 3)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TypeVar

Value = TypeVar("Value")
Pairs = tuple[tuple[str, str], ...]  # (prefix of their names, prefix of ours)


def _unit(theirs: str, ours: str) -> Pairs:
    """A convolution and the batch norm in the two-element sequential behind it."""
    conv, norm = theirs.split("|")
    return (conv, f"{ours}.conv."), (norm, f"{ours}.norm.")


_CONTEXT = "ocr.ocr_distri_head.object_context_block"
AUTHORS_OCR: Pairs = (
    ("backbone.", "trunk."),
    *_unit("ocr.conv3x3_ocr.0.|ocr.conv3x3_ocr.1.0.", "decoder.pixels"),
    *_unit(f"{_CONTEXT}.f_pixel.0.|{_CONTEXT}.f_pixel.1.0.", "decoder.object_attention.query.0"),
    *_unit(f"{_CONTEXT}.f_pixel.2.|{_CONTEXT}.f_pixel.3.0.", "decoder.object_attention.query.1"),
    *_unit(f"{_CONTEXT}.f_object.0.|{_CONTEXT}.f_object.1.0.", "decoder.object_attention.key.0"),
    *_unit(f"{_CONTEXT}.f_object.2.|{_CONTEXT}.f_object.3.0.", "decoder.object_attention.key.1"),
    *_unit(f"{_CONTEXT}.f_down.0.|{_CONTEXT}.f_down.1.0.", "decoder.object_attention.value"),
    *_unit(f"{_CONTEXT}.f_up.0.|{_CONTEXT}.f_up.1.0.", "decoder.object_attention.output"),
    *_unit(
        "ocr.ocr_distri_head.conv_bn_dropout.0.|ocr.ocr_distri_head.conv_bn_dropout.1.0.",
        "decoder.merge",
    ),
    ("ocr.cls_head.", "decoder.classifier."),
    *_unit("ocr.aux_head.0.|ocr.aux_head.1.0.", "decoder.aux_head.hidden"),
    ("ocr.aux_head.2.", "decoder.aux_head.classifier."),
)
AUTHORS_DEEPLAB: Pairs = (
    ("backbone.layer0.0.", "trunk.conv1."),
    ("backbone.layer0.1.", "trunk.bn1."),
    ("backbone.", "trunk."),
    *(
        pair
        for index in range(4)
        for pair in _unit(
            f"aspp.features.{index}.0.|aspp.features.{index}.1.", f"decoder.aspp.branches.{index}"
        )
    ),
    *_unit("aspp.img_conv.0.|aspp.img_conv.1.", "decoder.aspp.pooled"),
    ("bot_fine.", "decoder.fine."),
    ("bot_aspp.", "decoder.context."),
    *_unit("final.0.|final.1.", "decoder.head.hidden.0"),
    *_unit("final.3.|final.4.", "decoder.head.hidden.1"),
    ("final.6.", "decoder.head.output."),
)
# The authors wrote the attention head three times; the last tensor of each tells which it is.
ATTENTION_HEADS: dict[str, Pairs] = {
    "scale_attn.conv2.weight": (
        *_unit("scale_attn.conv0.|scale_attn.bn0.", "attention.hidden.0"),
        *_unit("scale_attn.conv1.|scale_attn.bn1.", "attention.hidden.1"),
        ("scale_attn.conv2.", "attention.output."),
    ),
    "scale_attn.6.weight": (
        *_unit("scale_attn.0.|scale_attn.1.", "attention.hidden.0"),
        *_unit("scale_attn.3.|scale_attn.4.", "attention.hidden.1"),
        ("scale_attn.6.", "attention.output."),
    ),
    "scale_attn.2.weight": (
        ("scale_attn.0.", "attention.hidden."),
        ("scale_attn.2.", "attention.output."),
    ),
}


def renamed(tensors: Mapping[str, Value], pairs: Pairs) -> dict[str, Value]:
    """The mapping with each key's longest matching prefix replaced; other keys stay."""
    ordered = sorted(pairs, key=lambda pair: -len(pair[0]))

    def name(key: str) -> str:
        for old, new in ordered:
            if key.startswith(old):
                return new + key[len(old) :]
        return key

    return {name(key): value for key, value in tensors.items()}


def from_authors(tensors: Mapping[str, Value]) -> dict[str, Value]:
    """The authors' names (`backbone.`, `ocr.` or `aspp.` ..., `scale_attn.`) to ours."""
    pairs = AUTHORS_OCR if any(key.startswith("ocr.") for key in tensors) else AUTHORS_DEEPLAB
    for last, head in ATTENTION_HEADS.items():
        if last in tensors:
            pairs += head
    return renamed(tensors, pairs)


def to_authors(tensors: Mapping[str, Value], *, multiscale: str) -> dict[str, Value]:
    """Our names to the authors', of a model with the `ocr` or `deeplabv3plus` decoder."""
    decoder = AUTHORS_OCR if "decoder.aux_head.classifier.weight" in tensors else AUTHORS_DEEPLAB
    last = "scale_attn.conv2.weight" if multiscale == "hierarchical" else "scale_attn.6.weight"
    if "attention.hidden.weight" in tensors:
        last = "scale_attn.2.weight"
    return renamed(
        tensors, tuple((ours, theirs) for theirs, ours in decoder + ATTENTION_HEADS[last])
    )


def stripped(tensors: Mapping[str, Value], prefixes: Iterable[str]) -> dict[str, Value]:
    """Without the prefixes that wrappers (data parallelism, compilation, a loss around the model) put before names."""
    result = dict(tensors)
    found = True
    while found:
        found = False
        for prefix in prefixes:
            if any(key.startswith(prefix) for key in result):
                result = {key.removeprefix(prefix): value for key, value in result.items()}
                found = True
    return result
