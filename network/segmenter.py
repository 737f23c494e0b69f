"""A trunk and a decoder: image to low-resolution scores, at one scale."""

from __future__ import annotations

from torch import nn

from .decoders.decoder import Decoder
from .trunks.trunk import Trunk


class Segmenter(nn.Module):
    """Shared by every way of combining scales, which inherit from it, so that keys read `trunk.`, `decoder.`."""

    multiscale: str

    def __init__(
        self,
        *,
        trunk: Trunk,
        decoder: Decoder,
        num_classes: int,
        align_corners: bool,
        train_scales: tuple[float, ...],
    ) -> None:
        super().__init__()
        self.trunk = trunk
        self.decoder = decoder
        self.num_classes = num_classes
        self.align_corners = align_corners
        self.train_scales = train_scales

    def parameters_of_heads(self) -> list[nn.Parameter]:
        """Every parameter outside the trunk, for optimisers that train new layers faster."""
        return [
            parameter
            for name, parameter in self.named_parameters()
            if not name.startswith("trunk.")
        ]
