"""Charts for the report as inline SVG or shaded tables; colours come from the page's style, so they suit dark screens."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np

from .colours import heat_colours
from .page import Cell, Row, table


def confusion_chart(matrix: np.ndarray, names: Sequence[str]) -> str:
    """Heat map of a confusion matrix [C, C] in shares of each row (label); hovering names the pair and its share."""
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    count = len(names)
    cell = 34 if count <= 20 else 22 if count <= 40 else 14
    margin = 8 + round(6.4 * max(len(name) for name in names))
    size = margin + cell * count
    parts = [
        f'<svg viewBox="0 0 {size + 4} {size + 4}" width="{size + 4}" role="img" aria-label="confusion matrix">'
    ]
    for row, name in enumerate(names):
        middle = margin + (row + 0.5) * cell
        parts.append(
            f'<text x="{margin - 6}" y="{middle + 4:.1f}" text-anchor="end">{escape(name)}</text>'
        )
        parts.append(
            f'<text transform="translate({middle + 4:.1f} {margin - 6}) rotate(-90)">{escape(name)}</text>'
        )
        for column in range(count):
            parts.append(
                _square(
                    shares[row, column],
                    name,
                    names[column],
                    margin + column * cell,
                    margin + row * cell,
                    cell,
                )
            )
    return '<div class="wide">' + "".join(parts) + "</svg></div>"


def _square(share: float, label: str, predicted: str, x: float, y: float, cell: int) -> str:
    """One cell: the right ones in the accent colour, mistakes in red; weak shares are lifted so that they can be seen."""
    colour = "var(--accent)" if label == predicted else "var(--bad)"
    opacity = 0.04 + 0.96 * float(np.sqrt(share)) if share > 0 else 0.0
    told = escape(f"{label} predicted as {predicted}: {100 * share:.2f} %")
    edge = f'<rect x="{x}" y="{y}" width="{cell}" height="{cell}" fill="{colour}" fill-opacity="{opacity:.3f}" stroke="var(--line)">'
    text = ""
    if cell >= 30 and share >= 0.005:
        ink = ' style="fill:var(--paper)"' if opacity > 0.6 else ""
        middle = f'x="{x + cell / 2}" y="{y + cell / 2 + 4}"'
        text = f'<text {middle} text-anchor="middle"{ink} pointer-events="none">{100 * share:.0f}</text>'
    return f"{edge}<title>{told}</title></rect>{text}"


def heat_ramp() -> str:
    """The colour scale of heat maps, from its low to its high end."""
    stops = ",".join(
        f"rgb({red},{green},{blue})" for red, green, blue in heat_colours()[::15].tolist()
    )
    return f'<span class="ramp" style="background:linear-gradient(90deg,{stops})"></span>'


def shaded_table(
    corner: str,
    columns: Sequence[str],
    rows: Sequence[tuple[Cell, Sequence[float]]],
    *,
    ends: Sequence[str] = (),
) -> str:
    """A table of fractions, each cell shaded by its value; nan is a dash. `ends`, HTML for each row, stands at its end."""
    lines: list[Row] = [[name, *(_shade(value) for value in values)] for name, values in rows]
    if not ends:
        return table([corner, *columns], lines, kind="shade")
    return table(
        [corner, *columns, ""],
        [[*line, Cell(end, "grow")] for line, end in zip(lines, ends, strict=True)],
        kind="shade full",
    )


def stacked_bar(parts: Sequence[tuple[float, Sequence[int]]]) -> str:
    """Fractions and their RGB colours, one after the other in one bar; nothing where they are nan."""
    if any(np.isnan(value) for value, _ in parts):
        return ""
    pieces = "".join(
        f'<span style="width:{100 * value:.1f}%;background:rgb({color[0]},{color[1]},{color[2]})"></span>'
        for value, color in parts
    )
    return f'<span class="bar stack">{pieces}</span>'


def _shade(value: float) -> Cell:
    if np.isnan(value):
        return Cell("–", "heat")
    strength = f"color-mix(in srgb,var(--accent) {100 * value:.0f}%,transparent)"
    ink = ";color:var(--paper)" if value > 0.62 else ""
    return Cell(
        f'<span style="display:block;margin:-4px -8px;padding:4px 8px;background:{strength}{ink}">{100 * value:.0f}</span>',
        "heat",
    )
