"""Figures over several seeds: means, deviations, and differences paired by seed."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and sample standard deviation, which is None for a single value."""
    if len(values) < 2:
        return statistics.fmean(values), None
    return statistics.fmean(values), statistics.stdev(values)


def paired(ours: Mapping[int, float], other: Mapping[int, float]) -> dict[str, Any] | None:
    """The difference over the seeds that both have: mean, standard error, number of seeds.

    None where they have no seed in common.
    """
    seeds = sorted(ours.keys() & other.keys())
    if not seeds:
        return None

    mean, deviation = mean_and_deviation([ours[seed] - other[seed] for seed in seeds])
    standard_error = None
    if deviation is not None:
        standard_error = deviation / math.sqrt(len(seeds))
    return {"mean": mean, "standard_error": standard_error, "seeds": len(seeds)}


def percent_of_seeds(mean: float, deviation: float | None) -> str:
    """A mean in percent with its deviation, where there is one: 58.0 ± 2.0."""
    text = f"{100 * mean:.1f}"
    if deviation is not None:
        text += f" ± {100 * deviation:.1f}"
    return text
