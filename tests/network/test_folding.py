"""A model prepared for inference answers as the model it was made from."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hmsa.network import ModelError, Prediction, build_model
from hmsa.network.inference import prepare_for_inference
from tests.network.conftest import predicted


def with_statistics(model: nn.Module) -> nn.Module:
    """Batch norms that do something."""
    generator = torch.Generator().manual_seed(5)
    for part in model.modules():
        if isinstance(part, nn.BatchNorm2d):
            assert part.running_mean is not None and part.running_var is not None
            for values, low, high in (
                (part.weight, 0.5, 1.5),
                (part.bias, -0.3, 0.3),
                (part.running_mean, -0.3, 0.3),
                (part.running_var, 0.5, 2.0),
            ):
                values.data.uniform_(low, high, generator=generator)
    return model.eval()


def norms(model: nn.Module) -> int:
    return sum(isinstance(part, nn.BatchNorm2d) for part in model.modules())


@pytest.mark.parametrize(
    ("trunk", "decoder", "multiscale", "left"),
    [
        # OCR's merging convolution is computed in two halves, so its norm stays.
        ("hrnet_w18_small", "ocr", "hierarchical", 1),
        ("hrnet_w18_small", "fcn", "hierarchical_dual", 0),
        ("resnet18", "deeplabv3plus", "explicit", 0),
        ("resnet50", "deeplabv3plus", "single", 0),
    ],
)
def test_folded_norms_change_nothing_but_rounding(
    trunk: str, decoder: str, multiscale: str, left: int
) -> None:
    torch.manual_seed(0)
    model = with_statistics(
        build_model(trunk=trunk, decoder=decoder, multiscale=multiscale, num_classes=4)
    ).double()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    prepared = prepare_for_inference(model)
    image = torch.randn(1, 3, 96, 128, dtype=torch.float64)
    expected = predicted(model, image, flip=True).logits
    torch.testing.assert_close(
        predicted(prepared, image, flip=True).logits,
        expected,
        atol=1e-10 * float(expected.abs().max()),
        rtol=0,
    )
    assert norms(prepared) == left < norms(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(part.training for part in prepared.modules())


def test_single_precision_agrees_closely() -> None:
    torch.manual_seed(0)
    model = with_statistics(
        build_model(
            trunk="hrnet_w18_small", decoder="ocr", multiscale="hierarchical", num_classes=4
        )
    )
    image = torch.randn(1, 3, 96, 128)
    expected = predicted(model, image).logits
    torch.testing.assert_close(
        predicted(prepare_for_inference(model), image).logits,
        expected,
        atol=1e-4 * float(expected.abs().max()),
        rtol=0,
    )


def test_half_precision_weights_answer_as_autocast_does() -> None:
    torch.manual_seed(0)
    model = with_statistics(
        build_model(
            trunk="resnet18", decoder="deeplabv3plus", multiscale="hierarchical", num_classes=4
        )
    )
    prepared = prepare_for_inference(model, autocast_dtype=torch.bfloat16)
    assert {part.weight.dtype for part in prepared.modules() if isinstance(part, nn.Conv2d)} == {
        torch.bfloat16
    }
    image = torch.randn(1, 3, 96, 128)
    exact = predicted(model, image).logits
    cast = predicted(model, image, autocast_dtype=torch.bfloat16).logits
    half = predicted(prepared, image, autocast_dtype=torch.bfloat16).logits
    assert half.dtype == torch.float32
    assert (half - exact).abs().mean() < 2 * (cast - exact).abs().mean()


class Branching(nn.Module):
    """A convolution that feeds a norm and something else, or a norm behind a ReLU."""

    multiscale, train_scales, num_classes = "single", (1.0,), 4

    def __init__(self, *, relu_between: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.relu_between = relu_between

    def forward(self, image: Tensor) -> Prediction:
        x = self.conv(image)
        return Prediction(
            logits=self.norm(F.relu(x, inplace=True)) if self.relu_between else self.norm(x) + x
        )


@pytest.mark.parametrize("relu_between", [True, False])
def test_what_cannot_be_folded_is_left_alone(relu_between: bool) -> None:
    torch.manual_seed(0)
    model = with_statistics(Branching(relu_between=relu_between))
    prepared = prepare_for_inference(model)
    image = torch.randn(1, 3, 20, 20)
    torch.testing.assert_close(prepared(image).logits, model(image).logits)
    assert norms(prepared) == 1


@pytest.mark.parametrize("fault", ["trunk.layer4.0.bn1.running_var", "decoder.head.output.weight"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_named(fault: str, value: float) -> None:
    model = build_model(trunk="resnet18", decoder="fcn", multiscale="single", num_classes=4)
    with torch.no_grad():
        model.state_dict()[fault].view(-1)[0] = value
    with pytest.raises(ModelError, match=f"{fault} holds values that are no finite numbers"):
        prepare_for_inference(model)


def test_weights_lie_in_channels_last_memory() -> None:
    model = prepare_for_inference(
        build_model(trunk="resnet18", decoder="fcn", multiscale="single", num_classes=4)
    )
    assert all(
        part.weight.is_contiguous(memory_format=torch.channels_last)
        for part in model.modules()
        if isinstance(part, nn.Conv2d)
    )


@pytest.mark.parametrize("width", [1, 5])
def test_no_convolution_computes_an_output_one_column_wide_in_bfloat16(
    width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the CPU torch 2.14 takes memory that nobody wrote for it: NaN, or wrong logits."""
    torch.manual_seed(0)
    model = with_statistics(
        build_model(trunk="resnet18", decoder="fcn", multiscale="single", num_classes=4)
    )
    prepared = prepare_for_inference(model, autocast_dtype=torch.bfloat16)
    image = torch.randn(1, 3, 288, 8 * width)
    with torch.inference_mode():
        expected = model(image).logits

    widths, original = [], F.conv2d

    def watched(maps: Tensor, weight: Tensor, *others: object) -> Tensor:
        result = original(maps, weight, *others)  # type: ignore[arg-type]
        if weight.shape[-1] > 1 and result.shape[-2] < maps.shape[-2]:
            widths.append(result.shape[-1])
        return result

    monkeypatch.setattr(F, "conv2d", watched)
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        found = prepared(image).logits
    assert len(widths) >= 2 and min(widths) > 1
    assert found.shape == expected.shape
    scale = float(expected.abs().max())
    torch.testing.assert_close(found.float(), expected, atol=0.05 * scale, rtol=0)

    # A copy computes with weights of its own.
    twin = copy.deepcopy(prepared)
    for part in prepared.parameters():
        part.fill_(float("nan"))
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(twin(image).logits, found)
