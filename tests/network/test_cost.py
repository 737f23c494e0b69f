"""What multi-scale costs: operations of a training step, and memory of evaluation."""

from __future__ import annotations

import weakref

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from hmsa.network import build_model
from hmsa.network.inference import tiling
from tests.network.conftest import predicted


def training_flops(multiscale: str, **parts: str) -> int:
    """Forward and backward of one 512 x 1024 crop, counted from shapes alone."""
    with torch.device("meta"):
        model = build_model(**parts, multiscale=multiscale, num_classes=19).train()
        image = torch.zeros(1, 3, 512, 1024)
    with FlopCounterMode(display=False) as counter:
        prediction = model(image)
        (
            prediction.logits.sum() + (0 if prediction.aux is None else prediction.aux.sum())
        ).backward()
    return counter.get_total_flops()


@pytest.mark.parametrize(
    "bound, parts",
    [
        (1.28, {"trunk": "resnet50", "decoder": "deeplabv3plus"}),
        pytest.param(1.30, {"trunk": "hrnet_w48", "decoder": "ocr"}, marks=pytest.mark.slow),
    ],
)
def test_a_hierarchical_training_step_costs_little_more_than_the_papers_bound(bound, parts):
    """1.25 is the cost of the scales themselves; the release needs 1.32 and 1.35."""
    assert (
        1.25 < training_flops("hierarchical", **parts) / training_flops("single", **parts) <= bound
    )


def evaluation_flops(multiscale: str, scales: tuple[float, ...]) -> int:
    model = build_model(
        trunk="resnet18", decoder="deeplabv3plus", multiscale=multiscale, num_classes=19
    ).eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, 3, 64, 128), scales=scales)
    return counter.get_total_flops()


def test_one_scale_of_a_hierarchical_model_costs_what_a_single_model_costs():
    assert evaluation_flops("hierarchical", (1.0,)) == evaluation_flops("single", (1.0,))


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all tensors alive, whatever allocates them."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: dict[int, int] = {}
        self.now = self.peak = 0

    def _freed(self, key: int) -> None:
        self.now -= self.sizes.pop(key)

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        result = function(*arguments, **(keywords or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self.sizes:
                    self.sizes[storage._cdata] = storage.nbytes()
                    self.now += storage.nbytes()
                    weakref.finalize(storage, self._freed, storage._cdata)
        self.peak = max(self.peak, self.now)
        return result


def peak_bytes(function, *arguments, **keywords) -> int:
    with torch.no_grad(), LiveBytes() as counter:
        function(*arguments, **keywords)
    return counter.peak


@pytest.fixture
def small_strips(monkeypatch: pytest.MonkeyPatch) -> None:
    """Strips in proportion to a small image: 4 rows of 128 are 32 of 1024."""
    monkeypatch.setattr(tiling, "STRIP", 4)


def straightforward(model, image, scales):
    """Every scale's maps at full size, auxiliary ones too, all kept, then fused: the release."""

    def to(tensor, size):
        return F.interpolate(tensor, size=tuple(size), mode="bilinear", align_corners=False)

    kept, fused = {}, []
    for scale in sorted(scales, reverse=True):
        size = [int(length * scale) for length in image.shape[-2:]]
        decoded = model.decoder(model.trunk(to(image, size)), with_aux=True)
        maps = [to(tensor, size) for tensor in (decoded.logits, decoded.aux) if tensor is not None]
        kept[scale] = maps, to(torch.sigmoid(model.attention(decoded.features)), size)
        if not fused:
            fused = maps
            continue
        attention = kept[scale][1]
        if scale >= 1:
            fused = [
                attention * own + (1 - attention) * to(high, size)
                for own, high in zip(maps, fused, strict=True)
            ]
        else:
            target = fused[0].shape[-2:]
            fused = [
                to(attention * own, target) + (1 - to(attention, target)) * high
                for own, high in zip(maps, fused, strict=True)
            ]
    return fused[0]


@pytest.mark.parametrize(
    "parts",
    [
        {"trunk": "resnet18", "decoder": "deeplabv3plus", "num_classes": 65},
        {"trunk": "hrnet_w18_small", "decoder": "ocr", "num_classes": 65},
        {"trunk": "hrnet_w18_small", "decoder": "fcn", "num_classes": 19},
    ],
    ids=["resnet-deeplab", "hrnet-ocr", "hrnet-fcn"],
)
@pytest.mark.usefixtures("small_strips")
def test_memory_of_evaluation(parts):
    """It does not grow with smaller scales, and is at most half of keeping every scale's maps."""
    model = build_model(**parts, multiscale="hierarchical").eval()
    image = torch.randn(1, 3, 128, 256)
    base = peak_bytes(predicted, model, image, scales=(1.0, 2.0))
    assert peak_bytes(predicted, model, image, scales=(0.5, 1.0, 2.0)) <= base
    assert peak_bytes(predicted, model, image, scales=(0.25, 0.5, 1.0, 2.0)) <= base
    scales = (0.25, 0.5, 1.0, 2.0)
    with torch.no_grad():
        expected = straightforward(model, image, scales)
        found = predicted(model, image, scales=scales).logits
    assert torch.allclose(found, expected, atol=1e-4 * float(expected.abs().max()))
    assert base <= 0.5 * peak_bytes(straightforward, model, image, scales)


@pytest.mark.usefixtures("small_strips")
def test_memory_of_evaluation_hardly_grows_below_scale_one():
    """Where the result is the largest thing alive, a further scale adds its small maps only."""
    model = build_model(
        trunk="resnet18", decoder="deeplabv3plus", num_classes=65, multiscale="hierarchical"
    ).eval()
    image = torch.randn(1, 3, 128, 256)
    alone = peak_bytes(predicted, model, image, scales=(1.0,))
    assert peak_bytes(predicted, model, image, scales=(0.25, 0.5, 1.0)) <= 1.1 * alone
