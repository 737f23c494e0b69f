"""Hierarchical attention for a segmentation model that one has, of any library.

Tao, Sapra, Catanzaro, 2020, https://arxiv.org/abs/2005.10821, equation 1. The model keeps its
weights; a head that reads the features of one of its layers learns which scale to trust where.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hmsa.utils.words import UserError, did_you_mean

from .decoders.decoder import Decoded
from .heads import ConvHead
from .inference import out_of_memory
from .inference.strips import StripMap
from .layers import ModelError, resize
from .model import Hierarchical, Size, checked_scales, scaled_size
from .prediction import Prediction

LOGITS_KEYS = ("out", "logits")  # of dicts: torchvision's, and those of most others
CANDIDATES = 5  # layers that an error lists
SMALLEST_TRIAL = 32  # pixels; the trial images have two and three times as many on their sides

Shape = tuple[int, ...]


def attach_attention(
    model: nn.Module,
    *,
    features: str,
    num_classes: int | None = None,
    train_scales: Sequence[float] = (0.5, 1.0, 2.0),
    multiple_of: int = 32,
    attention_channels: int = 256,
    attention_dropout: float = 0.0,
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

    Raises:
        ModelError: there is no such layer, or it gives no maps, or the model gives no logits, not
            for `num_classes` classes, or fails on the trial images of two by three and of three by
            two times `multiple_of` pixels (or the multiple next to 32).
    """
    if multiple_of < 1:
        raise ModelError(f"multiple_of is {multiple_of}: give a number of pixels, 1 or more.")
    model.eval()
    trial = _Trial(model, multiple_of=multiple_of)
    if num_classes is not None and num_classes != trial.num_classes:
        raise ModelError(
            f"the model gives logits for {trial.num_classes} classes, not for num_classes="
            f"{num_classes}: give its own number, or leave it out."
        )

    head = ConvHead(
        inputs=trial.channels_of(features),
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
    ) -> None:
        super().__init__(
            trunk=model,
            decoder=NoDecoder(),
            attention=attention,
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
        self, image: Tensor, scale: float, *, attended: bool, bias: float | None = None
    ) -> Prediction:
        extended = super().predict_scale(image, scale, attended=attended, bias=bias)
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

        with torch.no_grad(), _hooked(self.trunk, [self.features], keep):
            logits = _logits_of(_output_of(self.trunk, scaled), count=image.shape[0])

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


# --- running somebody's model ---


@contextmanager
def _hooked(model: nn.Module, layers: Sequence[str], hook: Callable) -> Iterator[None]:
    """Inside, `hook(name, module, inputs, output)` is called after each of `layers` has run.

    Layers are looked up by name every time, because a copy of the model, or one whose norms were
    folded, has other modules under the same names.
    """
    handles = [
        model.get_submodule(name).register_forward_hook(partial(hook, name)) for name in layers
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _output_of(model: nn.Module, image: Tensor) -> object:
    """What the model gives for an image; what it raises becomes one sentence."""
    try:
        return model(image)
    except Exception as error:
        # Inference answers a lack of memory with smaller tiles.
        if isinstance(error, UserError) or out_of_memory(error):
            raise
        reason = (str(error).splitlines() or [""])[0] or type(error).__name__
        raise ModelError(
            f"the model fails on images of {image.shape[-2]} x {image.shape[-1]} pixels "
            f"({reason}): give as multiple_of what their sides must be multiples of, and see that "
            "it takes images [N, 3, H, W] of every such size."
        ) from error


def _logits_of(output: object, *, count: int) -> Tensor:
    """Logits `[count, C, h, w]` among what a model gave."""
    found = output
    if isinstance(output, Mapping):
        found = next((output[key] for key in LOGITS_KEYS if key in output), None)
    elif not isinstance(output, Tensor):
        found = getattr(output, "logits", None)
        if found is None and isinstance(output, (tuple, list)) and output:
            found = output[0]

    if not isinstance(found, Tensor):
        raise ModelError(
            f"the model gives {_described(output)}, in which there are no logits: return them as a "
            "tensor, first of a tuple, under 'out' or 'logits' of a dict, or as .logits."
        )
    if found.ndim != 4 or found.shape[0] != count or not found.is_floating_point():
        raise ModelError(
            f"the model gives {_described(found)} for {count} images, which are no logits "
            "[N, C, h, w]: attention needs a score for every class and pixel."
        )
    return found


def _described(value: object) -> str:
    """A tensor by its shape, a dict by its keys, anything else by its type."""
    if isinstance(value, Tensor):
        kind = str(value.dtype).removeprefix("torch.")
        return f"a tensor {list(value.shape)} of {kind}"
    if isinstance(value, Mapping):
        return f"a dict with {', '.join(repr(key) for key in value) or 'nothing in it'}"
    return f"a {type(value).__name__}"


class _Trial:
    """What a model gives for two small images, one wide and one high, and what its layers do."""

    def __init__(self, model: nn.Module, *, multiple_of: int) -> None:
        self.layers = [name for name, _ in model.named_modules(remove_duplicate=False) if name]
        unit = math.ceil(SMALLEST_TRIAL / multiple_of) * multiple_of
        self.size = (2 * unit, 3 * unit)
        self.logits, self.outputs = self._run(model, self.size)
        high_logits, self.high_outputs = self._run(model, (3 * unit, 2 * unit))

        self.num_classes = self.logits.shape[1]
        if not self._are_maps(self.logits.shape, high_logits.shape):
            raise ModelError(
                f"the model gives {_described(self.logits)} for an image of {self.size[0]} x "
                f"{self.size[1]} pixels, which are no logits [N, C, h, w]: their height and width "
                "must follow those of the image."
            )
        # In the order in which they ran.
        self.usable = {
            name: output
            for name, output in self.outputs.items()
            if isinstance(output, tuple) and self._are_maps(output, self.high_outputs.get(name))
        }

    def channels_of(self, layer: str) -> int:
        """Channels of the maps of a layer.

        Raises:
            ModelError: there is no such layer, or it gives no maps, with the nearest that do.
        """
        if layer in self.usable:
            return self.usable[layer][1]
        if layer not in self.layers:
            # A layer as deep as the one asked for is meant rather than one inside another.
            alike = [name for name in self.layers if name.count(".") == layer.count(".")]
            hint = did_you_mean(layer, alike) or did_you_mean(layer, self.layers)
            raise ModelError(
                f"features {layer!r} is no layer of the model{hint}: choose one that gives maps "
                f"[N, C, h, w], such as {self._listed(self._last_usable())}."
            )

        nearest = self._listed(self._nearest_usable(layer))
        if layer not in self.outputs:
            raise ModelError(
                f"features {layer!r} is a layer that does not run by itself when the model "
                f"predicts: choose one that does, such as {nearest}."
            )
        given = self.outputs[layer]
        if isinstance(given, tuple):
            given = f"maps {list(given)} for an image {[1, 3, *self.size]}"
        raise ModelError(
            f"features {layer!r} is a layer that gives {given}, where attention needs "
            f"[N, C, h, w]: choose another, such as {nearest}."
        )

    def _run(self, model: nn.Module, size: Size) -> tuple[Tensor, dict[str, Shape | str]]:
        """Logits of one image, and of every layer that ran the shape or the kind of its output."""
        outputs: dict[str, Shape | str] = {}

        def note(name: str, module: nn.Module, inputs: object, output: object) -> None:
            outputs.pop(name, None)  # the last time counts, and the order of the last times
            outputs[name] = _described(output)
            if isinstance(output, Tensor):
                outputs[name] = tuple(output.shape)

        # Noise, whatever the global random numbers are, in the dtype and place of the weights.
        noise = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(0))
        parameter = next(model.parameters(), None)
        if parameter is not None:
            noise = noise.to(parameter)
        with torch.no_grad(), _hooked(model, self.layers, note):
            logits = _logits_of(_output_of(model, noise), count=1)
        return logits, outputs

    def _are_maps(self, wide: Shape, high: object) -> bool:
        """Whether an output has the same channels, and sides that follow those of the image."""
        if not isinstance(high, tuple) or len(wide) != 4 or wide[0] != 1:
            return False
        rows, columns = wide[2:]
        # Neither pooled to a fixed size, nor with the channels last, nor one row for each token.
        follows = tuple(high) == (1, wide[1], columns, rows) and rows < columns
        height, width = self.size
        return follows and abs(rows * width - columns * height) <= width

    def _last_usable(self) -> list[str]:
        """The layers with the latest maps, those that hold others before those inside them."""
        names = [name for name, shape in self.usable.items() if shape[1] != self.num_classes]
        names = list(reversed(names or list(self.usable)))
        shallow = [name for name in names if name.count(".") <= 1]
        return (shallow or names)[:CANDIDATES]

    def _nearest_usable(self, layer: str) -> list[str]:
        """The layers with maps that ran shortly before or after a layer."""
        order = list(self.outputs)
        if layer not in self.outputs:
            return self._last_usable()
        position = order.index(layer)
        by_distance = sorted(self.usable, key=lambda name: abs(order.index(name) - position))
        return by_distance[:CANDIDATES]

    def _listed(self, names: Sequence[str]) -> str:
        """Layers with their channels and the height of their maps, as a part of the image's."""
        parts = []
        for name in names:
            channels, rows = self.usable[name][1:3]
            parts.append(f"{name!r} ({channels} channels, 1/{round(self.size[0] / rows)})")
        return ", ".join(parts) or "none: no layer of this model does"
