"""Normalisation on the tensor's device."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hmsa.datasets import normalise


@pytest.fixture
def image() -> torch.Tensor:
    """uint8 [2, 3, 5, 7]."""
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 3, 5, 7), dtype=np.uint8))


def reference(image: torch.Tensor) -> torch.Tensor:
    """(x / 255 - mean) / std in float64, ImageNet's numbers as torchvision documents them."""
    mean = torch.tensor([0.485, 0.456, 0.406], dtype=torch.float64).view(1, 3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225], dtype=torch.float64).view(1, 3, 1, 1)
    return (image.double() / 255 - mean) / std


def test_values(image: torch.Tensor) -> None:
    """float64 exactly, float32 to its rounding, halves rounded once; black is about two deviations
    below the mean.
    """
    expected = reference(image)
    assert torch.allclose(normalise(image, dtype=torch.float64), expected, rtol=0, atol=1e-14)
    assert torch.allclose(normalise(image).double(), expected, rtol=0, atol=1e-6)
    for dtype in (torch.bfloat16, torch.float16):
        assert normalise(image, dtype=dtype).dtype == dtype and torch.equal(
            normalise(image, dtype=dtype), normalise(image).to(dtype)
        )
    assert normalise(torch.zeros(1, 3, 2, 2, dtype=torch.uint8))[
        0, :, 0, 0
    ].tolist() == pytest.approx([-2.1179, -2.0357, -1.8044], abs=1e-4)


@pytest.mark.parametrize("channels_last", [True, False])
def test_layouts(image: torch.Tensor, channels_last: bool) -> None:
    """Channels first, last, or a view of either; the memory format asked for; the input kept."""
    kept = image.clone()
    memory = torch.channels_last if channels_last else torch.contiguous_format
    for given in (
        image,
        image.permute(0, 2, 3, 1),
        image.permute(0, 2, 3, 1).contiguous(),
        image.to(memory_format=torch.channels_last),
    ):
        made = normalise(given, channels_last=channels_last)
        assert (
            made.shape == image.shape
            and made.is_contiguous(memory_format=memory)
            and torch.allclose(made.double(), reference(image), atol=1e-6)
        )
    assert torch.equal(image, kept)


def test_first_use_in_inference_mode_does_not_harm_training() -> None:
    """What is kept between calls must not become an inference tensor."""
    from hmsa.datasets.augment import normalisation

    normalisation._constants.cache_clear()
    image = torch.zeros(1, 3, 4, 4, dtype=torch.uint8)
    with torch.inference_mode():
        normalise(image)
    layer = torch.nn.Conv2d(3, 2, 1)
    layer(normalise(image)).sum().backward()
    assert layer.weight.grad is not None and layer.weight.grad.abs().sum() > 0
    assert not any(
        constant.is_inference()
        for constant in normalisation._constants(torch.device("cpu"), torch.float32)
    )


def test_floats_are_refused() -> None:
    """Normalising twice would go unseen otherwise."""
    with pytest.raises(AssertionError, match="uint8"):
        normalise(torch.zeros(1, 3, 4, 4))
    with pytest.raises(AssertionError, match="3 channels"):
        normalise(torch.zeros(1, 4, 4, 4, dtype=torch.uint8))
