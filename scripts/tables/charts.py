"""Two charts of Table 1 as SVG files: mIoU against the cost of a training step, and what each class gains by hierarchical attention."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

INK, SOFT, ACCENT, THIN_COLOUR = "#24292f", "#8c959f", "#0969da", "#bc4c00"
STYLE = 'font-family="system-ui,sans-serif" font-size="13"'


def _document(width: int, height: int, parts: Sequence[str], title: str) -> str:
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" {STYLE}>'
    paper = f'<rect width="{width}" height="{height}" fill="#ffffff"/><text x="16" y="24" font-weight="600" fill="{INK}">{escape(title)}</text>'
    return "\n".join([head, paper, *parts, "</svg>"]) + "\n"


def _text(x: float, y: float, words: str, *, anchor: str = "start", colour: str = INK) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}">{escape(words)}</text>'


def _line(x0: float, y0: float, x1: float, y1: float, colour: str = SOFT, width: float = 1) -> str:
    return f'<line x1="{x0:.1f}" y1="{y0:.1f}" x2="{x1:.1f}" y2="{y1:.1f}" stroke="{colour}" stroke-width="{width}"/>'


def _deviation(line: dict[str, Any]) -> float:
    return float(line["deviation"] or 0)


def cost_chart(lines: Sequence[dict[str, Any]]) -> str:
    """Points of mIoU (with its standard deviation) over the time of a training step relative to single scale, from table1.json's lines."""
    shown = [line for line in lines if line["cost"] is not None]
    labels = [
        f"{100 * line['miou']:.1f}  {line['name']} {{{', '.join(f'{scale:g}' for scale in line['scales'])}}}"
        for line in shown
    ]
    plot, height, left, right, top, bottom = 470, 420, 60, 40 + 7 * max(map(len, labels)), 44, 50
    width = left + plot + right
    low = min(100 * (line["miou"] - _deviation(line)) for line in shown) - 1
    high = max(100 * (line["miou"] + _deviation(line)) for line in shown) + 1
    farthest = max(line["cost"]["step"] for line in shown) * 1.08

    def place(cost: float, score: float) -> tuple[float, float]:
        x = left + (cost - 0.8) / (farthest - 0.8) * (width - left - right)
        return x, height - bottom - (score - low) / (high - low) * (height - top - bottom)

    parts = [
        _line(left, height - bottom, width - right, height - bottom),
        _line(left, top, left, height - bottom),
    ]
    halves = 1 if farthest < 3 else 2  # between two ticks
    for tick in range(2, int(2 * farthest) + 1, halves):
        parts.append(
            _text(
                place(tick / 2, low)[0],
                height - bottom + 18,
                f"{tick / 2:g}x",
                anchor="middle",
                colour=SOFT,
            )
        )
    for tick in range(int(low) + 1, int(high) + 1, max(1, int(high - low) // 6)):
        parts.append(_text(left - 8, place(1, tick)[1] + 4, str(tick), anchor="end", colour=SOFT))
    parts.append(
        _text(
            (left + width - right) / 2,
            height - 12,
            "time of a training step, relative to single scale",
            anchor="middle",
            colour=SOFT,
        )
    )
    for number, (label, line) in enumerate(
        sorted(zip(labels, shown, strict=True), key=lambda pair: -pair[1]["miou"])
    ):
        x, y = place(line["cost"]["step"], 100 * line["miou"])
        colour = ACCENT if line["name"].startswith("hierarchical") else INK
        beside, key_y = width - right + 24, top + 12 + 26 * number
        reach = abs(place(1, 100 * _deviation(line))[1] - place(1, 0)[1])
        parts += [
            _line(x, y - reach, x, y + reach, colour, 1.5),
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" fill="{colour}"/>',
            _line(x + 7, y, beside - 4, key_y - 4, "#d8dee4"),
            _text(beside, key_y, label, colour=colour),
        ]
    return _document(width, height, parts, "mIoU (%, ± standard deviation) against cost")


def gain_chart(gains: dict[str, float], thin: Sequence[str]) -> str:
    """A bar for each class: points of IoU gained over single scale; thin classes first, then large ones."""
    ordered = sorted(gains, key=lambda name: (name not in thin, -gains[name]))
    row, left, width, top, figure = (
        24,
        150,
        760,
        66,
        60,
    )  # `figure`: room for the number at the end of a bar
    low, high = min(0.0, *gains.values()), max(0.0, *gains.values())
    unit = (width - left - 2 * figure) / max(high - low, 1e-9)
    zero = left + figure - low * unit
    parts = [
        _text(
            width / 2,
            48,
            "thin classes in orange, large ones in blue; points of IoU",
            anchor="middle",
            colour=SOFT,
        )
    ]
    for number, name in enumerate(ordered):
        y, reach = top + number * row, gains[name] * unit
        colour = THIN_COLOUR if name in thin else ACCENT
        parts += [
            f'<rect x="{min(zero, zero + reach):.1f}" y="{y}" width="{abs(reach):.1f}" height="{row - 7}" fill="{colour}"/>',
            _text(left - 8, y + 13, name, anchor="end"),
            _text(
                zero + reach + (6 if reach >= 0 else -6),
                y + 13,
                f"{100 * gains[name]:+.1f}",
                anchor="start" if reach >= 0 else "end",
            ),
        ]
    parts.append(_line(zero, top - 6, zero, top + len(ordered) * row, SOFT))
    return _document(
        width,
        top + len(ordered) * row + 12,
        parts,
        "What hierarchical {0.5, 1, 2} gains over single scale",
    )
