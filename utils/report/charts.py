"""What the charts of a page show; how they look is in `templates/macros.html`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .colours import heat_colours


@dataclass(frozen=True)
class Square:
    """One pair of classes in a confusion chart."""

    title: str
    text: str
    """What stands in the square: percent, or nothing where it is too small."""
    opacity: float
    right: bool
    """Whether the two classes are the same."""


@dataclass(frozen=True)
class ConfusionChart:
    """A confusion matrix as a picture; lengths are in pixels."""

    names: Sequence[str]
    squares: Sequence[Sequence[Square]]
    """Rows are labels, columns predictions."""
    cell: int
    margin: int
    """Room for the names, at the left and above."""

    @property
    def size(self) -> int:
        """Width and height."""
        return self.margin + self.cell * len(self.names) + 4


def confusion_chart(matrix: np.ndarray, names: Sequence[str]) -> ConfusionChart:
    """The chart of a confusion matrix int64 [C, C], in shares of each row (label)."""
    # Many classes get small squares, so that the chart still fits on a page.
    cell = 34
    if len(names) > 20:
        cell = 22
    if len(names) > 40:
        cell = 14

    # Names are written in 11 pixels, of which letters are on average 6.4 wide.
    margin = 8 + round(6.4 * max(len(name) for name in names))
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    squares = [
        [
            _square(float(shares[row, column]), label, predicted, with_text=cell >= 30)
            for column, predicted in enumerate(names)
        ]
        for row, label in enumerate(names)
    ]
    return ConfusionChart(names, squares, cell, margin)


def _square(share: float, label: str, predicted: str, *, with_text: bool) -> Square:
    # The square root makes weak shares strong enough to be seen.
    opacity = 0.0
    if share > 0:
        opacity = 0.04 + 0.96 * float(np.sqrt(share))
    text = ""
    if with_text and share >= 0.005:
        text = f"{100 * share:.0f}"
    title = f"{label} predicted as {predicted}: {100 * share:.2f} %"
    return Square(title, text, opacity, right=label == predicted)


def heat_ramp() -> list[list[int]]:
    """RGB colours of heat maps, in even steps from the low end to the high end."""
    colours: list[list[int]] = heat_colours()[::15].tolist()
    return colours


@dataclass(frozen=True)
class Tick:
    """A mark on an axis: where it is in pixels, and what stands there."""

    at: float
    text: str


@dataclass(frozen=True)
class Frame:
    """The rectangle of a chart, in pixels, and what its axes say."""

    left: float
    right: float
    top: float
    bottom: float
    x_ticks: Sequence[Tick]
    y_ticks: Sequence[Tick]


@dataclass(frozen=True)
class CostPoint:
    """A way to infer: its cost to the right, its score upwards; all in pixels."""

    name: str
    title: str
    """What is said where the mouse rests on it."""
    x: float
    y: float
    low: float
    high: float
    """Ends of the interval of the score."""
    text_x: float
    text_y: float
    edge_x: float
    """End of the name that is nearer to the point, to which a line leads where it is not beside."""
    anchor: str
    recommended: bool


@dataclass(frozen=True)
class CostChart:
    """Scores against one kind of cost."""

    heading: str
    frame: Frame
    points: Sequence[CostPoint]
    width: int = 390
    height: int = 250


@dataclass(frozen=True)
class CostRow:
    """What a chart of costs is drawn from. Scores are in percent."""

    name: str
    cost: float
    score: float
    low: float
    high: float
    recommended: bool


_LETTER, _LINE = 6.2, 13  # pixels, of the text beside points
_CROSSING = 20  # pixels that a name is moved to cross one interval less
_Bounds = tuple[float, float, float, float]  # left, top, width, height


def score_chart(heading: str, rows: Sequence[CostRow]) -> CostChart:
    """A chart of scores against one cost."""
    x_values = nice_steps(0.0, max(row.cost for row in rows) * 1.08)
    y_values = nice_steps(min(row.low for row in rows), max(row.high for row in rows))
    left, right, top, bottom = 42.0, 378.0, 12.0, 212.0

    def x_of(cost: float) -> float:
        return left + (right - left) * cost / x_values[-1]

    def y_of(score: float) -> float:
        return bottom - (bottom - top) * (score - y_values[0]) / (y_values[-1] - y_values[0])

    frame = Frame(
        *(left, right, top, bottom),
        x_ticks=[Tick(x_of(value), f"{value:g}") for value in x_values],
        y_ticks=[Tick(y_of(value), f"{value:g}") for value in y_values],
    )
    # The recommended way gets the first choice of where its name stands. A name covers neither
    # another one nor a point; where it crosses an interval, a rim around it keeps it legible.
    taken = [(x_of(row.cost) - 5, y_of(row.score) - 5, 10.0, 10.0) for row in rows]
    lines = [
        (x_of(row.cost) - 3, y_of(row.high), 6.0, y_of(row.low) - y_of(row.high)) for row in rows
    ]
    points = []
    for row in sorted(rows, key=lambda row: not row.recommended):
        x, y, width = x_of(row.cost), y_of(row.score), _LETTER * len(row.name)
        text_x, text_y = _free_place(x, y, width, taken=taken, lines=lines, frame=frame)
        taken.append((text_x, text_y - 10, width, _LINE))
        edge_x = text_x - 2 if text_x > x else text_x + width + 2
        points.append(
            CostPoint(
                name=row.name,
                title=f"{row.name}: {row.score:.1f} % ({row.low:.1f} to {row.high:.1f})",
                x=x,
                y=y,
                low=y_of(row.low),
                high=y_of(row.high),
                text_x=text_x,
                text_y=text_y,
                edge_x=edge_x,
                anchor="start",
                recommended=row.recommended,
            )
        )
    return CostChart(heading, frame, points)


def _free_place(
    x: float,
    y: float,
    width: float,
    *,
    taken: Sequence[_Bounds],
    lines: Sequence[_Bounds],
    frame: Frame,
) -> tuple[float, float]:
    """Where a name stands near its point (its left lower corner).

    It covers nothing of `taken` where that can be. Then it is near, and crosses few of `lines`.
    """
    best, least = (x + 12, y + 4), (math.inf, math.inf)
    for shift in (0, -14, 14, -28, 28, -42, 42, -56, 56, -70, 70, -84, 84):
        for left in (x + 12, x - 12 - width):
            base = y + 4 + shift
            inside = frame.left + 2 <= left and left + width <= frame.right + 8
            if not inside or base - 8 < frame.top or base + 3 > frame.bottom:
                continue
            own = (left, base - 10, width, _LINE)
            covered = sum(_overlap(own, other) for other in taken)
            crossed = sum(_overlap(own, other) for other in lines)
            price = (covered, _CROSSING * crossed + abs(shift))
            if price < least:
                best, least = (left, base), price
    return best


def _overlap(one: _Bounds, other: _Bounds) -> bool:
    """Whether two rectangles (left, top, width, height) share a point."""
    beside = one[0] + one[2] <= other[0] or other[0] + other[2] <= one[0]
    below = one[1] + one[3] <= other[1] or other[1] + other[3] <= one[1]
    return not (beside or below)


def nice_steps(low: float, high: float) -> list[float]:
    """Four to eight round values, evenly spaced, from at or below `low` to at or above `high`."""
    span = max(high - low, 1e-6)
    power = 10.0 ** np.floor(np.log10(span / 5))
    step = power * next(factor for factor in (1, 2, 5, 10) if span / (power * factor) <= 6)

    first, last = np.floor(low / step + 1e-9), np.ceil(high / step - 1e-9)
    if last <= first:
        last = first + 1
    # Rounding takes away what binary fractions add, such as 0.30000000000000004.
    return [round(float(step * number), 10) for number in np.arange(first, last + 1)]


@dataclass(frozen=True)
class Curve:
    """A line through points, as the `points` of an SVG polyline."""

    name: str
    points: str
    style: str


@dataclass(frozen=True)
class CurveChart:
    """Shares over thresholds, with a line at the threshold that was used."""

    frame: Frame
    curves: Sequence[Curve]
    used_at: float
    used: str
    width: int = 520
    height: int = 260


def curve_chart(
    thresholds: Sequence[float],
    shares: dict[str, tuple[str, Sequence[float | None]]],
    *,
    used: float,
) -> CurveChart:
    """Shares from 0 to 1 over thresholds, drawn in percent.

    Args:
        thresholds: rising.
        shares: name -> (style, a share for each threshold, None where it is not known).
        used: the threshold to mark.
    """
    left, right, top, bottom = 42.0, 508.0, 14.0, 222.0
    first, last = thresholds[0], thresholds[-1]

    def x_of(threshold: float) -> float:
        return left + (right - left) * (threshold - first) / (last - first)

    def y_of(share: float) -> float:
        return bottom - (bottom - top) * share

    curves = []
    for name, (style, values) in shares.items():
        points = [
            f"{x_of(threshold):.1f},{y_of(value):.1f}"
            for threshold, value in zip(thresholds, values, strict=True)
            if value is not None
        ]
        curves.append(Curve(name, " ".join(points), style))

    frame = Frame(
        *(left, right, top, bottom),
        x_ticks=[Tick(x_of(value), f"{value:g}") for value in nice_steps(first, last)],
        y_ticks=[Tick(y_of(value / 100), f"{value}") for value in range(0, 101, 20)],
    )
    return CurveChart(frame, curves, used_at=x_of(used), used=f"{used:g}")
