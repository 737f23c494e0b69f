"""The section of an evaluation's page that says which list of scales to use, and at what cost."""

from __future__ import annotations

from typing import Any

from .charts import CostChart, CostRow, score_chart
from .contents import ComparedRow, EvaluationReport
from .page import Section, percent

_LEAST_DIFFERENCE = 0.05  # percent points, below which a difference is printed as 0.0
_MIB = 2**20


def scales_and_flip(row: ComparedRow) -> str:
    """The scales of a way to infer, with what else changes its cost."""
    text = _scales(row)
    if row.flip:
        text += " + flip"
    if row.refined is not None:
        text += f", {100 * row.refined:.0f} % refined"
    return text


def _named(row: ComparedRow) -> str:
    """The same with braces, as a list of scales stands in a text: {0.5, 1} + flip."""
    listed = _scales(row)
    return scales_and_flip(row).replace(listed, f"{{{listed}}}", 1)


def _scales(row: ComparedRow) -> str:
    return ", ".join(f"{scale:g}" for scale in row.scales)


def scales_section(report: EvaluationReport) -> Section | None:
    """The lists of scales beside each other, as in the paper's Table 1, with what each costs."""
    if not report.compared:
        return None

    # A column that no row has is left out.
    first = report.compared[0]
    columns = {
        "interval": any(row.interval is not None for row in report.compared),
        "seconds": any(row.seconds is not None for row in report.compared),
        "flops": any(row.flops is not None for row in report.compared),
        "memory": any(row.memory_bytes is not None for row in report.compared),
        "refined": any(row.refined is not None for row in report.compared),
    }
    ends = _ends_of_bars(report)
    best = max(row.miou for row in report.compared)
    rows = []
    for position, row in enumerate(report.compared):
        difference = 100 * (row.miou - first.miou)
        rows.append(
            {
                "method": row.method,
                "scales": _scales(row),
                "flip": row.flip,
                "miou": row.miou,
                "best": row.miou == best,
                "recommended": row.recommended,
                "range": _range(row, ends),
                "interval": _interval(row),
                "sign": _sign(row, difference),
                "difference": "" if position == 0 else f"{difference:+.1f}",
                "seconds": _number(row.seconds, ".3g"),
                "flops": _number(row.flops, ".2f"),
                "memory": _number(row.memory_bytes and row.memory_bytes / _MIB, ",.0f"),
                "refined": "–" if row.refined is None else percent(row.refined),
            }
        )

    values = {
        "advice": _advice(report),
        "columns": columns,
        "rows": rows,
        "charts": _charts(report),
        "per_class": _per_class_at_each(report),
    }
    return Section("scales", "Scales", "evaluation/scales.html", values, lead=_lead(report))


def _lead(report: EvaluationReport) -> str:
    sentences = ["The same weights at several scale lists; differences are to the first row."]
    if any(row.interval is not None for row in report.compared):
        sentences.append(
            f"Intervals hold 95 % of 1000 draws of {report.images} images with repetition. A "
            "difference is coloured where its own interval, from the same draws, leaves out zero."
        )
    if report.cost_note:
        sentences.append(report.cost_note)
    if len(report.compared) == 1:
        sentences.append("hmsa eval --compare 1 0.5,1 0.5,1,2 puts others beside it.")
    return " ".join(sentences)


def _advice(report: EvaluationReport) -> tuple[str, str] | None:
    """Which scales to use, and why; None where there is nothing to choose from."""
    chosen = [row for row in report.compared if row.recommended]
    if not chosen:
        return None

    row = chosen[0]
    best = max(report.compared, key=lambda other: other.miou)
    why = f"{percent(row.miou)} % mIoU"
    if row is best:
        why += f", the highest of {len(report.compared)}"
        if any(_cost(other) < _cost(row) for other in report.compared):
            why += "; each cheaper one is lower by more than chance explains"
        return _named(row), f"{why}."

    why += (
        f", the cheapest that cannot be told from the best: {_named(best)} has "
        f"{100 * (best.miou - row.miou):.1f} more on these {report.images} images"
    )
    if row.behind_best is not None:
        low, high = -row.behind_best.high, -row.behind_best.low
        why += f" (95 % interval {100 * low:+.1f} to {100 * high:+.1f})"
    ratio = _cost(best) / _cost(row)
    if ratio > 1:
        why += f", at {ratio:.1f} times the cost"
    return _named(row), f"{why}. More images would tell smaller differences apart."


def _cost(row: ComparedRow) -> float:
    """FLOPs where they are known, since seconds depend on what else the machine does."""
    return row.flops or row.seconds or 1.0


def _ends_of_bars(report: EvaluationReport) -> tuple[float, float]:
    """The scores at the left and right end of the graphic, so that differences can be seen."""
    lows = [row.miou if row.interval is None else row.interval.low for row in report.compared]
    highs = [row.miou if row.interval is None else row.interval.high for row in report.compared]
    return min(lows), max(highs)


def _range(row: ComparedRow, ends: tuple[float, float]) -> dict[str, float] | None:
    """Left end, width and middle of an interval, in percent of the graphic."""
    if row.interval is None or not ends[1] > ends[0]:
        return None
    scale = 100 / (ends[1] - ends[0])
    return {
        "left": scale * (row.interval.low - ends[0]),
        "width": scale * (row.interval.high - row.interval.low),
        "at": scale * (row.miou - ends[0]),
    }


def _interval(row: ComparedRow) -> str:
    if row.interval is None:
        return "–"
    return f"{percent(row.interval.low)} to {percent(row.interval.high)}"


def _sign(row: ComparedRow, difference: float) -> str:
    """The class of a difference in percent points: coloured only where it is more than chance."""
    if abs(difference) < _LEAST_DIFFERENCE:
        return ""
    known = row.difference
    if known is not None and not (known.is_above_zero or known.is_below_zero):
        return "soft"
    return "good" if difference > 0 else "bad"


def _number(value: float | None, form: str) -> str:
    if value is None:
        return "–"
    return format(value, form)


def _charts(report: EvaluationReport) -> list[CostChart]:
    """mIoU against seconds, FLOPs and memory, of those that are known for two rows or more."""
    kinds = {
        "seconds per image": lambda row: row.seconds,
        "FLOPs, times those of {1}": lambda row: row.flops,
        "memory, MiB": lambda row: row.memory_bytes and row.memory_bytes / _MIB,
    }
    charts = []
    for heading, cost_of in kinds.items():
        rows = [row for row in report.compared if cost_of(row) is not None]
        if len(rows) < 2:
            continue
        charts.append(score_chart(heading, [_cost_row(row, cost_of(row)) for row in rows]))
    return charts


def _cost_row(row: ComparedRow, cost: Any) -> CostRow:
    low = high = row.miou
    if row.interval is not None:
        low, high = row.interval.low, row.interval.high
    return CostRow(
        name=_named(row),
        cost=float(cost),
        score=100 * row.miou,
        low=100 * low,
        high=100 * high,
        recommended=row.recommended,
    )


def _per_class_at_each(report: EvaluationReport) -> dict[str, Any] | None:
    """IoU per class at each list of scales; None where fewer than two have it."""
    scored = [row for row in report.compared if row.iou is not None]
    if len(scored) < 2:
        return None

    # The method is named only where it tells two columns apart.
    headings = [scales_and_flip(row) for row in scored]
    if len({row.method for row in scored}) > 1:
        headings = [
            f"{row.method}: {heading}" for row, heading in zip(scored, headings, strict=True)
        ]

    rows = []
    for index, name in enumerate(report.names):
        ious = [float(row.iou[index]) for row in scored if row.iou is not None]
        rows.append((name, report.colors[index], ious))
    return {"headings": headings, "rows": rows}
