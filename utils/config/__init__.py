"""The configuration of an experiment: YAML files that inherit, command-line overrides, and every mistake named at once.

Importable without torch, so that a door answers a misspelt key before anything slow is loaded.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from ..files.yaml_loader import KeyPath, dotted, write_yaml
from .checks import check_sections
from .errors import ConfigError
from .messages import describe
from .models import Sections
from .sources import Origin, Tree, read_overrides, read_tree

__all__ = [
    "Config",
    "ConfigError",
    "ConfigField",
    "dump",
    "iter_fields",
    "json_schema",
    "load_config",
]


class Config(Sections):
    """A checked configuration. Rooms never see it: doors hand its fields over as arguments."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values (dict, list, str, int, float, bool, None), as checkpoints carry them; `from_dict` gives the configuration back."""
        return self.model_dump(mode="json")

    @classmethod
    def from_dict(
        cls,
        values: Mapping[str, Any],
        overrides: Sequence[str] = (),
        *,
        source: str = "configuration",
    ) -> Self:
        """Check plain values, with `section.key=value` overrides on top; `source` names them in a ConfigError."""
        tree = Tree(dict(values), {(): Origin(source)}, [])
        return cls._checked(tree.merged(read_overrides(overrides)))

    @classmethod
    def _checked(cls, tree: Tree) -> Self:
        mistakes = list(tree.mistakes)
        known = {mistake.path for mistake in mistakes}
        config, broken = None, []
        try:
            config = cls.model_validate(tree.values)
        except ValidationError as error:
            items = error.errors(include_url=False)
            for item in items:
                path = tuple(item["loc"])
                broken.append(path)
                told_below = any(
                    len(other["loc"]) > len(path) and other["loc"][: len(path)] == path
                    for other in items
                )
                if dotted(path) not in known and not told_below:
                    mistakes.append(tree.mistake(path, describe(item, cls)))
        repaired = config if config is not None else cls._without(tree, broken)
        if repaired is not None and tree.is_complete:
            wrong = [*known, *(dotted(path) for path in broken)]
            for paths, message in check_sections(repaired):
                if not any(_overlap(path, other) for path in paths for other in wrong):
                    mistakes.append(tree.mistake(tuple(paths[0].split(".")), message))
        if mistakes:
            raise ConfigError(
                sorted(mistakes, key=lambda mistake: (mistake.file, mistake.line or 0))
            )
        assert config is not None
        return config

    @classmethod
    def _without(cls, tree: Tree, broken: Sequence[KeyPath]) -> Self | None:
        """The configuration with the broken values left at their defaults, so that what is wrong between the others shows too."""
        try:
            return cls.model_validate(tree.without(broken).values)
        except ValidationError:
            return None


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML file with the files it inherits by `base:`, apply `section.key=value` overrides in order, check everything.

    `base` is a file name or a list of them, relative to the file that names it; later ones and the file itself win. Raises ConfigError that
    names every mistake with file, line and dotted path.
    """
    return Config._checked(read_tree(Path(path)).merged(read_overrides(overrides)))


def dump(config: Config) -> str:
    """YAML text of the resolved configuration; `load_config` of it gives the same configuration."""
    return write_yaml(config.to_dict())


@dataclass(frozen=True)
class ConfigField:
    """One option: dotted name, annotated type, default, meaning."""

    name: str
    annotation: Any
    default: Any
    description: str
    info: FieldInfo


def iter_fields(model: type[BaseModel] = Config, prefix: str = "") -> Iterator[ConfigField]:
    """Every option below `model`, sections opened, optional sections too (`data.extra` and then `data.extra.split`, ...)."""
    for name, info in model.model_fields.items():
        path = f"{prefix}{name}"
        section = _section_of(info.annotation)
        if section is None or section is not info.annotation:
            default = info.get_default(call_default_factory=True)
            yield ConfigField(path, info.annotation, default, info.description or "", info)
        if section is not None:
            yield from iter_fields(section, f"{path}.")


def _section_of(annotation: Any) -> type[BaseModel] | None:
    options = (
        typing.get_args(annotation) if isinstance(annotation, types.UnionType) else (annotation,)
    )
    for option in options:
        if isinstance(option, type) and issubclass(option, BaseModel):
            return option
    return None


def json_schema() -> dict[str, Any]:
    """JSON Schema of a configuration file, for editors."""
    schema = _tidy(Config.model_json_schema())
    name = {"type": "string", "minLength": 1}
    base = {
        "anyOf": [name, {"type": "array", "items": name}],
        "description": "File or files to inherit, relative to this one; later ones win",
    }
    header = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "hmsa configuration",
    }
    return {**header, **schema, "properties": {"base": base, **schema["properties"]}}


def _tidy(schema: Any) -> Any:
    """The schema without titles made from names, which hide the descriptions in editors, and alike for all versions of pydantic."""
    if isinstance(schema, list):
        return [_tidy(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if len(schema.get("allOf", ())) == 1:  # before pydantic 2.9: a reference with a description
        schema = {
            **schema["allOf"][0],
            **{key: value for key, value in schema.items() if key != "allOf"},
        }
    return {
        key: _tidy(schema[key])
        for key in sorted(schema, key=_rank)
        if not (key == "title" and isinstance(schema[key], str))
    }


def _rank(key: str) -> int:
    return 0 if key == "$ref" else 1


def _overlap(one: str, other: str) -> bool:
    longer, shorter = (one, other) if len(one) >= len(other) else (other, one)
    return longer == shorter or longer.startswith((f"{shorter}.", f"{shorter}["))
