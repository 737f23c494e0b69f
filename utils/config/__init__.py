"""The configuration of an experiment.

YAML files that inherit, command-line overrides, and every mistake named at once. Importable without
torch, so that a command answers a misspelt key before anything slow is loaded.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from ..files.yaml_loader import MAX_DEPTH, MAX_VALUES, KeyPath, Mistake, dotted, write_yaml
from .checks import check_sections
from .errors import ConfigError
from .lookup import find_config
from .messages import describe, named_option
from .models import Sections
from .sources import ConfigTree, Origin, read_overrides, read_tree, with_class_list

__all__ = [
    "Config",
    "ConfigError",
    "ConfigField",
    "dump",
    "find_config",
    "iter_fields",
    "json_schema",
    "load_config",
    "option_named",
]


# So many are told at once: nobody reads more, and looking for the nearest word takes its time.
MAX_MISTAKES = 100


class Config(Sections):
    """A checked configuration.

    Only `engine` sees it: it hands the fields over to the builders as arguments.
    """

    def to_dict(self) -> dict[str, Any]:
        """Plain values (dict, list, str, int, float, bool, None), as checkpoints carry them.

        `from_dict` gives the configuration back.
        """
        return self.model_dump(mode="json")

    @classmethod
    def from_dict(
        cls,
        values: Mapping[str, Any],
        overrides: Sequence[str] = (),
        *,
        source: str = "configuration",
    ) -> Self:
        """Check plain values, with `section.key=value` overrides on top.

        Raises:
            ConfigError: With every mistake; `source` names the values in it.
        """
        if not isinstance(values, Mapping):
            raise ConfigError([Mistake("holds no sections of options", file=source)])
        tree = ConfigTree(dict(values), {(): Origin(source)}, [])
        _raise_unless_plain(tree)
        return cls._checked(tree.merged(read_overrides(overrides)))

    @classmethod
    def _checked(cls, tree: ConfigTree) -> Self:
        _raise_unless_plain(tree)
        tree = with_class_list(tree)
        mistakes = list(tree.mistakes)
        known = {mistake.path for mistake in mistakes}

        # The mistakes of single values. Of an error and one below it, the inner one says more.
        config, broken = None, []
        try:
            config = cls.model_validate(tree.values)
        except ValidationError as error:
            items = error.errors(include_url=False)[:MAX_MISTAKES]
            for item in items:
                path = tuple(item["loc"])
                broken.append(path)
                has_inner = any(
                    len(other["loc"]) > len(path) and other["loc"][: len(path)] == path
                    for other in items
                )
                if dotted(path) not in known and not has_inner:
                    mistakes.append(tree.mistake(path, describe(item, cls)))

        # Contradictions between values, as far as these are right by themselves.
        repaired = config
        if config is None and len(broken) < MAX_MISTAKES:
            repaired = cls._without(tree, broken)
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
    def _without(cls, tree: ConfigTree, broken: Sequence[KeyPath]) -> Self | None:
        """The configuration with the broken values left at their defaults.

        What is wrong between the other values shows, too.
        """
        try:
            return cls.model_validate(tree.without(broken).values)
        except ValidationError:
            return None


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML file with what it inherits, apply the overrides in order, check everything.

    `path` may name a shipped configuration, see `find_config`. In the file, `base` is a file name
    or a list of them, relative to the file that names it; later ones and the file itself win. An
    override is a text `section.key=value`.

    Raises:
        ConfigError: With every mistake: its file, line and dotted path.
    """
    return Config._checked(read_tree(find_config(path)).merged(read_overrides(overrides)))


def option_named(word: str) -> str | None:
    """The dotted name of the option that is called `word`, as in "lr" for "optim.lr"."""
    return named_option(word, Config)


def dump(config: Config) -> str:
    """YAML text of the resolved configuration; `load_config` of it gives the same one."""
    return write_yaml(config.to_dict())


def _raise_unless_plain(tree: ConfigTree) -> None:
    """Refuse what no configuration can hold, wherever it stands.

    That is text that no file can hold, keys that are no text, and lists or mappings that are too
    deep, such as one that holds itself, which only a damaged checkpoint can bring.
    """
    mistakes: list[Mistake] = []
    open_values: list[tuple[KeyPath, Any]] = [((), tree.values)]
    count = 0
    while open_values:
        path, value = open_values.pop()
        count += 1
        if count > MAX_VALUES:
            raise ConfigError([tree.mistake(path[:1], f"has more than {MAX_VALUES} values")])
        if isinstance(value, str) and ("\0" in value or not _is_unicode(value)):
            message = "holds a NUL character, or half of a character; remove it"
            mistakes.append(tree.mistake(path, message))
        if not isinstance(value, (dict, list, tuple)):
            continue

        if len(path) >= MAX_DEPTH:
            raise ConfigError([tree.mistake(path[:1], f"is nested more than {MAX_DEPTH} deep")])
        inner: Iterable[tuple[Any, Any]] = enumerate(value)
        if isinstance(value, dict):
            inner = value.items()
            if not all(isinstance(key, str) and _is_unicode(key) for key in value):
                mistakes.append(tree.mistake(path, "has a key that is no text"))
                continue
        open_values += [((*path, key), below) for key, below in inner]
    if mistakes:
        raise ConfigError(mistakes)


def _is_unicode(text: str) -> bool:
    """Whether the text can be written as UTF-8: it has no halves of characters."""
    return not any("\ud800" <= sign <= "\udfff" for sign in text)


def _overlap(one: str, other: str) -> bool:
    """Whether two dotted paths are the same, or one lies below the other."""
    shorter, longer = sorted((one, other), key=len)
    return longer == shorter or longer.startswith((f"{shorter}.", f"{shorter}["))


@dataclass(frozen=True)
class ConfigField:
    """One option: dotted name, annotated type, default, meaning."""

    name: str
    annotation: Any
    default: Any
    description: str
    info: FieldInfo


def iter_fields(model: type[BaseModel] = Config, prefix: str = "") -> Iterator[ConfigField]:
    """Every option below `model`.

    Sections are opened, optional ones too: `data.extra` and then `data.extra.split` and so on.
    """
    for name, info in model.model_fields.items():
        path = f"{prefix}{name}"
        section = _section_of(info.annotation)
        if section is None or section is not info.annotation:
            default = info.get_default(call_default_factory=True)
            meaning = " ".join((info.description or "").split())
            yield ConfigField(path, info.annotation, default, meaning, info)
        if section is not None:
            yield from iter_fields(section, f"{path}.")


def _section_of(annotation: Any) -> type[BaseModel] | None:
    """The section that an annotation is, or that it allows besides None."""
    options: tuple[Any, ...] = (annotation,)
    if isinstance(annotation, types.UnionType):
        options = typing.get_args(annotation)
    for option in options:
        if isinstance(option, type) and issubclass(option, BaseModel):
            return option
    return None


def json_schema() -> dict[str, Any]:
    """JSON Schema of a configuration file, for editors."""
    schema = _tidy(Config.model_json_schema())

    # `base` is read before the sections and is no field of them.
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
    """The schema in one form for all versions of pydantic, without titles made from names.

    Such titles hide the descriptions in editors.
    """
    if isinstance(schema, list):
        return [_tidy(item) for item in schema]
    if not isinstance(schema, dict):
        return schema

    # Before pydantic 2.9 a reference with a description was written as `allOf` of one.
    if len(schema.get("allOf", ())) == 1:
        rest = {key: value for key, value in schema.items() if key != "allOf"}
        schema = {**schema["allOf"][0], **rest}

    tidied = {}
    for key in sorted(schema, key=lambda key: key != "$ref"):
        value = schema[key]
        if key == "description" and isinstance(value, str):
            tidied[key] = " ".join(value.split())
        elif key != "title" or not isinstance(value, str):
            tidied[key] = _tidy(value)
    return tidied
