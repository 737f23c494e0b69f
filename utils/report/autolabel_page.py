"""The sections of an auto-labelling's page, in their order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..metrics.scores import divide, iou_of
from .charts import confusion_chart, curve_chart
from .contents import AutolabelReport
from .page import Section, percent, settings_section
from .verdict import RULES, starved, verdict_of

_FLOAT32_BYTES = 4
_UNITS = ("B", "kB", "MB", "GB", "TB", "PB")


def subtitle(report: AutolabelReport) -> str:
    """Number of images and the threshold, in one line."""
    return f"{report.images} images, {len(report.names)} classes, threshold {report.threshold:g}"


def sections(report: AutolabelReport) -> list[Section]:
    """Every section for which the report has something."""
    found = [
        _summary(report),
        _kept(report),
        _threshold(report),
        _before_and_after(report),
        _agreement(report),
        _panels(report),
        _cost(report),
        _failed(report),
        settings_section(
            report.settings, checkpoint=report.checkpoint, sha256=report.checkpoint_sha256
        ),
    ]
    return [section for section in found if section is not None]


def _summary(report: AutolabelReport) -> Section:
    # The first figure stands out on the page: the share of pixels that training can use.
    figures: dict[str, str] = {}
    if report.pixels:
        figures["pixels with a label %"] = percent(report.kept.sum() / report.pixels)
    figures["images labelled"] = str(report.images)
    if report.pixels and report.human is not None:
        figures["by hand before %"] = percent(report.human.sum() / report.pixels)
    if report.failed:
        figures["images failed"] = str(len(report.failed))

    if report.teacher_miou is not None:
        since = " before calibration" if report.teacher_was_calibrated else ""
        figures[f"teacher's mIoU %{since}"] = percent(report.teacher_miou)

    values = {
        "verdict": verdict_of(report),
        "rules": RULES,
        "warnings": report.warnings,
        "figures": {**figures, **report.facts},
    }
    return Section("summary", "Summary", "autolabel/summary.html", values)


def _kept(report: AutolabelReport) -> Section:
    """How much of each class the thresholds kept."""
    shares = divide(report.kept, report.kept.sum())
    starving = starved(report)
    rows: list[dict[str, Any]] = []
    for index, name in enumerate(report.names):
        threshold = report.thresholds.get(name, report.threshold)
        # Classes without a threshold of their own have that of the run.
        row = {
            "name": name,
            "colour": report.colors[index],
            "threshold": f"{threshold:.3g}",
            "kept": int(report.kept[index]),
            "share": float(shares[index]),
            "starved": name in starving,
            "teacher": None,
        }
        if report.teacher_iou is not None:
            row["teacher"] = float(report.teacher_iou[index])
        if report.predicted is not None:
            row |= _share_of(report.kept[index], report.predicted[index])
        rows.append(row)

    total: dict[str, Any] = {"kept": int(report.kept.sum())}
    if report.predicted is not None:
        total |= _share_of(report.kept.sum(), report.predicted.sum())
    return Section(
        "kept",
        "Kept",
        "autolabel/kept.html",
        {
            "with_predicted": report.predicted is not None,
            "with_teacher": report.teacher_iou is not None,
            "rows": rows,
            "total": total,
        },
        lead="A pixel keeps its class where the largest probability reaches the threshold of that "
        "class; the others are ignored in training.",
    )


def _threshold(report: AutolabelReport) -> Section | None:
    """What other thresholds would keep."""
    curve = report.curve
    if curve is None:
        return None

    lines: dict[str, tuple[str, Sequence[float | None]]] = {"kept": ("first", curve.kept)}
    if any(share is not None for share in curve.agreement):
        lines["of these, as people drew them"] = ("second", curve.agreement)
    chart = curve_chart(curve.thresholds, lines, used=report.threshold)
    return Section(
        "threshold",
        "Threshold",
        "autolabel/threshold.html",
        {"chart": chart, "source": curve.source},
        lead="The share of all pixels that one threshold for all classes would keep. Where answers "
        "are kept, another --threshold needs no inference.",
    )


def _share_of(kept: np.integer, predicted: np.integer) -> dict[str, Any]:
    return {"kept_share": float(divide(kept, predicted)), "predicted": int(predicted)}


def _before_and_after(report: AutolabelReport) -> Section | None:
    """The labels drawn by people beside the automatic ones."""
    if report.human is None:
        return None

    # Shares of all labels, since people leave most pixels of a coarse label empty.
    before = divide(report.human, report.human.sum())
    after = divide(report.kept, report.kept.sum())
    rows = [
        {
            "name": name,
            "colour": report.colors[index],
            "before": float(before[index]),
            "after": float(after[index]),
            "human": int(report.human[index]),
            "kept": int(report.kept[index]),
            "change": float(divide(report.kept[index], report.human[index])),
        }
        for index, name in enumerate(report.names)
    ]

    # The longest bar is as wide as its column.
    top = float(np.nan_to_num([before, after]).max()) or 1.0
    return Section(
        "before",
        "Before and after",
        "autolabel/before.html",
        {"rows": rows, "top": top},
        lead="Distribution of the labels: those drawn by hand (upper, grey) and the automatic ones "
        "(lower) of the same images.",
    )


def _agreement(report: AutolabelReport) -> Section | None:
    if report.agreement is None:
        return None

    matrix = report.agreement
    iou = iou_of(matrix)
    # Rows are what people drew, so these are recall and precision of the automatic labels.
    by_hand = divide(np.diag(matrix), matrix.sum(axis=1))
    automatic = divide(np.diag(matrix), matrix.sum(axis=0))
    rows = [
        {
            "name": name,
            "colour": report.colors[index],
            "by_hand": by_hand[index],
            "automatic": automatic[index],
            "iou": iou[index],
            "pixels": int(matrix[index].sum()),
        }
        for index, name in enumerate(report.names)
    ]
    return Section(
        "agreement",
        "Agreement",
        "autolabel/agreement.html",
        {
            "rows": rows,
            "right": float(divide(np.trace(matrix), matrix.sum())),
            "pixels": int(matrix.sum()),
            "chart": confusion_chart(matrix, report.names),
        },
        lead="Where a pixel has both a label drawn by hand and an automatic one: how often they "
        "agree.",
    )


def _panels(report: AutolabelReport) -> Section | None:
    if not report.panels:
        return None

    # A palette may have more colours than there are classes.
    classes = list(zip(report.names, report.colors, strict=False))
    return Section(
        "panels",
        "Examples",
        "autolabel/panels.html",
        {"classes": classes, "examples": report.panels},
        lead=f"Black pixels have no label. {report.panels_rule}",
    )


def _cost(report: AutolabelReport) -> Section | None:
    """What hard labels take, beside the soft labels that they replace."""
    if not report.hard_bytes or not report.pixels:
        return None

    # What the paper's alternative would take: a probability for each pixel and class.
    soft = report.pixels * len(report.names) * _FLOAT32_BYTES
    sizes = {"hard labels (PNG), on disk": report.hard_bytes}
    if report.confidence_bytes:
        sizes["confidence (8-bit PNG), on disk"] = report.confidence_bytes
    sizes["hard labels, uncompressed"] = report.pixels
    sizes["soft labels, float32 for each class"] = soft

    rows = []
    for name, size in sizes.items():
        ratio = size / report.hard_bytes
        # Three digits suffice, but a number of four or more keeps all of them.
        times = f"{ratio:.3g}"
        if ratio >= 1000:
            times = f"{ratio:,.0f}"
        per_image = bytes_text(size / max(report.images, 1))
        rows.append(
            {"name": name, "size": bytes_text(size), "per_image": per_image, "times": times}
        )

    return Section(
        "cost",
        "Cost",
        "autolabel/cost.html",
        {"sizes": rows, "seconds": report.reading_seconds},
        lead="Soft labels take images x height x width x classes x 4 bytes: 3.2 TB for the paper's "
        "20,000 images of 1024 x 2048 with 19 classes.",
    )


def bytes_text(size: float) -> str:
    """Bytes with a unit of 1000, three significant digits."""
    unit = 0
    while size >= 999.5 and unit < len(_UNITS) - 1:
        size, unit = size / 1000, unit + 1
    return f"{size:.3g} {_UNITS[unit]}"


def _failed(report: AutolabelReport) -> Section | None:
    if not report.failed:
        return None
    return Section("failed", "Failed images", "autolabel/failed.html", {"failed": report.failed})
