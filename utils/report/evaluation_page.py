"""The parts of an evaluation's page, in their order."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

import numpy as np

from ..metrics.scores import divide, iou_of, mean_of
from .charts import confusion_chart, heat_ramp, shaded_table, stacked_bar
from .colours import scale_colours
from .page import (
    Cell,
    Row,
    bar,
    folded,
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
    from .report import ComparedRow, EvaluationReport

_MISTAKES = 12


def subtitle(report: EvaluationReport) -> str:
    """What was scored with what, one line."""
    parts = [f"split {report.split}"] if report.split else []
    parts += [f"{report.images} images", f"{len(report.names)} classes"]
    if report.compared:
        parts.append(f"{report.compared[0].method} at {_way(report.compared[0])}")
    if report.checkpoint_sha256:
        parts.append(f"checkpoint {report.checkpoint_sha256[:12]}")
    return " · ".join(parts)


def _way(row: ComparedRow) -> str:
    """Scales and flip as a heading."""
    return ", ".join(f"{scale:g}" for scale in row.scales) + (" + flip" if row.flip else "")


def sections(report: EvaluationReport) -> list[tuple[str, str, str]]:
    """(anchor, name in the menu, HTML) of every part that there is something for."""
    parts = [
        ("summary", "Summary", _summary(report)),
        ("classes", "Classes", _classes(report)),
        ("scales", "Scales", _scales(report)),
        ("shares", "Scale by class", _shares(report)),
        ("attention", "Attention", _examples(report, "attention")),
        ("confusion", "Confusion", _confusion(report)),
        ("worst", "Worst images", _worst(report)),
        (
            "settings",
            "Settings",
            settings_section(
                report.settings, checkpoint=report.checkpoint, sha256=report.checkpoint_sha256
            ),
        ),
    ]
    return [part for part in parts if part[2]]


def _summary(report: EvaluationReport) -> str:
    matrix = report.matrix
    iou = iou_of(matrix)
    figures = {
        "mIoU %": percent(mean_of(iou)),
        "pixel accuracy %": percent(float(divide(np.trace(matrix), matrix.sum()))),
    }
    means = {
        "category IoU %": report.categories,
        "iIoU %": report.instance_iou,
        "category iIoU %": report.category_instance_iou,
    }
    for name, values in means.items():
        if values:
            figures[name] = percent(mean_of(np.array(list(values.values()))))
    if report.boundary_f is not None:
        figures["boundary F %"] = percent(mean_of(report.boundary_f))
    figures["images"] = str(report.images)
    absent = [name for name, value in zip(report.names, iou, strict=True) if np.isnan(value)]
    told = (
        f"Absent from labels and predictions, so not in the means: {', '.join(absent)}."
        if absent
        else ""
    )
    return section(
        "summary",
        "Summary",
        tiles({**figures, **report.facts}),
        f'<p class="soft">{escape(told)}</p>' if told else "",
    )


def _classes(report: EvaluationReport) -> str:
    matrix, iou = report.matrix, iou_of(report.matrix)
    precision, recall = (
        divide(np.diag(matrix), matrix.sum(axis=0)),
        divide(np.diag(matrix), matrix.sum(axis=1)),
    )
    share = divide(matrix.sum(axis=1), matrix.sum())
    optional = {"boundary F": report.boundary_f is not None, "iIoU": bool(report.instance_iou)}
    head = [
        "class",
        "",
        "IoU %",
        "precision %",
        "recall %",
        *(f"{name} %" for name, shown in optional.items() if shown),
        "pixels %",
    ]
    rows: list[Row] = []
    for index, name in enumerate(report.names):
        values = [iou[index], precision[index], recall[index]]
        if report.boundary_f is not None:
            values.append(report.boundary_f[index])
        if report.instance_iou:
            values.append(report.instance_iou.get(name, np.nan))
        cells = [number(percent(value)) for value in values]
        label = Cell(swatch(report.colors[index]) + escape(name))
        rows.append(
            [label, Cell(bar(iou[index]), "grow"), *cells, number(percent(share[index], 2))]
        )
    means = [percent(mean_of(values)) for values in (iou, precision, recall)]
    if report.boundary_f is not None:
        means.append(percent(mean_of(report.boundary_f)))
    if report.instance_iou:
        means.append(percent(mean_of(np.array(list(report.instance_iou.values())))))
    foot: Row = ["mean", "", *(number(text) for text in means), ""]
    parts = [table(head, rows, kind="full", foot=foot)]
    if report.categories:
        parts.append("<h3>Categories</h3>" + _categories(report))
    lead = "Intersection over union per class; a dash means that there is nothing to score."
    return section("classes", "Classes", *parts, lead=lead)


def _categories(report: EvaluationReport) -> str:
    rows: list[Row] = [
        [
            name,
            Cell(bar(value), "grow"),
            number(percent(value)),
            number(percent(report.category_instance_iou.get(name))),
        ]
        for name, value in report.categories.items()
    ]
    return table(["category", "", "IoU %", "iIoU %"], rows, kind="full")


def _scales(report: EvaluationReport) -> str:
    if not report.compared:
        return ""
    reference = report.compared[0].miou
    best = max(row.miou for row in report.compared)
    rows: list[Row] = []
    for position, row in enumerate(report.compared):
        delta = 100 * (row.miou - reference)
        sign = "" if abs(delta) < 0.05 else "good" if delta > 0 else "bad"
        change = Cell("" if position == 0 else f"{delta:+.1f}", f"number {sign}")
        score = Cell(
            f"<b>{percent(row.miou)}</b>" if row.miou == best else percent(row.miou), "number"
        )
        scales = ", ".join(f"{scale:g}" for scale in row.scales)
        rows.append(
            [
                row.method,
                scales,
                "yes" if row.flip else "no",
                Cell(bar(row.miou), "grow"),
                score,
                change,
            ]
        )
    head = ["method", "scales", "flip", "", "mIoU %", "difference"]
    lead = "The same weights at several scale lists; differences are to the first row."
    scored = [row for row in report.compared if row.iou is not None]
    parts = [table(head, rows, kind="full")]
    if len(scored) > 1:
        headings = [
            _way(row)
            if len({other.method for other in scored}) == 1
            else f"{row.method}: {_way(row)}"
            for row in scored
        ]
        lines = [
            (
                Cell(swatch(report.colors[index]) + escape(name)),
                [float(row.iou[index]) for row in scored if row.iou is not None],
            )
            for index, name in enumerate(report.names)
        ]
        parts.append(folded("IoU per class at each", shaded_table("class", headings, lines)))
    return section("scales", "Scales", *parts, lead=lead)


def _shares(report: EvaluationReport) -> str:
    if report.shares is None:
        return ""
    present = report.matrix.sum(axis=1) > 0
    rows = [
        (
            Cell(swatch(report.colors[index]) + escape(name)),
            [float(value) if present[index] else float("nan") for value in report.shares[:, index]],
        )
        for index, name in enumerate(report.names)
    ]
    lead = "How much each scale counts for the pixels of a class, in percent: the attention of all scales together sums to 100."
    order = np.argsort(report.share_scales)
    colours = scale_colours(len(order))
    bars = [
        stacked_bar([(values[which], colours[place]) for place, which in enumerate(order)])
        for _, values in rows
    ]
    names = [f"{report.share_scales[which]:g}x" for which in order]
    return section(
        "shares",
        "Scale by class",
        legend(zip(names, colours, strict=True)),
        shaded_table("class", [f"{scale:g}x" for scale in report.share_scales], rows, ends=bars),
        lead=lead,
    )


def _examples(report: EvaluationReport, anchor: str) -> str:
    if not report.attention:
        return ""
    lead = (
        "What each scale alone would say, and its attention: bright regions trust it, what they leave goes to the larger scales. "
        "The map of scales mixes the colours of all by their weight."
    )
    scales = sorted(report.share_scales)
    named = zip((f"{scale:g}x" for scale in scales), scale_colours(len(scales)), strict=True)
    ramp = f'<p class="legend"><span>attention 0 {heat_ramp()} 1</span></p>'
    return section(
        anchor,
        "Attention",
        ramp,
        legend(named) if scales else "",
        *(example.html() for example in report.attention),
        lead=lead,
    )


def _confusion(report: EvaluationReport) -> str:
    names = list(report.names)
    wrong = report.matrix.copy()
    np.fill_diagonal(wrong, 0)
    order = np.argsort(wrong, axis=None)[::-1][:_MISTAKES]
    rows: list[Row] = []
    for position in order.tolist():
        label, predicted = divmod(position, len(names))
        if wrong[label, predicted]:
            of_label = divide(wrong[label, predicted], report.matrix[label].sum())
            of_all = divide(wrong[label, predicted], wrong.sum())
            rows.append(
                [
                    names[label],
                    names[predicted],
                    number(percent(float(of_label))),
                    number(percent(float(of_all))),
                ]
            )
    parts = [confusion_chart(report.matrix, names)]
    if rows:
        mistakes = table(["label", "predicted as", "of label %", "of mistakes %"], rows)
        parts.append(f"<div><h3>Commonest mistakes</h3>{mistakes}</div>")
    lead = "Rows are labels, columns predictions, in percent of the row; mistakes are red."
    return section(
        "confusion", "Confusion", f'<div class="beside">{"".join(parts)}</div>', lead=lead
    )


def _worst(report: EvaluationReport) -> str:
    if not report.worst and not report.worst_per_class:
        return ""
    parts = [
        legend(zip(report.names, report.colors, strict=False)),
        *(example.html() for example in report.worst),
    ]
    colors = dict(zip(report.names, report.colors, strict=False))
    if report.worst_per_class:
        parts.append("<h3>By class</h3>")
    for name, examples in report.worst_per_class.items():
        if examples:
            parts.append(
                folded(
                    swatch(colors.get(name, (128, 128, 128))) + escape(name),
                    "".join(example.html() for example in examples),
                )
            )
    lead = "The images with the lowest scores. Error maps: wrong pixels red, ignored pixels black."
    return section("worst", "Worst images", *parts, lead=lead)
