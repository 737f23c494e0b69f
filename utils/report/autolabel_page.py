"""The parts of an auto-labelling job's page, in their order."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

import numpy as np

from ..metrics.scores import divide, iou_of
from .charts import confusion_chart
from .page import (
    Cell,
    Row,
    bar,
    legend,
    number,
    percent,
    section,
    settings_section,
    swatch,
    table,
    tiles,
)

if TYPE_CHECKING:
    from .report import AutolabelReport

_FLOAT32_BYTES = 4


def subtitle(report: AutolabelReport) -> str:
    """Number of images and the threshold, one line."""
    return f"{report.images} images, {len(report.names)} classes, threshold {report.threshold:g}"


def sections(report: AutolabelReport) -> list[tuple[str, str, str]]:
    """(anchor, name in the menu, HTML) of every part that there is something for."""
    parts = [
        ("summary", "Summary", _summary(report)),
        ("kept", "Kept", _kept(report)),
        ("before", "Before and after", _before_and_after(report)),
        ("agreement", "Agreement", _agreement(report)),
        ("panels", "Examples", _panels(report)),
        ("cost", "Cost", _cost(report)),
        ("failed", "Failed images", _failed(report)),
        (
            "settings",
            "Settings",
            settings_section(
                report.settings, checkpoint=report.checkpoint, sha256=report.checkpoint_sha256
            ),
        ),
    ]
    return [part for part in parts if part[2]]


def _summary(report: AutolabelReport) -> str:
    figures = {"images labelled": str(report.images)}
    if report.pixels:
        figures = {"pixels with a label %": percent(report.kept.sum() / report.pixels), **figures}
        if report.human is not None:
            figures["by hand before %"] = percent(report.human.sum() / report.pixels)
    if report.failed:
        figures["images failed"] = str(len(report.failed))
    return section("summary", "Summary", tiles({**figures, **report.facts}))


def _name(report: AutolabelReport, index: int) -> Cell:
    return Cell(swatch(report.colors[index]) + escape(report.names[index]))


def _kept(report: AutolabelReport) -> str:
    kept = report.kept
    share = divide(kept, kept.sum())
    head = [
        "class",
        "threshold",
        *([] if report.predicted is None else ["", "kept %", "predicted pixels"]),
        "labelled pixels",
        "of all labels %",
    ]
    rows: list[Row] = []
    for index, name in enumerate(report.names):
        row: Row = [
            _name(report, index),
            number(f"{report.thresholds.get(name, report.threshold):.3g}"),
        ]
        if report.predicted is not None:
            part = float(divide(kept[index], report.predicted[index]))
            row += [
                Cell(bar(part), "grow"),
                number(percent(part)),
                number(f"{int(report.predicted[index]):,}"),
            ]
        rows.append(
            [*row, number(f"{int(kept[index]):,}"), number(percent(float(share[index]), 2))]
        )
    foot: Row = ["all", ""]
    if report.predicted is not None:
        whole = float(divide(kept.sum(), report.predicted.sum()))
        foot += [
            Cell(bar(whole)),
            number(percent(whole)),
            number(f"{int(report.predicted.sum()):,}"),
        ]
    lead = "A pixel keeps its class where the largest probability reaches the threshold of that class; the others are ignored in training."
    return section(
        "kept",
        "Kept",
        table(head, rows, kind="full", foot=[*foot, number(f"{int(kept.sum()):,}"), ""]),
        lead=lead,
    )


def _before_and_after(report: AutolabelReport) -> str:
    if report.human is None:
        return ""
    before, after = divide(report.human, report.human.sum()), divide(report.kept, report.kept.sum())
    top = (
        max(
            float(np.nanmax(values)) if not np.isnan(values).all() else 0.0
            for values in (before, after)
        )
        or 1.0
    )
    rows: list[Row] = []
    for index in range(len(report.names)):
        grown = float(divide(report.kept[index], report.human[index]))
        both = bar(before[index] / top) + bar(after[index] / top)
        counts = [number(f"{int(values[index]):,}") for values in (report.human, report.kept)]
        shares = [number(percent(float(values[index]), 2)) for values in (before, after)]
        rows.append(
            [
                _name(report, index),
                Cell(both, "grow pair"),
                *shares,
                *counts,
                number("–" if np.isnan(grown) else f"{grown:.2f}x"),
            ]
        )
    head = [
        "class",
        "",
        "by hand %",
        "automatic %",
        "by hand, pixels",
        "automatic, pixels",
        "change",
    ]
    lead = "Distribution of the labels: those drawn by hand (upper, grey) and the automatic ones (lower) of the same images."
    return section("before", "Before and after", table(head, rows, kind="full"), lead=lead)


def _agreement(report: AutolabelReport) -> str:
    if report.agreement is None:
        return ""
    matrix = report.agreement
    iou, by_hand, automatic = (
        iou_of(matrix),
        divide(np.diag(matrix), matrix.sum(axis=1)),
        divide(np.diag(matrix), matrix.sum(axis=0)),
    )
    rows: list[Row] = [
        [
            _name(report, index),
            Cell(bar(by_hand[index]), "grow"),
            number(percent(by_hand[index])),
            number(percent(automatic[index])),
            number(percent(iou[index])),
            number(f"{int(matrix[index].sum()):,}"),
        ]
        for index in range(len(report.names))
    ]
    right = percent(float(divide(np.trace(matrix), matrix.sum())))
    head = [
        "class",
        "",
        "of the hand's pixels %",
        "of the automatic pixels %",
        "IoU %",
        "pixels of both",
    ]
    foot: Row = ["all", "", number(right), number(right), "", number(f"{int(matrix.sum()):,}")]
    lead = (
        "Where a pixel has both a label drawn by hand and an automatic one: how often they agree."
    )
    chart = "<h3>Drawn by hand (rows), labelled automatically (columns)</h3>" + confusion_chart(
        matrix, report.names
    )
    return section(
        "agreement", "Agreement", table(head, rows, kind="full", foot=foot), chart, lead=lead
    )


def _panels(report: AutolabelReport) -> str:
    if not report.panels:
        return ""
    colours = legend(zip(report.names, report.colors, strict=False))
    return section(
        "panels",
        "Examples",
        colours,
        *(example.html() for example in report.panels),
        lead="Black pixels have no label.",
    )


def _cost(report: AutolabelReport) -> str:
    if not report.hard_bytes or not report.pixels:
        return ""
    soft = report.pixels * len(report.names) * _FLOAT32_BYTES
    lines = [("hard labels (PNG), on disk", report.hard_bytes)]
    if report.confidence_bytes:
        lines.append(("confidence (8-bit PNG), on disk", report.confidence_bytes))
    lines += [
        ("hard labels, uncompressed", report.pixels),
        ("soft labels, float32 for each class", soft),
    ]
    rows: list[Row] = []
    for name, size in lines:
        ratio = size / report.hard_bytes
        times_hard = f"{ratio:.3g}" if ratio < 1000 else f"{ratio:,.0f}"
        rows.append(
            [
                name,
                number(bytes_text(size)),
                number(bytes_text(size / max(report.images, 1))),
                number(times_hard),
            ]
        )
    parts = [table(["what is kept", "bytes", "per image", "times the hard labels"], rows)]
    if report.reading_seconds:
        times: list[Row] = [
            [name, number(f"{1000 * seconds:.1f}")]
            for name, seconds in report.reading_seconds.items()
        ]
        parts.append(
            "<h3>Reading in training</h3>" + table(["what is read", "ms per image"], times)
        )
    lead = "Soft labels take images x height x width x classes x 4 bytes: 3.2 TB for the paper's 20,000 images of 1024 x 2048 with 19 classes."
    return section("cost", "Cost", *parts, lead=lead)


def bytes_text(size: float) -> str:
    """Bytes with a unit of 1000, three significant digits."""
    unit = 0
    while size >= 999.5 and unit < 5:
        size, unit = size / 1000, unit + 1
    return f"{size:.3g} {('B', 'kB', 'MB', 'GB', 'TB', 'PB')[unit]}"


def _failed(report: AutolabelReport) -> str:
    if not report.failed:
        return ""
    return section(
        "failed",
        "Failed images",
        table(["image", "reason"], [[name, reason] for name, reason in report.failed]),
    )
