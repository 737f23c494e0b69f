"""Depthwise convolutions that train in bf16 on a CPU as fast as in float32.

oneDNN's backward pass of a depthwise convolution in bf16 takes up to five times as long as the one
in float32, which makes networks of such layers slower in bf16 than without it, although their other
layers are up to five times as fast.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

GRADIENT_OF_IMAGE, GRADIENT_OF_WEIGHT = (True, False, False), (False, True, False)


class Depthwise(nn.Conv2d):
    """A depthwise convolution without bias; in bf16 autocast on a CPU its gradients are float32's.

    With `same` it pads as TensorFlow does: the output has a pixel for every `stride` begun, and
    where the padding is odd, the right and lower borders have more of it.
    """

    def __init__(self, original: nn.Conv2d, *, same: bool) -> None:
        super().__init__(
            original.in_channels,
            original.out_channels,
            original.kernel_size,  # type: ignore[arg-type]
            stride=original.stride,  # type: ignore[arg-type]
            padding=original.padding,  # type: ignore[arg-type]
            dilation=original.dilation,  # type: ignore[arg-type]
            groups=original.groups,
            bias=False,
        )
        self.weight = original.weight
        self.same = same

    def forward(self, input: Tensor) -> Tensor:
        image = input
        if self.same:
            image = self._padded(image)

        # Everywhere else it is an ordinary convolution, bit by bit.
        in_bf16 = (
            image.device.type == "cpu"
            and torch.is_autocast_enabled("cpu")
            and torch.get_autocast_dtype("cpu") == torch.bfloat16
        )
        if in_bf16 and torch.is_grad_enabled() and not torch.compiler.is_compiling():
            arguments = self.stride, self.padding, self.dilation, self.groups
            return _DepthwiseBf16.apply(image, self.weight, *arguments)
        return self._conv_forward(image, self.weight, None)

    def _padded(self, image: Tensor) -> Tensor:
        pads = []
        sizes = zip(image.shape[:1:-1], self.kernel_size[::-1], strict=True)
        for (size, kernel), stride, dilation in zip(
            sizes, self.stride[::-1], self.dilation[::-1], strict=True
        ):
            reach = (-(-size // stride) - 1) * stride + (kernel - 1) * dilation + 1
            missing = max(0, reach - size)
            pads += [missing // 2, missing - missing // 2]
        return F.pad(image, pads)


class _DepthwiseBf16(torch.autograd.Function):
    """Forward in bf16, backward in float32."""

    @staticmethod
    def forward(
        ctx: Any,
        image: Tensor,
        weight: Tensor,
        stride: tuple[int, int],
        padding: tuple[int, int],
        dilation: tuple[int, int],
        groups: int,
    ) -> Tensor:
        image = image.to(torch.bfloat16)
        ctx.save_for_backward(image, weight)
        ctx.arguments = stride, padding, dilation, groups
        return F.conv2d(image, weight.to(torch.bfloat16), None, stride, padding, dilation, groups)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        image, weight = ctx.saved_tensors
        stride, padding, dilation, groups = ctx.arguments
        gradient, wide = gradients[0].float(), weight.float()
        rest = None, stride, padding, dilation, False, (0, 0), groups

        # With stride 1 the gradient of the image is a convolution with the turned kernel, which is
        # faster than the general way where the kernel is dilated.
        reach = [step * (size - 1) for step, size in zip(dilation, weight.shape[2:], strict=True)]
        turned = [full - pad for full, pad in zip(reach, padding, strict=True)]
        if tuple(stride) == (1, 1) and min(turned) >= 0:
            kernel = wide.flip((2, 3))
            of_image = F.conv2d(gradient, kernel, None, 1, turned, dilation, groups)
        else:
            of_image = torch.ops.aten.convolution_backward(
                gradient, image.float(), wide, *rest, GRADIENT_OF_IMAGE
            )[0]
        of_weight = torch.ops.aten.convolution_backward(
            gradient, image.float(), wide, *rest, GRADIENT_OF_WEIGHT
        )[1]
        return of_image.to(image.dtype), of_weight.to(weight.dtype), None, None, None, None


def replace_depthwise(network: nn.Module) -> None:
    """Put `Depthwise` in the place of the depthwise convolutions of a network of timm."""
    for module in list(network.modules()):
        for name, layer in list(module.named_children()):
            kind = type(layer).__name__
            if not isinstance(layer, nn.Conv2d) or kind not in ("Conv2d", "Conv2dSame"):
                continue
            is_depthwise = 1 < layer.groups == layer.in_channels == layer.out_channels
            plain = layer.bias is None and layer.padding_mode == "zeros"
            if is_depthwise and plain and not isinstance(layer.padding, str):
                setattr(module, name, Depthwise(layer, same=kind == "Conv2dSame"))
