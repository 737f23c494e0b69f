"""ResNets from torchvision with dilation instead of the last strides.

The output stride is 8 or 16; see docs/release_notes.md, DeepLab V3+, for the choice of dilations.
"""

from __future__ import annotations

from torch import Tensor, nn

from ..layers import BatchNorm, ModelError, run_stage
from .trunk import Features, Trunk

NAMES = ("resnet18", "resnet34", "resnet50", "resnet101")
DILATIONS = {8: (2, 4), 16: (1, 2)}  # of layer3 and layer4


def dilate(layer: nn.Module, dilation: int) -> None:
    """Turn strides into dilation, in place: every 3x3 dilated alike (no multi-grid)."""
    for part in layer.modules():
        if isinstance(part, nn.Conv2d):
            part.stride = (1, 1)
            if part.kernel_size == (3, 3):
                part.dilation = part.padding = (dilation, dilation)


class ResNet(Trunk):
    """`fine` is layer1 (stride 4), `semantic` is layer4.

    Parameter names are torchvision's, without the classifier.
    """

    fine_stride = 4

    def __init__(
        self, *, name: str, output_stride: int = 8, activation_checkpointing: bool = False
    ) -> None:
        super().__init__()
        if output_stride not in DILATIONS:
            raise ModelError(
                f"output_stride {output_stride} of {name} is not known: choose 8 or 16."
            )

        # Imported here, because it takes seconds that a command without a ResNet need not wait.
        import torchvision

        source = getattr(torchvision.models, name)(weights=None, norm_layer=BatchNorm)
        self.stride = output_stride
        self.activation_checkpointing = activation_checkpointing
        self.conv1 = source.conv1
        self.bn1 = source.bn1
        self.relu = source.relu
        self.maxpool = source.maxpool
        self.layer1 = source.layer1
        self.layer2 = source.layer2
        self.layer3 = source.layer3
        self.layer4 = source.layer4

        last_layers = (self.layer3, self.layer4)
        for layer, dilation in zip(last_layers, DILATIONS[output_stride], strict=True):
            if dilation > 1:
                dilate(layer, dilation)

        self.channels = source.fc.in_features
        expansion = self.channels // 512  # 4 for bottlenecks, 1 for basic blocks
        self.fine_channels = 64 * expansion

    def forward(self, image: Tensor) -> Features:
        tensor = self.maxpool(self.relu(self.bn1(self.conv1(image))))
        fine = self._stage(self.layer1, tensor)
        tensor = fine
        for layer in (self.layer2, self.layer3, self.layer4):
            tensor = self._stage(layer, tensor)
        return Features(fine=fine, semantic=tensor)

    def _stage(self, layer: nn.Module, tensor: Tensor) -> Tensor:
        result = run_stage(layer, tensor, save_memory=self.activation_checkpointing)
        assert isinstance(result, Tensor)
        return result
