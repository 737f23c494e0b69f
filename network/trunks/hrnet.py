"""HRNetV2: parallel branches of four resolutions that exchange features.

Wang et al., 2019, https://arxiv.org/abs/1908.07919. Parameter names and shapes are those of the
official ImageNet files and of timm. Unlike timm's classification networks, exchange units upsample
bilinearly, as every published segmentation HRNet does.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from ..layers import BatchNorm, Concatenate, initialise_kaiming, resize, run_stage
from .trunk import Features, Trunk


@dataclass(frozen=True)
class HRNetSize:
    """Modules of stages 2 to 4, residual blocks and channels of branches, and the first stage."""

    modules: tuple[int, int, int]
    blocks: int
    width: int
    first_blocks: int = 4
    first_channels: int = 64


SIZES = {
    "hrnet_w48": HRNetSize(modules=(1, 4, 3), blocks=4, width=48),
    "hrnet_w32": HRNetSize(modules=(1, 4, 3), blocks=4, width=32),
    "hrnet_w18": HRNetSize(modules=(1, 4, 3), blocks=4, width=18),
    "hrnet_w18_small": HRNetSize(
        modules=(1, 1, 1), blocks=2, width=16, first_blocks=1, first_channels=32
    ),
}


def conv3x3(inputs: int, outputs: int, *, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and an identity: `[N, C, H, W]` to the same shape."""

    def __init__(self, *, channels: int) -> None:
        super().__init__()
        self.conv1 = conv3x3(channels, channels)
        self.bn1 = BatchNorm(channels)
        self.conv2 = conv3x3(channels, channels)
        self.bn2 = BatchNorm(channels)

    def forward(self, tensor: Tensor) -> Tensor:
        residual = F.relu(self.bn1(self.conv1(tensor)), inplace=True)
        residual = self.bn2(self.conv2(residual))
        return F.relu(residual.add_(tensor), inplace=True)


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolutions; four times `channels` come out."""

    def __init__(self, *, inputs: int, channels: int) -> None:
        super().__init__()
        outputs = 4 * channels
        self.conv1 = nn.Conv2d(inputs, channels, 1, bias=False)
        self.bn1 = BatchNorm(channels)
        self.conv2 = conv3x3(channels, channels)
        self.bn2 = BatchNorm(channels)
        self.conv3 = nn.Conv2d(channels, outputs, 1, bias=False)
        self.bn3 = BatchNorm(outputs)
        self.downsample = None
        if inputs != outputs:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, bias=False), BatchNorm(outputs)
            )

    def forward(self, tensor: Tensor) -> Tensor:
        residual = F.relu(self.bn1(self.conv1(tensor)), inplace=True)
        residual = F.relu(self.bn2(self.conv2(residual)), inplace=True)
        residual = self.bn3(self.conv3(residual))
        identity = tensor if self.downsample is None else self.downsample(tensor)
        return F.relu(residual.add_(identity), inplace=True)


def exchange_path(*, source: int, target: int, channels: list[int]) -> nn.Module:
    """The layers that carry branch `source` to the resolution and channels of branch `target`."""
    if source == target:
        return nn.Identity()

    # To a finer branch: 1x1, then the bilinear upsampling of `Exchange.forward`.
    if source > target:
        return nn.Sequential(
            nn.Conv2d(channels[source], channels[target], 1, bias=False),
            BatchNorm(channels[target]),
        )

    # To a coarser branch: one 3x3 of stride 2 per level; channels change in the last one.
    steps = []
    for _ in range(source, target - 1):
        convolution = conv3x3(channels[source], channels[source], stride=2)
        norm = BatchNorm(channels[source])
        steps.append(nn.Sequential(convolution, norm, nn.ReLU(inplace=True)))
    convolution = conv3x3(channels[source], channels[target], stride=2)
    steps.append(nn.Sequential(convolution, BatchNorm(channels[target])))
    return nn.Sequential(*steps)


class Exchange(nn.Module):
    """One HRNet module: residual blocks on every branch, then every branch receives all others."""

    def __init__(self, *, channels: list[int], blocks: int, align_corners: bool) -> None:
        super().__init__()
        self.align_corners = align_corners
        self.branches = nn.ModuleList(
            nn.Sequential(*(BasicBlock(channels=width) for _ in range(blocks)))
            for width in channels
        )

        # fuse_layers[target][source], the names of the official files.
        levels = range(len(channels))
        self.fuse_layers = nn.ModuleList(
            nn.ModuleList(
                exchange_path(source=source, target=target, channels=channels) for source in levels
            )
            for target in levels
        )

    def forward(self, *tensors: Tensor) -> list[Tensor]:
        branches = [branch(tensor) for branch, tensor in zip(self.branches, tensors, strict=True)]
        return [self._received(branches, target) for target in range(len(branches))]

    def _received(self, branches: list[Tensor], target: int) -> Tensor:
        """The sum of all branches at the resolution of branch `target`."""
        paths = self.fuse_layers[target]
        assert isinstance(paths, nn.ModuleList)
        size, dtype = branches[target].shape[-2:], branches[target].dtype

        total: Tensor | None = None
        for source, (path, branch) in enumerate(zip(paths, branches, strict=True)):
            part = path(branch)
            if source > target:
                part = resize(part, size, align_corners=self.align_corners).to(dtype)
            total = part if total is None else total + part
        assert total is not None
        return F.relu(total)


def transition(*, inputs: list[int], outputs: list[int]) -> nn.ModuleList:
    """Branches for the next stage: kept, re-shaped by a 3x3, or started by a strided 3x3."""
    layers: list[nn.Module] = []
    for index, width in enumerate(outputs):
        if index < len(inputs) and inputs[index] == width:
            layers.append(nn.Identity())
        elif index < len(inputs):
            convolution = conv3x3(inputs[index], width)
            layers.append(nn.Sequential(convolution, BatchNorm(width), nn.ReLU(inplace=True)))
        else:
            # A new branch starts from the coarsest one. It is nested, as in the official files.
            convolution = conv3x3(inputs[-1], width, stride=2)
            step = nn.Sequential(convolution, BatchNorm(width), nn.ReLU(inplace=True))
            layers.append(nn.Sequential(step))
    return nn.ModuleList(layers)


class HRNet(Trunk):
    """`fine` is the finest branch; `semantic` is all four branches at stride 4, concatenated."""

    fine_stride = stride = 4

    def __init__(
        self,
        *,
        size: HRNetSize,
        align_corners: bool = False,
        activation_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.activation_checkpointing = activation_checkpointing
        widths = [size.width * 2**level for level in range(4)]
        self.fine_channels = widths[0]
        self.channels = sum(widths)

        # Stem (stride 4) and the first stage, which has one branch.
        self.conv1 = conv3x3(3, 64, stride=2)
        self.bn1 = BatchNorm(64)
        self.conv2 = conv3x3(64, 64, stride=2)
        self.bn2 = BatchNorm(64)
        wide = 4 * size.first_channels
        blocks = [Bottleneck(inputs=64, channels=size.first_channels)]
        blocks += [
            Bottleneck(inputs=wide, channels=size.first_channels)
            for _ in range(size.first_blocks - 1)
        ]
        self.layer1 = nn.Sequential(*blocks)

        # Three stages of two, three and four branches.
        def stage(modules: int, branches: int) -> nn.Sequential:
            parts = (
                Exchange(
                    channels=widths[:branches], blocks=size.blocks, align_corners=align_corners
                )
                for _ in range(modules)
            )
            return nn.Sequential(*parts)

        self.transition1 = transition(inputs=[wide], outputs=widths[:2])
        self.stage2 = stage(size.modules[0], 2)
        self.transition2 = transition(inputs=widths[:2], outputs=widths[:3])
        self.stage3 = stage(size.modules[1], 3)
        self.transition3 = transition(inputs=widths[:3], outputs=widths)
        self.stage4 = stage(size.modules[2], 4)
        self.concatenate = Concatenate(align_corners=align_corners)
        initialise_kaiming(self)

    def forward(self, image: Tensor) -> Features:
        tensor = F.relu(self.bn1(self.conv1(image)), inplace=True)
        tensor = F.relu(self.bn2(self.conv2(tensor)), inplace=True)
        first = run_stage(self.layer1, tensor, save_memory=self.activation_checkpointing)
        assert isinstance(first, Tensor)
        branches = [first]

        stages = (
            (self.transition1, self.stage2),
            (self.transition2, self.stage3),
            (self.transition3, self.stage4),
        )
        for transitions, modules in stages:
            # The branch that is new in a stage reads the coarsest one before it.
            sources = branches + [branches[-1]] * (len(transitions) - len(branches))
            branches = [layer(source) for layer, source in zip(transitions, sources, strict=True)]
            branches = self._run_modules(branches, modules)

        return Features(fine=branches[0], semantic=self.concatenate(branches))

    def _run_modules(self, branches: list[Tensor], modules: nn.Sequential) -> list[Tensor]:
        for module in modules:
            result = run_stage(module, *branches, save_memory=self.activation_checkpointing)
            assert isinstance(result, list)
            branches = result
        return branches
