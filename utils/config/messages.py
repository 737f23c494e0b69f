"""What pydantic finds wrong, in words that say what to write instead."""

from __future__ import annotations

import types
import typing
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from pydantic import BaseModel

from .errors import did_you_mean, nearest
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
_EXPECTED = {
    "bool_type": "true or false",
    "dict_type": "a mapping of names to values",
    "float_type": "a number",
    "int_type": "a whole number",
    "model_type": "a section: options as 'key: value' lines below it",
    "string_type": "text",
    "tuple_type": "a list in brackets",
}


def describe(error: Mapping[str, Any], root: type[BaseModel]) -> str:
    """One sentence for one of pydantic's errors about a configuration of type `root`."""
    kind, value, context = error["type"], error["input"], error.get("ctx", {})
    if kind == "extra_forbidden":
        return _unknown_key(tuple(error["loc"]), root)
    if kind in _EXPECTED:
        return f"expected {_EXPECTED[kind]}, got {shown(value)}{_hint(kind, value)}"
    if kind == "literal_error":
        return _not_a_choice(value, _choices(tuple(error["loc"]), root))
    inner = context.get("error")
    if isinstance(inner, UnknownChoice):
        return _not_a_choice(inner.word, inner.choices)
    if inner is not None:
        return str(inner)
    teller = _RANGES.get(kind)
    return (
        teller(value, context)
        if teller is not None
        else f"{error['msg'][0].lower()}{error['msg'][1:]}, got {shown(value)}"
    )


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
        f"must be at most {context['le']:g}, got {shown(value)}"
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


def shown(value: Any) -> str:
    """A value as YAML would show it, shortened."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (tuple, list)):
        text = f"[{', '.join(shown(item) for item in value)}]"
    else:
        text = "a section" if isinstance(value, dict) else repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _hint(kind: str, value: Any) -> str:
    if not isinstance(value, str):
        return (
            "; quote it to make it text"
            if kind == "string_type" and isinstance(value, (int, float))
            else ""
        )
    if value.lower() in ("none", "null"):
        return "; write null for none"
    if kind == "bool_type" and value.lower() in ("yes", "on", "true", "no", "off", "false"):
        return f"; write {'true' if value.lower() in ('yes', 'on', 'true') else 'false'}"
    return ""


def _not_a_choice(value: Any, choices: tuple[Any, ...]) -> str:
    words = [str(choice) for choice in choices]
    near = did_you_mean(value, words) if isinstance(value, str) else ""
    return f"{shown(value)} is none of {', '.join(words)}{near}"


def _unknown_key(path: tuple[str | int, ...], root: type[BaseModel]) -> str:
    key, section_path = str(path[-1]), ".".join(str(part) for part in path[:-1])
    section = _model_at(path[:-1], root)
    known = list(section.model_fields) if section is not None else []
    inside = nearest(key, known)
    everywhere = list(_names(root))
    if inside is None:
        same = [name for name in everywhere if name.rpartition(".")[2] == key]
        words = {**{name.rpartition(".")[2]: name for name in reversed(everywhere)}, **_OTHER_WORDS}
        near = nearest(key, words)
        found = same[0] if same else words[near] if near is not None else None
        if found is None:
            return f"unknown key; {section_path or 'a configuration'} has {', '.join(known)}"
        inside = found.removeprefix(f"{section_path}.") if section_path else found
    return f"unknown key (did you mean '{inside}'?)"


def _names(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, info in model.model_fields.items():
        yield f"{prefix}{name}"
        for inner in _models(info.annotation):
            yield from _names(inner, f"{prefix}{name}.")


def _models(annotation: Any) -> list[type[BaseModel]]:
    options = (
        typing.get_args(annotation) if isinstance(annotation, types.UnionType) else (annotation,)
    )
    return [
        option for option in options if isinstance(option, type) and issubclass(option, BaseModel)
    ]


def _model_at(path: tuple[str | int, ...], root: type[BaseModel]) -> type[BaseModel] | None:
    model: type[BaseModel] | None = root
    for part in path:
        info = model.model_fields.get(str(part)) if model is not None else None
        model = next(iter(_models(info.annotation)), None) if info is not None else None
    return model


def _choices(path: tuple[str | int, ...], root: type[BaseModel]) -> tuple[Any, ...]:
    """The choices of the Literal at `path`, through mappings, lists, unions and annotations."""
    depth = next(
        length for length in range(len(path), -1, -1) if _model_at(path[:length], root) is not None
    )
    model = _model_at(path[:depth], root)
    assert model is not None
    return tuple(_literals(model.model_fields[str(path[depth])].annotation))


def _literals(annotation: Any) -> Iterator[Any]:
    if typing.get_origin(annotation) is typing.Literal:
        yield from typing.get_args(annotation)
    else:
        for inner in typing.get_args(annotation):
            yield from _literals(inner)
