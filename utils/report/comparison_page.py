"""The page of several evaluations: their table with bars, and pictures of the same images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from ..files.regular import read_regular
from .comparison import ComparedRun, differences, inference_way, rows, scores
from .page import Example, Picture, Section, page

NAMED_IN_TITLE = 3  # runs
IMAGE_TYPES = {".jpg": "image/jpeg", ".png": "image/png"}


def as_page(runs: Sequence[ComparedRun]) -> str:
    """A page of the table, with a bar for each score, and where every figure comes from."""
    _, *lines = rows(runs)
    found = scores(runs)
    shown = []
    for name, *texts in lines:
        # Lines that are no score, such as the scales, have no bar and no sign.
        values = found.get(name, [math.nan] * len(runs))
        cells = []
        for text, value in zip(texts, values, strict=True):
            sign = _sign(value, values[0])
            if name == "mIoU" and sign and _may_be_chance(value, runs[0]):
                sign = "soft"
            cells.append({"text": text, "score": value, "sign": sign})
        shown.append({"name": name, "cells": cells})

    lead = ["IoU in percent; differences are to the first run."]
    if runs[0].interval is not None:
        lead.append("An mIoU within the first run's interval is not coloured.")
    names = headings(runs)
    sections = [
        Section(
            "runs",
            "Runs",
            "comparison/runs.html",
            {"names": names, "rows": shown},
            " ".join([*lead, *differences(runs)]),
        ),
        Section("sources", "Sources", "comparison/sources.html", {"runs": runs}),
    ]
    examples = pictures_side_by_side(runs)
    if examples:
        section = Section(
            "pictures",
            "Pictures",
            "comparison/pictures.html",
            {"examples": examples},
            "The same images by every run: evenly spread over the split, so neither the best nor "
            "the worst.",
        )
        sections.insert(1, section)
    splits = ", ".join(dict.fromkeys(f"{run.images} images of {run.split}" for run in runs))
    return page(title_of(runs), f"Runs side by side · {splits}", sections)


def title_of(runs: Sequence[ComparedRun]) -> str:
    """The names of the runs, of many the first ones."""
    names = list(dict.fromkeys(run.name for run in runs))
    if len(names) > NAMED_IN_TITLE:
        return f"{', '.join(names[:NAMED_IN_TITLE])} and {len(names) - NAMED_IN_TITLE} more"
    return ", ".join(names)


def headings(runs: Sequence[ComparedRun]) -> list[str]:
    """A heading for each column: the run's name, with its scales where several share a name."""
    names = [run.name for run in runs]
    return [
        f"{run.name} {{{inference_way(run)}}}" if names.count(run.name) > 1 else run.name
        for run in runs
    ]


def _may_be_chance(value: float, reference: ComparedRun) -> bool:
    """Whether a score lies within what other images would have given the reference."""
    if reference.interval is None:
        return False
    return reference.interval[0] <= value <= reference.interval[1]


def pictures_side_by_side(runs: Sequence[ComparedRun]) -> list[Example]:
    """image | label | what each run predicts, of the images of which all runs have pictures."""
    files = {run.path: run for run in reversed(runs) if run.examples}
    drawn = [files[path] for path in dict.fromkeys(run.path for run in runs) if path in files]
    if not drawn:
        return []

    by_name = [{example.get("name", ""): example for example in run.examples} for run in drawn]
    shown = []
    for name, first in by_name[0].items():
        if not all(name in of_run for of_run in by_name):
            continue
        pictures = [
            _picture(drawn[0], first.get("image"), "image"),
            _picture(drawn[0], first.get("label"), "label"),
        ]
        for run, of_run in zip(drawn, by_name, strict=True):
            pictures.append(_picture(run, of_run[name].get("prediction"), run.name))
        there = [picture for picture in pictures if picture is not None]
        if there:
            shown.append(Example(name, there))
    return shown


def _picture(run: ComparedRun, file: str | None, caption: str) -> Picture | None:
    """A picture beside a metrics.json; None where it is gone, damaged or leads elsewhere."""
    if file is None or ".." in Path(file).parts or Path(file).is_absolute():
        return None
    path = run.path.parent / file
    mime = IMAGE_TYPES.get(path.suffix)
    if mime is None:
        return None
    try:
        data = read_regular(path)
    except OSError:
        return None
    array = cv2.imdecode(np.frombuffer(data, dtype=np.uint8), cv2.IMREAD_COLOR)
    if array is None:
        return None
    return Picture(caption, data, mime, array.shape[1], array.shape[0])


def _sign(value: float, reference: float) -> str:
    """The class of a cell, by a change that shows when it is printed."""
    change = value - reference
    if math.isnan(change) or round(1000 * change) == 0:
        return ""
    if change > 0:
        return "good"
    return "bad"
