"""Trunks declare what they give, take published weights, and save memory at equal numbers."""

from __future__ import annotations

import copy

import pytest
import torch
import torchvision

from hmsa.network import TRUNKS, ModelError, load_trunk_weights
from hmsa.network.layers import resize
from hmsa.network.trunks import build_trunk
from hmsa.network.trunks.hrnet import Exchange

timm = pytest.importorskip("timm")


@pytest.mark.parametrize(
    "name", [*TRUNKS, "timm:resnet18", "timm:convnext_atto", "timm:hrnet_w18_small"]
)
def test_channels_and_strides_are_as_declared(name):
    trunk = build_trunk(name).eval()
    for size in ((64, 96), (37, 51), (3, 1)):
        with torch.no_grad():
            features = trunk(torch.randn(1, 3, *size))
        fine, semantic = features.fine, features.semantic
        for tensor, channels, stride in (
            (fine, trunk.fine_channels, trunk.fine_stride),
            (semantic, trunk.channels, trunk.stride),
        ):
            assert tensor.shape[1] == channels
            if name.startswith("timm") and min(size) < 32:
                continue  # their kernels round small sizes in their own ways
            assert tuple(tensor.shape[2:]) == tuple(-(-length // stride) for length in size)


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_output_stride_changes_resolution_and_no_parameter(name):
    fine, coarse = build_trunk(name, output_stride=8), build_trunk(name, output_stride=16)
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert fine.eval()(image).semantic.shape[-2:] == (8, 8)
        assert coarse.eval()(image).semantic.shape[-2:] == (4, 4)
    shapes = [
        {key: value.shape for key, value in trunk.state_dict().items()} for trunk in (fine, coarse)
    ]
    assert shapes[0] == shapes[1]
    dilations = {
        part.dilation
        for part in fine.layer4.modules()
        if getattr(part, "kernel_size", None) == (3, 3)
    }
    assert dilations == {(4, 4)}  # no multi-grid, the first block included


@pytest.mark.parametrize("name", ["hrnet_w48", "hrnet_w32", "hrnet_w18", "hrnet_w18_small"])
def test_timms_hrnet_fills_ours_completely(name):
    source = timm.create_model(name, pretrained=False)
    trunk = build_trunk(name)
    report = load_trunk_weights(trunk, source.state_dict())
    assert len(report.loaded) == len(trunk.state_dict())
    assert report.skipped == report.unexpected == ()
    key = "stage4.0.fuse_layers.3.0.2.0.weight"
    assert torch.equal(trunk.state_dict()[key], source.state_dict()[key])


def test_the_papers_trunk_has_the_published_size():
    with torch.device("meta"):
        assert (
            sum(parameter.numel() for parameter in build_trunk("hrnet_w48").parameters())
            == 65_325_120
        )


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50", "resnet101"])
def test_torchvisions_resnets_fill_ours_completely(name):
    trunk = build_trunk(name)
    report = load_trunk_weights(trunk, getattr(torchvision.models, name)(weights=None).state_dict())
    assert len(report.loaded) == len(trunk.state_dict())
    assert report.unexpected == ()


@pytest.mark.parametrize(
    "name", ["resnet18", "convnext_atto", "efficientnet_b0", "vit_tiny_patch16_224"]
)
def test_timms_whole_models_fill_the_wrapped_ones(name):
    trunk = build_trunk(f"timm:{name}")
    report = load_trunk_weights(trunk, timm.create_model(name, pretrained=False).state_dict())
    assert report.skipped == ()
    assert len(report.loaded) == len(trunk.state_dict())


def test_a_timm_model_without_dilation_joins_its_levels():
    trunk = build_trunk("timm:dla34")
    assert (trunk.stride, trunk.channels) == (4, 64 + 128 + 256 + 512)


def test_resnet_computes_what_torchvision_computes():
    """Up to the dilated part: at output stride 32, without dilation, all of it would be."""
    source = torchvision.models.resnet18(weights=None).eval()
    trunk = build_trunk("resnet18").eval()
    load_trunk_weights(trunk, source.state_dict())
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        stem = source.maxpool(source.relu(source.bn1(source.conv1(image))))
        assert torch.allclose(trunk(image).fine, source.layer1(stem), atol=1e-5)


def test_exchange_upsamples_bilinearly():
    """timm's classification networks repeat pixels instead, which is another network."""
    exchange = Exchange(channels=[2, 4], blocks=1, align_corners=False).eval()
    fine, coarse = torch.randn(1, 2, 8, 8), torch.randn(1, 4, 4, 4)
    with torch.enable_grad():
        first = exchange.branches[0](fine)
        path = exchange.fuse_layers[0][1](exchange.branches[1](coarse))
        found = exchange(fine, coarse)[0]
    assert torch.allclose(
        found, torch.relu(first + resize(path, (8, 8), align_corners=False)), atol=1e-6
    )


@pytest.mark.parametrize("name", ["hrnet_w18_small", "resnet18", "resnet50", "timm:resnet18"])
def test_activation_checkpointing_changes_no_number(name):
    """Gradients and running statistics (updated once, stages run twice) are equal to the bit."""
    plain = build_trunk(name).train()
    saving = build_trunk(name, activation_checkpointing=True).train()
    saving.load_state_dict(plain.state_dict())
    image = torch.randn(2, 3, 48, 48)
    for trunk in (plain, saving):
        features = trunk(image)
        (features.semantic.square().mean() + features.fine.square().mean()).backward()
    for (key, one), other in zip(plain.named_parameters(), saving.parameters(), strict=True):
        if one.grad is None:  # timm's network has layers whose output nobody asked for
            assert other.grad is None, key
            continue
        assert torch.equal(one.grad, other.grad), key
    for (key, one), other in zip(plain.named_buffers(), saving.buffers(), strict=True):
        assert torch.equal(one, other), key
    assert plain.state_dict()[next(key for key in plain.state_dict() if "num_batches" in key)] == 1


@pytest.mark.parametrize("name", ["hrnet_w18_small", "resnet50"])
def test_activation_checkpointing_keeps_less_for_the_backward_pass(name):
    def saved(checkpointing: bool) -> int:
        trunk = build_trunk(name, activation_checkpointing=checkpointing).train()
        kept = []
        weights = {parameter.data_ptr() for parameter in trunk.parameters()}

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            if tensor.data_ptr() not in weights:
                kept.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            trunk(torch.randn(1, 3, 64, 64))
        return sum(kept)

    assert saved(True) < 0.5 * saved(False)


def test_evaluation_in_place_leaves_the_image_alone():
    for name in ("hrnet_w18_small", "resnet18"):
        trunk = build_trunk(name).eval()
        image = torch.randn(1, 3, 32, 32)
        before = image.clone()
        with torch.no_grad():
            trunk(image)
        assert torch.equal(image, before)
        expected = copy.deepcopy(trunk)(image).semantic  # with gradients: nothing in place
        with torch.no_grad():
            assert torch.allclose(trunk(image).semantic, expected, atol=1e-4)


def test_aligned_corners_reach_the_trunk():
    torch.manual_seed(0)
    image = torch.randn(1, 3, 64, 64)
    plain = build_trunk("hrnet_w18_small").eval()
    aligned = build_trunk("hrnet_w18_small", align_corners=True).eval()
    aligned.load_state_dict(plain.state_dict())
    with torch.no_grad():
        assert not torch.allclose(plain(image).semantic, aligned(image).semantic, atol=1e-3)


def test_a_wrong_trunk_file_is_one_sentence():
    with pytest.raises(ModelError, match="does not fill the trunk"):
        load_trunk_weights(
            build_trunk("resnet50"), torchvision.models.resnet18(weights=None).state_dict()
        )
