"""Convolutional heads, and running them strip by strip."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from .inference.raster import Raster
from .layers import ConvNorm, frugal

STRIPS = 8  # a map is worked through in at most so many strips ...
FEWEST_ROWS = 16  # ... of no fewer rows than this, because strips share a border of `halo` rows


def in_strips(
    layer: nn.Module | Callable[[Tensor], Tensor],
    source: Raster,
    *,
    halo: int,
    training: bool,
    into: Tensor | None = None,
) -> Tensor:
    """`layer` of the whole `source`, `[N, C, H, W]`; in evaluation without gradients, of one strip of rows at a time.

    `halo` is how many rows around a row of its output the layer sees. Neither the source nor the layer's hidden
    features exist as a whole then. With `into`, a tensor of the result's shape, strips are written there; it may be the
    source itself when `halo` is 0.
    """
    height = source.size[0]
    step = max(FEWEST_ROWS, -(-height // STRIPS))
    if training or not frugal() or step >= height:
        return layer(source.whole())
    result = into
    for start in range(0, height, step):
        stop = min(start + step, height)
        first, last = max(0, start - halo), min(height, stop + halo)
        strip = layer(source.rows(first, last))[:, :, start - first : stop - first]
        if result is None:
            result = strip.new_empty((*strip.shape[:2], height, strip.shape[3]))
        result[:, :, start:stop] = strip
    assert result is not None
    return result


class ConvHead(nn.Module):
    """3x3 conv, BN, ReLU, 3x3 conv, BN, ReLU, 1x1 conv without bias (paper, section 3.1: semantic and attention heads)."""

    halo = 2  # rows around a row that its two 3x3 convolutions see

    def __init__(
        self, *, inputs: int, outputs: int, channels: int = 256, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.hidden = nn.Sequential(
            ConvNorm(inputs=inputs, outputs=channels, kernel=3),
            ConvNorm(inputs=channels, outputs=channels, kernel=3),
        )
        self.dropout = nn.Dropout(dropout)
        self.output = nn.Conv2d(channels, outputs, 1, bias=False)

    def forward(self, features: Raster | Tensor) -> Tensor:
        """Scores `[N, outputs, h, w]` of features that exist, or that are only described."""
        if isinstance(features, Raster):
            features = in_strips(self.hidden, features, halo=self.halo, training=self.training)
        else:
            features = self.hidden(features)
        return self.output(self.dropout(features))
