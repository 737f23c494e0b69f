"""The strict YAML reader: what is read as what, what is refused and with which words."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from hmsa.utils.files.yaml_loader import (
    MAX_ALIASES,
    MAX_BYTES,
    MAX_DEPTH,
    YamlError,
    dotted,
    parse_yaml,
    read_yaml,
    write_yaml,
)
from hmsa.utils.words import UserError


def value_of(text: str | bytes) -> Any:
    document = parse_yaml(text, source="f.yaml")
    assert document.mistakes == ()
    return document.value


def mistakes_of(text: str | bytes) -> list[str]:
    """Every mistake as text, whether it stopped the reading or not."""
    try:
        return [str(mistake) for mistake in parse_yaml(text, source="f.yaml").mistakes]
    except YamlError as error:
        return [str(mistake) for mistake in error.mistakes]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3),
        ("5e-4", 5e-4),
        ("1E5", 1e5),
        ("+1.5e+3", 1500.0),
        ("5.", 5.0),
        (".5", 0.5),
        ("-0.0", -0.0),
        ("0", 0),
        ("-12", -12),
        ("0x1F", 31),
        ("0o17", 15),
        (".inf", math.inf),
        ("-.INF", -math.inf),
        ("true", True),
        ("false", False),
        ("null", None),
        ("~", None),
        ("", None),
        ("yes", "yes"),
        ("no", "no"),
        ("on", "on"),
        ("off", "off"),
        ("True", "True"),
        ("NULL", "NULL"),
        ("12:30:00", "12:30:00"),
        ("190:20:30.15", "190:20:30.15"),
        ("2020-01-01", "2020-01-01"),
        ("1_000", "1_000"),
        ("0b11", "0b11"),
        ("1e", "1e"),
        ("e3", "e3"),
        ("1.2.3", "1.2.3"),
        ("=", "="),
        ("'1'", "1"),
        ('"true"', "true"),
        ("'08'", "08"),
        ("[1e-3, x, [true]]", [1e-3, "x", [True]]),
    ],
)
def test_scalars(text: str, value: Any) -> None:
    read = value_of(f"key: {text}")["key"]
    assert read == value and type(read) is type(value)


def test_not_a_number_is_read() -> None:
    assert math.isnan(value_of("a: .nan")["a"])


@pytest.mark.parametrize("text", ["08", "010", "-01", "00", "010.5", "01e3"])
def test_leading_zeros_are_refused_with_what_to_write(text: str) -> None:
    (mistake,) = mistakes_of(f"a: 1\nb: {text}")
    plain = f"{float(text):g}" if "." in text or "e" in text else str(int(text))
    assert mistake.startswith(f"f.yaml:2: b: '{text}' has leading zeros")
    assert f'quote it: "{text}"' in mistake
    assert parse_yaml(f"x: {mistake.split('write ')[1].split(' or ')[0]}", source="").value == {
        "x": float(plain)
    }


def test_mistakes_that_do_not_hide_the_rest_come_together_with_their_lines() -> None:
    text = """a: 1
a: 2
b:
  c: 1
  d: {e: 1, e: 2}
  c: 3
f: !!python/object/apply:os.system [x]
<<: {g: 1}
h: 08
"""
    assert mistakes_of(text) == [
        "f.yaml:7: the tag !!python/object/apply:os.system is not allowed; write the plain value",
        "f.yaml:2: a: duplicate key (it stands in line 1 already)",
        "f.yaml:5: b.d.e: duplicate key (it stands in line 5 already)",
        "f.yaml:6: b.c: duplicate key (it stands in line 4 already)",
        "f.yaml:8: merge keys (<<) are not read; use 'base: FILE' to inherit",
        "f.yaml:9: h: '08' has leading zeros, which YAML readers take differently; "
        'write 8 or quote it: "08"',
    ]


@pytest.mark.parametrize(
    "tag",
    ["!!python/object:os.system", "!!python/name:os.system", "!!int", "!x", "!<tag:a,2000:b>"],
)
def test_tags_are_refused(tag: str) -> None:
    (mistake,) = mistakes_of(f"a: {tag} 1")
    assert "f.yaml:1: the tag " in mistake and "not allowed" in mistake


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: [1,\n", "f.yaml:2: not valid YAML"),
        ("a: b: c", "f.yaml:1: not valid YAML (mapping values are not allowed here)"),
        ("a:\n\t- 1", "f.yaml:2: a tab where YAML wants spaces"),
        ("a: *x", "f.yaml:1: no anchor is called 'x'"),
        ("a: &x [*x]", "f.yaml:1: an alias to something that contains it"),
        ("--- 1\n--- 2\n", "f.yaml:2: a second document"),
        ("[1, 2]: 3", "f.yaml:1: a list or mapping as a key"),
        (b"a: \xff", "f.yaml: is not UTF-8 text"),
        ("a: \x00", "f.yaml: holds a character that YAML forbids"),
        ('a: "\\UFFFFFFFF"', "f.yaml: is not valid YAML"),
        ("a: " + "1" * 5000, "f.yaml:1: a: the number has 5000 digits"),
        ("a: @x", "f.yaml:1: not valid YAML"),
        ("1: x\n'1': y", "f.yaml:2: 1: duplicate key"),
    ],
)
def test_what_is_no_yaml_is_one_sentence_with_its_line(text: str | bytes, words: str) -> None:
    (mistake,) = mistakes_of(text)
    assert mistake.startswith(words)
    assert "\n" not in mistake


def test_nesting_is_limited() -> None:
    deep = MAX_DEPTH - 2
    assert value_of("[" * deep + "]" * deep) is not None
    for text in ("[" * 3000 + "]" * 3000, "[" * 3000, "{a: " * 3000, "- " * 3000):
        (mistake,) = mistakes_of(text)
        assert mistake == f"f.yaml:1: nested more than {MAX_DEPTH} deep"


def test_aliases_are_followed_and_limited() -> None:
    assert value_of("a: &x {b: [1]}\nc: *x") == {"a": {"b": [1]}, "c": {"b": [1]}}
    many = "a: &x 1\nb: [" + ", ".join(["*x"] * (MAX_ALIASES + 1)) + "]"
    assert mistakes_of(many) == [f"f.yaml:2: more than {MAX_ALIASES} aliases"]
    bomb = "a0: &a0 [" + ", ".join("x" * 10) + "]\n"
    bomb += "".join(f"a{i}: &a{i} [" + ", ".join([f"*a{i - 1}"] * 9) + "]\n" for i in range(1, 8))
    (mistake,) = mistakes_of(bomb)
    assert "once its aliases are followed" in mistake


def test_size_is_limited(tmp_path: Path) -> None:
    path = tmp_path / "large.yaml"
    path.write_bytes(b"#" * (MAX_BYTES + 1))
    with pytest.raises(YamlError, match=r"large\.yaml: is larger than 1 MiB"):
        read_yaml(path)


@pytest.mark.parametrize(("name", "words"), [("none.yaml", "no such file"), ("", "is a folder")])
def test_files_that_cannot_be_read(tmp_path: Path, name: str, words: str) -> None:
    with pytest.raises(YamlError, match=words) as caught:
        read_yaml(tmp_path / name)
    assert isinstance(caught.value, UserError)
    assert str(tmp_path) in str(caught.value)


def test_byte_order_mark_and_other_encodings() -> None:
    assert value_of("\ufeffa: ä".encode()) == {"a": "ä"}
    assert value_of("a: ä".encode("utf-16")) == {"a": "ä"}


def test_lines_are_known_by_path() -> None:
    document = parse_yaml("a:\n  b: 1\n  c:\n    - 1\n    - {d: 2}\n", source="f.yaml")
    wanted = {
        ("a",): 1,
        ("a", "b"): 2,
        ("a", "c"): 3,
        ("a", "c", 0): 4,
        ("a", "c", 1): 5,
        ("a", "c", 1, "d"): 5,
    }
    assert {path: line for path, line in document.lines.items() if path} == wanted
    assert dotted(("a", "c", 1, "d")) == "a.c[1].d"


WORDS = [
    "1e-3",
    "yes",
    "08",
    "0o7",
    "12:30",
    "~",
    "true",
    ".5",
    "0x1F",
    "-.inf",
    "null",
    "=",
    "<<",
    "2020-01-01",
    "1_0",
]
TEXT = st.text(max_size=12) | st.sampled_from(WORDS)
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**9), 10**9) | st.floats(allow_nan=False) | TEXT,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(TEXT.filter(lambda key: key != "<<"), inner, max_size=3)
    ),
    max_leaves=12,
)


@given(PLAIN)
def test_what_is_written_is_read_back_by_us_and_by_yaml_1_1(value: Any) -> None:
    text = write_yaml({"key": value})
    assert value_of(text) == {"key": value}
    assert yaml.safe_load(text) == {"key": value}


@given(st.text(max_size=60) | st.binary(max_size=60))
def test_any_text_gives_a_value_or_a_sentence(text: str | bytes) -> None:
    for mistake in mistakes_of(text):
        assert mistake.startswith("f.yaml") and len(mistake) < 400
