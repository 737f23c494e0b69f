"""Hierarchical attention for a segmentation model that one has, of any library.

Tao, Sapra, Catanzaro, 2020, https://arxiv.org/abs/2005.10821, equation 1. The model keeps its
weights; a head that reads the features of one of its layers learns which scale to trust where.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .decoders.decoder import Decoded
from .foreign_models import Trial, hooked, logits_of, output_of
from .heads import ConvHead
from .inference.strips import StripMap
from .layers import ModelError, resize
from .model import Hierarchical, ScalePair, Size, checked_scales, scaled_size
from .prediction import Prediction


def attach_attention(
    model: nn.Module,
    *,
    features: str,
    num_classes: int | None = None,
    train_scales: Sequence[float] = (0.5, 1.0, 2.0),
    multiple_of: int = 32,
    attention_channels: int = 256,
    attention_dropout: float = 0.0,
    attention_reads_scales: bool = False,
) -> AttachedAttention:
    """Give a trained segmentation model hierarchical attention; its own weights stay as they are.

    `model` is any module that turns normalised images `[N, 3, H, W]` into logits `[N, C, h, w]`:
    as a tensor, as the first of a tuple or list, under "out" or "logits" of a dict, or as the
    attribute `logits`. It is used as it is, not copied: its parameters no longer ask for gradients,
    and it stays in evaluation mode.

    The result is a model like any other of this package. Train it on its `train_scales`: the
    attention head alone has parameters that ask for gradients.

        torchvision: `attach_attention(deeplabv3_resnet50(...), features="backbone.layer4")`
        segmentation_models_pytorch: `attach_attention(smp.Unet(...), features="decoder")`
        transformers: `SegformerForSemanticSegmentation` gives an object with `.logits`, and
            `features="decode_head.activation"` names maps of its decoder. Mask2Former gives no
            logits: wrap it in a module that returns its scores of classes per pixel.

    Args:
        model: the trained model.
        features: name of the layer whose output `[N, channels, h, w]` the attention head reads, as
            in `model.named_modules()`. Of a layer that runs several times the last output counts.
        num_classes: what the model should give; left out, what it gives.
        train_scales: scales that training fuses. Take all that will be used.
        multiple_of: images at each scale are extended at the bottom and on the right to multiples
            of so many pixels, by mirroring (where the image is too small for that, by repeating its
            border), and the result is cut back. 1 for a model that takes every size.
        attention_channels: width of the attention head.
        attention_dropout: before the last layer of the attention head.
        attention_reads_scales: whether the head is told which pair of scales it judges.

    Raises:
        ModelError: there is no such layer, or it gives no maps, or the model gives no logits, not
            for `num_classes` classes, or fails on the trial images of two by three and of three by
            two times `multiple_of` pixels (or the multiple next to 32).
    """
    if multiple_of < 1:
        raise ModelError(f"multiple_of is {multiple_of}: give a number of pixels, 1 or more.")
    model.eval()
    trial = Trial(model, multiple_of=multiple_of)
    if num_classes is not None and num_classes != trial.num_classes:
        raise ModelError(
            f"the model gives logits for {trial.num_classes} classes, not for num_classes="
            f"{num_classes}: give its own number, or leave it out."
        )

    head = ConvHead(
        inputs=trial.channels_of(features) + 2 * attention_reads_scales,
        outputs=1,
        channels=attention_channels,
        dropout=attention_dropout,
    )
    return AttachedAttention(
        model=model,
        attention=head.to(device=trial.logits.device, dtype=trial.logits.dtype),
        features=features,
        num_classes=trial.num_classes,
        train_scales=checked_scales(train_scales),
        multiple_of=multiple_of,
        attention_reads_scales=attention_reads_scales,
    )


class NoDecoder(nn.Module):
    """The decoder of a model that decodes by itself: it has no tensors."""

    classifiers: tuple[str, ...] = ()


class AttachedAttention(Hierarchical):
    """Somebody's model, frozen, with hierarchical attention; `attach_attention` builds it.

    The whole model stands in the place of the trunk, so that its tensors are named `trunk.*`.
    """

    def __init__(
        self,
        *,
        model: nn.Module,
        attention: nn.Module,
        features: str,
        num_classes: int,
        train_scales: tuple[float, ...],
        multiple_of: int,
        attention_reads_scales: bool = False,
    ) -> None:
        super().__init__(
            trunk=model,
            decoder=NoDecoder(),
            attention=attention,
            attention_reads_scales=attention_reads_scales,
            num_classes=num_classes,
            align_corners=False,
            train_scales=train_scales,
        )
        self.features = features
        self.multiple_of = multiple_of
        self.freeze(())

    def freeze(self, parts: Sequence[str]) -> None:
        """As every model's, but the attached model is always frozen."""
        super().freeze(tuple(dict.fromkeys(("trunk", *parts))))

    def predict_scale(
        self, image: Tensor, scale: float, *, attended: bool, pair: ScalePair | None = None
    ) -> Prediction:
        extended = super().predict_scale(image, scale, attended=attended, pair=pair)
        return self._cut_back(extended, scaled_size(image.shape[-2:], scale))

    def decode_at(self, image: Tensor, scale: float) -> Decoded:
        """Logits and features of the image resized by `scale`; both cover the extended image."""
        size = scaled_size(image.shape[-2:], scale)
        scaled = resize(image, size, align_corners=self.align_corners).to(image.dtype)
        scaled = _extended(scaled, self.extended_size(size))

        captured: list[object] = []

        def keep(name: str, module: nn.Module, inputs: object, output: object) -> object:
            # A concatenation of a model of ours is put off in inference; here it has two readers.
            if isinstance(output, StripMap):
                output = output.whole()
            captured.append(output)
            # The model goes on with a copy, which it may overwrite. It also keeps
            # `prepare_for_inference` from folding what follows into this layer.
            return output.clone() if isinstance(output, Tensor) else None

        with torch.no_grad(), hooked(self.trunk, [self.features], keep):
            logits = logits_of(output_of(self.trunk, scaled), count=image.shape[0])

        # The trial images gave such maps, but other images may take other ways.
        if not captured or not isinstance(captured[-1], Tensor) or captured[-1].ndim != 4:
            raise ModelError(
                f"the layer {self.features!r} gave no maps [N, C, h, w] for images of "
                f"{scaled.shape[-2]} x {scaled.shape[-1]} pixels: choose one that always does."
            )
        return Decoded(logits=logits, aux=None, features=captured[-1])

    def extended_size(self, size: Size) -> Size:
        """(height, width) rounded up to what the attached model takes."""
        height, width = (math.ceil(side / self.multiple_of) * self.multiple_of for side in size)
        return height, width

    def _cut_back(self, prediction: Prediction, size: Size) -> Prediction:
        """The part of a prediction that covers `size` pixels (height, width) of its image."""
        extended = self.extended_size(size)
        if extended == size:
            return prediction
        attention = prediction.attention
        if attention is not None:
            attention = _cropped(attention, extended, size)
        return Prediction(_cropped(prediction.logits, extended, size), attention=attention)


def _extended(image: Tensor, size: Size) -> Tensor:
    """An image `[N, 3, h, w]`, extended at the bottom and on the right to `size`."""
    height, width = image.shape[-2:]
    below, beside = size[0] - height, size[1] - width
    if not below and not beside:
        return image

    # A mirror image is the most like a photograph, but it has no more pixels than the image.
    mode = "reflect"
    if below >= height or beside >= width:
        mode = "replicate"
    return F.pad(image, (0, beside, 0, below), mode=mode)


def _cropped(maps: Tensor, extended: Size, size: Size) -> Tensor:
    """Of maps that cover `extended` pixels (height, width), what covers the first `size`.

    Where the border of the image falls between two cells the maps stay as small as they are, else
    they are resized to pixels first.
    """
    rows, rest_of_rows = divmod(size[0] * maps.shape[-2], extended[0])
    columns, rest_of_columns = divmod(size[1] * maps.shape[-1], extended[1])
    if rest_of_rows or rest_of_columns:
        maps = resize(maps, extended, align_corners=False)
        rows, columns = size
    return maps[..., :rows, :columns]
