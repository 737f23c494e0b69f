"""What the ways of combining scales promise: shapes, which maps exist, no wasted work."""

from __future__ import annotations

import contextlib
import itertools
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from hmsa.network import (
    DECODERS,
    MULTISCALE,
    ModelError,
    build_model,
    fuse_chain,
)
from hmsa.network.model import resized
from tests.network.conftest import predicted

NETWORK = Path(__file__).parents[2] / "network"
SMALL = {"trunk": "resnet18", "decoder": "deeplabv3plus", "num_classes": 5}
OCR = {"trunk": "hrnet_w18_small", "decoder": "ocr", "num_classes": 5, "dropout": 0.0}


def random_image(height: int, width: int, *, count: int = 1) -> torch.Tensor:
    return torch.randn(
        count, 3, height, width, generator=torch.Generator().manual_seed(height * 1000 + width)
    )


@contextlib.contextmanager
def calls(module: torch.nn.Module):
    """Counts how often the module runs."""
    counted = []
    handle = module.register_forward_hook(lambda *_: counted.append(1))
    try:
        yield counted
    finally:
        handle.remove()


@pytest.mark.parametrize("decoder", list(DECODERS))
@pytest.mark.parametrize("multiscale", list(MULTISCALE))
def test_every_combination_trains_and_evaluates(multiscale, decoder):
    model = build_model(
        trunk="hrnet_w18_small", decoder=decoder, multiscale=multiscale, num_classes=4
    )
    image = random_image(64, 96, count=2)
    prediction = model.train()(image)
    assert prediction.logits.shape == (2, 4, 64, 96)
    assert (prediction.aux is not None) == (decoder == "ocr")
    (prediction.logits.sum() + (0 if prediction.aux is None else prediction.aux.sum())).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    with torch.no_grad():
        evaluated = model.eval()(image)
    assert evaluated.logits.shape == (2, 4, 64, 96)
    assert evaluated.aux is None and evaluated.scales is None
    channels = {"single": None, "explicit": 3}.get(multiscale, 1)
    assert (evaluated.attention is None) == (channels is None)
    if channels is not None:
        assert evaluated.attention.shape == (2, channels, 64, 96)
        assert 0 <= evaluated.attention.min() <= evaluated.attention.max() <= 1


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (7, 5), (33, 65), (47, 130)])
@pytest.mark.parametrize("multiscale", list(MULTISCALE))
@pytest.mark.parametrize("parts", [SMALL, OCR], ids=["resnet", "hrnet"])
def test_any_image_size(multiscale, size, parts):
    model = build_model(**parts, multiscale=multiscale).eval()
    with torch.no_grad():
        prediction = model(random_image(*size))
    assert prediction.logits.shape == (1, 5, *size)
    assert prediction.logits.isfinite().all()
    prediction = predicted(model, random_image(*size), keep_scales=True)
    assert prediction.logits.shape == (1, 5, *size)
    for scale, own in prediction.scales.items():
        assert own.logits.shape[-2:] == (max(1, int(size[0] * scale)), max(1, int(size[1] * scale)))


@pytest.mark.parametrize("fuse_at", ["image", "features"])
@pytest.mark.parametrize("multiscale", list(MULTISCALE))
@pytest.mark.parametrize("parts", [SMALL, OCR], ids=["resnet", "hrnet"])
def test_working_in_strips_changes_nothing(multiscale, fuse_at, parts):
    """Inference works in strips, and batch norm in place; with gradients all tensors are whole."""
    model = build_model(**parts, multiscale=multiscale, fuse_at=fuse_at).eval()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    image = random_image(141, 90)
    scales = {"single": (1.0,), "explicit": None}.get(multiscale, (0.5, 1.0, 2.0))
    whole = model(image, scales=scales)
    strips = predicted(model, image, scales=scales, keep_scales=True)
    with torch.no_grad():
        in_place = model(image, scales=scales)
    for found in (strips, in_place):
        assert torch.allclose(
            found.logits, whole.logits, rtol=1e-4, atol=1e-4 * whole.logits.abs().max()
        )
        if whole.attention is not None:
            assert torch.allclose(found.attention, whole.attention, atol=1e-4)


def test_kept_scales_fuse_to_the_same_result():
    model = build_model(**OCR, multiscale="hierarchical").eval()
    image = random_image(70, 97)
    scales = (0.25, 0.5, 1.0, 2.0)
    with torch.no_grad():
        streamed = model(image, scales=scales[::-1])
    kept = predicted(model, image, scales=scales, keep_scales=True)
    assert set(kept.scales) == set(scales)
    assert kept.scales[2.0].attention is None
    assert all(
        kept.scales[scale].attention.shape == (1, 1, int(70 * scale), int(97 * scale))
        for scale in scales[:3]
    )
    assert torch.allclose(kept.logits, streamed.logits, atol=1e-5)
    assert torch.allclose(fuse_chain(kept.scales, size=(70, 97)).logits, kept.logits, atol=1e-5)


def test_kept_scales_have_the_resolution_of_the_features():
    """Enlarged, they are what inference gives for pictures."""
    model = build_model(**OCR, multiscale="hierarchical").eval()
    image = random_image(64, 96)
    with torch.no_grad():
        small = model(image, scales=(0.5, 1.0), keep_scales=True).scales
    large = predicted(model, image, scales=(0.5, 1.0), keep_scales=True).scales
    for scale in (0.5, 1.0):
        assert small[scale].logits.shape[-2:] == (16 * scale, 24 * scale)
        size = large[scale].logits.shape[-2:]
        assert size == (64 * scale, 96 * scale)
        enlarged = resized(small[scale], size, align_corners=False)
        torch.testing.assert_close(enlarged.logits, large[scale].logits, atol=1e-5, rtol=1e-5)


def test_training_keeps_per_scale_logits_for_supervision():
    model = build_model(**OCR, multiscale="hierarchical").train()
    prediction = model(random_image(64, 96, count=2), keep_scales=True)
    assert prediction.scales[0.5].logits.shape == (2, 5, 8, 12)
    assert prediction.scales[1.0].logits.shape == (2, 5, 16, 24)
    prediction.scales[0.5].logits.sum().backward()
    assert model.trunk.conv1.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("parts", [SMALL, OCR], ids=["resnet", "hrnet"])
def test_no_attention_of_the_highest_scale_and_no_auxiliary_maps_in_evaluation(parts):
    model = build_model(**parts, multiscale="hierarchical")
    with calls(model.attention) as trained:
        model.train()(random_image(64, 64, count=2))
    assert len(trained) == 1
    model.eval()
    for scales, expected in (((1.0,), 0), ((0.5, 1.0), 1), ((0.25, 0.5, 1.0, 2.0), 3)):
        with torch.no_grad(), calls(model.attention) as counted, calls(model.trunk) as trunk:
            prediction = model(random_image(64, 64), scales=scales)
        assert (len(counted), len(trunk)) == (expected, len(scales))
        assert prediction.aux is None


def test_a_lone_scale_that_is_kept_shows_its_attention():
    model = build_model(**SMALL, multiscale="hierarchical").eval()
    with torch.no_grad():
        kept = model(random_image(32, 32), scales=(1.0,), keep_scales=True)
    assert kept.scales[1.0].attention.shape == (1, 1, 8, 8)
    kept = predicted(model, random_image(32, 32), scales=(1.0,), keep_scales=True)
    assert kept.scales[1.0].attention.shape == (1, 1, 32, 32)


def test_attention_starts_near_one_half():
    for parts in (SMALL, OCR):
        with torch.no_grad():
            attention = (
                build_model(**parts, multiscale="hierarchical")
                .eval()(random_image(64, 64))
                .attention
            )
        assert (attention - 0.5).abs().max() < 0.2


def test_running_statistics_remember_low_before_high():
    torch.manual_seed(1)
    model = build_model(**SMALL, multiscale="hierarchical")
    image = random_image(64, 64, count=2)
    order = []
    handle = model.trunk.register_forward_hook(
        lambda _module, inputs, _output: order.append(inputs[0].shape[-1])
    )
    model.train()(image)
    model.eval()(image)
    handle.remove()
    assert order == [32, 64, 64, 32]


def test_explicit_order_and_weights():
    model = build_model(**SMALL, multiscale="explicit")
    order = []
    model.trunk.register_forward_hook(
        lambda _module, inputs, _output: order.append(inputs[0].shape[-1])
    )
    prediction = model.train()(random_image(64, 64, count=2), keep_scales=True)
    assert order == [64, 32, 128]  # 1.0 first, as the release concatenates them
    assert torch.allclose(prediction.attention.sum(dim=1), torch.ones(2, 64, 64), atol=1e-5)
    # Each scale's logits at the size of its scaled image, then of the image.
    at_own_size = [
        F.interpolate(part.logits, size=(int(64 * scale), int(64 * scale)), mode="bilinear")
        for scale, part in sorted(prediction.scales.items())
    ]
    at_image_size = [
        F.interpolate(logits, size=(64, 64), mode="bilinear") for logits in at_own_size
    ]
    expected = sum(
        prediction.attention[:, index : index + 1] * logits
        for index, logits in enumerate(at_image_size)
    )
    assert torch.allclose(
        prediction.logits, expected, atol=1e-4 * float(expected.detach().abs().max())
    )


def test_explicit_attention_does_not_grow_with_the_features():
    """Without batch norm its soft-max ends at one scale as the features grow."""
    model = build_model(**SMALL, multiscale="explicit").train()
    features = torch.rand(2, 3 * model.decoder.feature_channels, 8, 8)
    small, large = (model.attention(features * size).softmax(dim=1) for size in (1, 1000))
    assert torch.allclose(small, large, atol=1e-3) and large.max() < 0.99


def test_explicit_needs_as_many_scales_as_it_was_built_for():
    model = build_model(**SMALL, multiscale="explicit", train_scales=(0.5, 1.0)).eval()
    assert model(random_image(32, 32), scales=(1.0, 2.0)).attention.shape[1] == 2
    with pytest.raises(ModelError, match="was built for 2 scales"):
        model(random_image(32, 32), scales=(0.5, 1.0, 2.0))


def test_the_dual_attention_reads_both_scales():
    model = build_model(**SMALL, multiscale="hierarchical_dual").eval()
    seen = []
    model.attention.register_forward_hook(
        lambda _module, inputs, _output: seen.append(inputs[0].shape)
    )
    with torch.no_grad():
        model(random_image(64, 96), scales=(0.5, 1.0, 2.0))
    assert seen == [(1, 608, 16, 24), (1, 608, 8, 12)]


@pytest.mark.parametrize("scales", [(0.5, 1.0), (0.5, 1.0, 2.0)])
@pytest.mark.parametrize("parts", [SMALL, OCR], ids=["resnet", "hrnet"])
def test_the_dual_attention_depends_on_the_higher_scale(parts, scales):
    """Not on the lower one twice: it reads [lower, higher resized to the lower], in this order."""
    model = build_model(**parts, multiscale="hierarchical_dual").eval()
    seen = []
    model.attention.register_forward_hook(lambda _module, inputs, _output: seen.append(inputs[0]))
    image = random_image(64, 96)
    with torch.no_grad():
        decoded = {scale: model.decode_at(image, scale).features for scale in scales}
        model(image, scales=scales)
    order = sorted(scales, reverse=True)
    assert len(seen) == len(scales) - 1
    for features, (high, low) in zip(seen, itertools.pairwise(order), strict=True):
        resized_down = F.interpolate(
            decoded[high], size=decoded[low].shape[-2:], mode="bilinear", align_corners=False
        )
        expected = torch.cat([decoded[low], resized_down], dim=1)
        assert torch.allclose(features, expected, atol=1e-4)
        assert not torch.allclose(decoded[low], resized_down, atol=1e-2)


class Operations(torch.utils._python_dispatch.TorchDispatchMode):
    """Names of all operations, those of the backward pass too."""

    def __init__(self) -> None:
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        self.names.add(function.overloadpacket.__name__)
        return function(*arguments, **(keywords or {}))


# What has a backward pass on CUDA that torch.use_deterministic_algorithms(True) refuses and has no
# stand-in for: https://docs.pytorch.org/docs/stable/generated/torch.use_deterministic_algorithms
UNDETERMINED = {
    "upsample_linear1d",
    "upsample_bicubic2d",
    "_adaptive_avg_pool2d",
    "adaptive_max_pool2d",
    "reflection_pad2d",
    "replication_pad2d",
    "grid_sampler_2d",
}


@pytest.mark.parametrize("multiscale", list(MULTISCALE))
@pytest.mark.parametrize("parts", [SMALL, OCR], ids=["resnet", "hrnet"])
def test_a_training_step_can_be_deterministic_on_cuda(parts, multiscale):
    model = build_model(**parts, multiscale=multiscale).train()
    with Operations() as operations:
        model(random_image(40, 48, count=2)).logits.sum().backward()
    assert "convolution_backward" in operations.names
    assert not UNDETERMINED & operations.names


@pytest.mark.parametrize("multiscale", list(MULTISCALE))
def test_a_training_step_compiles_to_one_graph(multiscale):
    """Without slices and `_replace` of named tuples, which torch 2.6 does not compile."""
    torch._dynamo.reset()
    model = build_model(**SMALL, multiscale=multiscale).train()
    model.compile(dynamic=False, fullgraph=True, backend="eager")
    prediction = model(random_image(32, 48, count=2), keep_scales=True)
    assert prediction.logits.shape == (2, 5, 32, 48)
    sources = "".join(path.read_text() for path in NETWORK.rglob("*.py"))
    assert "._replace(" not in sources and "prediction[:" not in sources


@pytest.mark.parametrize("multiscale", ["single", "hierarchical", "explicit"])
@pytest.mark.parametrize("parts", [SMALL, OCR], ids=["resnet", "hrnet"])
def test_crops_too_small_for_batch_norm_are_one_sentence(parts, multiscale):
    """Odd ratios of scales train at any size, unless a channel is left with one value."""
    model = build_model(**parts, multiscale=multiscale, train_scales=(1 / 3, 0.77, 1.0)).train()
    prediction = model(random_image(131, 97))
    prediction.logits.sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.trunk.parameters())
    with pytest.raises(ModelError, match="crops of 1 x 3 pixels in a batch of 1") as caught:
        model(random_image(1, 3))
    assert "\n" not in str(caught.value)


def test_fusing_at_features_is_one_upsampling_of_the_fused_features():
    torch.manual_seed(3)
    model = build_model(**SMALL, multiscale="hierarchical", fuse_at="features").eval()
    image = random_image(64, 96)
    with torch.no_grad():
        found = model(image)
        low, high = (
            model.decoder(model.trunk(part), with_aux=False)
            for part in (F.interpolate(image, size=(32, 48), mode="bilinear"), image)
        )
        attention = torch.sigmoid(model.attention(low.features))

        def up(tensor, size):
            return F.interpolate(tensor, size=size, mode="bilinear")

        fused = up(low.logits * attention, (16, 24)) + (1 - up(attention, (16, 24))) * high.logits
        expected = up(fused, (64, 96))
    scale = expected.abs().max()
    assert torch.allclose(found.logits, expected, atol=1e-4 * scale)
    model.fuse_at = "image"
    with torch.no_grad():
        assert not torch.allclose(model(image).logits, expected, atol=1e-3 * scale)


def test_single_refuses_a_list_of_scales():
    model = build_model(**SMALL, multiscale="single").eval()
    with pytest.raises(ModelError, match="average them"):
        model(random_image(32, 32), scales=(0.5, 1.0))
    with torch.no_grad():
        assert model(random_image(32, 32), scales=(2.0,)).logits.shape == (1, 5, 32, 32)


def test_batch_of_one_trains_where_pooling_leaves_one_value():
    """The paper trains with one image per GPU; the pooled branch keeps its statistics then."""
    model = build_model(**SMALL, multiscale="hierarchical").train()
    before = model.decoder.aspp.pooled.norm.running_mean.clone()
    model(random_image(64, 64)).logits.sum().backward()
    assert model.decoder.aspp.pooled.norm.weight.grad is not None
    assert torch.equal(model.decoder.aspp.pooled.norm.running_mean, before)
    model(random_image(64, 64, count=2))
    assert not torch.equal(model.decoder.aspp.pooled.norm.running_mean, before)


def test_heads_are_every_parameter_outside_the_trunk():
    model = build_model(**SMALL, multiscale="hierarchical")
    heads = {id(parameter) for parameter in model.parameters_of_heads()}
    trunk = {id(parameter) for parameter in model.trunk.parameters()}
    assert heads.isdisjoint(trunk)
    assert len(heads) + len(trunk) == len(list(model.parameters()))


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"trunk": "resnet5"}, "did you mean 'resnet50'"),
        ({"decoder": "oct"}, "did you mean 'ocr'"),
        ({"multiscale": "hierarchic"}, "did you mean 'hierarchical'"),
        ({"fuse_at": "logits"}, "choose one of image, features"),
        ({"head": "old"}, "choose one of release, paper"),
        ({"num_classes": 0}, "at least one class"),
        ({"output_stride": 32}, "choose 8 or 16"),
        ({"train_scales": (0.0, 1.0)}, "0.015625 to 16"),
        ({"trunk": "timm:no_such_model"}, "no model 'no_such_model'"),
    ],
)
def test_wrong_names_and_values_are_one_sentence(wrong, message):
    with pytest.raises(ModelError, match=message) as caught:
        build_model(**{**SMALL, **wrong})
    assert "\n" not in str(caught.value)


def test_the_papers_heads_are_options():
    released = build_model(**OCR, multiscale="hierarchical")
    papers = build_model(**OCR, multiscale="hierarchical", head="paper")
    assert sum(p.numel() for p in papers.decoder.classifier.parameters()) > sum(
        p.numel() for p in released.decoder.classifier.parameters()
    )
    model = build_model(**SMALL, multiscale="hierarchical", head="paper").eval()
    seen = []
    model.attention.register_forward_hook(
        lambda _module, inputs, _output: seen.append(inputs[0].shape[1])
    )
    with torch.no_grad():
        model(random_image(64, 64))
    assert seen == [model.trunk.channels]
