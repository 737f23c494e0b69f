"""Half precision where it is safe, else single precision; channels-last throughout."""

from __future__ import annotations

import pytest
import torch

from hmsa.network import build_model
from hmsa.network.decoders.ocr import ObjectAttention, gather_regions
from hmsa.network.layers import BatchNorm

OCR = {"trunk": "hrnet_w18_small", "decoder": "ocr", "num_classes": 5}
RESNET = {"trunk": "resnet18", "decoder": "deeplabv3plus", "num_classes": 5}


@pytest.mark.parametrize("parts", [OCR, RESNET], ids=["hrnet", "resnet"])
def test_autocast_trains_and_evaluates_close_to_single_precision(parts):
    torch.manual_seed(0)
    model = build_model(**parts, multiscale="hierarchical").eval()
    image = torch.randn(2, 3, 48, 64)
    with torch.no_grad():
        expected = model(image, scales=(0.5, 1.0, 2.0))
        with torch.autocast("cpu", torch.bfloat16):
            found = model(image, scales=(0.5, 1.0, 2.0))
    assert found.logits.dtype == found.attention.dtype == torch.float32
    scale = float(expected.logits.abs().max())
    assert torch.allclose(found.logits, expected.logits, atol=0.1 * scale)
    with torch.autocast("cpu", torch.bfloat16):
        prediction = model.train()(image)
    assert prediction.logits.dtype == torch.float32
    prediction.logits.square().mean().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_regions_survive_half_precision(dtype):
    """A soft-max over many positions underflows in fp16; its sum must still be one."""
    logits, pixels = torch.randn(1, 3, 256, 256), torch.full((1, 8, 256, 256), 3.0)
    with torch.autocast("cpu", dtype):
        regions = gather_regions(logits.to(dtype), pixels.to(dtype))
    assert regions.dtype == dtype
    assert torch.allclose(regions.float(), torch.full((1, 8, 3, 1), 3.0), rtol=1e-2)


def test_large_similarities_do_not_overflow():
    attention = ObjectAttention(channels=16, key_channels=256).eval()
    pixels, keys, values = (
        torch.randn(1, 16, 4, 4),
        torch.full((1, 256, 3), 100.0),
        torch.randn(1, 256, 3),
    )
    attention.query = torch.nn.Sequential(torch.nn.Conv2d(16, 256, 1))
    torch.nn.init.constant_(attention.query[0].weight, 10.0)
    with torch.no_grad(), torch.autocast("cpu", torch.float16):
        assert (
            attention(pixels, keys, values).isfinite().all()
        )  # 256 * 100 * 160 is far above fp16's 65504


@pytest.mark.parametrize("parts", [OCR, RESNET], ids=["hrnet", "resnet"])
def test_a_model_in_double_or_half_precision(parts):
    model = build_model(**parts, multiscale="hierarchical").eval()
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = model(image)
        double = model.double()(image.double())
        assert double.logits.dtype == torch.float64
        assert torch.allclose(
            double.logits.float(), expected.logits, atol=1e-3 * float(expected.logits.abs().max())
        )
        assert model.bfloat16()(image.bfloat16()).logits.isfinite().all()


@pytest.mark.parametrize("parts", [OCR, RESNET], ids=["hrnet", "resnet"])
def test_channels_last_stays_and_changes_nothing(parts):
    model = build_model(**parts, multiscale="hierarchical").eval()
    image = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        expected = model(image).logits
    model = model.to(memory_format=torch.channels_last)
    layouts = []
    for module in (model.decoder, model.trunk):
        for part in module.modules():
            if isinstance(part, torch.nn.Conv2d) and part.kernel_size == (3, 3):
                part.register_forward_hook(
                    lambda _module, inputs, _output: layouts.append(inputs[0])
                )
    with torch.no_grad():
        found = model(image.to(memory_format=torch.channels_last)).logits
    assert torch.allclose(found, expected, atol=1e-4 * float(expected.abs().max()))
    wide = [tensor for tensor in layouts if tensor.shape[1] > 1 and min(tensor.shape[2:]) > 1]
    assert wide and all(tensor.is_contiguous(memory_format=torch.channels_last) for tensor in wide)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_batch_norm_in_place_is_batch_norm(layout):
    norm = BatchNorm(6)
    norm.load_state_dict(
        {
            "weight": torch.randn(6),
            "bias": torch.randn(6),
            "running_mean": torch.randn(6),
            "running_var": torch.rand(6) + 0.1,
            "num_batches_tracked": torch.tensor(3),
        }
    )
    norm.eval()
    tensor = torch.randn(2, 6, 5, 7).contiguous(memory_format=layout)
    expected = norm(tensor)  # gradients are on: a new tensor
    with torch.no_grad():
        found = norm(tensor)
    assert found is tensor
    assert torch.allclose(found, expected, atol=1e-6)
    assert isinstance(torch.nn.SyncBatchNorm.convert_sync_batchnorm(norm), torch.nn.SyncBatchNorm)


def test_batch_norm_in_training_never_works_in_place():
    norm = BatchNorm(6).train()
    tensor = torch.randn(2, 6, 5, 7)
    before = tensor.clone()
    with torch.no_grad():
        norm(tensor)
    assert torch.equal(tensor, before)
    assert norm.num_batches_tracked == 1
