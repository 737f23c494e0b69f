"""Object-contextual representations (Yuan et al., 2020) with the auxiliary head that finds the regions (RELEASE.md 2.2)."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from ..heads import ConvHead, in_strips
from ..inference.raster import Stored
from ..layers import ConvNorm, frugal, full_precision, lifted
from ..trunks.trunk import Features
from .decoder import Decoded, Decoder


class AuxHead(nn.Module):
    """1x1 conv, BN, ReLU, 1x1 conv: coarse logits from the trunk's features, which are also the soft object regions."""

    def __init__(self, *, inputs: int, num_classes: int) -> None:
        super().__init__()
        self.hidden = ConvNorm(inputs=inputs, outputs=inputs, bias=True)
        self.classifier = nn.Conv2d(inputs, num_classes, 1)

    def forward(self, features: Tensor) -> Tensor:
        return self.classifier(self.hidden(features))


def gather_regions(logits: Tensor, pixels: Tensor) -> Tensor:
    """Features of each class's region: pixels `[N, D, h, w]` averaged by the class's soft-max over all positions.

    `logits` `[N, C, h, w]`; the result is `[N, D, C, 1]`. A soft-max over 10^5 positions underflows in half precision,
    so this is done in at least float32 even under autocast.
    """
    with full_precision(pixels):
        weights = lifted(logits).flatten(2).softmax(dim=2)
        regions = lifted(pixels).flatten(2) @ weights.transpose(1, 2)
    return regions.unsqueeze(3).to(pixels.dtype)


class ObjectAttention(nn.Module):
    """Every pixel `[N, D, h, w]` attends to the C regions; the context `[N, D, h, w]` comes out."""

    def __init__(self, *, channels: int, key_channels: int) -> None:
        super().__init__()

        def embedding() -> nn.Sequential:
            return nn.Sequential(
                ConvNorm(inputs=channels, outputs=key_channels),
                ConvNorm(inputs=key_channels, outputs=key_channels),
            )

        self.query = embedding()
        self.key = embedding()
        self.value = ConvNorm(inputs=channels, outputs=key_channels)
        self.output = ConvNorm(inputs=key_channels, outputs=channels)

    def describe(self, regions: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values `[N, K, C]` of the regions `[N, D, C, 1]`."""
        return self.key(regions).flatten(2), self.value(regions).flatten(2)

    def forward(self, pixels: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        query = self.query(pixels)
        with full_precision(
            pixels
        ):  # query times key passes the largest fp16 number, and bf16 blurs the soft-max
            similarity = lifted(keys).transpose(1, 2) @ lifted(query).flatten(2)
            weights = (similarity * keys.shape[1] ** -0.5).softmax(dim=1)
            context = lifted(values) @ weights
        return self.output(context.to(query.dtype).unflatten(2, query.shape[-2:]))


class OCR(Decoder):
    """Main logits from features enriched by object context, auxiliary logits from the trunk's features."""

    def __init__(
        self,
        *,
        trunk_channels: int,
        num_classes: int,
        channels: int = 512,
        key_channels: int = 256,
        dropout: float = 0.05,
        head: str = "release",
    ) -> None:
        super().__init__()
        self.feature_channels = channels
        self.pixels = ConvNorm(inputs=trunk_channels, outputs=channels, kernel=3, bias=True)
        self.aux_head = AuxHead(inputs=trunk_channels, num_classes=num_classes)
        self.object_attention = ObjectAttention(channels=channels, key_channels=key_channels)
        self.merge = ConvNorm(inputs=2 * channels, outputs=channels)
        self.dropout = nn.Dropout2d(dropout)
        self.classifier: nn.Module = nn.Conv2d(channels, num_classes, 1)
        if head == "paper":
            self.classifier = ConvHead(inputs=channels, outputs=num_classes, channels=key_channels)
        last = "classifier.output" if head == "paper" else "classifier"
        self.classifiers = (last, "aux_head.classifier")

    def forward(self, features: Features, *, with_aux: bool) -> Decoded:
        aux = in_strips(self.aux_head, features.semantic, halo=0, training=self.training)
        pixels = in_strips(self.pixels, features.semantic, halo=1, training=self.training)
        keys, values = self.object_attention.describe(gather_regions(aux, pixels))

        def enrich(strip: Tensor) -> Tensor:
            return self._merge(self.object_attention(strip, keys, values), strip)

        into = pixels if frugal() and not self.training else None
        merged = self.dropout(
            in_strips(enrich, Stored(pixels), halo=0, training=self.training, into=into)
        )
        return Decoded(
            logits=self.classifier(merged), aux=aux if with_aux else None, features=Stored(merged)
        )

    def _merge(self, context: Tensor, pixels: Tensor) -> Tensor:
        """1x1 convolution of [context, pixels], BN and ReLU, without holding the concatenation."""
        of_context, of_pixels = self.merge.conv.weight.chunk(2, dim=1)
        merged = F.conv2d(context, of_context).add_(F.conv2d(pixels, of_pixels))
        return self.merge.norm(merged).relu_()
