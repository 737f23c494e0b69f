"""Image to prediction. Knows no configuration, no data set and no loss."""

from __future__ import annotations

from .build import MULTISCALE, build_model
from .decoders import DECODERS
from .fusion import fuse, fuse_scales
from .inference.raster import render_rows
from .layers import ModelError
from .prediction import Prediction
from .trunks import TRUNKS
from .weights.loading import LoadReport, load_trunk_weights, load_weights

__all__ = [
    "DECODERS",
    "MULTISCALE",
    "TRUNKS",
    "LoadReport",
    "ModelError",
    "Prediction",
    "build_model",
    "fuse",
    "fuse_scales",
    "load_trunk_weights",
    "load_weights",
    "render_rows",
]
