"""Inference at many scales: flip, averaging, tiles, and maps computed strip by strip."""

from __future__ import annotations

from .folding import prepare_for_inference
from .labels import NonFiniteError, label_and_confidence, predicted_label
from .options import InferenceOptions
from .predict import out_of_memory, predict, predict_label
from .refinement import RefinedArea, require_refinable

__all__ = [
    "InferenceOptions",
    "NonFiniteError",
    "RefinedArea",
    "label_and_confidence",
    "out_of_memory",
    "predict",
    "predict_label",
    "predicted_label",
    "prepare_for_inference",
    "require_refinable",
]
