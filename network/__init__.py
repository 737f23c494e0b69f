"""Image to prediction. Knows no configuration, no data set and no loss."""
from __future__ import annotations

from .build import MULTISCALE, build_model
from .decoders import DECODERS
from .fusion import fuse, fuse_scales
from .layers import ModelError
from .prediction import Prediction
from .trunks import TRUNKS

__all__ = ["DECODERS", "MULTISCALE", "TRUNKS", "ModelError", "Prediction", "build_model", "fuse", "fuse_scales"]
