"""Object-contextual representations (OCR) with the auxiliary head that finds the regions.

Yuan, Chen, Wang, 2020, https://arxiv.org/abs/1909.11065. Channels and the order of layers are those
of the authors' network: docs/release_notes.md, OCR.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from ..heads import ConvHead
from ..layers import ConvNorm, at_least_float32, full_precision, over_image, row_by_row
from ..trunks.trunk import Features
from .decoder import Decoded, Decoder


class AuxHead(nn.Module):
    """1x1 conv, BN, ReLU, 1x1 conv: coarse logits, which are also the soft object regions."""

    def __init__(self, *, inputs: int, num_classes: int) -> None:
        super().__init__()
        self.hidden = ConvNorm(inputs=inputs, outputs=inputs, bias=True)
        self.classifier = nn.Conv2d(inputs, num_classes, 1)

    @row_by_row(halo=0)
    def forward(self, features: Tensor) -> Tensor:
        return self.classifier(self.hidden(features))


def gather_regions(logits: Tensor, pixels: Tensor) -> Tensor:
    """Average the features of each class's region, weighted by the class's soft-max.

    `logits` `[N, C, h, w]` and `pixels` `[N, D, h, w]` give `[N, D, C, 1]`. The soft-max is over
    all positions; over 10^5 of them it underflows in half precision, so this is done in at least
    float32 even under autocast.
    """
    with full_precision(pixels):
        weights = at_least_float32(logits).flatten(2).softmax(dim=2)
        regions = at_least_float32(pixels).flatten(2) @ weights.transpose(1, 2)
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

    def keys_and_values(self, regions: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values `[N, K, C]` of the regions `[N, D, C, 1]`."""
        return self.key(regions).flatten(2), self.value(regions).flatten(2)

    def forward(self, pixels: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        query = self.query(pixels)

        # Query times key passes the largest fp16 number, and bf16 blurs the soft-max.
        with full_precision(pixels):
            similarity = at_least_float32(keys).transpose(1, 2) @ at_least_float32(query).flatten(2)
            weights = (similarity * keys.shape[1] ** -0.5).softmax(dim=1)
            context = at_least_float32(values) @ weights

        return self.output(context.to(query.dtype).unflatten(2, query.shape[-2:]))


class OCR(Decoder):
    """Main logits from features enriched by object context, auxiliary logits from the trunk's.

    With `head="paper"` the main logits come from the 3x3, 3x3, 1x1 head of the paper's section 3.1,
    else from one 1x1 convolution as in the authors' release.
    """

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
        self.classifiers = ("classifier", "aux_head.classifier")
        if head == "paper":
            self.classifier = ConvHead(inputs=channels, outputs=num_classes, channels=key_channels)
            self.classifiers = ("classifier.output", "aux_head.classifier")

    def forward(self, features: Features, *, with_aux: bool) -> Decoded:
        # Soft object regions, the features of each, and what they say about every pixel.
        regions = self.aux_head(features.semantic)
        pixels = self.embed(features.semantic)
        keys, values = self.object_attention.keys_and_values(self.gather(regions, pixels))
        enriched = self.dropout(self.enrich(pixels, keys, values))

        aux: Tensor | None = None
        if with_aux:
            aux = regions
        return Decoded(logits=self.classifier(enriched), aux=aux, features=enriched)

    @over_image
    def gather(self, regions: Tensor, pixels: Tensor) -> Tensor:
        """The features of each object region of the image, `[N, D, C, 1]`."""
        return gather_regions(regions, pixels)

    @row_by_row(halo=1)
    def embed(self, features: Tensor) -> Tensor:
        """The trunk's features, reduced by a 3x3 convolution to the width of the decoder."""
        return self.pixels(features)

    @row_by_row(halo=0, overwrites=True)
    def enrich(self, pixels: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """1x1 conv, BN and ReLU of [object context, pixels].

        A 1x1 convolution of a concatenation is the sum of one for each part, so that the
        concatenation need not be held.
        """
        context = self.object_attention(pixels, keys, values)
        weight_of_context, weight_of_pixels = self.merge.conv.weight.chunk(2, dim=1)
        merged = F.conv2d(context, weight_of_context).add_(F.conv2d(pixels, weight_of_pixels))
        return self.merge.norm(merged).relu_()
