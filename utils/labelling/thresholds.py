"""Which pixels become hard labels: one threshold per class, applied on the device.

A pixel is kept where its largest soft-max probability is at least the threshold of its class, and
is ignored otherwise (paper, section 4). Class-balanced self-training (Zou et al. 2018,
https://arxiv.org/abs/1810.07911) lowers the threshold of a class until a share of its pixels is
kept, so that classes of which a network is never sure do not vanish from the labels.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from torch import Tensor

# Levels of the probability: a power of two, so that p x BINS and k / BINS are exact in float32.
BINS = 1 << 16


@dataclass(frozen=True)
class HardLabel:
    """One prediction after its thresholds: two bytes a pixel and a few counts."""

    label: Tensor
    """uint8 [H, W], train ids with the ignore label."""
    confidence: Tensor
    """uint8 [H, W], floor(255 x the largest probability), before any threshold."""
    predicted: Tensor
    """int64 [C], pixels of each class before the threshold."""
    kept: Tensor
    """int64 [C], pixels of each class in `label`."""
    confidence_sum: Tensor
    """int64, sum of floor(65536 x the largest probability). As an integer it does not depend on the
    order in which pixels are added."""
    not_numbers: Tensor
    """int64, pixels whose probability is not a number; they are ignored."""
    copied: torch.cuda.Event | None = None

    def to_host(self) -> HardLabel:
        """The same on the host, or on its way there: call `wait` before you read it.

        Nothing here waits for a GPU.
        """
        # Of MPS nothing says when an asynchronous copy is complete.
        later = self.label.device.type != "mps"
        copies = {
            part.name: getattr(self, part.name).to("cpu", non_blocking=later)
            for part in fields(self)
            if part.name != "copied"
        }
        # The copy from a GPU goes on while the next image is inferred.
        event = None
        if self.label.is_cuda:
            event = torch.cuda.Event()
            event.record()
        return replace(self, **copies, copied=event)

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
    """Ignore each pixel whose confidence is below the threshold of its class, or is not a number.

    Works on the device of its arguments.

    Args:
        label: uint8 [H, W], the predicted train ids.
        confidence: float [H, W], the largest soft-max probability.
        thresholds: float32 [C].
        ignore_label: what stands where a pixel is not kept.
    """
    classes = len(thresholds)
    kept = confidence >= thresholds[label.int()]
    not_a_number = confidence.isnan()
    safe = confidence.masked_fill(not_a_number, 0)

    # One count serves both: the classes of pixels that are not kept, then those of kept ones.
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
    """Pixels by class and by floor(BINS x confidence), int64 [C, BINS].

    Histograms of images add up.

    Args:
        label: uint8 [H, W], train ids.
        confidence: float [H, W].
        classes: their number, C.
    """
    level = (confidence.nan_to_num(0) * BINS).long().clamp_(0, BINS - 1)
    return _count(label.long() * BINS + level, bins=classes * BINS).view(classes, BINS)


def _count(codes: Tensor, *, bins: int) -> Tensor:
    """How often each of 0 .. bins - 1 occurs, int64 [bins].

    `torch.bincount` needs the largest value first and would make the host wait for the GPU.
    """
    codes = codes.reshape(-1)
    counts = torch.zeros(bins, dtype=torch.int64, device=codes.device)
    return counts.scatter_add_(0, codes, torch.ones_like(codes))


def quantile_thresholds(
    histogram: np.ndarray, *, keep_share: float, at_most: np.ndarray
) -> np.ndarray:
    """The threshold of each class that keeps a share of its pixels, float64 [C].

    The threshold is the largest multiple of 1 / BINS that keeps the share. This is exact: the
    pixels at or above it are those of its bin and the bins above. A class without a pixel gets
    `at_most`. With `at_most` 1 the thresholds are those of class-balanced self-training (Zou et al.
    2018, equation 9); with 0.9, classes of which the network is sure stay at the paper's threshold.

    Args:
        histogram: int64 [C, BINS] of `confidence_histogram`, summed over images.
        keep_share: the share of the pixels of each class to keep, from 0 to 1.
        at_most: float64 [C], the largest threshold of each class.
    """
    # How many pixels are at or above the lower edge of each bin; this falls from left to right.
    at_least = histogram[:, ::-1].cumsum(axis=1)[:, ::-1]
    wanted = np.ceil(keep_share * histogram.sum(axis=1) - 1e-9)

    last_bin_that_keeps_enough = (at_least >= wanted[:, None]).sum(axis=1) - 1
    thresholds = np.where(wanted > 0, last_bin_that_keeps_enough / BINS, at_most)
    return np.minimum(thresholds, at_most)
