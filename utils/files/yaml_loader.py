"""A strict, safe YAML reader on PyYAML's parser.

What a file means never depends on a rule that its author has not heard of. Scalars follow the core
schema of YAML 1.2 (https://yaml.org/spec/1.2.2/#103-core-schema) where YAML 1.1 surprises: `1e-3`,
`5E4` and `.5` are numbers, only `true` and `false` are booleans, `12:30` and dates are text.
Duplicate keys, tags (so no Python objects), merge keys and numbers with leading zeros are mistakes.
Only regular files are read; size, depth, aliases and digits are limited. Every mistake names its
file and line.
"""

from __future__ import annotations

import math
import re
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from ..words import UserError

MAX_BYTES = 1 << 20
MAX_DEPTH = 32
MAX_ALIASES = 64
MAX_VALUES = 20_000  # after aliases are followed
MAX_DIGITS = 18  # of a whole number: any such number fits into 64 bits

KeyPath = tuple[str | int, ...]

_NULL = re.compile(r"~|null|")
_BOOLEAN = re.compile(r"true|false")
_INTEGER = re.compile(r"[-+]?(?:0|[1-9][0-9]*)")
_BASED_INTEGER = re.compile(r"0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|(?:0|[1-9][0-9]*)(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")
_NOT_FINITE = re.compile(r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)")
_LEADING_ZERO = re.compile(r"[-+]?0[0-9]+(?:\.[0-9]*)?(?:[eE][-+]?[0-9]+)?")


@dataclass(frozen=True)
class Mistake:
    """One mistake in a file that people write.

    `message` says what is wrong. `path` is the dotted path of the value, "" for the whole file.
    `file` and `line` (1-based) say where it stands.
    """

    message: str
    path: str = ""
    file: str = ""
    line: int | None = None

    def __str__(self) -> str:
        place = self.file
        if self.line is not None:
            place = f"{self.file}:{self.line}"
        return ": ".join(part for part in (place, self.path, self.message) if part)


class YamlError(UserError, ValueError):
    """A file that cannot be used; `mistakes` holds every mistake, the text has a line for each."""

    subject: ClassVar[str] = "the file"

    def __init__(self, mistakes: Sequence[Mistake]) -> None:
        assert mistakes, "an error without a mistake"
        self.mistakes = tuple(mistakes)

        lines = [str(mistake) for mistake in self.mistakes]
        if len(lines) > 1:
            lines = [f"{len(lines)} mistakes in {self.subject}", *lines]
        super().__init__("\n  ".join(lines))


@dataclass(frozen=True)
class Document:
    """A parsed file: plain values, the line of each value by its path, and its mistakes.

    `mistakes` are those that did not stop the reading (duplicate keys, tags, odd numbers); whoever
    uses the value raises them, together with what else is wrong with it.
    """

    value: Any
    lines: dict[KeyPath, int]
    mistakes: tuple[Mistake, ...]


def read_yaml(path: str | Path) -> Document:
    """Read and parse a YAML file.

    Raises:
        YamlError: When it is no regular file, cannot be read, is no YAML or passes a limit.
    """
    file = Path(path)
    try:
        # A device has no end, and a pipe may have no writer: opening either can wait for ever.
        mode = file.stat().st_mode
        if not stat.S_ISREG(mode):
            raise YamlError([Mistake(_not_a_file(mode), file=str(path))])
        with file.open("rb") as stream:
            content = stream.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise YamlError([Mistake("no such file", file=str(path))]) from None
    except YamlError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a NUL character in the name
        reason = getattr(error, "strerror", None) or error
        raise YamlError([Mistake(f"cannot be read ({reason})", file=str(path))]) from None
    return parse_yaml(content, source=str(path))


def _not_a_file(mode: int) -> str:
    if stat.S_ISDIR(mode):
        return "is a folder where a YAML file was expected"
    return "is a device or a pipe where a YAML file was expected; copy its content into a file"


def parse_yaml(text: str | bytes, *, source: str) -> Document:
    """Parse YAML text; `source` names it in errors.

    Raises:
        YamlError: Where the text is no YAML or passes a limit.
    """
    if len(text) > MAX_BYTES:
        limit = f"is larger than {MAX_BYTES >> 20} MiB, more than a file of this kind can need"
        raise YamlError([Mistake(limit, file=source)])

    composer: _Composer | None = None
    try:
        composer = _Composer(text, source)
        node = composer.get_single_node()
    except yaml.reader.ReaderError as error:
        raise YamlError([_character_mistake(error, source)]) from None
    except yaml.MarkedYAMLError as error:
        raise YamlError([_syntax_mistake(error, source)]) from None
    except YamlError:
        raise
    except (ValueError, OverflowError) as error:  # an escape such as "\UFFFFFFFF" is no character
        raise YamlError([Mistake(f"is not valid YAML ({error})", file=source)]) from None
    finally:
        if composer is not None:
            composer.dispose()

    reader = _Reader(source, list(composer.mistakes))
    value = None
    if node is not None:
        value = reader.value(node, ())
    return Document(value, reader.lines, tuple(reader.mistakes))


def parse_scalar(text: str) -> Any:
    """The value of an unquoted scalar.

    Raises:
        ValueError: For a number with leading zeros or too many digits; it says what to write.
    """
    if _NULL.fullmatch(text):
        return None
    if _BOOLEAN.fullmatch(text):
        return text == "true"

    if _INTEGER.fullmatch(text) or _BASED_INTEGER.fullmatch(text):
        # Without a limit Python neither reads nor prints such numbers (sys.set_int_max_str_digits).
        digits = len(text.lstrip("+-"))
        if digits > MAX_DIGITS:
            raise ValueError(f"the number has {digits} digits, more than {MAX_DIGITS}")
        if text[:2] in ("0o", "0x"):
            return int(text, 0)
        return int(text)

    if _FLOAT.fullmatch(text):
        return float(text)
    if _NOT_FINITE.fullmatch(text):
        return float(text.replace(".", "").lower())
    if _LEADING_ZERO.fullmatch(text):
        raise ValueError(
            f"'{text}' has leading zeros, which YAML readers take differently; "
            f'write {_without_leading_zeros(text)} or quote it: "{text}"'
        )
    return text


def _without_leading_zeros(number: str) -> str:
    sign = ""
    if number[0] in "+-":
        sign = number[0]
    digits = number.lstrip("+-").lstrip("0")
    if not digits[:1].isdigit():
        digits = f"0{digits}"
    return sign + digits


class _Composer(yaml.SafeLoader):
    """PyYAML's scanner, parser and composer with limits; nodes keep what was written, no tags."""

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
                raise self.error(f"more than {MAX_ALIASES} aliases", line)
        elif getattr(event, "tag", None) is not None:
            tag = event.tag.replace("tag:yaml.org,2002:", "!!")
            message = f"the tag {tag} is not allowed; write the plain value"
            self.mistakes.append(Mistake(message, file=self.source, line=line))

        # PyYAML composes by recursion: the limit is far below Python's own.
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise self.error(f"nested more than {MAX_DEPTH} deep", line)
        node = super().compose_node(parent, index)
        self.depth -= 1
        assert node is not None
        return node

    def error(self, message: str, line: int) -> YamlError:
        return YamlError([Mistake(message, file=self.source, line=line)])


class _Reader:
    """Plain values from composed nodes."""

    def __init__(self, source: str, mistakes: list[Mistake]) -> None:
        self.source = source
        self.mistakes = mistakes
        self.lines: dict[KeyPath, int] = {}
        self.values = 0
        self.around: list[Node] = []  # the lists and mappings that the current value lies in

    def value(self, node: Node, path: KeyPath) -> Any:
        """The plain value of `node`, which stands at `path`."""
        self.values += 1
        if self.values > MAX_VALUES:
            self.stop(node, f"more than {MAX_VALUES} values once its aliases are followed")
        if any(node is container for container in self.around):
            self.stop(node, "an alias to something that contains it")
        self.lines.setdefault(path, node.start_mark.line + 1)

        if isinstance(node, ScalarNode):
            return self.scalar(node, path)
        self.around.append(node)
        try:
            if isinstance(node, SequenceNode):
                return [self.value(item, (*path, index)) for index, item in enumerate(node.value)]
            assert isinstance(node, MappingNode)
            return self.mapping(node, path)
        finally:
            self.around.pop()

    def scalar(self, node: ScalarNode, path: KeyPath) -> Any:
        """The value of a word, number or text; what cannot be read is noted and None."""
        # An escape such as "\ud800" is half of a character: no file or terminal takes it.
        if not node.value.isascii() and any("\ud800" <= sign <= "\udfff" for sign in node.value):
            self.note(node, "holds half of a character (an escape from \\ud800 to \\udfff)", path)
            return None

        if node.style is not None:  # quoted or a block: text
            return node.value
        try:
            return parse_scalar(node.value)
        except ValueError as error:
            self.note(node, str(error), path)
            return None

    def mapping(self, node: MappingNode, path: KeyPath) -> dict[str, Any]:
        """The values of a mapping by key; keys that cannot be used are noted and left out."""
        mapping: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, ScalarNode):
                self.note(key_node, "a list or mapping as a key; keys are words", path)
                continue

            key = key_node.value
            if key == "<<" and key_node.style is None:
                hint = "merge keys (<<) are not read; use 'base: FILE' to inherit"
                self.note(key_node, hint, path)
                continue
            if key in mapping:
                line = self.lines[(*path, key)]
                hint = f"duplicate key (it stands in line {line} already)"
                self.note(key_node, hint, (*path, key))
                continue

            self.lines[(*path, key)] = key_node.start_mark.line + 1
            mapping[key] = self.value(value_node, (*path, key))
        return mapping

    def note(self, node: Node, message: str, path: KeyPath) -> None:
        """Remember a mistake that does not hide what else is wrong."""
        line = node.start_mark.line + 1
        self.mistakes.append(Mistake(message, path=dotted(path), file=self.source, line=line))

    def stop(self, node: Node, message: str) -> None:
        """Raise a mistake after which nothing more can be read."""
        raise YamlError([Mistake(message, file=self.source, line=node.start_mark.line + 1)])


def dotted(path: KeyPath) -> str:
    """A path as people write it: `eval.scales[1]`."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        elif text:
            text += f".{part}"
        else:
            text = part
    return text


def _character_mistake(error: yaml.reader.ReaderError, source: str) -> Mistake:
    if error.encoding == "utf-8":
        return Mistake("is not UTF-8 text; save it as UTF-8", file=source)
    what = f"holds a character that YAML forbids (position {error.position})"
    return Mistake(what, file=source)


def _syntax_mistake(error: yaml.MarkedYAMLError, source: str) -> Mistake:
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

    mark = error.problem_mark or error.context_mark
    line = None
    if mark is not None:
        line = mark.line + 1
    return Mistake(problem, file=source, line=line)


class _Dumper(yaml.SafeDumper):
    """Writes text so that this module's reader and YAML 1.1 readers both give it back.

    What either of them takes for another type is quoted.
    """


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
    style = None
    if not value.isprintable():
        style = '"'  # line separators survive in double quotes only, as escapes
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)


_Dumper.add_representer(str, _represent_text)
_Dumper.add_representer(list, _represent_list)
_Dumper.add_representer(float, _represent_float)


def write_yaml(value: Any) -> str:
    """YAML text of plain values; `parse_yaml` and every YAML 1.1 or 1.2 reader give them back."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)
