"""What other thresholds would keep, and how sure the network was, from what a job left on disk."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import cv2
import numpy as np

from hmsa.utils.files.regular import read_regular
from hmsa.utils.labelling.answers import read_answer
from hmsa.utils.labelling.autolabels import REMEDY_SHARE, LabelTree
from hmsa.utils.metrics.scores import divide
from hmsa.utils.report.contents import ThresholdCurve

from .label_images import LabellingJob, human_label, read_back

CURVE_IMAGES = 64  # images read for the curve, evenly spread
LEVELS = 200  # steps of the threshold from 0 to 1


def sureness_of(
    job: LabellingJob, index: int, line: Mapping[str, Any]
) -> tuple[np.ndarray | None, np.ndarray] | None:
    """(class or None, probability float32), both [H, W], of an image; None where it was not kept.

    The class is that before any threshold, which only kept answers know.
    """
    if job.keeps_answers and "image_sha256" in line:
        answer = read_answer(
            job.answer_path(index),
            made_with=job.answers_fingerprint,
            image=line["image"],
            image_sha256=line["image_sha256"],
        )
        if answer is not None:
            return answer.label.numpy(), answer.confidence.numpy()

    if line["confidence"] is None:
        return None
    try:
        data = np.frombuffer(read_regular(job.output / line["confidence"]), dtype=np.uint8)
    except OSError:
        return None
    octets = cv2.imdecode(data, cv2.IMREAD_GRAYSCALE)
    if octets is None:
        return None
    return None, octets.astype(np.float32) / 255


def threshold_curve(job: LabellingJob, tree: LabelTree) -> ThresholdCurve | None:
    """Shares kept and agreeing at every threshold; None where no confidence was kept.

    The threshold of the curve is one for all classes.
    """
    kept, known, right = (np.zeros(LEVELS + 1, dtype=np.int64) for _ in range(3))
    by_class = np.zeros((job.loaded.spec.num_classes, LEVELS + 1), dtype=np.int64)
    images, with_classes = 0, True
    for index, line in _sample(job, tree):
        found = sureness_of(job, index, line)
        if found is None:
            continue
        label, confidence = found
        level = np.minimum(confidence * LEVELS + 1e-4, LEVELS).astype(np.int64)
        kept += np.bincount(level.reshape(-1), minlength=LEVELS + 1)
        images += 1

        # Without kept answers only those pixels have a class whose confidence reached a threshold.
        if label is None:
            with_classes = False
            label = read_back(job, line["label"])
        else:
            np.add.at(by_class, (label.reshape(-1), level.reshape(-1)), 1)
        human, _ = human_label(job, index, (label.shape[0], label.shape[1]))
        if human is None or (not with_classes and not job.policy.is_neutral):
            continue
        classes = job.loaded.spec.num_classes
        both = (human < classes) & (label < classes)
        known += np.bincount(level[both], minlength=LEVELS + 1)
        right += np.bincount(level[both & (human == label)], minlength=LEVELS + 1)

    if not images:
        return None
    lowest = 0.0 if with_classes else float(job.thresholds.max())
    thresholds = [number / LEVELS for number in range(LEVELS + 1)]
    agreement = divide(_at_least(right), _at_least(known))
    source = "kept answers" if with_classes else "confidence images"
    return ThresholdCurve(
        thresholds=thresholds,
        kept=divide(_at_least(kept), np.full(LEVELS + 1, kept.sum())).tolist(),
        agreement=[
            float(share) if threshold >= lowest and not np.isnan(share) else None
            for threshold, share in zip(thresholds, agreement, strict=True)
        ],
        source=f"Read from the {source} of {images} images, evenly spread.",
        half_kept_at=_half_kept_at(job, by_class) if with_classes else {},
    )


def _half_kept_at(job: LabellingJob, by_class: np.ndarray) -> dict[str, float]:
    """The threshold of each class that keeps half of it, of the classes that occur.

    Args:
        by_class: int64 [C, LEVELS + 1], pixels of each class at each level of the threshold.
    """
    thresholds = {}
    for name, counts in zip(job.loaded.spec.names, by_class, strict=True):
        if counts.any():
            enough = _at_least(counts) >= REMEDY_SHARE * counts.sum()
            thresholds[name] = float(np.flatnonzero(enough)[-1] / LEVELS)
    return thresholds


def _at_least(counts: np.ndarray) -> np.ndarray:
    """How many are at each level or above."""
    return counts[::-1].cumsum()[::-1]


def _sample(job: LabellingJob, tree: LabelTree) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Images that have a label, evenly spread, with what the label says of itself."""
    lines = {line["image"]: line for line in tree.lines}
    labelled = [
        (index, lines[entry.image])
        for index, entry in enumerate(job.entries())
        if entry.image in lines
    ]
    count = min(CURVE_IMAGES, len(labelled))
    for position in range(count):
        yield labelled[position * len(labelled) // count]
