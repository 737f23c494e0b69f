"""Any feature trunk of timm, when timm is installed: `timm:<name>`."""

from __future__ import annotations

import math
from typing import Any, TypeVar

import torch.nn.functional as F
from torch import Tensor, nn

from ..layers import Concatenate, ModelError, run_stage
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


def create_features(name: str, output_stride: int | None) -> tuple[nn.Module, bool]:
    """Build timm's feature network of that name, without weights.

    Returns it and whether it is dilated to the output stride.

    Raises:
        ModelError: timm is missing, does not know the name, or gives no feature maps of it.
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
    for dilation in ({"output_stride": output_stride or 8}, {}):
        for any_size in ANY_SIZE:
            keywords = {"features_only": True, **any_size, **dilation}
            try:
                network = timm.create_model(name, pretrained=False, **keywords)
            except REFUSALS:
                continue
            return network, bool(dilation)
    raise ModelError(
        f"timm's {name!r} does not give feature maps: choose a convolutional or hierarchical model."
    )


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
        self.net, dilated = create_features(name, output_stride)

        info: Any = self.net.feature_info
        self.level_channels, self.level_strides = info.channels(), info.reduction()
        self.coarsest = max(self.level_strides)
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
        # Transformers and HRNet of timm want multiples of their coarsest stride.
        height, width = image.shape[-2:]
        padded = F.pad(image, (0, -width % self.coarsest, 0, -height % self.coarsest))
        levels = list(run_stage(self.net, padded, save_memory=self.activation_checkpointing))

        for number, (channels, stride) in enumerate(
            zip(self.level_channels, self.level_strides, strict=True)
        ):
            if levels[number].shape[1] != channels:  # some transformers end in channels
                levels[number] = levels[number].permute(0, 3, 1, 2)
            # What saw only the border is cut off again.
            rows, columns = math.ceil(height / stride), math.ceil(width / stride)
            levels[number] = levels[number][:, :, :rows, :columns]

        fine, semantic = levels[self.first], levels[-1]
        if self.merge:
            semantic = self.concatenate(levels[self.first :])
        return Features(fine=fine, semantic=semantic)

    def own_names(self, tensors: dict[str, Value]) -> dict[str, Value]:
        """Rename the tensors of a file of timm's whole model to ours.

        timm's feature networks flatten one level of the names, or put `model.` before them.
        """
        own = self.state_dict().keys()

        def name(key: str) -> str:
            candidates = (f"net.{key}", f"net.{key.replace('.', '_', 1)}", f"net.model.{key}", key)
            return next((candidate for candidate in candidates if candidate in own), key)

        return {name(key): value for key, value in tensors.items()}
