"""The sections of an evaluation's page, in their order."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..metrics.scores import divide, iou_of, mean_of
from .charts import confusion_chart, heat_ramp
from .colours import scale_colours
from .contents import ComparedRow, EvaluationReport
from .page import Section, percent, settings_section

_MISTAKES_SHOWN = 12
_LEAST_DIFFERENCE = 0.05  # percent points, below which a difference is printed as 0.0


def subtitle(report: EvaluationReport) -> str:
    """What was scored with what, in one line."""
    # Each part that is known, from what was scored to what scored it.
    parts = []
    if report.split:
        parts.append(f"split {report.split}")
    parts += [f"{report.images} images", f"{len(report.names)} classes"]
    if report.compared:
        parts.append(f"{report.compared[0].method} at {_scales_and_flip(report.compared[0])}")
    if report.checkpoint_sha256:
        parts.append(f"checkpoint {report.checkpoint_sha256[:12]}")
    return " · ".join(parts)


def _scales(row: ComparedRow) -> str:
    return ", ".join(f"{scale:g}" for scale in row.scales)


def _scales_and_flip(row: ComparedRow) -> str:
    if row.flip:
        return f"{_scales(row)} + flip"
    return _scales(row)


def sections(report: EvaluationReport) -> list[Section]:
    """Every section for which the report has something."""
    found = [
        _summary(report),
        _classes(report),
        _compared(report),
        _shares(report),
        _attention(report),
        _confusion(report),
        _worst(report),
        settings_section(
            report.settings, checkpoint=report.checkpoint, sha256=report.checkpoint_sha256
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

    figures["images"] = str(report.images)
    # A class without any pixel has no score and is left out of the means: the page names it.
    absent = [name for name, value in zip(report.names, iou, strict=True) if np.isnan(value)]
    values = {"figures": {**figures, **report.facts}, "absent": absent}
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
            "categories": report.categories,
            "category_iious": report.category_instance_iou,
        },
        lead="Intersection over union per class; a dash means that there is nothing to score.",
    )


def _compared(report: EvaluationReport) -> Section | None:
    """The lists of scales beside each other, as in the paper's Table 1."""
    if not report.compared:
        return None

    # A difference is coloured only where it can be seen in the printed digits.
    reference = report.compared[0].miou
    best = max(row.miou for row in report.compared)
    rows = []
    for position, row in enumerate(report.compared):
        difference = 100 * (row.miou - reference)
        sign = ""
        if difference >= _LEAST_DIFFERENCE:
            sign = "good"
        elif difference <= -_LEAST_DIFFERENCE:
            sign = "bad"
        rows.append(
            {
                "method": row.method,
                "scales": _scales(row),
                "flip": row.flip,
                "miou": row.miou,
                "best": row.miou == best,
                "sign": sign,
                "difference": "" if position == 0 else f"{difference:+.1f}",
            }
        )

    return Section(
        "scales",
        "Scales",
        "evaluation/scales.html",
        {"rows": rows, "per_class": _per_class_at_each(report)},
        lead="The same weights at several scale lists; differences are to the first row.",
    )


def _per_class_at_each(report: EvaluationReport) -> dict[str, Any] | None:
    """IoU per class at each list of scales; None where fewer than two have it."""
    scored = [row for row in report.compared if row.iou is not None]
    if len(scored) < 2:
        return None

    # The method is named only where it tells two columns apart.
    headings = [_scales_and_flip(row) for row in scored]
    if len({row.method for row in scored}) > 1:
        headings = [
            f"{row.method}: {heading}" for row, heading in zip(scored, headings, strict=True)
        ]

    rows = []
    for index, name in enumerate(report.names):
        ious = [float(row.iou[index]) for row in scored if row.iou is not None]
        rows.append((name, report.colors[index], ious))
    return {"headings": headings, "rows": rows}


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
        lead="How much each scale counts for the pixels of a class, in percent: the attention of "
        "all scales together sums to 100.",
    )


def _attention(report: EvaluationReport) -> Section | None:
    if not report.attention:
        return None

    scales = sorted(report.share_scales)
    named = zip((f"{scale:g}x" for scale in scales), scale_colours(len(scales)), strict=True)
    return Section(
        "attention",
        "Attention",
        "evaluation/attention.html",
        {"ramp": heat_ramp(), "scales": list(named), "examples": report.attention},
        lead="What each scale alone would say, and its attention: bright regions trust it, what "
        "they leave goes to the larger scales. The map of scales mixes the colours of all by their "
        "weight.",
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
        if pixels:
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
    if not report.worst and not report.worst_per_class:
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
        "Worst images",
        "evaluation/worst.html",
        {"classes": classes, "worst": report.worst, "by_class": by_class},
        lead="The images with the lowest scores. Error maps: wrong pixels red, ignored pixels "
        "black.",
    )
