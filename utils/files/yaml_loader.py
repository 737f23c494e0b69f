"""A strict, safe YAML reader on PyYAML's parser: what a file means never depends on a rule its author has not heard of.

Scalars follow YAML 1.2's core rules where YAML 1.1 surprises: `1e-3`, `5E4` and `.5` are numbers, only `true` and `false` are booleans, `12:30` and
dates are text. Duplicate keys, tags (so no Python objects), merge keys and numbers with leading zeros are mistakes. Size, depth and aliases are
limited. Every mistake names file and line (ENGINEERING 3.1).
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from ..config.errors import ConfigError, Mistake

MAX_BYTES = 1 << 20
MAX_DEPTH = 32
MAX_ALIASES = 64
MAX_VALUES = 20_000  # after aliases are followed

KeyPath = tuple[str | int, ...]

_NULL = re.compile(r"~|null|")
_BOOLEAN = re.compile(r"true|false")
_INTEGER = re.compile(r"[-+]?(?:0|[1-9][0-9]*)")
_BASED_INTEGER = re.compile(r"0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|(?:0|[1-9][0-9]*)(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")
_NOT_FINITE = re.compile(r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)")
_LEADING_ZERO = re.compile(r"[-+]?0[0-9]+(?:\.[0-9]*)?(?:[eE][-+]?[0-9]+)?")


@dataclass(frozen=True)
class Document:
    """A parsed file: plain values, the line of each value by its path, and mistakes that did not stop the reading."""

    value: Any
    lines: dict[KeyPath, int]
    mistakes: tuple[Mistake, ...]


def read_yaml(path: str | Path) -> Document:
    """Read and parse a YAML file. Raises ConfigError when it cannot be read or is no YAML."""
    file = Path(path)
    try:
        with file.open("rb") as stream:
            content = stream.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise ConfigError([Mistake("no such file", file=str(path))]) from None
    except IsADirectoryError:
        raise ConfigError(
            [Mistake("is a folder where a YAML file was expected", file=str(path))]
        ) from None
    except OSError as error:
        raise ConfigError(
            [Mistake(f"cannot be read ({error.strerror or error})", file=str(path))]
        ) from None
    return parse_yaml(content, source=str(path))


def parse_yaml(text: str | bytes, *, source: str) -> Document:
    """Parse YAML text; `source` names it in errors. Raises ConfigError where the text is no YAML or passes a limit."""
    if len(text) > MAX_BYTES:
        raise ConfigError(
            [
                Mistake(
                    f"is larger than {MAX_BYTES >> 20} MiB; this is no configuration", file=source
                )
            ]
        )
    composer: _Composer | None = None
    try:
        composer = _Composer(text, source)
        node = composer.get_single_node()
    except yaml.reader.ReaderError as error:
        what = (
            "is not UTF-8 text"
            if error.encoding == "utf-8"
            else f"holds a character that YAML forbids (position {error.position})"
        )
        raise ConfigError([Mistake(what, file=source)]) from None
    except yaml.MarkedYAMLError as error:
        raise ConfigError([_syntax_mistake(error, source)]) from None
    except (ValueError, OverflowError) as error:  # an escape such as "\UFFFFFFFF" is no character
        if isinstance(error, ConfigError):
            raise
        raise ConfigError([Mistake(f"is not valid YAML ({error})", file=source)]) from None
    finally:
        if composer is not None:
            composer.dispose()
    reader = _Reader(source, list(composer.mistakes))
    value = None if node is None else reader.value(node, ())
    return Document(value, reader.lines, tuple(reader.mistakes))


def parse_scalar(text: str) -> Any:
    """The value of an unquoted scalar. Raises ValueError, saying what to write, for a number with leading zeros."""
    if _NULL.fullmatch(text):
        return None
    if _BOOLEAN.fullmatch(text):
        return text == "true"
    if _INTEGER.fullmatch(text):
        return _integer(text, 10)
    if _BASED_INTEGER.fullmatch(text):
        return int(text, 0)
    if _FLOAT.fullmatch(text):
        return float(text)
    if _NOT_FINITE.fullmatch(text):
        return float(text.replace(".", "").lower())
    if _LEADING_ZERO.fullmatch(text):
        sign = text[0] if text[0] in "+-" else ""
        stripped = text.lstrip("+-").lstrip("0")
        plain = sign + ("0" + stripped if not stripped[:1].isdigit() else stripped)
        raise ValueError(
            f"'{text}' has leading zeros, which YAML readers take differently; write {plain} or quote it: \"{text}\""
        )
    return text


def _integer(text: str, base: int) -> int:
    try:
        return int(text, base)
    except ValueError:  # more digits than Python converts
        raise ValueError(f"the number has {len(text)} digits") from None


class _Composer(yaml.SafeLoader):
    """PyYAML's scanner, parser and composer with limits; nodes keep only what was written, tags are mistakes."""

    def __init__(self, text: str | bytes, source: str) -> None:
        self.source = source
        self.mistakes: list[Mistake] = []
        self.depth = 0
        self.aliases = 0
        super().__init__(text)

    def compose_node(self, parent: Node | None, index: Any) -> Node:
        event = self.peek_event()
        line = event.start_mark.line + 1
        if isinstance(event, yaml.AliasEvent):
            self.aliases += 1
            if self.aliases > MAX_ALIASES:
                raise ConfigError(
                    [Mistake(f"more than {MAX_ALIASES} aliases", file=self.source, line=line)]
                )
        elif getattr(event, "tag", None) is not None:
            message = f"the tag {_short_tag(event.tag)} is not allowed; write the plain value"
            self.mistakes.append(Mistake(message, file=self.source, line=line))
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise ConfigError(
                [Mistake(f"nested more than {MAX_DEPTH} deep", file=self.source, line=line)]
            )
        node = super().compose_node(parent, index)
        self.depth -= 1
        assert node is not None
        return node


def _short_tag(tag: str) -> str:
    return tag.replace("tag:yaml.org,2002:", "!!")


class _Reader:
    """Plain values from composed nodes."""

    def __init__(self, source: str, mistakes: list[Mistake]) -> None:
        self.source = source
        self.mistakes = mistakes
        self.lines: dict[KeyPath, int] = {}
        self.values = 0
        self.open: list[Node] = []

    def value(self, node: Node, path: KeyPath) -> Any:
        """The plain value of `node`, which stands at `path`."""
        self.values += 1
        if self.values > MAX_VALUES:
            self.stop(node, f"more than {MAX_VALUES} values once its aliases are followed")
        if any(node is container for container in self.open):
            self.stop(node, "an alias to something that contains it")
        self.lines.setdefault(path, node.start_mark.line + 1)
        if isinstance(node, ScalarNode):
            return self.scalar(node, path)
        self.open.append(node)
        try:
            if isinstance(node, SequenceNode):
                return [self.value(item, (*path, index)) for index, item in enumerate(node.value)]
            assert isinstance(node, MappingNode)
            return self.mapping(node, path)
        finally:
            self.open.pop()

    def scalar(self, node: ScalarNode, path: KeyPath) -> Any:
        if node.style is not None:  # quoted or a block: text
            return node.value
        try:
            return parse_scalar(node.value)
        except ValueError as error:
            self.note(node, str(error), path)
            return None

    def mapping(self, node: MappingNode, path: KeyPath) -> dict[str, Any]:
        mapping: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, ScalarNode):
                self.note(key_node, "a list or mapping as a key; keys are words", path)
                continue
            key = key_node.value
            if key == "<<" and key_node.style is None:
                self.note(
                    key_node, "merge keys (<<) are not read; use 'base: FILE' to inherit", path
                )
                continue
            if key in mapping:
                self.note(
                    key_node,
                    f"duplicate key (it stands in line {self.lines[(*path, key)]} already)",
                    (*path, key),
                )
                continue
            self.lines[(*path, key)] = key_node.start_mark.line + 1
            mapping[key] = self.value(value_node, (*path, key))
        return mapping

    def note(self, node: Node, message: str, path: KeyPath) -> None:
        self.mistakes.append(
            Mistake(message, path=dotted(path), file=self.source, line=node.start_mark.line + 1)
        )

    def stop(self, node: Node, message: str) -> None:
        raise ConfigError([Mistake(message, file=self.source, line=node.start_mark.line + 1)])


def dotted(path: KeyPath) -> str:
    """A path as people write it: `eval.scales[1]`."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else (f".{part}" if text else part)
    return text


def _syntax_mistake(error: yaml.MarkedYAMLError, source: str) -> Mistake:
    mark = error.problem_mark or error.context_mark
    problem = (error.problem or "not valid YAML").replace("'\\t'", "a tab")
    if "a tab" in problem:
        problem = "a tab where YAML wants spaces; indent with spaces"
    elif "found undefined alias" in problem:
        problem = problem.replace("found undefined alias", "no anchor is called")
    elif "but found another document" in problem:
        problem = "a second document (---) in one file"
    elif error.context:
        problem = f"not valid YAML ({problem}, {error.context})"
    else:
        problem = f"not valid YAML ({problem})"
    return Mistake(problem, file=source, line=None if mark is None else mark.line + 1)


class _Dumper(yaml.SafeDumper):
    """Writes text so that this module's reader and YAML 1.1 readers both give it back: what either takes for another type is quoted."""


_FIRST = list("-+.0123456789")
for _pattern, _characters in (
    (_INTEGER, _FIRST),
    (_BASED_INTEGER, ["0"]),
    (_FLOAT, _FIRST),
    (_NOT_FINITE, _FIRST),
    (_LEADING_ZERO, _FIRST),
):
    _Dumper.add_implicit_resolver(
        "!not-text", re.compile(rf"^(?:{_pattern.pattern})$"), _characters
    )


def _represent_list(dumper: _Dumper, values: list[Any]) -> Node:
    plain = not any(isinstance(value, (list, dict)) for value in values)
    return dumper.represent_sequence("tag:yaml.org,2002:seq", values, flow_style=plain)


def _represent_float(dumper: _Dumper, value: float) -> Node:
    text = repr(value)
    if not math.isfinite(value):
        text = text.replace("inf", ".inf").replace("nan", ".nan")
    elif "e" in text and "." not in text:
        text = text.replace("e", ".0e")  # YAML 1.1 readers want a point before the exponent
    return dumper.represent_scalar("tag:yaml.org,2002:float", text)


def _represent_text(dumper: _Dumper, value: str) -> Node:
    # Line separators survive in double quotes only, as escapes.
    return dumper.represent_scalar(
        "tag:yaml.org,2002:str", value, style=None if value.isprintable() else '"'
    )


_Dumper.add_representer(str, _represent_text)
_Dumper.add_representer(list, _represent_list)
_Dumper.add_representer(float, _represent_float)


def write_yaml(value: Any) -> str:
    """YAML text of plain values; `parse_yaml` gives them back, and so does any YAML 1.1 or 1.2 reader."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)
