"""Two charts of Table 1 as SVG files: mIoU against cost, and what each class gains.

They are drawn from the lines and gains of table1.json.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

INK, SOFT, GUIDE, ACCENT, THIN_COLOUR = "#24292f", "#8c959f", "#d8dee4", "#0969da", "#bc4c00"
STYLE = 'font-family="system-ui,sans-serif" font-size="13"'
LETTER = 7  # the width of a letter in pixels, roughly
# The cost chart: its height, the width of its plot, and the margins around the plot.
HEIGHT, PLOT, LEFT, TOP, BOTTOM = 420, 470, 60, 44, 50
# The gain chart: its width, the height of a bar with its gap, and the places of names and bars.
GAIN_WIDTH, ROW, NAMES, FIRST_ROW, FIGURE = 760, 24, 150, 66, 60


def cost_chart(lines: Sequence[Mapping[str, Any]]) -> str:
    """Points of mIoU over the time of a training step relative to single scale.

    Each has a bar of one standard deviation up and down. Lines without a cost are left out.
    """
    shown = sorted(
        (line for line in lines if line["cost"] is not None), key=lambda line: -line["miou"]
    )
    labels = [_label(line) for line in shown]
    right = 40 + LETTER * max(map(len, labels))
    width = LEFT + PLOT + right

    low = min(100 * (line["miou"] - _deviation(line)) for line in shown) - 1
    high = max(100 * (line["miou"] + _deviation(line)) for line in shown) + 1
    farthest = max(line["cost"]["step"] for line in shown) * 1.08

    def position(cost: float, score: float) -> tuple[float, float]:
        x = LEFT + (cost - 0.8) / (farthest - 0.8) * PLOT
        return x, HEIGHT - BOTTOM - (score - low) / (high - low) * (HEIGHT - TOP - BOTTOM)

    # The axes.
    floor = HEIGHT - BOTTOM
    parts = [_line(LEFT, floor, width - right, floor), _line(LEFT, TOP, LEFT, floor)]

    # Ticks at every half of a cost, or at whole ones where they would crowd.
    half_costs = 2
    if farthest < 3:
        half_costs = 1
    for tick in range(2, int(2 * farthest) + 1, half_costs):
        x = position(tick / 2, low)[0]
        parts.append(_text(x, floor + 18, f"{tick / 2:g}x", anchor="middle", colour=SOFT))
    for tick in range(int(low) + 1, int(high) + 1, max(1, int(high - low) // 6)):
        y = position(1, tick)[1]
        parts.append(_text(LEFT - 8, y + 4, str(tick), anchor="end", colour=SOFT))
    title = "time of a training step, relative to single scale"
    parts.append(_text(LEFT + PLOT / 2, HEIGHT - 12, title, anchor="middle", colour=SOFT))

    # Points, each joined by a guide to its name beside the plot.
    beside = width - right + 24
    for number, (label, line) in enumerate(zip(labels, shown, strict=True)):
        x, y = position(line["cost"]["step"], 100 * line["miou"])
        reach = abs(position(1, 100 * _deviation(line))[1] - position(1, 0)[1])
        name_y = TOP + 12 + 26 * number
        colour = INK
        if line["name"].startswith("hierarchical"):
            colour = ACCENT
        parts += [
            _line(x, y - reach, x, y + reach, colour, 1.5),
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" fill="{colour}"/>',
            _line(x + 7, y, beside - 4, name_y - 4, GUIDE),
            _text(beside, name_y, label, colour=colour),
        ]
    return _document(width, HEIGHT, parts, "mIoU (%, ± standard deviation) against cost")


def gain_chart(gains: Mapping[str, float], thin: Sequence[str]) -> str:
    """A bar for each class: points of IoU gained over single scale.

    Thin classes come first, then large ones.
    """
    ordered = sorted(gains, key=lambda name: (name not in thin, -gains[name]))
    low, high = min(0.0, *gains.values()), max(0.0, *gains.values())
    unit = (GAIN_WIDTH - NAMES - 2 * FIGURE) / max(high - low, 1e-9)
    zero = NAMES + FIGURE - low * unit

    title = "thin classes in orange, large ones in blue; points of IoU"
    parts = [_text(GAIN_WIDTH / 2, 48, title, anchor="middle", colour=SOFT)]
    for number, name in enumerate(ordered):
        y, reach = FIRST_ROW + number * ROW, gains[name] * unit
        colour = ACCENT
        if name in thin:
            colour = THIN_COLOUR
        parts.append(
            f'<rect x="{min(zero, zero + reach):.1f}" y="{y}" width="{abs(reach):.1f}" '
            f'height="{ROW - 7}" fill="{colour}"/>'
        )
        parts.append(_text(NAMES - 8, y + 13, name, anchor="end"))

        # The figure stands beyond the end of its bar, to whichever side that goes.
        figure = f"{100 * gains[name]:+.1f}"
        if reach >= 0:
            parts.append(_text(zero + reach + 6, y + 13, figure))
        else:
            parts.append(_text(zero + reach - 6, y + 13, figure, anchor="end"))

    bottom = FIRST_ROW + len(ordered) * ROW
    parts.append(_line(zero, FIRST_ROW - 6, zero, bottom, SOFT))
    title = "What hierarchical {0.5, 1, 2} gains over single scale"
    return _document(GAIN_WIDTH, bottom + 12, parts, title)


def _label(line: Mapping[str, Any]) -> str:
    scales = ", ".join(f"{scale:g}" for scale in line["scales"])
    return f"{100 * line['miou']:.1f}  {line['name']} {{{scales}}}"


def _deviation(line: Mapping[str, Any]) -> float:
    return float(line["deviation"] or 0)


def _document(width: int, height: int, parts: Sequence[str], title: str) -> str:
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}" {STYLE}>'
    )
    paper = (
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>'
        f'<text x="16" y="24" font-weight="600" fill="{INK}">{escape(title)}</text>'
    )
    return "\n".join([head, paper, *parts, "</svg>"]) + "\n"


def _text(x: float, y: float, words: str, *, anchor: str = "start", colour: str = INK) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" '
        f'fill="{colour}">{escape(words)}</text>'
    )


def _line(x0: float, y0: float, x1: float, y1: float, colour: str = SOFT, width: float = 1) -> str:
    return (
        f'<line x1="{x0:.1f}" y1="{y0:.1f}" x2="{x1:.1f}" y2="{y1:.1f}" '
        f'stroke="{colour}" stroke-width="{width}"/>'
    )
