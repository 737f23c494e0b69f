"""What pydantic finds wrong, in words that say what to write instead."""

from __future__ import annotations

import types
import typing
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from pydantic import BaseModel

from ..words import did_you_mean, nearest, shortened
from .models import UnknownChoice

# What other code bases call our options.
_OTHER_WORDS = {
    "arch": "model.trunk",
    "backbone": "model.trunk",
    "amp": "runtime.precision",
    "fp16": "runtime.precision",
    "batch": "data.batch_size",
    "bs_trn": "data.batch_size",
    "coarse": "data.extra",
    "color_aug": "data.color",
    "crop_size": "data.crop",
    "class_uniform_pct": "data.class_uniform.fraction",
    "class_uniform_tile": "data.class_uniform.tile",
    "do_flip": "eval.flip",
    "gblur": "data.blur",
    "grad_ckpt": "runtime.activation_checkpointing",
    "learning_rate": "optim.lr",
    "lr_schedule": "optim.schedule",
    "max_epoch": "optim.epochs",
    "max_epochs": "optim.epochs",
    "n_scales": "eval.scales",
    "num_workers": "data.workers",
    "ocr_alpha": "loss.aux_weight",
    "poly_exp": "optim.poly_exponent",
    "pre_size": "data.long_edge",
    "rmi_loss": "loss.main",
    "snapshot": "model.init_from",
    "supervised_mscale_loss_wt": "loss.scale_weight",
    "syncbn": "runtime.sync_batchnorm",
    "wd": "optim.weight_decay",
}

# Kinds of errors of pydantic's that say that a value has the wrong type.
_EXPECTED = {
    "bool_type": "true or false",
    "dict_type": "a mapping of names to values",
    "float_type": "a number",
    "int_type": "a whole number",
    "model_type": "a section: options as 'key: value' lines below it",
    "string_type": "text",
    "tuple_type": "a list in brackets",
    "whole_number": "a whole number",
}


def describe(error: Mapping[str, Any], root: type[BaseModel]) -> str:
    """One sentence for one of pydantic's errors about a configuration of type `root`."""
    kind, value, context = error["type"], error["input"], error.get("ctx", {})
    path = tuple(error["loc"])

    if kind == "extra_forbidden":
        return _unknown_key(path, root, is_section=isinstance(value, dict))
    if kind in _EXPECTED:
        return f"expected {_EXPECTED[kind]}, got {shown(value)}{_hint(kind, value)}"
    if kind == "literal_error":
        return _not_a_choice(value, _choices(path, root))

    # Errors that our own validators raised carry their sentence.
    inner = context.get("error")
    if isinstance(inner, UnknownChoice):
        return _not_a_choice(inner.word, inner.choices)
    if inner is not None:
        return str(inner)

    describe_range = _RANGES.get(kind)
    if describe_range is not None:
        return describe_range(value, context)
    return f"{error['msg'][0].lower()}{error['msg'][1:]}, got {shown(value)}"


_RANGES: dict[str, Callable[[Any, Mapping[str, Any]], str]] = {
    "finite_number": lambda value, context: f"expected a finite number, got {shown(value)}",
    "greater_than": lambda value, context: (
        f"must be greater than {context['gt']:g}, got {shown(value)}"
    ),
    "greater_than_equal": lambda value, context: (
        f"must be at least {context['ge']:g}, got {shown(value)}"
    ),
    "less_than": lambda value, context: f"must be less than {context['lt']:g}, got {shown(value)}",
    "less_than_equal": lambda value, context: (
        f"must be at most {_whole_or_short(context['le'])}, got {shown(value)}"
    ),
    "missing": lambda value, context: f"a value is missing; got only {shown(value)}",
    "string_too_short": lambda value, context: "must not be empty",
    "too_long": lambda value, context: (
        f"has {len(value)} values, at most {context['max_length']} are meant: {shown(value)}"
    ),
    "too_short": lambda value, context: (
        f"needs at least {context['min_length']} value(s), got {shown(value)}"
    ),
}


def _whole_or_short(number: float) -> str:
    if isinstance(number, int):
        return str(number)
    return f"{number:g}"


def shown(value: Any) -> str:
    """A value as YAML would show it, shortened to 80 characters."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int) and value.bit_length() > 64:
        return "a whole number of more than 64 bits"  # Python may refuse to print it

    if isinstance(value, (tuple, list)):
        text = f"[{', '.join(shown(item) for item in value[:80])}]"
    elif isinstance(value, dict):
        text = "a section"
    else:
        text = repr(value)
    return shortened(text)


def _hint(kind: str, value: Any) -> str:
    """What to write instead of `value`, which has the wrong type, where that is clear."""
    if kind == "string_type" and isinstance(value, (int, float)):
        return "; quote it to make it text"
    if not isinstance(value, str):
        return ""

    word = value.lower()
    if word in ("none", "null"):
        return "; write null for none"
    if kind == "bool_type" and word in ("yes", "on", "true"):
        return "; write true"
    if kind == "bool_type" and word in ("no", "off", "false"):
        return "; write false"
    return ""


def _not_a_choice(value: Any, choices: tuple[Any, ...]) -> str:
    words = [str(choice) for choice in choices]
    near = ""
    if isinstance(value, str):
        near = did_you_mean(value, words)
    return f"{shown(value)} is none of {', '.join(words)}{near}"


def _unknown_key(path: tuple[str | int, ...], root: type[BaseModel], *, is_section: bool) -> str:
    """The sentence for a key that is none, with the option that was probably meant."""
    key, section_path = str(path[-1]), ".".join(str(part) for part in path[:-1])
    section = _model_at(path[:-1], root)
    known: list[str] = []
    if section is not None:
        known = list(section.model_fields)

    # First a like word in this section, then the same word elsewhere, then a like word anywhere. A
    # section that does not exist is no option.
    meant = nearest(key, known)
    if meant is None and not (is_section and not section_path):
        everywhere = list(_names(root))
        same = [name for name in everywhere if name.rpartition(".")[2] == key]
        words = {name.rpartition(".")[2]: name for name in reversed(everywhere)} | _OTHER_WORDS
        near = nearest(key, words)
        if same:
            meant = same[0]
        elif near is not None:
            meant = words[near]

    if meant is None and not section_path:
        kind = "section" if is_section else "key"
        return f"unknown {kind}; the sections of a configuration are {', '.join(known)}"
    if meant is None:
        return f"unknown key; {section_path} has {', '.join(known)}"
    if section_path:
        meant = meant.removeprefix(f"{section_path}.")
    return f"unknown key (did you mean '{meant}'?)"


def named_option(word: str, root: type[BaseModel]) -> str | None:
    """The dotted name of the option that is called `word` here or elsewhere; None without one."""
    for name in _names(root):
        if name.rpartition(".")[2] == word and "." in name:
            return name
    return _OTHER_WORDS.get(word)


def _names(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """The dotted names of all sections and options below `model`."""
    for name, info in model.model_fields.items():
        yield f"{prefix}{name}"
        for inner in _models(info.annotation):
            yield from _names(inner, f"{prefix}{name}.")


def _models(annotation: Any) -> list[type[BaseModel]]:
    """The sections that an annotation allows: itself, or the members of a union."""
    options: tuple[Any, ...] = (annotation,)
    if isinstance(annotation, types.UnionType):
        options = typing.get_args(annotation)
    return [
        option for option in options if isinstance(option, type) and issubclass(option, BaseModel)
    ]


def _model_at(path: tuple[str | int, ...], root: type[BaseModel]) -> type[BaseModel] | None:
    """The section at `path`, or None where there is none."""
    model: type[BaseModel] | None = root
    for part in path:
        if model is None or str(part) not in model.model_fields:
            return None
        annotation = model.model_fields[str(part)].annotation
        model = next(iter(_models(annotation)), None)
    return model


def _choices(path: tuple[str | int, ...], root: type[BaseModel]) -> tuple[Any, ...]:
    """The choices of the Literal at `path`, through mappings, lists, unions and annotations."""
    depth = len(path)
    while _model_at(path[:depth], root) is None:
        depth -= 1
    model = _model_at(path[:depth], root)
    assert model is not None
    return tuple(_literals(model.model_fields[str(path[depth])].annotation))


def _literals(annotation: Any) -> Iterator[Any]:
    if typing.get_origin(annotation) is typing.Literal:
        yield from typing.get_args(annotation)
    else:
        for inner in typing.get_args(annotation):
            yield from _literals(inner)
