"""Where a configuration's values come from: files that inherit from files, and the command line."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..files.yaml_loader import KeyPath, dotted, parse_yaml, read_yaml
from .errors import ConfigError, Mistake, did_you_mean

COMMAND_LINE = "command line"
BASE = "base"


@dataclass(frozen=True)
class Origin:
    """The file, and the line if known, that gave a value."""

    file: str
    line: int | None = None


@dataclass(frozen=True)
class Tree:
    """Nested values, where each came from by path, and the mistakes met so far."""

    values: dict[str, Any]
    origins: dict[KeyPath, Origin]
    mistakes: list[Mistake]

    @property
    def is_complete(self) -> bool:
        """Whether every file that should be part of it is."""
        return not any(mistake.path == BASE for mistake in self.mistakes)

    def merged(self, over: Tree) -> Tree:
        """This tree with `over` on top: mappings join key by key, everything else is replaced."""
        values = _joined(self.values, over.values)
        kept = {
            path: origin
            for path, origin in self.origins.items()
            if not _replaced(path, over.values)
        }
        return Tree(values, {**over.origins, **kept}, [*self.mistakes, *over.mistakes])

    def without(self, paths: Iterable[KeyPath]) -> Tree:
        """This tree without the values at `paths`; of a list the whole list goes."""
        values = self.values
        for path in paths:
            values = _pruned(values, path)
        return Tree(values, self.origins, self.mistakes)

    def mistake(self, path: KeyPath, message: str) -> Mistake:
        """A mistake at `path`, placed where that value, or the nearest one around it, came from."""
        for length in range(len(path), -1, -1):
            origin = self.origins.get(path[:length])
            if origin is not None:
                return Mistake(message, path=dotted(path), file=origin.file, line=origin.line)
        return Mistake(message, path=dotted(path))


def _joined(base: Any, over: Any) -> Any:
    if isinstance(base, dict) and isinstance(over, dict):
        return {
            **base,
            **{
                key: _joined(base[key], value) if key in base else value
                for key, value in over.items()
            },
        }
    return over


def _replaced(path: KeyPath, over: Any) -> bool:
    """Whether `over` gives its own value at `path` or around it."""
    for key in path:
        if not isinstance(over, dict):
            return True
        if key not in over:
            return False
        over = over[key]
    return not isinstance(over, dict)


def _pruned(values: dict[str, Any], path: KeyPath) -> dict[str, Any]:
    if not path or path[0] not in values:
        return values
    key = str(path[0])
    inner = values[key]
    if len(path) > 1 and isinstance(inner, dict):
        if path[1] in inner:
            return {**values, key: _pruned(inner, path[1:])}
        if len(path) == 2:  # a key that is missing: nothing to take away
            return values
    return {name: value for name, value in values.items() if name != key}


def read_tree(path: Path) -> Tree:
    """A YAML file with everything it inherits. Raises ConfigError when the file cannot be read; other mistakes are in the tree."""
    return _read(path, ())


def _read(path: Path, chain: tuple[Path, ...]) -> Tree:
    file = str(path)
    document = read_yaml(path)
    if document.value is not None and not isinstance(document.value, dict):
        message = "holds no options; write sections such as 'optim:' with options below"
        raise ConfigError([*document.mistakes, Mistake(message, file=file)])
    origins = {
        place: Origin(file, line)
        for place, line in document.lines.items()
        if place and place[0] != BASE
    }
    own = Tree(dict(document.value or {}), {(): Origin(file), **origins}, list(document.mistakes))
    at = Origin(file, document.lines.get((BASE,)))
    inherited = Tree({}, {}, [])
    for name in _base_names(own.values.pop(BASE, None), own, at):
        inherited = inherited.merged(_read_base(name, (*chain, path), own, at))
    return inherited.merged(own)


def _base_names(named: Any, own: Tree, at: Origin) -> list[str]:
    names = [named] if isinstance(named, str) else named
    if names is None:
        return []
    if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
        own.mistakes.append(
            Mistake(
                "expected a file name or a list of file names",
                path=BASE,
                file=at.file,
                line=at.line,
            )
        )
        return []
    return names


def _read_base(name: str, chain: tuple[Path, ...], own: Tree, at: Origin) -> Tree:
    """The tree of the file called `name` in the last file of `chain`; what makes it unreadable becomes a mistake of `own`."""
    path = Path(os.path.normpath(chain[-1].parent / name))
    names = " -> ".join(str(link) for link in (*chain, path))
    if any(path.resolve() == link.resolve() for link in chain):
        problem = f"inherits from itself: {names}"
    elif not path.is_file():
        beside = [entry.name for entry in sorted(path.parent.glob("*.yaml"))]
        problem = f"no such file '{path}'{did_you_mean(path.name, beside)}: {names}"
    else:
        try:
            return _read(path, chain)
        except ConfigError as error:
            own.mistakes.extend(
                replace(mistake, path=mistake.path or BASE) for mistake in error.mistakes
            )
            return Tree({}, {}, [])
    own.mistakes.append(Mistake(problem, path=BASE, file=at.file, line=at.line))
    return Tree({}, {}, [])


def read_overrides(overrides: Sequence[str]) -> Tree:
    """The values of `section.key=value` texts, later ones winning; values are read as YAML: numbers, [lists], {mappings}, text."""
    tree = Tree({}, {}, [])
    for text in overrides:
        name, equals, value_text = text.partition("=")
        path: KeyPath = tuple(name.strip().split("."))
        if not equals or not all(path):
            tree.mistakes.append(
                Mistake(f"'{text}' is no override; write section.key=value", file=COMMAND_LINE)
            )
            continue
        try:
            document = parse_yaml(value_text, source=COMMAND_LINE)
        except ConfigError as error:
            tree.mistakes.extend(
                Mistake(mistake.message, path=dotted(path), file=COMMAND_LINE)
                for mistake in error.mistakes
            )
            continue
        for mistake in document.mistakes:
            place = f"{dotted(path)}.{mistake.path}".rstrip(".")
            tree.mistakes.append(Mistake(mistake.message, path=place, file=COMMAND_LINE))
        places: dict[KeyPath, Origin] = {
            path[:length]: Origin(COMMAND_LINE) for length in range(1, len(path) + 1)
        }
        tree = tree.merged(Tree(_nested(path, document.value), places, []))
    return tree


def _nested(path: KeyPath, value: Any) -> dict[str, Any]:
    for key in reversed(path):
        value = {key: value}
    return value
