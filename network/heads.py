"""The convolutional head that classifies pixels and that gives the attention."""

from __future__ import annotations

from torch import Tensor, nn

from .layers import ConvNorm, row_by_row


class ConvHead(nn.Module):
    """3x3 conv, BN, ReLU, 3x3 conv, BN, ReLU, 1x1 conv without bias (paper, section 3.1)."""

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

    @row_by_row(halo=2)
    def forward(self, features: Tensor) -> Tensor:
        """Features `[N, inputs, h, w]` to scores `[N, outputs, h, w]`."""
        return self.output(self.dropout(self.hidden(features)))
