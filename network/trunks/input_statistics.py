"""Weights that were trained with other images than those normalised by ImageNet's statistics.

Every image here is normalised by ImageNet's mean and deviation, in training, evaluation, labelling,
export and the Python interface alike. What a network computes from pixels p normalised by its own
mean m and deviation s is also computed from x = (p - M) / S, ImageNet's, since

    (p - m) / s = x * S / s + (M - m) / s.

The factor goes into the weights of the first convolution, and the constant, which is the same at
every pixel, into its bias or into the mean of the batch norm behind it. Thus a checkpoint needs no
note of which images it takes, and no command can forget it. Only the padding around the image
differs: its zeros stand for ImageNet's mean instead of the network's own.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..layers import ModelError

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@torch.no_grad()
def take_imagenet_images(trunk: nn.Module, *, mean: Sequence[float], std: Sequence[float]) -> None:
    """Change a trunk trained with images of that mean and deviation to take ImageNet's.

    Raises:
        ModelError: the trunk begins with no convolution of three channels, or one that has neither
            a bias nor a batch norm behind it.
    """
    if tuple(mean) == IMAGENET_MEAN and tuple(std) == IMAGENET_STD:
        return

    layers = list(trunk.modules())
    first = next((layer for layer in layers if isinstance(layer, nn.Conv2d)), None)
    if first is None or first.in_channels != 3:
        raise ModelError(
            "the trunk's weights were trained with another normalisation of images, and it does "
            "not begin with a convolution that could take it over: choose another trunk."
        )

    def rows(values: Sequence[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float64).view(1, 3, 1, 1)

    # In double precision, so that the weights are rounded once.
    weight = first.weight.double()
    constant = (weight * (rows(IMAGENET_MEAN) - rows(mean)) / rows(std)).sum((1, 2, 3))
    scaled = weight * rows(IMAGENET_STD) / rows(std)

    # The constant has to be added to the output, or taken from the mean that is subtracted there.
    if first.bias is not None:
        first.bias.add_(constant)
    else:
        following = layers[layers.index(first) + 1 :]
        norm = following[0] if following else None
        running_mean = getattr(norm, "running_mean", None)
        if not isinstance(running_mean, Tensor) or running_mean.shape != constant.shape:
            raise ModelError(
                "the trunk's weights were trained with another normalisation of images, and its "
                "first convolution has neither a bias nor a batch norm that could take it over: "
                "choose another trunk."
            )
        running_mean.sub_(constant)
    first.weight.copy_(scaled)
