"""Losses: pure functions of (logits, label), and the criterion that joins them into named terms."""

from __future__ import annotations

from .binary import binary_cross_entropy
from .boundary import relaxed_boundary_loss
from .criterion import LOSSES, Criterion, build_criterion
from .cross_entropy import class_weights_from_counts, cross_entropy
from .dice import dice_loss
from .focal import focal_loss
from .hard_pixels import bootstrapped_cross_entropy, ohem_cross_entropy
from .lovasz import lovasz_loss
from .pixels import LossError
from .rmi import rmi_loss, weighted_rmi_loss

__all__ = [
    "LOSSES",
    "Criterion",
    "LossError",
    "binary_cross_entropy",
    "bootstrapped_cross_entropy",
    "build_criterion",
    "class_weights_from_counts",
    "cross_entropy",
    "dice_loss",
    "focal_loss",
    "lovasz_loss",
    "ohem_cross_entropy",
    "relaxed_boundary_loss",
    "rmi_loss",
    "weighted_rmi_loss",
]
