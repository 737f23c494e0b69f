"""Attention for anybody's model: it predicts as the model does, and trains a head alone."""

from __future__ import annotations

import copy
import warnings
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hmsa.loss import build_criterion
from hmsa.network import (
    AttachedAttention,
    InferenceOptions,
    ModelError,
    attach_attention,
    build_model,
    load_weights,
)
from hmsa.network.calibration import fit_attention_bias, keep_maps
from hmsa.network.inference import predict, predict_label, prepare_for_inference
from hmsa.network.model import Hierarchical, PairBias, calibrated

CLASSES = 4
SCALES = (0.5, 1.0)


def as_tensor(logits: Tensor) -> Any:
    return logits


def as_tuple(logits: Tensor) -> Any:
    return logits, logits.mean()


def as_list(logits: Tensor) -> Any:
    return [logits]


def as_dict_out(logits: Tensor) -> Any:
    return OrderedDict(aux=logits.flip(1), out=logits)


def as_dict_logits(logits: Tensor) -> Any:
    return {"logits": logits}


def as_object(logits: Tensor) -> Any:
    return SimpleNamespace(logits=logits)


FORMS = (as_tensor, as_tuple, as_list, as_dict_out, as_dict_logits, as_object)


class Tiny(nn.Module):
    """Somebody's network: its strides, the sides it refuses and the form of its output vary."""

    def __init__(
        self,
        form: Callable[[Tensor], Any] = as_tensor,
        *,
        stride: int = 4,
        upsampled: bool = False,
        refuses: int = 1,
    ) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 8, 7, stride=stride, padding=3), nn.BatchNorm2d(8), nn.ReLU(inplace=True)
        )
        self.deep = nn.Sequential(
            nn.Conv2d(8, 12, 3, stride=2, padding=1), nn.BatchNorm2d(12), nn.ReLU(inplace=True)
        )
        self.classify = nn.Conv2d(8 + 12, CLASSES, 1)
        self.tokens, self.channels_last, self.pool, self.several = (
            Reshaped(kind) for kind in KINDS
        )
        self.unused = nn.Conv2d(3, 3, 1)
        self.form, self.upsampled, self.refuses = form, upsampled, refuses

    def forward(self, image: Tensor) -> Any:
        if image.shape[-2] % self.refuses or image.shape[-1] % self.refuses:
            raise AssertionError(f"sides must be divisible by {self.refuses}\nand more")
        low = self.stem(image)
        high = self.deep(low)
        for layer in (self.tokens, self.channels_last, self.pool, self.several):
            layer(high)
        both = torch.cat([low, F.interpolate(high, low.shape[-2:], mode="bilinear")], dim=1)
        logits = self.classify(both)
        if self.upsampled:
            logits = F.interpolate(logits, image.shape[-2:], mode="bilinear")
        return self.form(logits)


KINDS: tuple[Callable[[Tensor], Any], ...] = (
    lambda maps: maps.flatten(2).transpose(1, 2),
    lambda maps: maps.permute(0, 2, 3, 1),
    lambda maps: F.adaptive_avg_pool2d(maps, 2),
    lambda maps: [maps, maps],
)


class Reshaped(nn.Module):
    def __init__(self, kind: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, maps: Tensor) -> Any:
        return self.kind(maps)


def tiny(form: Callable[[Tensor], Any] = as_tensor, **options: Any) -> Tiny:
    """With statistics of batch norm that are not those it starts from."""
    torch.manual_seed(0)
    model = Tiny(form, **options)
    with torch.no_grad():
        for part in model.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.running_mean.normal_(std=0.3)
                part.running_var.uniform_(0.5, 2)
    return model


def attached(model: nn.Module, features: str = "deep", **options: Any) -> AttachedAttention:
    return attach_attention(
        model,
        features=features,
        num_classes=options.pop("num_classes", CLASSES),
        attention_channels=options.pop("attention_channels", 8),
        **options,
    )


def an_image(height: int = 64, width: int = 96, count: int = 1) -> Tensor:
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(1))


def torchvision_model(name: str) -> nn.Module:
    segmentation = pytest.importorskip("torchvision.models.segmentation")
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        options = {"weights": None, "weights_backbone": None, "num_classes": CLASSES}
        return getattr(segmentation, name)(**options)


TORCHVISION = {
    "lraspp_mobilenet_v3_large": "backbone.16",
    "fcn_resnet50": "backbone.layer4",
    "deeplabv3_resnet50": "classifier.3",
}


# --- the model's own prediction ---


def own_prediction(model: nn.Module, image: Tensor, scale: float) -> Tensor:
    """What the model alone says about an image resized by `scale`, at the size of the image."""
    size = tuple(int(side * scale) for side in image.shape[-2:])
    scaled = image
    if scale != 1:
        scaled = F.interpolate(image, size, mode="bilinear")
    output = model(scaled)
    logits = output["out"] if isinstance(output, dict) else output
    at_scale = F.interpolate(logits, size, mode="bilinear")
    return F.interpolate(at_scale, image.shape[-2:], mode="bilinear")


@pytest.mark.parametrize("name", TORCHVISION)
@torch.no_grad()
def test_a_torchvision_model_alone_is_what_extreme_attention_gives(name: str) -> None:
    base = torchvision_model(name).eval()
    expected = {scale: own_prediction(base, an_image(64, 128), scale) for scale in SCALES}
    model = attached(base, TORCHVISION[name]).eval()
    assert model.multiscale == "hierarchical" and isinstance(model, Hierarchical)

    fused = model(an_image(64, 128), scales=SCALES).logits
    for bias, scale in ((50.0, 0.5), (-50.0, 1.0)):
        model.attention_bias = {SCALES: PairBias((bias,))}
        torch.testing.assert_close(model(an_image(64, 128), scales=SCALES).logits, expected[scale])
        assert not torch.allclose(fused, expected[scale])


@pytest.mark.parametrize("stride, upsampled", [(1, False), (3, False), (4, False), (4, True)])
@pytest.mark.parametrize("size", [(64, 96), (37, 53)])
@torch.no_grad()
def test_any_output_stride_and_any_size(
    size: tuple[int, int], stride: int, upsampled: bool
) -> None:
    base = tiny(stride=stride, upsampled=upsampled).eval()
    model = attached(base, multiple_of=1).eval()
    for bias, scale in ((50.0, 0.5), (-50.0, 1.0)):
        model.attention_bias = {SCALES: PairBias((bias,))}
        prediction = model(an_image(*size), scales=SCALES)
        torch.testing.assert_close(prediction.logits, own_prediction(base, an_image(*size), scale))
        assert prediction.attention is not None
        assert prediction.attention.shape == (1, 1, *size)


@pytest.mark.parametrize("form", FORMS)
@torch.no_grad()
def test_logits_are_found_in_every_form(form: Callable[[Tensor], Any]) -> None:
    expected = attached(tiny())
    model = attached(tiny(form))
    model.attention.load_state_dict(expected.attention.state_dict())
    given = model.eval()(an_image(), scales=(0.5, 1, 2)).logits
    assert torch.equal(given, expected.eval()(an_image(), scales=(0.5, 1, 2)).logits)


@torch.no_grad()
def test_a_model_of_ours_can_be_wrapped_too() -> None:
    torch.manual_seed(0)
    base = build_model(trunk="resnet18", decoder="fcn", multiscale="single", num_classes=CLASSES)
    model = attached(base, "trunk.layer4", train_scales=SCALES).eval()
    model.attention_bias = {SCALES: PairBias((-50.0,))}
    torch.testing.assert_close(model(an_image()).logits, base(an_image()).logits)
    options = InferenceOptions(scales=SCALES, flip=True)
    assert predict(model, an_image(), options).logits.shape == (1, CLASSES, 64, 96)


def test_a_concatenation_of_ours_is_read_whole_in_inference() -> None:
    torch.manual_seed(0)
    base = build_model(
        trunk="hrnet_w18_small", decoder="ocr", multiscale="single", num_classes=CLASSES
    )
    model = attached(base, "trunk.concatenate", train_scales=SCALES).eval()
    with torch.no_grad():
        expected = model(an_image()).logits
    options = InferenceOptions(scales=SCALES)
    torch.testing.assert_close(predict(model, an_image(), options).logits, expected)


# --- sizes that the model does not take ---


class Ramp(nn.Module):
    """Logits and features that grow evenly from left to right and down, at a coarse resolution."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.coarse = nn.Identity()

    def forward(self, image: Tensor) -> Tensor:
        assert not image.shape[-1] % self.stride and not image.shape[-2] % self.stride
        rows, columns = (side // self.stride for side in image.shape[-2:])
        down = (torch.arange(rows) + 0.5)[:, None] * self.stride
        right = (torch.arange(columns) + 0.5)[None] * self.stride
        maps = torch.stack([down.expand(rows, columns), right.expand(rows, columns)])
        return self.coarse(maps.expand(image.shape[0], 2, rows, columns))


class FirstChannel(nn.Module):
    """An attention head that shows where its features stand: the log odds of the column."""

    def forward(self, features: Tensor) -> Tensor:
        return features[:, 1:] / 100


@pytest.mark.parametrize("stride", [4, 8, 32])
@pytest.mark.parametrize("size", [(40, 72), (41, 73), (97, 64)])
@torch.no_grad()
def test_what_is_added_is_cut_off_where_the_image_ends(size: tuple[int, int], stride: int) -> None:
    model = attached(Ramp(stride), "coarse", num_classes=2, multiple_of=32).eval()
    model.attention = FirstChannel()
    prediction = model(an_image(*size), scales=(1,))
    assert prediction.logits.shape == (1, 2, *size)

    # A pixel's logits are its own position, but within half a cell of the borders.
    down, right = torch.arange(size[0]) + 0.5, torch.arange(size[1]) + 0.5
    away = slice(stride // 2, -(stride // 2))
    inside = prediction.logits[0, :, away, away]
    torch.testing.assert_close(inside[0], down[away, None].expand_as(inside[0]))
    torch.testing.assert_close(inside[1], right[None, away].expand_as(inside[1]))

    # Attention lies over the same pixels (interpolated after the sigmoid, hence the tolerance).
    own = model.predict_scales(an_image(*size), (1.0,), keep_scales=True)[1.0].attention
    whole = F.interpolate(own, size, mode="bilinear")
    attention = whole[0, 0, away, away]
    expected = torch.sigmoid(right / 100)[None, away].expand_as(attention)
    torch.testing.assert_close(attention, expected, atol=4e-3, rtol=0)


@torch.no_grad()
def test_maps_stay_small_where_the_image_ends_between_two_cells() -> None:
    model = attached(Ramp(4), "coarse", num_classes=2).eval()
    kept = model.predict_scales(an_image(40, 72), (1.0,))[1.0].logits
    assert kept.shape == (1, 2, 10, 18)
    kept = model.predict_scales(an_image(41, 72), (1.0,))[1.0].logits
    assert kept.shape == (1, 2, 41, 72)


@pytest.mark.parametrize("size", [(1, 1), (5, 33), (31, 32), (64, 65)])
@torch.no_grad()
def test_images_of_every_size_reach_the_model_as_multiples(size: tuple[int, int]) -> None:
    model = attached(tiny(refuses=16), multiple_of=16).eval()
    prediction = model(an_image(*size), scales=(0.5, 1, 2))
    assert prediction.logits.shape == (1, CLASSES, *size) and prediction.logits.isfinite().all()


# --- training ---


def test_a_step_of_training_changes_the_head_and_nothing_else() -> None:
    model = attached(torchvision_model("lraspp_mobilenet_v3_large"), "backbone.16")
    model.train()
    assert not any(part.training for part in model.trunk.modules())
    assert all(part.training for part in model.attention.modules())
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    criterion = build_criterion(main="cross_entropy", num_classes=CLASSES)
    parameters = model.parameters_of_heads()
    assert {id(part) for part in parameters} == {id(part) for part in model.attention.parameters()}
    asking = [part for part in model.parameters() if part.requires_grad]
    assert {id(part) for part in asking} == {id(part) for part in parameters}
    optimizer = torch.optim.SGD(asking, lr=0.1)
    prediction = model(an_image(64, 96, count=2), keep_scales=criterion.needs_scales)
    label = torch.randint(0, CLASSES, (2, 64, 96))
    sum(criterion(prediction, label).values()).backward()

    # The gradient reaches every parameter of the head, and no other.
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == name.startswith("attention."), name
    assert all(bool(part.grad.any()) for part in parameters)
    optimizer.step()

    changed = {
        name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])
    }
    assert changed and all(name.startswith("attention.") for name in changed)
    assert any("running_mean" in name for name in changed)


def test_the_attached_model_stays_frozen_whatever_is_frozen_beside_it() -> None:
    model = attached(tiny())
    model.freeze([])
    assert not any(part.training for part in model.train().trunk.modules())
    model.freeze(["trunk", "decoder", "attention"])
    assert not any(part.requires_grad for part in model.parameters())


# --- everything else that a model of ours can do ---


@pytest.mark.parametrize("form", [as_tensor, as_dict_out])
@pytest.mark.parametrize("size", [(128, 160), (101, 131)])
def test_inference_in_strips_with_flip_and_tiles(
    form: Callable[[Tensor], Any], size: tuple[int, int]
) -> None:
    model = attached(tiny(form)).eval()
    image = an_image(*size)
    scales = (0.5, 1.0, 2.0)
    straight = InferenceOptions(scales=scales)
    with torch.no_grad():
        expected = model(image, scales=scales, keep_scales=True)
        mirrored = model(image.flip(-1), scales=scales).logits.flip(-1)
    torch.testing.assert_close(predict(model, image, straight).logits, expected.logits)

    shown = predict(model, image, straight, keep_scales=True)
    assert shown.scales is not None
    assert shown.scales[0.5].logits.shape[-2:] == (size[0] // 2, size[1] // 2)
    torch.testing.assert_close(shown.attention, expected.attention)

    flipped = predict(model, image, InferenceOptions(scales=scales, flip=True)).logits
    torch.testing.assert_close(flipped, (expected.logits + mirrored) / 2)
    options = InferenceOptions(scales=scales, flip=True, tile=(96, 96), overlap=0.5)
    tiled = predict(model, image, options).logits
    assert tiled.shape == expected.logits.shape and tiled.isfinite().all()
    label, confidence = predict_label(model, image, options, with_confidence=True)
    assert torch.equal(label, tiled.argmax(dim=1).to(torch.uint8)) and confidence is not None


def test_it_is_calibrated_like_every_other() -> None:
    model = attached(tiny()).eval()
    with torch.no_grad():
        label = own_prediction(model.trunk, an_image(), 1.0).argmax(dim=1)[0].to(torch.uint8)
    kept = keep_maps(model, an_image(), label, SCALES)
    biases = fit_attention_bias(model, [kept], ignore_label=255)
    lower, higher = (kept.scales[scale] for scale in SCALES)
    trusted = calibrated(lower, higher, biases[SCALES], align_corners=False)
    assert lower.attention is not None and trusted.attention is not None
    assert float(trusted.attention.mean()) < float(lower.attention.mean()) - 0.1


@pytest.mark.parametrize("features", ["deep", "deep.0", "deep.1", "stem.0"])
@torch.no_grad()
def test_a_copy_with_folded_norms_gives_the_same(features: str) -> None:
    model = attached(tiny(), features).eval()
    # Attention that differs much from pixel to pixel, so that other features would show.
    nn.init.normal_(model.attention.output.weight, std=20)
    expected = model(an_image(), scales=SCALES)
    prepared = prepare_for_inference(model)
    given = prepared(an_image(), scales=SCALES)
    torch.testing.assert_close(given.logits, expected.logits, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(given.attention, expected.attention, atol=1e-4, rtol=1e-4)
    # The head and what no features are read from are folded.
    assert sum(isinstance(part, nn.BatchNorm2d) for part in prepared.modules()) <= 1
    assert torch.equal(model(an_image(), scales=SCALES).logits, expected.logits)


@torch.no_grad()
def test_features_are_those_of_the_layer_though_the_model_overwrites_them() -> None:
    model = attached(tiny(), "deep.1").eval()
    read: list[Tensor] = []
    model.attention.register_forward_pre_hook(lambda part, inputs: read.append(inputs[0]))
    model(an_image(), scales=SCALES)
    assert bool((read[0] < 0).any()), "the ReLU after it works in place"


@torch.no_grad()
def test_saved_and_loaded_in_a_new_object_it_answers_the_same(tmp_path: Path) -> None:
    model = attached(tiny()).eval()
    expected = model(an_image()).logits
    torch.save({"model": model.state_dict()}, tmp_path / "model.pt")
    assert torch.equal(copy.deepcopy(model)(an_image()).logits, expected)

    torch.manual_seed(5)
    content = torch.load(tmp_path / "model.pt", weights_only=True)
    other = attached(Tiny()).eval()
    assert not torch.equal(other(an_image()).logits, expected)
    other.load_state_dict(content["model"])
    assert torch.equal(other(an_image()).logits, expected)

    another = attached(Tiny()).eval()
    load_weights(another, tmp_path / "model.pt")
    assert torch.equal(another(an_image()).logits, expected)


@torch.no_grad()
def test_it_works_in_double_precision() -> None:
    model = attached(tiny().double()).eval()
    assert model(an_image().double()).logits.dtype == torch.float64


# --- mistakes ---


def message_of(model: nn.Module, features: str = "deep", **options: Any) -> str:
    with pytest.raises(ModelError) as caught:
        attached(model, features, **options)
    text = str(caught.value)
    assert text.endswith(".") and "\n" not in text and len(text) < 500
    return text


def test_an_unknown_layer_is_named_with_the_nearest_and_with_candidates() -> None:
    text = message_of(tiny(), "depe")
    assert "'depe'" in text and "did you mean 'deep'?" in text
    assert "'deep' (12 channels, 1/8)" in text and "'tokens'" not in text
    text = message_of(torchvision_model("deeplabv3_resnet50"), "backbone.layer5")
    assert "did you mean 'backbone.layer4'?" in text
    assert "'classifier.3' (256 channels, 1/8)" in text and "'classifier.4'" not in text


@pytest.mark.parametrize(
    "layer, shape",
    [
        ("tokens", "[1, 96, 12]"),
        ("channels_last", "[1, 8, 12, 12]"),
        ("pool", "[1, 12, 2, 2]"),
        ("several", "a list"),
    ],
)
def test_a_layer_without_maps_is_named_with_its_shape_and_the_nearest(
    layer: str, shape: str
) -> None:
    text = message_of(tiny(), layer)
    assert f"{layer!r}" in text and shape in text and "'deep' (12 channels, 1/8)" in text


def test_a_layer_that_does_not_run() -> None:
    text = message_of(tiny(), "unused")
    assert "'unused'" in text and "does not run" in text and "'deep'" in text


@pytest.mark.parametrize(
    "form, named",
    [
        (lambda logits: logits.mean(dim=(2, 3)), "[1, 4]"),
        (lambda logits: logits.argmax(dim=1, keepdim=True), "int64"),
        (lambda logits: F.adaptive_avg_pool2d(logits, 1), "[1, 4, 1, 1]"),
        (lambda logits: {"masks": logits}, "'masks'"),
        (lambda logits: SimpleNamespace(masks=logits), "SimpleNamespace"),
        (lambda logits: (), "tuple"),
        (lambda logits: (None, logits), "tuple"),
        (lambda logits: None, "NoneType"),
    ],
)
def test_outputs_that_are_no_logits(form: Callable[[Tensor], Any], named: str) -> None:
    text = message_of(tiny(form))
    assert named in text and "no logits" in text


def test_another_number_of_classes() -> None:
    text = message_of(tiny(), num_classes=19)
    assert f"{CLASSES} classes" in text and "num_classes=19" in text
    assert attach_attention(tiny(), features="deep").num_classes == CLASSES


def test_a_model_that_refuses_the_size() -> None:
    text = message_of(tiny(refuses=64), multiple_of=16)
    assert "32 x 48" in text or "64 x 96" in text
    assert "divisible by 64" in text and "multiple_of" in text and "and more" not in text
    assert "multiple_of is 0" in message_of(tiny(), multiple_of=0)

    # Later than in the trial, too; but a lack of memory is answered with smaller tiles.
    model = attached(tiny(refuses=32), multiple_of=32).eval()
    model.multiple_of = 1
    with pytest.raises(ModelError, match="33 x 64 pixels"):
        model(an_image(33, 64), scales=(1,))


def test_a_lack_of_memory_stays_one(monkeypatch: pytest.MonkeyPatch) -> None:
    model = attached(tiny()).eval()
    forward, tried = model.trunk.forward, []

    def only_small(image: Tensor) -> Any:
        tried.append(tuple(image.shape[-2:]))
        if image.shape[-1] > 128:
            raise torch.OutOfMemoryError("out of memory")
        return forward(image)

    monkeypatch.setattr(model.trunk, "forward", only_small)
    said: list[str] = []
    options = InferenceOptions(scales=SCALES)
    logits = predict(model, an_image(96, 192), options, on_fallback=said.append).logits
    assert logits.shape == (1, CLASSES, 96, 192) and len(said) == 1 and len(tried) > 2


def test_scales_that_make_no_sense() -> None:
    assert "scales" in message_of(tiny(), train_scales=(0.5, 0.5))
