"""One HTML page that needs nothing else: its pictures, style and script are inside it.

Pages are made from the templates in `templates/`: `page.html` is the frame, and each section of a
page has a template of its own. Everything that a template prints is escaped.
"""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

import cv2
import jinja2
import numpy as np

from ..files.png import encode_png
from .panels import to_width

_TEMPLATES = Path(__file__).parent / "templates"
_COLOURS_OF_A_DRAWING = 128  # more than a class list has, fewer than a heat map


@dataclass(frozen=True)
class Picture:
    """A picture ready for the page: shrunk and encoded, so that a report holds no large arrays."""

    caption: str
    data: bytes
    mime: str
    width: int
    height: int

    @classmethod
    def photo(cls, caption: str, array: np.ndarray, *, width: int = 480) -> Picture:
        """An image or an overlay, uint8 RGB [H, W, 3], as JPEG at most `width` pixels wide."""
        small = to_width(array, min(width, array.shape[1]))
        # opencv wants blue first.
        done, data = cv2.imencode(".jpg", small[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 82])
        assert done, "opencv could not encode a JPEG"
        return cls(caption, data.tobytes(), "image/jpeg", small.shape[1], small.shape[0])

    @classmethod
    def drawing(cls, caption: str, array: np.ndarray, *, width: int = 480) -> Picture:
        """A label map or the like, uint8 RGB [H, W, 3], as PNG at most `width` pixels wide.

        No colours are mixed when it shrinks. A picture of too many colours to be a drawing, such as
        a heat map or an error map over the image, becomes a `photo`.
        """
        small = array
        if array.shape[1] > width:
            height = max(1, round(array.shape[0] * width / array.shape[1]))
            small = cv2.resize(array, (width, height), interpolation=cv2.INTER_NEAREST)

        # One number for each colour, to count the colours and to find their palette.
        codes = small.astype(np.uint32) @ np.array([1 << 16, 1 << 8, 1], dtype=np.uint32)
        colours, ids = np.unique(codes, return_inverse=True)
        if len(colours) > _COLOURS_OF_A_DRAWING:
            return cls.photo(caption, array, width=width)

        channels = [colours >> 16, colours >> 8 & 255, colours & 255]
        palette = np.stack(channels, axis=1).astype(np.uint8)
        data = encode_png(ids.reshape(codes.shape).astype(np.uint8), palette=palette, level=9)
        return cls(caption, data, "image/png", small.shape[1], small.shape[0])

    @property
    def source(self) -> str:
        """The picture's bytes as the address of an `<img>`."""
        return f"data:{self.mime};base64,{base64.b64encode(self.data).decode()}"


@dataclass(frozen=True)
class Example:
    """One image of the report: pictures of it beside each other."""

    title: str
    """The name of the image."""
    pictures: Sequence[Picture]
    remark: str = ""
    """What stands beside the title, such as its score."""
    columns: int | None = None
    """How many pictures stand in a row; None: all of them."""
    path: str = ""
    """Of the image's file."""


@dataclass(frozen=True)
class Section:
    """A part of a page, with a heading and a line in the menu."""

    anchor: str
    title: str
    template: str
    """A file in `templates/`."""
    values: Mapping[str, Any] = field(default_factory=dict)
    """What the template prints, by name."""
    lead: str = ""
    """A sentence of explanation under the heading."""


def settings_section(
    settings: Mapping[str, Any],
    *,
    checkpoint: str,
    sha256: str,
    defaults: Mapping[str, Any] | None = None,
) -> Section:
    """The checkpoint's hash and every setting, nested ones by group.

    Those that are as in `defaults` (by dotted key) are set apart.
    """
    named = {"file": checkpoint, "sha256": sha256}
    known = {key: _as_yaml(value) for key, value in (defaults or {}).items()}
    chosen: dict[str, list[tuple[str, str]]] = {}
    untouched: dict[str, list[tuple[str, str]]] = {}
    for key, value in _flat(settings):
        group, _, name = key.rpartition(".")
        text = _as_yaml(value)
        groups = untouched if known.get(key) == text else chosen
        groups.setdefault(group, []).append((name, text))

    # A path and a hash are shown where they are known.
    values = {
        "checkpoint": [(name, value) for name, value in named.items() if value],
        "chosen": chosen,
        "untouched": untouched,
        "counts": [sum(map(len, groups.values())) for groups in (chosen, untouched)],
    }
    return Section("settings", "Settings", "settings.html", values)


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The innermost values with their dotted keys."""
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _as_yaml(value: Any) -> str:
    """A setting as a YAML file would write it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_as_yaml(item) for item in value) + "]"
    return str(value)


def page(title: str, subtitle: str, sections: Sequence[Section]) -> str:
    """The whole page, with a menu of its sections."""
    templates = _templates()
    bodies = [templates.get_template(one.template).render(one.values) for one in sections]

    # The policy names the hash of the only script, so that no other runs, whatever the data hold.
    script = (_TEMPLATES / "page.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return templates.get_template("page.html").render(
        title=title,
        subtitle=subtitle,
        sections=list(zip(sections, bodies, strict=True)),
        script=script,
        script_hash=f"sha256-{digest}",
    )


@lru_cache(maxsize=1)
def _templates() -> jinja2.Environment:
    # With a strict `undefined` a misspelt name in a template is an error, not an empty place.
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["percent"] = percent
    environment.filters["fixed"] = lambda value, digits: f"{value:.{digits}f}"
    environment.filters["thousands"] = lambda count: f"{count:,}"
    environment.filters["address"] = lambda name: quote(name, errors="surrogateescape")
    environment.tests["known"] = is_known
    return environment


def is_known(value: float | None) -> bool:
    """Whether there is a number: neither None nor nan."""
    return value is not None and not math.isnan(value)


def percent(value: float | None, digits: int = 1) -> str:
    """A fraction in percent; a dash for None and nan."""
    if value is None or math.isnan(value):
        return "–"
    return f"{100 * value:.{digits}f}"
