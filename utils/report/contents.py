"""What a page says: the plain values and pictures that a command fills in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .page import Example


@dataclass(frozen=True)
class ComparedRow:
    """One line of a table in the layout of the paper's Table 1."""

    method: str
    """Such as "hierarchical"."""
    scales: Sequence[float]
    flip: bool
    miou: float
    """A fraction. Differences are shown against the first row."""
    iou: np.ndarray | None = None
    """IoU per class, float64 [C]."""


@dataclass
class EvaluationReport:
    """What eval.py found on one split. IoUs are fractions."""

    title: str
    names: Sequence[str]
    """Class names, C of them, in the order of the train ids."""
    colors: Sequence[Sequence[int]] | np.ndarray
    """RGB of every class; a palette uint8 [256, 3] will do."""
    matrix: np.ndarray
    """Confusion matrix int64 [C, C], rows are labels. All scores of the page are read from it."""
    images: int
    split: str = ""
    checkpoint: str = ""
    checkpoint_sha256: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Everything that decides the numbers, nested or flat: the options of inference and the
    resolved configuration."""
    facts: Mapping[str, str] = field(default_factory=dict)
    """Further headline figures by name, ready to print: {"validation loss": "0.412"}."""
    compared: Sequence[ComparedRow] = ()
    """One row per scale list that was scored, the reference first."""
    categories: Mapping[str, float] = field(default_factory=dict)
    """IoU by category (metrics.category_iou)."""
    instance_iou: Mapping[str, float] = field(default_factory=dict)
    """iIoU by class name (metrics.InstanceIoU.iiou)."""
    category_instance_iou: Mapping[str, float] = field(default_factory=dict)
    """iIoU by category."""
    boundary_f: np.ndarray | None = None
    """Boundary F per class, float64 [C], nan where there is none (metrics.BoundaryF.scores)."""
    worst: Sequence[Example] = ()
    """The worst images, worst first: image | label | prediction | error, with the score as
    remark."""
    worst_per_class: Mapping[str, Sequence[Example]] = field(default_factory=dict)
    """The same by class name."""
    attention: Sequence[Example] = ()
    """Panels as in the paper's figure 3: image | what each scale says, and in a second row which
    scale counts (visualise.scale_map) | attention per scale | prediction."""
    shares: np.ndarray | None = None
    """Mean weight of every scale per class, float64 [S, C] (visualise.attention_share, summed and
    divided)."""
    share_scales: Sequence[float] = ()
    """The S scales of `shares`."""


@dataclass
class AutolabelReport:
    """What autolabel.py made of a set of images. Counts are pixels per class, int64 [C]."""

    title: str
    names: Sequence[str]
    colors: Sequence[Sequence[int]] | np.ndarray
    images: int
    kept: np.ndarray
    """Pixels that got each class as their hard label."""
    predicted: np.ndarray | None = None
    """Pixels of each class before the threshold: kept / predicted is the kept share."""
    pixels: int = 0
    """All pixels of all images, ignored ones included."""
    thresholds: Mapping[str, float] = field(default_factory=dict)
    """Threshold by class name; classes that are not named use `threshold`."""
    threshold: float = 0.9
    checkpoint: str = ""
    checkpoint_sha256: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    facts: Mapping[str, str] = field(default_factory=dict)
    human: np.ndarray | None = None
    """Pixels of each class in the labels that people drew of the same images, where there are
    any."""
    agreement: np.ndarray | None = None
    """int64 [C, C]: pixels that both have a label, rows the human one, columns the automatic
    one."""
    hard_bytes: int = 0
    """Bytes of the label files on disk."""
    confidence_bytes: int = 0
    """Bytes of the confidence files on disk, 0 without."""
    reading_seconds: Mapping[str, float] = field(default_factory=dict)
    """Measured seconds to read one image's label, by kind: {"hard labels (PNG)": 0.004}."""
    panels: Sequence[Example] = ()
    """Panels as in the paper's figure 4: image | coarse | auto-label."""
    failed: Sequence[tuple[str, str]] = ()
    """(name, reason) of the images that could not be labelled."""
    warnings: Sequence[str] = ()
    """Sentences that stand first, such as those of `labelling.autolabels.empty_classes`."""
