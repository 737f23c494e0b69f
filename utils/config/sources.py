"""Where a configuration's values come from: files that inherit from files, and the command line."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..files.yaml_loader import KeyPath, Mistake, YamlError, dotted, parse_yaml, read_yaml
from ..words import did_you_mean, shortened
from .errors import ConfigError
from .lookup import find_base, find_class_list

COMMAND_LINE = "command line"
BASE = "base"
MAX_FILES = 64  # that one configuration inherits, each counted as often as it is read


@dataclass(frozen=True)
class Origin:
    """The file, and the line if known, that gave a value."""

    file: str
    line: int | None = None


@dataclass(frozen=True)
class ConfigTree:
    """Nested values, where each came from by path, and the mistakes met so far."""

    values: dict[str, Any]
    origins: dict[KeyPath, Origin]
    mistakes: list[Mistake]

    @property
    def is_complete(self) -> bool:
        """Whether every file that should be part of it is."""
        return not any(mistake.path == BASE for mistake in self.mistakes)

    def merged(self, over: ConfigTree) -> ConfigTree:
        """This tree with `over` on top: mappings join key by key, all else is replaced."""
        values = _joined(self.values, over.values)
        kept = {
            path: origin
            for path, origin in self.origins.items()
            if not _replaced(path, over.values)
        }
        return ConfigTree(values, {**over.origins, **kept}, [*self.mistakes, *over.mistakes])

    def without(self, paths: Iterable[KeyPath]) -> ConfigTree:
        """This tree without the values at `paths`; of a list the whole list goes."""
        values = self.values
        for path in paths:
            values = _pruned(values, path)
        return ConfigTree(values, self.origins, self.mistakes)

    def mistake(self, path: KeyPath, message: str) -> Mistake:
        """A mistake at `path`, placed where that value, or the nearest around it, came from."""
        for length in range(len(path), -1, -1):
            origin = self.origins.get(path[:length])
            if origin is not None:
                return Mistake(message, path=dotted(path), file=origin.file, line=origin.line)
        return Mistake(message, path=dotted(path))


def _joined(base: Any, over: Any) -> Any:
    if not isinstance(base, dict) or not isinstance(over, dict):
        return over
    joined = dict(base)
    for key, value in over.items():
        joined[key] = _joined(base.get(key), value)
    return joined


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


def read_tree(path: Path) -> ConfigTree:
    """A YAML file with everything it inherits.

    Raises:
        ConfigError: When the file itself cannot be read; other mistakes are in the tree.
    """
    return _FileReader().read(path, ())


class _FileReader:
    """Reads a file and what it inherits, and counts the files."""

    def __init__(self) -> None:
        self.count = 0

    def read(self, path: Path, chain: tuple[Path, ...]) -> ConfigTree:
        """The tree of `path`, which the files of `chain` led to."""
        self.count += 1
        file = str(path)
        try:
            document = read_yaml(path)
        except YamlError as error:
            raise ConfigError(error.mistakes) from None
        if document.value is not None and not isinstance(document.value, dict):
            message = "holds no options; write sections such as 'optim:' with options below"
            raise ConfigError([*document.mistakes, Mistake(message, file=file)])

        origins = {
            place: Origin(file, line)
            for place, line in document.lines.items()
            if place and place[0] != BASE
        }
        values = dict(document.value or {})
        own = ConfigTree(values, {(): Origin(file), **origins}, list(document.mistakes))

        # What is inherited lies below: later bases win over earlier ones, the file over all.
        at = Origin(file, document.lines.get((BASE,)))
        inherited = ConfigTree({}, {}, [])
        for name in _base_names(own.values.pop(BASE, None), own, at):
            base = self.read_base(name, (*chain, path), own, at)
            inherited = inherited.merged(base)
        return inherited.merged(own)

    def read_base(
        self, name: str, chain: tuple[Path, ...], own: ConfigTree, at: Origin
    ) -> ConfigTree:
        """The tree of the file called `name` in the last file of `chain`.

        What makes it unreadable becomes a mistake of `own`, and the tree is empty.
        """
        folder = chain[-1].parent
        named = Path(os.path.normpath(folder / name))
        path = Path(os.path.normpath(find_base(name, folder) or named))
        names = " -> ".join(str(link) for link in (*chain, path))

        if any(os.path.realpath(path) == os.path.realpath(link) for link in chain):
            problem = f"inherits from itself: {names}"
        elif find_base(name, folder) is None:
            beside = [entry.name for entry in sorted(named.parent.glob("*.yaml"))]
            problem = f"no such file '{named}'{did_you_mean(named.name, beside)}: {names}"
        elif self.count >= MAX_FILES:
            # Files that each inherit two others are read twice as often with every generation.
            problem = f"inherits more than {MAX_FILES} files, each counted as often as it is named"
            if any(mistake.message == problem for mistake in own.mistakes):
                return ConfigTree({}, {}, [])
        else:
            try:
                return self.read(path, chain)
            except ConfigError as error:
                own.mistakes.extend(
                    replace(mistake, path=mistake.path or BASE) for mistake in error.mistakes
                )
                return ConfigTree({}, {}, [])
        own.mistakes.append(Mistake(problem, path=BASE, file=at.file, line=at.line))
        return ConfigTree({}, {}, [])


def _base_names(named: Any, own: ConfigTree, at: Origin) -> list[str]:
    """The names below `base:`; anything but file names becomes a mistake of `own`."""
    names = named
    if isinstance(named, str):
        names = [named]
    if names is None:
        return []

    is_list = isinstance(names, list)
    if is_list and all(isinstance(name, str) and name and "\0" not in name for name in names):
        return names
    message = "expected a file name or a list of file names"
    own.mistakes.append(Mistake(message, path=BASE, file=at.file, line=at.line))
    return []


def with_class_list(tree: ConfigTree) -> ConfigTree:
    """`tree` with the `data.classes` that was found, where it is not the path as it is written.

    A relative path is looked for from here, then from the YAML file that gave it, then among the
    shipped class lists; one that is nowhere stays as it is, and reading it says so.
    """
    data = tree.values.get("data")
    if not isinstance(data, dict) or not isinstance(data.get("classes"), str):
        return tree
    if not data["classes"]:
        return tree

    folder = None
    origin = tree.origins.get(("data", "classes"))
    if origin is not None and origin.file != COMMAND_LINE:
        folder = Path(origin.file).parent
    found = find_class_list(data["classes"], folder)
    if found is None or found == Path(data["classes"]):
        return tree
    values = {**tree.values, "data": {**data, "classes": os.path.normpath(found)}}
    return replace(tree, values=values)


def read_overrides(overrides: Sequence[str]) -> ConfigTree:
    """The values of `section.key=value` texts, later ones winning.

    Values are read as YAML: numbers, [lists], {mappings}, text.
    """
    tree = ConfigTree({}, {}, [])
    for text in overrides:
        name, equals, value_text = text.partition("=")
        path: KeyPath = tuple(name.strip().split("."))
        if not equals or not all(path):
            message = f"'{shortened(text)}' is no override; write section.key=value"
            tree.mistakes.append(Mistake(message, file=COMMAND_LINE))
            continue

        try:
            document = parse_yaml(value_text, source=COMMAND_LINE)
        except YamlError as error:
            tree.mistakes.extend(
                Mistake(mistake.message, path=dotted(path), file=COMMAND_LINE)
                for mistake in error.mistakes
            )
            continue
        for mistake in document.mistakes:
            place = f"{dotted(path)}.{mistake.path}".rstrip(".")
            tree.mistakes.append(Mistake(mistake.message, path=place, file=COMMAND_LINE))

        # Every section around the value came from the command line, too.
        places: dict[KeyPath, Origin] = {
            path[:length]: Origin(COMMAND_LINE) for length in range(1, len(path) + 1)
        }
        tree = tree.merged(ConfigTree(_nested(path, document.value), places, []))
    return tree


def _nested(path: KeyPath, value: Any) -> dict[str, Any]:
    for key in reversed(path):
        value = {key: value}
    return value
