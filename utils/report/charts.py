"""What the charts of a page show; how they look is in `templates/macros.html`."""

from __future__ import annotations

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
