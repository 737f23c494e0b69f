"""Image to prediction. Knows no configuration, no data set and no loss."""

from __future__ import annotations

from .attach import AttachedAttention, attach_attention
from .build import MULTISCALE, build_model
from .decoders import DECODERS
from .inference import InferenceOptions
from .layers import ModelError
from .model import MultiScaleModel, fuse, fuse_chain
from .prediction import Prediction
from .trunks import TRUNKS
from .weights.loading import LoadReport, load_plain_weights, load_trunk_weights, load_weights

__all__ = [
    "DECODERS",
    "MULTISCALE",
    "TRUNKS",
    "AttachedAttention",
    "InferenceOptions",
    "LoadReport",
    "ModelError",
    "MultiScaleModel",
    "Prediction",
    "attach_attention",
    "build_model",
    "fuse",
    "fuse_chain",
    "load_plain_weights",
    "load_trunk_weights",
    "load_weights",
]
