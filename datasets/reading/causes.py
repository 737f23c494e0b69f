"""From what a label file holds to what probably went wrong with it.

Without these sentences a user would meet an assertion inside the loss, on the device.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from ..spec import DatasetSpec, LabelIds

# Ids of the Cityscapes classes that are scored, as its *_labelIds.png hold them.
_CITYSCAPES_SCORED = frozenset(
    {7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33}
)
_SHOWN_VALUES = 4
_MANY_VALUES = 24


def explain_values(counts: np.ndarray, *, spec: DatasetSpec, label_ids: LabelIds = "raw") -> str:
    """Sentence on the values of a label file that stand for nothing, with the likely cause.

    Args:
        counts: histogram of the file, int [256], in which at least one value is neither a class nor
            ignore.
        spec: classes of the data set.
        label_ids: whether the file holds raw or train ids.
    """
    _, unknown = spec.tables(label_ids)
    faulty = np.flatnonzero((counts > 0) & (unknown > 0))
    total = int(counts.sum())

    noun = "label value"
    if len(faulty) > 1:
        noun = "label values"
    named = ", ".join(
        f"{value} ({counts[value]} of {total} pixels)" for value in faulty[:_SHOWN_VALUES]
    )
    if len(faulty) > _SHOWN_VALUES:
        named += f" and {len(faulty) - _SHOWN_VALUES} more values"

    allowed = f"train ids 0-{spec.num_classes - 1} or {spec.ignore_label}"
    if label_ids == "raw":
        allowed = _allowed_raw(spec)
    cause = _likely_cause(counts, faulty, spec, label_ids)
    return f"{noun} {named} outside the classes of {spec.name} ({allowed}): {cause}"


def _allowed_raw(spec: DatasetSpec) -> str:
    ids = sorted(value for item in spec.classes for value in item.raw_ids)
    ignored = ", ".join(str(value) for value in spec.ignored_raw_ids)
    return f"ids {_ranges(ids)}; ignored: {ignored}"


def _ranges(values: list[int]) -> str:
    """Ascending numbers with runs shortened: 0-3, 7, 9-10."""
    runs: list[list[int]] = []
    for value in values:
        if runs and value == runs[-1][-1] + 1:
            runs[-1][1:] = [value]
        else:
            runs.append([value])
    return ", ".join("-".join(str(end) for end in run) for run in runs)


def _likely_cause(
    counts: np.ndarray, faulty: np.ndarray, spec: DatasetSpec, label_ids: LabelIds
) -> str:
    """The first cause that fits the values."""
    present = {int(value) for value in np.flatnonzero(counts)}
    wrong = {int(value) for value in faulty}
    classes = spec.num_classes
    ids = set(range(classes))
    if label_ids == "raw":
        ids = {value for item in spec.classes for value in item.raw_ids}
    counted_from_0 = ids == set(range(classes))

    # From the most telling to the least: the first that applies is said.
    checks = (
        (
            present <= {0, 255},
            "a binary mask of 0 and 255? write 'id: 255' for that class into the class list",
        ),
        (
            len(wrong) > _MANY_VALUES,
            "a grey photograph, or a label that was resized with interpolation? resize labels by "
            "nearest neighbour",
        ),
        (
            counted_from_0 and wrong == {classes} and 0 not in present,
            f"ids counted from 1 to {classes} instead of from 0? write the ids into the class "
            "list, or subtract 1",
        ),
        (
            label_ids == "raw"
            and counted_from_0
            and wrong <= _CITYSCAPES_SCORED
            and len(present & _CITYSCAPES_SCORED) > 2,
            "raw ids of Cityscapes? use data.dataset=cityscapes, or train ids",
        ),
        (
            label_ids == "train" and wrong <= _CITYSCAPES_SCORED | {0},
            "raw ids where train ids were announced?",
        ),
        (
            wrong == {max(ids) + 1},
            f"one class more than the {classes} that the class list names? add it there, or ignore "
            "it",
        ),
        (
            wrong == {255},
            f"255 for ignore? the class list says {spec.raw_ignore}; set 'ignore: 255' there",
        ),
    )
    for applies, cause in checks:
        if applies:
            return cause
    return (
        "a label of another data set, or classes that the class list leaves out? add them there, "
        "or list them under 'ignore'"
    )


def explain_channels(picture: Image.Image, *, spec: DatasetSpec | None) -> str:
    """Sentence on a label with several channels: what it probably is, and the way to ids."""
    size = f"has {len(picture.getbands())} channels ({picture.mode})"
    if picture.mode == "CMYK":
        return f"{size}: a photograph? labels are single-channel PNG files of class ids"

    if spec is not None and spec.label_form == "ids":
        return f"{size} and the class list says 'labels: ids': write 'labels: colors' there"
    return f"{size}: labels are PNG files of class ids, or of the colours of the classes"
