"""Any feature trunk of timm, when timm is installed: `timm:<name>`."""

from __future__ import annotations

import math
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hmsa.utils.words import reason_of

from ..layers import Concatenate, ModelError, run_stage
from .depthwise import replace_depthwise
from .trunk import Features, Trunk

Value = TypeVar("Value")

# Keywords of those transformers that accept any image size only when asked to.
ANY_SIZE: tuple[dict[str, Any], ...] = (
    {"strict_img_size": False},
    {"dynamic_img_size": True, "dynamic_img_pad": True},
    {},
)
# What timm raises for keywords that a model does not take.
REFUSALS = (
    TypeError,
    AssertionError,
    NotImplementedError,
    ValueError,
    RuntimeError,
    AttributeError,
)


# Multiples of the coarsest stride to which images are padded, tried in this order: 1 does for most
# networks, others cut their features into windows of so many rows and columns.
WINDOWS = (1, 7, 8, 12, 16)


def create_features(name: str, output_stride: int | None) -> tuple[nn.Module, bool, int]:
    """Build timm's feature network of that name, without weights, and try it.

    Returns it, whether it is dilated to the output stride, and the number of pixels of which height
    and width of its images must be multiples.

    Raises:
        ModelError: timm is missing, does not know the name, or gives no feature maps of it, or they
            are none for images of any size.
    """
    try:
        import timm
    except ImportError as error:
        raise ModelError(
            f"trunk timm:{name} needs timm: pip install timm, or choose a trunk of this project."
        ) from error
    if not timm.is_model(name.split(".")[0]):
        raise ModelError(f"timm {timm.__version__} has no model {name!r}: see timm.list_models().")

    # Dilated where the model can be, and for any image size where it can be asked for that.
    failure = "it does not give feature maps"
    for dilation in ({"output_stride": output_stride or 8}, {}):
        for any_size in ANY_SIZE:
            keywords = {"features_only": True, **any_size, **dilation}
            try:
                network = timm.create_model(name, pretrained=False, **keywords)
                return network, bool(dilation), required_multiple(network)
            except FeatureError as error:
                failure = str(error)
            except REFUSALS:
                continue
    raise ModelError(
        f"timm's {name!r} cannot be a trunk: {failure}. Choose a convolutional or hierarchical "
        "model that takes images of any size, such as timm:convnext_tiny."
    )


class FeatureError(Exception):
    """A feature network fails for an image, or its features are not what it declares."""


def required_multiple(network: nn.Module) -> int:
    """The number of pixels of which images must be multiples, found by trying.

    Raises:
        FeatureError: the network fails for images of more than one size.
    """
    coarsest = max(network.feature_info.reduction())  # type: ignore[union-attr, operator]
    training = network.training
    network.eval()
    failure: FeatureError | None = None
    for window in WINDOWS:
        multiple = window * coarsest
        # 5 x 7 multiples are no accident of a square, of a window, or of the size of pre-training.
        shape = (5, 7) if window == 1 else (1, 2)
        size = (shape[0] * multiple, shape[1] * multiple)
        try:
            with torch.no_grad():
                features_of(network, next(network.parameters()).new_zeros(1, 3, *size))
        except FeatureError as error:
            failure = failure or error
            continue
        network.train(training)
        return multiple
    assert failure is not None
    raise failure


def features_of(network: nn.Module, image: Tensor, *, save_memory: bool = False) -> list[Tensor]:
    """The levels of timm's feature network, `[N, channels, H / stride, W / stride]` each.

    Raises:
        FeatureError: the network fails for this size, or a level is not what it declares.
    """
    height, width = image.shape[-2:]
    if torch.compiler.is_compiling():
        levels = run_stage(network, image, save_memory=save_memory)
    else:
        try:
            levels = run_stage(network, image, save_memory=save_memory)
        except REFUSALS as error:
            if isinstance(error, torch.OutOfMemoryError) or "memory" in str(error):
                raise
            raise FeatureError(
                f"it fails for {height} x {width} pixels ({reason_of(error)})"
            ) from error

    info: Any = network.feature_info
    found = []
    for level, channels in zip(levels, info.channels(), strict=True):
        if getattr(network, "output_fmt", "NCHW") == "NHWC":
            level = level.permute(0, 3, 1, 2)
        if level.dim() != 4 or level.shape[1] != channels:
            raise FeatureError(
                f"a level has the shape {list(level.shape)} where timm declares {channels} channels"
            )
        found.append(level)
    return found


class TimmFeatures(Trunk):
    """`fine` is the first level of stride 4 or more.

    `semantic` is the last level where timm can dilate the network. Where it cannot, all levels from
    `fine` on are resized to it and concatenated, as HRNet's branches are.
    """

    def __init__(
        self,
        *,
        name: str,
        output_stride: int | None,
        align_corners: bool,
        activation_checkpointing: bool,
    ) -> None:
        super().__init__()
        self.activation_checkpointing = activation_checkpointing
        self.name = name
        self.net, dilated, self.multiple = create_features(name, output_stride)
        replace_depthwise(self.net)

        info: Any = self.net.feature_info
        self.level_channels, self.level_strides = info.channels(), info.reduction()
        levels = range(len(self.level_strides))
        self.first = next((level for level in levels if self.level_strides[level] >= 4), levels[-1])
        self.fine_channels = self.level_channels[self.first]
        self.fine_stride = self.level_strides[self.first]

        # A network whose levels differ in resolution although it could not be dilated.
        self.merge = not dilated and len(set(self.level_strides[self.first :])) > 1
        self.concatenate = Concatenate(align_corners=align_corners)
        self.channels, self.stride = self.level_channels[-1], self.level_strides[-1]
        if self.merge:
            self.channels = sum(self.level_channels[self.first :])
            self.stride = self.fine_stride

    def forward(self, image: Tensor) -> Features:
        height, width = image.shape[-2:]
        padded = F.pad(image, (0, -width % self.multiple, 0, -height % self.multiple))
        try:
            levels = features_of(self.net, padded, save_memory=self.activation_checkpointing)
        except FeatureError as error:
            raise ModelError(
                f"trunk timm:{self.name} does not take an image of {height} x {width} pixels, to "
                f"which it was scaled: {error}. Use a larger crop or scale, or another trunk."
            ) from error

        # What saw only the padding is cut off again.
        for number, stride in enumerate(self.level_strides):
            rows, columns = math.ceil(height / stride), math.ceil(width / stride)
            levels[number] = levels[number][:, :, :rows, :columns]

        fine, semantic = levels[self.first], levels[-1]
        if self.merge:
            semantic = self.concatenate(levels[self.first :])
        return Features(fine=fine, semantic=semantic)

    def own_names(self, tensors: dict[str, Value]) -> dict[str, Value]:
        """Rename the tensors of a file of timm's whole model to ours.

        timm's feature networks flatten one level of the names, or put `model.` before them. The
        files of EfficientNet-PyTorch have other names for the same tensors in the same order.
        """
        own = self.state_dict().keys()
        if "_conv_stem.weight" in tensors:
            names = [*own, *list(tensors)[len(own) :]]
            return dict(zip(names, tensors.values(), strict=False))

        def name(key: str) -> str:
            candidates = (f"net.{key}", f"net.{key.replace('.', '_', 1)}", f"net.model.{key}", key)
            return next((candidate for candidate in candidates if candidate in own), key)

        return {name(key): value for key, value in tensors.items()}
