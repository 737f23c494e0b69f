"""Running a segmentation model of any library: its logits, and the maps of its layers.

Errors of the model become sentences that say what to choose.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from hmsa.utils.words import UserError, did_you_mean

from .inference import out_of_memory
from .layers import ModelError
from .model import Size

LOGITS_KEYS = ("out", "logits")  # of dicts: torchvision's, and those of most others
LEAST_SCORE = 1e-4  # of a class; its logarithm is the lowest logit of a model that gives masks
CANDIDATES = 5  # layers that an error lists
SMALLEST_TRIAL = 32  # pixels; the trial images have two and three times as many on their sides

Shape = tuple[int, ...]


@contextmanager
def hooked(model: nn.Module, layers: Sequence[str], hook: Callable) -> Iterator[None]:
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


def output_of(model: nn.Module, image: Tensor) -> object:
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


def logits_of(output: object, *, count: int) -> Tensor:
    """Logits `[count, C, h, w]` among what a model gave."""
    found = output
    if isinstance(output, Mapping):
        found = next((output[key] for key in LOGITS_KEYS if key in output), None)
        if found is None:
            found = _logits_of_masks(output)
    elif not isinstance(output, Tensor):
        found = getattr(output, "logits", None)
        if found is None:
            found = _logits_of_masks(output)
        if found is None and isinstance(output, (tuple, list)) and output:
            found = output[0]

    if not isinstance(found, Tensor):
        raise ModelError(
            f"the model gives {kind_of_output(output)}, in which there are no logits: return them "
            "as a tensor, first of a tuple, under 'out' or 'logits' of a dict, or as .logits."
        )
    if found.ndim != 4 or found.shape[0] != count or not found.is_floating_point():
        raise ModelError(
            f"the model gives {kind_of_output(found)} for {count} images, which are no logits "
            "[N, C, h, w]: attention needs a score for every class and pixel."
        )
    return found


def _logits_of_masks(output: object) -> Tensor | None:
    """Logits of a model that gives masks and their classes, as MaskFormer and Mask2Former do.

    The score of a class in a pixel is the sum over masks of p(class) * p(pixel in the mask), as in
    Mask2Former's semantic inference (https://arxiv.org/abs/2112.01527). The logarithm makes logits
    of scores: their soft-max is the scores' share.
    """
    classes = getattr(output, "class_queries_logits", None)  # [N, masks, C + 1]: the last is "none"
    masks = getattr(output, "masks_queries_logits", None)  # [N, masks, h, w]
    if not isinstance(classes, Tensor) or not isinstance(masks, Tensor):
        return None
    shares = classes.float().softmax(dim=-1)[..., :-1]
    scores = torch.einsum("nqc,nqhw->nchw", shares, masks.float().sigmoid())
    return scores.clamp(min=LEAST_SCORE).log()


def kind_of_output(value: object) -> str:
    """A tensor by its shape, a dict by its keys, anything else by its type."""
    if isinstance(value, Tensor):
        kind = str(value.dtype).removeprefix("torch.")
        return f"a tensor {list(value.shape)} of {kind}"
    if isinstance(value, Mapping):
        return f"a dict with {', '.join(repr(key) for key in value) or 'nothing in it'}"
    return f"a {type(value).__name__}"


class Trial:
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
                f"the model gives {kind_of_output(self.logits)} for an image of {self.size[0]} x "
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
            outputs[name] = kind_of_output(output)
            if isinstance(output, Tensor):
                outputs[name] = tuple(output.shape)

        # Noise, whatever the global random numbers are, in the dtype and place of the weights.
        noise = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(0))
        parameter = next(model.parameters(), None)
        if parameter is not None:
            noise = noise.to(parameter)
        with torch.no_grad(), hooked(model, self.layers, note):
            logits = logits_of(output_of(model, noise), count=1)
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
