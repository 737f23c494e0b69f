"""Whether automatic labels are good to train on, and what to do where they are not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..labelling.autolabels import STARVED_SHARE, starvation_remedy
from ..metrics.scores import divide
from .contents import AutolabelReport
from .page import percent

# Rules of thumb, which the page names.
WEAK_IOU = 0.3  # of a class by the teacher: its labels are wrong as often as right
WEAK_MIOU = 0.4  # of the teacher
WRONG_AGREEMENT, FAIR_AGREEMENT = 0.7, 0.9  # share of pixels that agree with people
LITTLE_KEPT = 0.3  # share of all pixels

RULES = (
    f"Rules of thumb: a class starves below {100 * STARVED_SHARE:.0f} % of its predicted pixels; "
    f"a teacher is weak below {100 * WEAK_MIOU:.0f} % mIoU, and on a class below "
    f"{100 * WEAK_IOU:.0f} % IoU; labels are wrong where fewer than {100 * WRONG_AGREEMENT:.0f} % "
    "agree with people. Confidence alone says nothing about being right."
)


@dataclass(frozen=True)
class Verdict:
    """What the page says first."""

    kind: str
    """good, fair or bad; also the style of the box."""
    headline: str
    reasons: Sequence[str]


def verdict_of(report: AutolabelReport) -> Verdict:
    """Judge the labels by what is kept of each class, by the teacher, and by people's labels."""
    bad = [*_kept_at_all(report), *_bad_teacher(report), *_wrong(report)]
    hungry = starved(report) if report.kept.sum() else {}
    fair = [*_starved(report, hungry), *_weak_classes(report), *_doubts(report)]
    if bad:
        return Verdict("bad", "Do not train on these yet.", [*bad, *fair])
    if hungry:
        keep = "keeps" if len(hungry) == 1 else "keep"
        count = f"{len(hungry)} of {len(report.names)} classes"
        return Verdict("fair", f"Mend this first: {count} {keep} too few pixels.", fair)
    if fair:
        return Verdict("fair", "Good to train on, but for what follows.", fair)
    return Verdict("good", "Good to train on.", _praise(report))


def starved(report: AutolabelReport) -> dict[str, float]:
    """Kept share of the classes of which almost nothing is kept, the smallest first."""
    if report.predicted is None:
        return {}
    shares = divide(report.kept, report.predicted)
    found = {
        name: float(share)
        for name, share in zip(report.names, shares, strict=True)
        if share < STARVED_SHARE
    }
    return dict(sorted(found.items(), key=lambda item: item[1]))


def _kept_at_all(report: AutolabelReport) -> list[str]:
    if report.kept.sum():
        return []
    return [
        "No pixel has a label: lower the threshold, e.g. --threshold 0.5, or train the teacher."
    ]


def _bad_teacher(report: AutolabelReport) -> list[str]:
    if report.teacher_miou is None or not report.teacher_miou < WEAK_MIOU:
        return []
    return [
        f"The teacher reaches {_teacher_score(report)} on its own validation split: "
        "however sure it is, its labels repeat its mistakes. Train it longer, on more labels or "
        "from pre-trained weights, then label again."
    ]


def _agreement(report: AutolabelReport) -> float | None:
    if report.agreement is None or not report.agreement.sum():
        return None
    return float(np.trace(report.agreement) / report.agreement.sum())


def _wrong(report: AutolabelReport) -> list[str]:
    share = _agreement(report)
    if share is None or share >= WRONG_AGREEMENT:
        return []
    return [
        f"Only {percent(share)} % of the kept pixels agree with the labels drawn by people; raise "
        "the threshold, or train the teacher longer."
    ]


def _starved(report: AutolabelReport, classes: Mapping[str, float]) -> list[str]:
    if not classes:
        return []
    thresholds = report.curve.half_kept_at if report.curve is not None else {}
    remedy = starvation_remedy(list(classes), thresholds)
    named = ", ".join(f"{name} ({percent(share)} %)" for name, share in classes.items())
    return [
        f"Starved: of {named} too little is kept, and a student would unlearn it. Remedy: {remedy}."
    ]


def _weak_classes(report: AutolabelReport) -> list[str]:
    if report.teacher_iou is None:
        return []
    weak = {
        name: float(iou)
        for name, iou, kept in zip(report.names, report.teacher_iou, report.kept, strict=True)
        if iou < WEAK_IOU and kept
    }
    if not weak:
        return []
    named = ", ".join(f"{name} ({percent(iou)} %)" for name, iou in weak.items())
    return [
        f"The teacher is weak on {named}: look at the examples before training on such labels, "
        "and label some by hand."
    ]


def _doubts(report: AutolabelReport) -> list[str]:
    sentences = []
    share = _agreement(report)
    if share is not None and WRONG_AGREEMENT <= share < FAIR_AGREEMENT:
        sentences.append(
            f"{percent(share)} % of the kept pixels agree with the labels drawn by people: see the "
            "section Agreement for the classes that do not."
        )

    kept = float(divide(report.kept.sum(), report.pixels))
    if 0 < kept < LITTLE_KEPT:
        sentences.append(
            f"Only {percent(kept)} % of all pixels have a label: the teacher is rarely sure of "
            "these images, which may be of another kind than those it learnt from."
        )
    if report.failed:
        sentences.append(f"{len(report.failed)} images have no label, see the end of the page.")
    return sentences


def _teacher_score(report: AutolabelReport) -> str:
    """Its mIoU in words, where it is known."""
    since = " before calibration" if report.teacher_was_calibrated else ""
    return f"{percent(report.teacher_miou)} % mIoU{since}"


def _praise(report: AutolabelReport) -> list[str]:
    """Why nothing is wrong, as far as it is known."""
    sentences = []
    if report.predicted is not None:
        sentences.append(f"Every class keeps {100 * STARVED_SHARE:.0f} % of its pixels or more.")
    if report.teacher_miou is not None:
        sentences.append(f"The teacher reaches {_teacher_score(report)}.")
    share = _agreement(report)
    if share is not None:
        sentences.append(f"{percent(share)} % agree with the labels drawn by people.")
    return sentences
