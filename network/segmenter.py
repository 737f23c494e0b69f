"""A trunk and a decoder: image to low-resolution scores, at one scale."""
from __future__ import annotations

from torch import Tensor, nn

from .decoders.decoder import Decoded, Decoder
from .trunks.trunk import Trunk


class Segmenter(nn.Module):
    """Shared by every way of combining scales, which inherit from it, so that keys read `trunk.`, `decoder.`."""

    multiscale: str

    def __init__(
        self, *, trunk: Trunk, decoder: Decoder, num_classes: int, align_corners: bool, train_scales: tuple[float, ...]
    ) -> None:
        super().__init__()
        self.trunk = trunk
        self.decoder = decoder
        self.num_classes = num_classes
        self.align_corners = align_corners
        self.train_scales = train_scales

    def decode(self, image: Tensor, *, with_aux: bool) -> Decoded:
        """Normalised image `[N, 3, H, W]` to scores at the resolution of the features."""
        return self.decoder(self.trunk(image), with_aux=with_aux)

    def parameters_of_heads(self) -> list[nn.Parameter]:
        """Every parameter outside the trunk, for optimisers that train new layers faster."""
        return [parameter for name, parameter in self.named_parameters() if not name.startswith("trunk.")]
