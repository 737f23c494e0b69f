"""Which pixels become hard labels: one threshold per class, applied on the device, and thresholds chosen by the share of a class to keep.

A pixel is kept where its largest soft-max probability is at least the threshold of its class, otherwise ignored (paper, section 4; METHOD section 5).
Class-balanced self-training (Zou et al. 2018) lowers the threshold of a class until a share of its pixels is kept, so that classes of which a
network is never sure do not vanish from the labels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

BINS = (
    1 << 16
)  # of the probability: a power of two, so that p x BINS and k / BINS are exact in float32


@dataclass(frozen=True)
class HardLabel:
    """One thresholded prediction: what travels to the host is two bytes a pixel and a few counts."""

    label: Tensor
    """uint8 [H, W], train ids with the ignore label."""
    confidence: Tensor
    """uint8 [H, W], floor(255 x the largest probability), before any threshold."""
    predicted: Tensor
    """int64 [C], pixels of each class before the threshold."""
    kept: Tensor
    """int64 [C], pixels of each class in `label`."""
    confidence_sum: Tensor
    """int64, sum of floor(65536 x the largest probability): an integer, so that no order of adding shows."""
    not_numbers: Tensor
    """int64, pixels whose probability is not a number; they are ignored."""
    copied: torch.cuda.Event | None = None

    def to_host(self) -> HardLabel:
        """The same on the host, or on its way there: `wait` before reading it. Nothing here waits for a GPU."""
        parts = (
            self.label,
            self.confidence,
            self.predicted,
            self.kept,
            self.confidence_sum,
            self.not_numbers,
        )
        copies = [part.to("cpu", non_blocking=True) for part in parts]
        event = None
        if self.label.is_cuda:
            event = torch.cuda.Event()
            event.record()
        label, confidence, predicted, kept, confidence_sum, not_numbers = copies
        return HardLabel(label, confidence, predicted, kept, confidence_sum, not_numbers, event)

    def wait(self) -> None:
        """Return when the copy is complete."""
        if self.copied is not None:
            self.copied.synchronize()

    @property
    def mean_confidence(self) -> float:
        """Mean of the largest probability over all pixels, of a label on the host."""
        return round(int(self.confidence_sum) / BINS / self.label.numel(), 6)


def hard_label(
    label: Tensor, confidence: Tensor, *, thresholds: Tensor, ignore_label: int
) -> HardLabel:
    """`label` uint8 [H, W], ignored wherever `confidence` float [H, W] is below (or not above nor equal to) its class's threshold, float32 [C].

    Works on the device of its arguments.
    """
    classes = len(thresholds)
    kept = confidence >= thresholds[label.int()]
    not_a_number = confidence.isnan()
    safe = confidence.masked_fill(not_a_number, 0)
    counts = _count(label.long() + classes * kept, bins=2 * classes).view(2, classes)
    return HardLabel(
        label=label.masked_fill(~kept, ignore_label),
        confidence=(safe * 255).to(torch.uint8),
        predicted=counts.sum(0),
        kept=counts[1],
        confidence_sum=(safe * BINS).to(torch.int32).sum(dtype=torch.int64),
        not_numbers=not_a_number.sum(),
    )


def confidence_histogram(label: Tensor, confidence: Tensor, *, classes: int) -> Tensor:
    """int64 [C, BINS]: pixels of `label` uint8 [H, W] by class and by floor(BINS x `confidence`), float [H, W]. Histograms of images add up."""
    level = (confidence.nan_to_num(0) * BINS).long().clamp_(0, BINS - 1)
    return _count(label.long() * BINS + level, bins=classes * BINS).view(classes, BINS)


def _count(codes: Tensor, *, bins: int) -> Tensor:
    """How often each of 0 .. bins - 1 occurs, int64 [bins]. torch.bincount would make a GPU's queue run dry: it asks for the largest value first."""
    codes = codes.reshape(-1)
    return torch.zeros(bins, dtype=torch.int64, device=codes.device).scatter_add_(
        0, codes, torch.ones_like(codes)
    )


def quantile_thresholds(
    histogram: np.ndarray, *, keep_share: float, at_most: np.ndarray
) -> np.ndarray:
    """Threshold of each class, float64 [C]: `at_most` [C], or lower where that is needed to keep `keep_share` of the pixels of the class.

    `histogram` is that of `confidence_histogram`, summed over images. The threshold is the largest multiple of 1 / BINS that keeps the share, which
    is exact: pixels at or above it are those of its bin and the bins above. A class without a pixel keeps `at_most`. With `at_most` 1 the thresholds
    are those of class-balanced self-training (Zou et al. 2018, equation 9); with 0.9, classes of which the network is sure stay at the paper's.
    """
    at_least = histogram[:, ::-1].cumsum(axis=1)[
        :, ::-1
    ]  # pixels at or above each bin's lower edge
    wanted = np.ceil(keep_share * histogram.sum(axis=1) - 1e-9)
    bins = (at_least >= wanted[:, None]).sum(
        axis=1
    ) - 1  # at_least falls from left to right: the last bin that still keeps enough
    thresholds = np.where(wanted > 0, bins / BINS, at_most)
    return np.minimum(thresholds, at_most)
