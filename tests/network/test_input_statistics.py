"""Weights trained with other images than ImageNet's normalised ones."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from hmsa.datasets.augment import normalisation
from hmsa.network import ModelError
from hmsa.network.trunks.input_statistics import IMAGENET_MEAN, IMAGENET_STD, take_imagenet_images

MEAN, STD = (0.1, 0.5, 0.7), (0.5, 0.25, 0.4)


def rows(values: tuple[float, ...]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64).view(1, 3, 1, 1)


def test_the_statistics_are_those_of_the_images() -> None:
    assert (IMAGENET_MEAN, IMAGENET_STD) == (normalisation.MEAN, normalisation.STD)


@pytest.mark.parametrize("kind", ["bias", "batch norm"])
def test_images_of_imagenet_give_what_own_ones_gave(kind: str) -> None:
    layers: list[nn.Module] = [nn.Conv2d(3, 4, 3, bias=kind == "bias")]
    if kind == "batch norm":
        layers.append(nn.BatchNorm2d(4))
    trunk = nn.Sequential(*layers).double().eval()
    pixels = torch.rand(2, 3, 6, 7, dtype=torch.float64)
    with torch.no_grad():
        expected = trunk((pixels - rows(MEAN)) / rows(STD))
        take_imagenet_images(trunk, mean=MEAN, std=STD)
        found = trunk((pixels - rows(IMAGENET_MEAN)) / rows(IMAGENET_STD))
    torch.testing.assert_close(found, expected)


def test_weights_for_imagenets_images_stay_bit_by_bit() -> None:
    trunk = nn.Sequential(nn.ReLU())  # nothing to change
    take_imagenet_images(trunk, mean=IMAGENET_MEAN, std=IMAGENET_STD)


@pytest.mark.parametrize(
    ("trunk", "words"),
    [
        (nn.Sequential(nn.Linear(3, 3)), "does not begin with a convolution"),
        (nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.ReLU()), "neither a bias nor a batch"),
    ],
)
def test_trunks_that_cannot_be_changed_are_said(trunk: nn.Module, words: str) -> None:
    with pytest.raises(ModelError, match=words):
        take_imagenet_images(trunk, mean=MEAN, std=STD)
