"""The sections of an evaluation's page, in their order."""

from __future__ import annotations

import math

import numpy as np

from ..metrics.bootstrap import Interval
from ..metrics.scores import divide, iou_of, mean_of
from .charts import confusion_chart, heat_ramp
from .colours import scale_colours
from .contents import EvaluationReport
from .page import Section, percent, settings_section
from .scales_section import scales_and_flip, scales_section

_MISTAKES_SHOWN = 12
_LEAST_MISTAKE = 5e-4  # of all, below which it would be shown as 0.0 %


def subtitle(report: EvaluationReport) -> str:
    """What was scored with what, in one line."""
    # Each part that is known, from what was scored to what scored it.
    parts = []
    if report.split:
        parts.append(f"split {report.split}")
    parts += [f"{report.images} images", f"{len(report.names)} classes"]
    if report.compared:
        parts.append(f"{report.compared[0].method} at {scales_and_flip(report.compared[0])}")
    if report.checkpoint_sha256:
        parts.append(f"checkpoint {report.checkpoint_sha256[:12]}")
    return " · ".join(parts)


def sections(report: EvaluationReport) -> list[Section]:
    """Every section for which the report has something."""
    found = [
        _summary(report),
        _classes(report),
        scales_section(report),
        _shares(report),
        _attention(report),
        _confusion(report),
        _worst(report),
        settings_section(
            report.settings,
            checkpoint=report.checkpoint,
            sha256=report.checkpoint_sha256,
            defaults=report.defaults,
        ),
    ]
    return [section for section in found if section is not None]


def _summary(report: EvaluationReport) -> Section:
    matrix = report.matrix
    iou = iou_of(matrix)
    figures = {
        "mIoU %": percent(mean_of(iou)),
        "pixel accuracy %": percent(float(divide(np.trace(matrix), matrix.sum()))),
    }

    # Scores that only some data sets have.
    means = {
        "category IoU %": report.categories,
        "iIoU %": report.instance_iou,
        "category iIoU %": report.category_instance_iou,
    }
    for name, scores in means.items():
        if scores:
            figures[name] = percent(mean_of(np.array(list(scores.values()))))
    if report.boundary_f is not None:
        figures["boundary F %"] = percent(mean_of(report.boundary_f))

    # The way that was asked for need not be the one to use.
    for row in report.compared[1:]:
        if row.recommended:
            figures[f"mIoU % at {scales_and_flip(row)}, advised below"] = percent(row.miou)

    figures["images"] = str(report.images)
    # A class without any pixel has no score and is left out of the means: the page names it.
    absent = [name for name, value in zip(report.names, iou, strict=True) if np.isnan(value)]
    values = {
        "figures": {**figures, **report.facts},
        "absent": absent,
        "notes": report.notes,
    }
    return Section("summary", "Summary", "evaluation/summary.html", values)


def _classes(report: EvaluationReport) -> Section:
    matrix = report.matrix
    columns = {
        "IoU": iou_of(matrix),
        "precision": divide(np.diag(matrix), matrix.sum(axis=0)),
        "recall": divide(np.diag(matrix), matrix.sum(axis=1)),
    }
    if report.boundary_f is not None:
        columns["boundary F"] = report.boundary_f
    if report.instance_iou:
        # Classes without instances have none.
        scores = [report.instance_iou.get(name, np.nan) for name in report.names]
        columns["iIoU"] = np.array(scores)

    # Rare classes have uncertain scores, so the page says how many pixels each has.
    shares = divide(matrix.sum(axis=1), matrix.sum())
    rows = [
        {
            "name": name,
            "colour": report.colors[index],
            "scores": [values[index] for values in columns.values()],
            "share": shares[index],
            "interval": _interval_text(report, index),
        }
        for index, name in enumerate(report.names)
    ]
    means = [mean_of(values) for values in columns.values()]
    return Section(
        "classes",
        "Classes",
        "evaluation/classes.html",
        {
            "columns": list(columns),
            "rows": rows,
            "means": means,
            "with_intervals": bool(report.intervals),
            "categories": report.categories,
            "category_iious": report.category_instance_iou,
        },
        lead="Intersection over union per class; a dash means that there is nothing to score. "
        "A click on a heading sorts by it.",
    )


def _interval_text(report: EvaluationReport, index: int) -> str:
    """The interval of a class's IoU in percent; a dash where there is none."""
    if not report.intervals:
        return ""
    interval: Interval = report.intervals[index]
    if math.isnan(interval.low):
        return "–"
    return f"{percent(interval.low)} to {percent(interval.high)}"


def _shares(report: EvaluationReport) -> Section | None:
    """How much each scale counts for each class (paper, figure 3)."""
    if report.shares is None:
        return None

    # From the smallest scale to the largest, as the colours go.
    order = np.argsort(report.share_scales)
    colours = scale_colours(len(order))
    present = report.matrix.sum(axis=1) > 0
    rows = []
    for index, name in enumerate(report.names):
        shares = np.full(len(order), np.nan)
        if present[index]:
            shares = report.shares[:, index]
        # A class that no label has would have shares of 0 / 0, and gets no bar.
        stack = []
        if not np.isnan(shares).any():
            stack = [(shares[which], colours[place]) for place, which in enumerate(order)]
        rows.append(
            {"name": name, "colour": report.colors[index], "shares": shares, "stack": stack}
        )

    names = [f"{report.share_scales[which]:g}x" for which in order]
    return Section(
        "shares",
        "Scale by class",
        "evaluation/shares.html",
        {
            "scales": [f"{scale:g}x" for scale in report.share_scales],
            "colours": list(zip(names, colours, strict=True)),
            "rows": rows,
        },
        lead="How much each scale counts for the pixels of a class, in percent, at the scales that "
        "the scores above are of: the attention of all scales together sums to 100.",
    )


def _attention(report: EvaluationReport) -> Section | None:
    if not report.attention:
        return None

    scales = sorted(report.attention_scales or report.share_scales)
    named = zip((f"{scale:g}x" for scale in scales), scale_colours(len(scales)), strict=True)
    return Section(
        "attention",
        "Attention",
        "evaluation/attention.html",
        {
            "ramp": heat_ramp(),
            "scales": list(named),
            "classes": list(zip(report.names, report.colors, strict=False)),
            "examples": report.attention,
        },
        lead="First row: what each scale alone would say. Below it: how much that scale counts "
        "at each pixel, from 0 (dark) to 1 (bright); over all scales this sums to 1. Last: the "
        "result, its mistakes, and the scale that counts most. " + report.attention_rule,
    )


def _confusion(report: EvaluationReport) -> Section:
    names = list(report.names)
    wrong = report.matrix.copy()
    np.fill_diagonal(wrong, 0)

    # The largest numbers off the diagonal.
    mistakes = []
    commonest = np.argsort(wrong, axis=None)[::-1][:_MISTAKES_SHOWN]
    for position in commonest.tolist():
        label, predicted = divmod(position, len(names))
        pixels = wrong[label, predicted]
        if pixels >= _LEAST_MISTAKE * wrong.sum() > 0:
            mistakes.append(
                {
                    "label": names[label],
                    "predicted": names[predicted],
                    "of_label": float(divide(pixels, report.matrix[label].sum())),
                    "of_all": float(divide(pixels, wrong.sum())),
                }
            )

    return Section(
        "confusion",
        "Confusion",
        "evaluation/confusion.html",
        {"chart": confusion_chart(report.matrix, names), "mistakes": mistakes},
        lead="Rows are labels, columns predictions, in percent of the row; mistakes are red.",
    )


def _worst(report: EvaluationReport) -> Section | None:
    if not (report.worst or report.typical or report.worst_per_class):
        return None

    # A palette may have more colours than there are classes.
    classes = list(zip(report.names, report.colors, strict=False))
    colours = dict(classes)
    by_class = [
        (name, colours.get(name, (128, 128, 128)), examples)
        for name, examples in report.worst_per_class.items()
        if examples
    ]
    return Section(
        "worst",
        "Images",
        "evaluation/worst.html",
        {
            "classes": classes,
            "worst": report.worst,
            "typical": report.typical,
            "by_class": by_class,
        },
        lead="Scored by the mean IoU of the classes that an image's label has. Error maps: wrong "
        "pixels red, ignored pixels black. A click enlarges a picture.",
    )
