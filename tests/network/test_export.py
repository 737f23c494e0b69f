"""Models leave PyTorch's eager mode: exported with free image sizes, they compute the same."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from hmsa.network import build_model


class Exported(nn.Module):
    """Image to logits at fixed scales."""

    def __init__(self, model: nn.Module, scales: tuple[float, ...] | None) -> None:
        super().__init__()
        self.model = model
        self.scales = scales

    def forward(self, image: Tensor) -> Tensor:
        return self.model(image, scales=self.scales).logits


@pytest.mark.parametrize(
    "multiscale, scales, parts",
    [
        ("single", None, {"trunk": "resnet18", "decoder": "deeplabv3plus"}),
        ("hierarchical", (0.5, 1.0, 2.0), {"trunk": "resnet18", "decoder": "deeplabv3plus"}),
        (
            "hierarchical",
            (0.5, 1.0),
            {"trunk": "hrnet_w18_small", "decoder": "ocr"},
        ),  # a third scale is in tests/scripts/test_export.py
        ("explicit", None, {"trunk": "resnet18", "decoder": "fcn"}),
    ],
    ids=["single", "resnet", "hrnet", "explicit"],
)
def test_torch_export_at_two_sizes(multiscale, scales, parts):
    model = Exported(build_model(**parts, multiscale=multiscale, num_classes=5).eval(), scales)
    free = {"image": {2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}}
    program = torch.export.export(
        model, (torch.randn(1, 3, 160, 224),), dynamic_shapes=free
    ).module()
    for size in ((160, 224), (128, 192)):
        image = torch.randn(1, 3, *size)
        with torch.no_grad():
            expected = model(image)
            found = program(image)
        assert found.shape == (1, 5, *size)
        assert torch.allclose(found, expected, atol=1e-4 * float(expected.abs().max()))
