"""What a page says: the plain values and pictures that a command fills in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..metrics.bootstrap import Interval
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
    interval: Interval | None = None
    """Of the mIoU (metrics.bootstrap)."""
    difference: Interval | None = None
    """Of the mIoU minus that of the first row, on the same draws of images."""
    behind_best: Interval | None = None
    """Of the mIoU minus that of the row with the highest."""
    seconds: float | None = None
    """Per image."""
    flops: float | None = None
    """Relative to scale 1 alone."""
    memory_bytes: float | None = None
    """Largest sum of what lives at once while one image is inferred, without the weights."""
    refined: float | None = None
    """Share of the image at which the scales above 1 were computed; None: everywhere."""
    recommended: bool = False
    """Whether this is the way that the page advises."""


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
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """Defaults by dotted key of `settings`: those that were left alone are set apart."""
    facts: Mapping[str, str] = field(default_factory=dict)
    """Further headline figures by name, ready to print: {"validation loss": "0.412"}."""
    notes: Sequence[str] = ()
    """Sentences that explain a figure."""
    compared: Sequence[ComparedRow] = ()
    """One row per scale list that was scored, the reference first."""
    cost_note: str = ""
    """With what the costs of `compared` were found, such as the device and the image's size."""
    intervals: Sequence[Interval] = ()
    """Of the IoU of each class."""
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
    typical: Sequence[Example] = ()
    """Those whose score is nearest to the median of all."""
    worst_per_class: Mapping[str, Sequence[Example]] = field(default_factory=dict)
    """The same by class name."""
    attention: Sequence[Example] = ()
    """Panels as in the paper's figure 3: image | what each scale says, in a second row label |
    how much each scale counts, and in a third prediction | error | which scale counts most."""
    attention_rule: str = ""
    """Which images these are, and at which scales."""
    attention_scales: Sequence[float] = ()
    """The scales that the panels of `attention` show; by default `share_scales`."""
    shares: np.ndarray | None = None
    """Mean weight of every scale per class, float64 [S, C] (visualise.attention_share, summed and
    divided)."""
    share_scales: Sequence[float] = ()
    """The S scales of `shares`."""


@dataclass(frozen=True)
class ThresholdCurve:
    """What thresholds keep of the pixels, and how often what they keep agrees with people."""

    thresholds: Sequence[float]
    kept: Sequence[float]
    """Share of all pixels, for each threshold."""
    agreement: Sequence[float | None]
    """Share of the kept pixels with a label by people that agree with it; None where it is not
    known."""
    source: str = ""
    """Of how many images and which files it was read."""
    half_kept_at: Mapping[str, float] = field(default_factory=dict)
    """By class name: the threshold that would keep half of what is predicted as this class; empty
    where the class of pixels below the threshold is not known."""


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
    """Panels as in the paper's figure 4: image | coarse | auto-label | confidence."""
    panels_rule: str = ""
    """Which images these are."""
    teacher_iou: np.ndarray | None = None
    """IoU per class of the network that labelled, float64 [C], where it is known."""
    teacher_miou: float | None = None
    """Its mIoU on its own validation split, where it is known."""
    teacher_was_calibrated: bool = False
    """Whether its attention was calibrated after these scores were taken."""
    curve: ThresholdCurve | None = None
    """What other thresholds would keep."""
    failed: Sequence[tuple[str, str]] = ()
    """(name, reason) of the images that could not be labelled."""
    warnings: Sequence[str] = ()
    """Sentences that stand first, such as those of `labelling.autolabels.empty_classes`."""
