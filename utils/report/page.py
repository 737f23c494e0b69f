"""One self-contained HTML page: escaping, tables, pictures as data, and a style for light and dark screens."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import cv2
import numpy as np

from ..files.png import encode_png
from .panels import to_width

_COLOURS_OF_A_DRAWING = 128  # more than a class list has, fewer than a heat map


@dataclass(frozen=True)
class Picture:
    """A picture ready for the page: shrunk and encoded at once, so that a report holds no full-size arrays."""

    caption: str
    data: bytes
    mime: str
    width: int
    height: int

    @classmethod
    def photo(cls, caption: str, array: np.ndarray, *, width: int = 480) -> Picture:
        """An image or an overlay, uint8 RGB [H, W, 3], as JPEG at most `width` pixels wide."""
        small = to_width(array, min(width, array.shape[1]))
        done, data = cv2.imencode(".jpg", small[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 82])
        assert done, "opencv could not encode a JPEG"
        return cls(caption, data.tobytes(), "image/jpeg", small.shape[1], small.shape[0])

    @classmethod
    def drawing(cls, caption: str, array: np.ndarray, *, width: int = 480) -> Picture:
        """A label map or the like, uint8 RGB [H, W, 3], as PNG at most `width` pixels wide, without mixed colours.

        A picture of too many colours to be a drawing (a heat map, an error map over the image) becomes a `photo`.
        """
        height = max(1, round(array.shape[0] * width / array.shape[1]))
        shrink = array.shape[1] > width
        small = np.asarray(
            cv2.resize(array, (width, height), interpolation=cv2.INTER_NEAREST)
            if shrink
            else array,
            dtype=np.uint8,
        )
        codes = small.astype(np.uint32) @ np.array([1 << 16, 1 << 8, 1], dtype=np.uint32)
        colours, ids = np.unique(codes, return_inverse=True)
        if len(colours) > _COLOURS_OF_A_DRAWING:
            return cls.photo(caption, array, width=width)
        palette = np.stack([colours >> 16, colours >> 8 & 255, colours & 255], axis=1).astype(
            np.uint8
        )
        data = encode_png(ids.reshape(codes.shape).astype(np.uint8), palette=palette, level=9)
        return cls(caption, data, "image/png", small.shape[1], small.shape[0])

    def html(self) -> str:
        """A figure with the picture's bytes in it."""
        source = f"data:{self.mime};base64,{base64.b64encode(self.data).decode()}"
        caption = escape(self.caption)
        return (
            f'<figure><img src="{source}" width="{self.width}" height="{self.height}" alt="{caption}" loading="lazy">'
            f"<figcaption>{caption}</figcaption></figure>"
        )


@dataclass(frozen=True)
class Example:
    """One image of the report: a title (its name), a remark (its score, say), and pictures beside each other."""

    title: str
    pictures: Sequence[Picture]
    remark: str = ""
    columns: int | None = None
    """Pictures in a row; None: all of them."""

    def html(self) -> str:
        """The pictures in rows under the title."""
        remark = f' <span class="soft">{escape(self.remark)}</span>' if self.remark else ""
        figures = "".join(picture.html() for picture in self.pictures)
        columns = f"--columns:{self.columns or len(self.pictures)}"
        return f'<div class="example"><h4>{escape(self.title)}{remark}</h4><div class="row" style="{columns}">{figures}</div></div>'


@dataclass(frozen=True)
class Cell:
    """A table cell that is already HTML (everything else is escaped), with a CSS class."""

    html: str
    kind: str = ""


Row = list[str | Cell]


def percent(value: float | None, digits: int = 1) -> str:
    """A fraction in percent; a dash for None and nan."""
    return "–" if value is None or np.isnan(value) else f"{100 * value:.{digits}f}"


def swatch(color: Sequence[int]) -> str:
    """A small square of an RGB colour."""
    red, green, blue = (int(value) for value in color)
    return f'<span class="swatch" style="background:rgb({red},{green},{blue})"></span>'


def legend(entries: Iterable[tuple[str, Sequence[int]]]) -> str:
    """Names beside squares of their colours, in a line."""
    return (
        '<p class="legend">'
        + "".join(f"<span>{swatch(color)}{escape(name)}</span>" for name, color in entries)
        + "</p>"
    )


def bar(value: float | None) -> str:
    """A horizontal bar for a fraction; nothing for None and nan."""
    if value is None or np.isnan(value):
        return ""
    return f'<span class="bar"><span style="width:{100 * min(max(float(value), 0), 1):.1f}%"></span></span>'


def table(
    head: Sequence[str],
    rows: Iterable[Sequence[str | Cell]],
    *,
    kind: str = "",
    foot: Sequence[str | Cell] = (),
) -> str:
    """A table; cells that are text are escaped, `Cell`s are taken as they are. A heading stands as the cells below it do."""

    def line(cells: Sequence[str | Cell], tag: str = "td") -> str:
        parts = (cell if isinstance(cell, Cell) else Cell(escape(cell)) for cell in cells)
        return (
            "<tr>"
            + "".join(f'<{tag} class="{part.kind}">{part.html}</{tag}>' for part in parts)
            + "</tr>"
        )

    body = list(rows)
    kinds = (
        [cell.kind if isinstance(cell, Cell) else "" for cell in body[0]]
        if body
        else [""] * len(head)
    )
    heading = [
        Cell(escape(name), which.split(" ")[0]) for name, which in zip(head, kinds, strict=True)
    ]
    end = f"<tfoot>{line(foot)}</tfoot>" if foot else ""
    lines = "".join(line(row) for row in body)
    return f'<div class="wide"><table class="{kind}"><thead>{line(heading, "th")}</thead><tbody>{lines}</tbody>{end}</table></div>'


def number(text: str) -> Cell:
    """A right-aligned cell of escaped text."""
    return Cell(escape(text), "number")


def section(anchor: str, title: str, *parts: str, lead: str = "") -> str:
    """A headed part of the page; `lead` is a sentence of explanation (text)."""
    told = f'<p class="lead">{escape(lead)}</p>' if lead else ""
    return f'<section id="{anchor}"><h2>{escape(title)}</h2>{told}{"".join(parts)}</section>'


def folded(summary: str, content: str) -> str:
    """Content behind a line to click; `summary` is HTML."""
    return f"<details><summary>{summary}</summary>{content}</details>"


def tiles(facts: Mapping[str, str]) -> str:
    """Headline figures as tiles, name and value; the first stands out."""
    cells = "".join(
        f'<div class="fact"><b>{escape(value)}</b><span>{escape(name)}</span></div>'
        for name, value in facts.items()
    )
    return f'<div class="facts">{cells}</div>'


def settings_section(settings: Mapping[str, Any], *, checkpoint: str, sha256: str) -> str:
    """The checkpoint's hash and every setting, nested ones by group."""
    rows = [("file", checkpoint), ("sha256", sha256)]
    named: list[Row] = [
        [name, Cell(f"<code>{escape(value)}</code>")] for name, value in rows if value
    ]
    parts = ["<h3>Checkpoint</h3>", table(["", ""], named, kind="plain")] if named else []
    groups: dict[str, list[Row]] = {}
    for key, value in _flat(settings):
        group, _, name = key.rpartition(".") if "." in key else ("", "", key)
        groups.setdefault(group, []).append([name, Cell(f"<code>{escape(_plain(value))}</code>")])
    shown = "".join(
        f"<div><h3>{escape(group or 'settings')}</h3>{table(['', ''], pairs, kind='plain')}</div>"
        for group, pairs in groups.items()
    )
    return section(
        "settings", "Settings", *parts, f'<div class="settings">{shown}</div>' if shown else ""
    )


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _plain(value: Any) -> str:
    """A setting as YAML would have it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_plain(item) for item in value) + "]"
    return str(value)


def page(title: str, subtitle: str, sections: Sequence[tuple[str, str, str]]) -> str:
    """The whole page from (anchor, title, HTML of `section`) in order, with a menu of them."""
    menu = "".join(f'<a href="#{anchor}">{escape(name)}</a>' for anchor, name, _ in sections)
    body = "".join(html for _, _, html in sections)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f'<meta name="color-scheme" content="light dark"><title>{escape(title)}</title><style>{STYLE}</style></head>'
        f"<body><header><h1>{escape(title)}</h1><p>{escape(subtitle)}</p><nav>{menu}</nav></header><main>{body}</main>"
        f"<script>{SCRIPT}</script></body></html>\n"
    )


# A click shows a picture at the width of the window, the next click closes it: all the script there is.
SCRIPT = """
addEventListener('click', event => {
  const open = document.querySelector('img.open');
  if (open) open.classList.remove('open');
  else if (event.target.matches('figure img')) event.target.classList.add('open');
});
"""

STYLE = """
:root{--paper:#fbfbfa;--card:#fff;--ink:#1d2026;--soft:#666e7a;--line:#e3e5e8;--accent:#3457c9;--good:#1a7f4b;--bad:#c0332b}
@media(prefers-color-scheme:dark){:root{--paper:#14161a;--card:#1c1f25;--ink:#e6e8ec;--soft:#98a1ae;--line:#30353d;
--accent:#86a2ff;--good:#58c48c;--bad:#ff7d72}}
*{box-sizing:border-box}html{scroll-behavior:smooth}
body{margin:0;background:var(--paper);color:var(--ink);font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
header,main{max-width:1240px;margin:0 auto;padding:0 28px}
header{padding-top:34px}h1{font-size:27px;line-height:1.2;margin:0 0 4px;letter-spacing:-.01em}
header p{margin:0;color:var(--soft)}
nav{position:sticky;top:0;display:flex;flex-wrap:wrap;gap:4px 18px;padding:14px 0;border-bottom:1px solid var(--line)}
a{color:var(--accent);text-decoration:none}a:hover{text-decoration:underline}
section{padding:26px 0 6px;border-bottom:1px solid var(--line)}section:last-child{border:0}
h2{font-size:20px;margin:0 0 6px;letter-spacing:-.01em}h3{font-size:15px;margin:20px 0 8px}
h4{font-size:13.5px;margin:14px 0 6px;font-weight:600;overflow-wrap:anywhere}
.lead,.soft{color:var(--soft)}.lead{margin:0 0 14px;max-width:80ch}.soft{font-weight:400}
.facts{display:grid;grid-template-columns:repeat(auto-fit,minmax(116px,1fr));gap:12px;margin:14px 0 18px}
.fact{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:12px 14px}
.fact b{display:block;font-size:23px;line-height:1.2;font-weight:650;font-variant-numeric:tabular-nums}
.fact:first-child{border-color:var(--accent)}.fact:first-child b{color:var(--accent)}
.fact span{color:var(--soft);font-size:13px}
.wide{overflow-x:auto}table{border-collapse:collapse;font-size:14px;font-variant-numeric:tabular-nums}
th{text-align:left;font-weight:600;color:var(--soft);font-size:12.5px;vertical-align:bottom}
th,td{padding:4px 16px 4px 0;border-bottom:1px solid var(--line)}tfoot td{font-weight:650;border-bottom:0}
tbody tr:hover{background:color-mix(in srgb,var(--accent) 6%,transparent)}
td:first-child{white-space:nowrap}.number,.heat{text-align:right}.heat{text-align:center}.full{width:100%}.full .grow{width:34%}
.absent td{color:var(--soft)}.good{color:var(--good)}.bad{color:var(--bad)}
.swatch{display:inline-block;width:12px;height:12px;border-radius:3px;margin-right:8px;vertical-align:-1px;
box-shadow:inset 0 0 0 1px rgb(128 128 128/.45)}
.bar{display:block;height:12px;border-radius:3px;background:color-mix(in srgb,var(--ink) 8%,transparent)}
.bar>span{display:block;height:100%;border-radius:3px;background:var(--accent)}
.stack{display:flex;overflow:hidden}.stack>span{border-radius:0}.shade .grow{width:64%;padding:4px 0 4px 16px}
.pair .bar+.bar{margin-top:2px}.pair .bar{height:8px}.pair .bar:first-child>span{background:var(--soft)}
.legend{display:flex;flex-wrap:wrap;gap:2px 18px;font-size:13px;margin:0 0 10px;color:var(--soft)}
.ramp{display:inline-block;width:120px;height:12px;border-radius:3px;margin:0 6px;vertical-align:-1px}
.beside{display:flex;flex-wrap:wrap;gap:12px 36px;align-items:flex-start}.beside h3{margin-top:8px}
.shade td.heat{text-align:center;min-width:54px;padding:4px 8px;border:1px solid var(--paper)}
.plain thead{display:none}
.settings{columns:2;column-gap:40px}.settings table{width:100%;font-size:13px}.settings div{break-inside:avoid}
.settings td:last-child{overflow-wrap:anywhere}.settings td:first-child{color:var(--soft);white-space:nowrap}
code{font:12.5px/1.4 ui-monospace,SFMono-Regular,Menlo,monospace;overflow-wrap:anywhere}
.row{display:grid;grid-template-columns:repeat(var(--columns),minmax(0,1fr));gap:8px}
figure{margin:0}figure img{display:block;width:100%;height:auto;border-radius:4px;background:var(--line);cursor:zoom-in}
figcaption{color:var(--soft);font-size:12.5px;padding-top:2px}
img.open{position:fixed!important;inset:0;z-index:9;margin:auto;width:100vw!important;height:100vh!important;object-fit:contain;
background:rgb(0 0 0/.88)!important;border-radius:0!important;cursor:zoom-out!important}
details{border-top:1px solid var(--line);padding:7px 0}summary{cursor:pointer;font-weight:600;font-size:14px}
svg{max-width:100%;height:auto;display:block}svg text{fill:var(--ink);font:11px system-ui,sans-serif}
@media(max-width:760px){.row{grid-template-columns:repeat(2,1fr)}.settings{columns:1}header,main{padding:0 14px}}
@media print{details>*{display:block}nav{display:none}}
"""
