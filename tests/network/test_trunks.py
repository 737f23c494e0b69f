"""Trunks declare what they give, take published weights, and save memory at equal numbers."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
import torch.nn.functional as F
import torchvision

from hmsa.network import TRUNKS, ModelError, load_trunk_weights
from hmsa.network.layers import resize
from hmsa.network.trunks import build_trunk
from hmsa.network.trunks.hrnet import Exchange, HRNet, HRNetSize

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


@pytest.mark.parametrize(
    "name", ["swin_tiny_patch4_window7_224", "swinv2_tiny_window8_256", "sequencer2d_s"]
)
def test_levels_are_read_in_the_format_that_timm_declares(name):
    """Channels last, where a level has as many rows as channels, and elsewhere (not by shape)."""
    trunk = build_trunk(f"timm:{name}").eval()
    rows = trunk.fine_channels * trunk.fine_stride
    image = torch.randn(1, 3, rows, 64)
    with torch.no_grad():
        outputs = trunk.net(F.pad(image, (0, -64 % trunk.multiple, 0, -rows % trunk.multiple)))
        fine = trunk(image).fine
    assert outputs[trunk.first].shape[-1] == trunk.fine_channels
    expected = outputs[trunk.first].permute(0, 3, 1, 2)
    height, width = fine.shape[-2:]
    assert fine.shape == (1, trunk.fine_channels, trunk.fine_channels, -(-64 // trunk.fine_stride))
    assert torch.allclose(fine, expected[:, :, :height, :width], atol=1e-5)


@pytest.mark.parametrize("name", ["maxvit_rmlp_pico_rw_256", "halonet26t"])
def test_networks_of_windows_take_any_size(name):
    """Images are padded to multiples of their windows, which timm does not declare."""
    trunk = build_trunk(f"timm:{name}").eval()
    for size in ((97, 130), (64, 96)):
        with torch.no_grad():
            features = trunk(torch.randn(1, 3, *size))
        for maps, channels, stride in (
            (features.fine, trunk.fine_channels, trunk.fine_stride),
            (features.semantic, trunk.channels, trunk.stride),
        ):
            expected = (channels, *(-(-side // stride) for side in size))
            assert tuple(maps.shape[1:]) == expected


@pytest.mark.parametrize(
    "name", ["coatnet_pico_rw_224", "levit_128s", "hiera_tiny_224", "coat_lite_tiny"]
)
def test_trunks_of_one_image_size_are_refused_when_they_are_built(name):
    with pytest.raises(ModelError, match=f"timm's '{name}' cannot be a trunk: it fails for"):
        build_trunk(f"timm:{name}")


def test_a_size_that_a_timm_trunk_does_not_take_is_one_sentence():
    trunk = build_trunk("timm:inception_v4").eval()
    with pytest.raises(ModelError, match="inception_v4 does not take an image of 33 x 40") as error:
        trunk(torch.randn(1, 3, 33, 40))
    assert "\n" not in str(error.value)


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


def equal_training_steps(plain: torch.nn.Module, other: torch.nn.Module) -> None:
    """One step of each gives the same gradients and running statistics."""
    image = torch.randn(2, 3, 48, 48)
    for trunk in (plain, other):
        features = trunk(image)
        (features.semantic.square().mean() + features.fine.square().mean()).backward()
    for (key, one), two in zip(plain.named_parameters(), other.parameters(), strict=True):
        close = torch.allclose(one.grad, two.grad, atol=1e-4 * float(one.grad.abs().max()))
        assert close, key
    for (key, one), two in zip(plain.named_buffers(), other.buffers(), strict=True):
        assert torch.allclose(one, two, atol=1e-4 * float(one.abs().max())), key


# All four stages of an HRNet, with one block each.
SHORT = HRNetSize(modules=(1, 1, 1), blocks=1, width=4, first_blocks=1, first_channels=8)


@pytest.mark.parametrize(
    "build", [partial(build_trunk, "resnet18"), partial(HRNet, size=SHORT)], ids=["resnet", "hrnet"]
)
def test_activation_checkpointing_and_the_compiler_go_together(build):
    """Statistics are updated once although stages are recomputed, in one graph without breaks."""
    plain = build().train()
    saving = build(activation_checkpointing=True).train()
    saving.load_state_dict(plain.state_dict())
    saving.compile(dynamic=False, fullgraph=True, backend="aot_eager_decomp_partition")
    equal_training_steps(plain, saving)


class CountingNorm(torch.nn.BatchNorm2d):
    """As synchronised batch norms are: it counts its batches in training, or fails."""

    def forward(self, tensor: torch.Tensor) -> torch.Tensor:
        assert not self.training or self.num_batches_tracked is not None
        return super().forward(tensor)


def test_activation_checkpointing_goes_with_norms_that_count():
    """torch's SyncBatchNorm and ours fail without a count, in the recomputation too."""

    def counting(trunk: torch.nn.Module) -> torch.nn.Module:
        for part in trunk.modules():
            for name, child in part.named_children():
                if isinstance(child, torch.nn.BatchNorm2d):
                    setattr(part, name, CountingNorm(child.num_features))
        return trunk.train()

    plain = counting(build_trunk("resnet18"))
    saving = counting(build_trunk("resnet18", activation_checkpointing=True))
    saving.load_state_dict(plain.state_dict())
    equal_training_steps(plain, saving)
    assert {
        int(count) for key, count in saving.named_buffers() if key.endswith("num_batches_tracked")
    } == {1}


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
