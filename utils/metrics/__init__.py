"""Scores of predictions against labels."""

from .boundary_f import BoundaryF
from .confusion import ConfusionMatrix, ImageScores, category_iou
from .instance_iou import InstanceIoU
from .scores import MetricsError, iou_of, mean_of

__all__ = [
    "BoundaryF",
    "ConfusionMatrix",
    "ImageScores",
    "InstanceIoU",
    "MetricsError",
    "category_iou",
    "iou_of",
    "mean_of",
]
