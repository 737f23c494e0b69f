"""Decoders by name."""
from __future__ import annotations

from .decoder import Decoded, Decoder
from .deeplabv3plus import DeepLabV3Plus

__all__ = ["DECODERS", "Decoded", "Decoder"]

DECODERS: dict[str, type[Decoder]] = {"deeplabv3plus": DeepLabV3Plus}
