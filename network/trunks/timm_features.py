"""Any feature trunk of timm, when timm is installed: `timm:<name>`."""

from __future__ import annotations

from typing import Any, TypeVar

import torch.nn.functional as F
from torch import Tensor, nn

from ..inference.raster import Joined, Stored, at_size, settled
from ..layers import ModelError, run_stage
from .trunk import Features, Trunk

Value = TypeVar("Value")

# Keywords of those transformers that accept any image size only when asked to.
ANY_SIZE: tuple[dict[str, Any], ...] = (
    {"strict_img_size": False},
    {"dynamic_img_size": True, "dynamic_img_pad": True},
    {},
)


def create_features(name: str, output_stride: int | None) -> tuple[nn.Module, bool]:
    """(timm's feature network without weights, whether it is dilated to the output stride). Raises ModelError."""
    try:
        import timm
    except ImportError as error:
        raise ModelError(
            f"trunk timm:{name} needs timm: pip install timm, or choose a trunk of this project."
        ) from error
    if not timm.is_model(name.split(".")[0]):
        raise ModelError(f"timm {timm.__version__} has no model {name!r}: see timm.list_models().")
    dilation = {"output_stride": output_stride or 8}
    for dilated in (True, False):
        for any_size in ANY_SIZE:
            keywords: dict[str, Any] = {**any_size, **(dilation if dilated else {})}
            try:
                network = timm.create_model(name, pretrained=False, features_only=True, **keywords)
            except (
                TypeError,
                AssertionError,
                NotImplementedError,
                ValueError,
                RuntimeError,
                AttributeError,
            ):
                continue  # this model does not take these keywords
            return network, dilated
    raise ModelError(
        f"timm's {name!r} does not give feature maps: choose a convolutional or hierarchical model."
    )


class TimmFeatures(Trunk):
    """`fine` is the first level of stride 4 or more; `semantic` is the last level where timm can dilate the network.

    Where it cannot, all levels from `fine` on are resized to it and concatenated, as HRNet's branches are.
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
        self.align_corners = align_corners
        self.activation_checkpointing = activation_checkpointing
        self.net, dilated = create_features(name, output_stride)
        info: Any = self.net.feature_info
        levels = list(zip(info.channels(), info.reduction(), strict=True))
        self.first = next(
            (index for index, (_, stride) in enumerate(levels) if stride >= 4), len(levels) - 1
        )
        self.level_channels, self.level_strides = info.channels(), info.reduction()
        self.fine_channels, self.fine_stride = levels[self.first]
        self.merge = not dilated and len({stride for _, stride in levels[self.first :]}) > 1
        self.coarsest = max(self.level_strides)
        if self.merge:
            self.channels, self.stride = sum(self.level_channels[self.first :]), self.fine_stride
        else:
            self.channels, self.stride = levels[-1]

    def forward(self, image: Tensor) -> Features:
        height, width = image.shape[
            -2:
        ]  # transformers and HRNet of timm want multiples of their coarsest stride
        padded = F.pad(image, (0, -width % self.coarsest, 0, -height % self.coarsest))
        outputs = run_stage(self.net, padded, save_memory=self.activation_checkpointing)
        levels = [
            tensor
            if tensor.shape[1] == channels
            else tensor.permute(0, 3, 1, 2)  # some transformers end in channels
            for tensor, channels in zip(outputs, self.level_channels, strict=True)
        ]
        levels = [  # what saw only the border is cut off again
            level[:, :, : -(-height // stride), : -(-width // stride)]
            for level, stride in zip(levels, self.level_strides, strict=True)
        ]
        fine = levels[self.first]
        if not self.merge:
            return Features(fine=Stored(fine), semantic=Stored(levels[-1]))
        size = fine.shape[-2:]
        merged = (
            at_size(Stored(level), size, align_corners=self.align_corners)
            for level in levels[self.first :]
        )
        return Features(fine=Stored(fine), semantic=settled(Joined(*merged)))

    def own_names(self, tensors: dict[str, Value]) -> dict[str, Value]:
        """Names in a file of timm's whole model to ours: timm's feature networks flatten one level, or add `model.`."""
        own = self.state_dict().keys()

        def name(key: str) -> str:
            candidates = (f"net.{key}", f"net.{key.replace('.', '_', 1)}", f"net.model.{key}", key)
            return next((candidate for candidate in candidates if candidate in own), key)

        return {name(key): value for key, value in tensors.items()}
