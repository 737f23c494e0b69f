"""Depthwise convolutions: the same numbers, and float32 gradients in bf16 on a CPU."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hmsa.network.trunks.depthwise import Depthwise, replace_depthwise

CASES = [(1, 1, 3), (2, 1, 5), (1, 2, 5), (2, 2, 3)]  # stride, dilation, kernel


def layer(stride: int, dilation: int, kernel: int) -> nn.Conv2d:
    padding = dilation * (kernel // 2)
    return nn.Conv2d(
        8, 8, kernel, stride=stride, padding=padding, dilation=dilation, groups=8, bias=False
    )


@pytest.mark.parametrize("case", CASES)
def test_without_autocast_it_is_an_ordinary_convolution(case: tuple[int, int, int]) -> None:
    original = layer(*case)
    image = torch.randn(2, 8, 17, 22)
    assert torch.equal(Depthwise(original, same=False)(image), original(image))


@pytest.mark.parametrize("case", CASES)
def test_gradients_in_bf16_are_nearly_those_of_float32(case: tuple[int, int, int]) -> None:
    # Values that bf16 holds exactly, so that only sums are rounded.
    original = layer(*case)
    original.weight.data = original.weight.data.bfloat16().float()
    image = torch.randn(2, 8, 17, 22).bfloat16().float().requires_grad_()
    expected = original(image)
    towards = torch.randn_like(expected).bfloat16().float()
    wanted = torch.autograd.grad(expected, (image, original.weight), towards)

    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = Depthwise(original, same=False)(image)
    assert output.dtype == torch.bfloat16
    found = torch.autograd.grad(output, (image, original.weight), towards.bfloat16())
    for one, other in zip(found, wanted, strict=True):
        assert one.dtype == torch.float32
        torch.testing.assert_close(one, other, rtol=1e-2, atol=1e-2 * float(other.abs().max()))


def test_a_network_of_timm_keeps_its_names_and_numbers() -> None:
    timm = pytest.importorskip("timm")
    network = timm.create_model("tf_efficientnet_lite0", features_only=True, output_stride=16)
    network.eval()
    names, image = list(network.state_dict()), torch.randn(1, 3, 45, 67)
    with torch.no_grad():
        expected = network(image)
        replace_depthwise(network)
        found = network(image)
    assert any(isinstance(module, Depthwise) for module in network.modules())
    assert list(network.state_dict()) == names
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
