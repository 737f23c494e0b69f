"""Attention for models that their own libraries build: small ones, with random weights."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hmsa.network import AttachedAttention, InferenceOptions, attach_attention, load_weights
from hmsa.network.calibration import fit_attention_bias, keep_maps
from hmsa.network.foreign_models import logits_of
from hmsa.network.inference import predict

CLASSES = 4
WIDTHS = [8, 16, 24, 32]
STAGES = ["stage1", "stage2", "stage3", "stage4"]


def unet() -> nn.Module:
    smp = pytest.importorskip("segmentation_models_pytorch")
    return smp.Unet("resnet18", encoder_weights=None, classes=CLASSES)


def smp_segformer() -> nn.Module:
    smp = pytest.importorskip("segmentation_models_pytorch")
    return smp.Segformer(
        "resnet18", encoder_weights=None, classes=CLASSES, decoder_segmentation_channels=32
    )


def segformer() -> nn.Module:
    transformers = pytest.importorskip("transformers")
    config = transformers.SegformerConfig(
        depths=[1] * 4,
        hidden_sizes=WIDTHS,
        decoder_hidden_size=16,
        num_attention_heads=[1, 1, 2, 2],
        num_labels=CLASSES,
    )
    return transformers.SegformerForSemanticSegmentation(config)


def upernet_of_convnext() -> nn.Module:
    transformers = pytest.importorskip("transformers")
    trunk = transformers.ConvNextConfig(depths=[1] * 4, hidden_sizes=WIDTHS, out_features=STAGES)
    config = transformers.UperNetConfig(
        backbone_config=trunk, hidden_size=16, num_labels=CLASSES, use_auxiliary_head=False
    )
    return transformers.UperNetForSemanticSegmentation(config)


def mask2former() -> nn.Module:
    transformers = pytest.importorskip("transformers")
    trunk = transformers.SwinConfig(
        embed_dim=8, depths=[1] * 4, num_heads=[1] * 4, window_size=4, out_features=STAGES
    )
    config = transformers.Mask2FormerConfig(
        backbone_config=trunk,
        num_labels=CLASSES,
        hidden_dim=64,
        feature_size=64,
        mask_feature_size=64,
        encoder_layers=1,
        decoder_layers=2,
        num_attention_heads=2,
        encoder_feedforward_dim=16,
        dim_feedforward=16,
        num_queries=6,
    )
    return transformers.Mask2FormerForUniversalSegmentation(config)


MODELS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "smp Unet": (unet, "decoder"),
    "smp Segformer": (smp_segformer, "decoder"),
    "transformers SegFormer": (segformer, "decode_head.activation"),
    "transformers UperNet, ConvNeXt": (upernet_of_convnext, "decode_head.fpn_bottleneck"),
    "transformers Mask2Former": (mask2former, "model.pixel_level_module.decoder.mask_projection"),
}


def an_image(height: int = 64, width: int = 96, count: int = 1) -> Tensor:
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(1))


def attached(name: str) -> AttachedAttention:
    torch.manual_seed(0)
    build, features = MODELS[name]
    return attach_attention(
        build(), features=features, num_classes=CLASSES, attention_channels=8, train_scales=(0.5, 1)
    )


@pytest.mark.parametrize("name", MODELS)
def test_a_librarys_model_trains_infers_calibrates_and_is_loaded_again(
    name: str, tmp_path: Path
) -> None:
    model = attached(name)
    own = copy.deepcopy(model.trunk.state_dict())

    # A step of training moves the head alone.
    label = torch.randint(0, CLASSES, (1, 64, 96), generator=torch.Generator().manual_seed(2))
    optimizer = torch.optim.SGD(model.parameters_of_heads(), lr=0.1)
    nn.functional.cross_entropy(model.train()(an_image()).logits, label).backward()
    assert all(part.grad is not None for part in model.parameters_of_heads())
    optimizer.step()
    after = model.trunk.state_dict()
    assert all(torch.equal(after[key], tensor) for key, tensor in own.items())

    # At one scale it says what the model says, and it infers like a model of ours.
    model.eval()
    with torch.no_grad():
        alone = logits_of(model.trunk(an_image()), count=1)
        alone = nn.functional.interpolate(alone, (64, 96), mode="bilinear")
        torch.testing.assert_close(model(an_image(), scales=(1,)).logits, alone)
    options = InferenceOptions(scales=(0.5, 1), flip=True, tile=(64, 64), overlap=0.25)
    prediction = predict(model, an_image(70, 101), options)
    assert prediction.logits.shape == (1, CLASSES, 70, 101) and prediction.logits.isfinite().all()

    kept = keep_maps(model, an_image(), label[0].to(torch.uint8), (0.5, 1.0))
    assert list(fit_attention_bias(model, [kept], ignore_label=255)) == [(0.5, 1.0)]

    # Another model of the same make, with the weights of the file, gives the same answer.
    torch.save({"model": model.state_dict()}, tmp_path / "attached.pt")
    torch.manual_seed(5)
    again = attached(name)
    load_weights(again, tmp_path / "attached.pt")
    with torch.no_grad():
        assert torch.equal(again.eval()(an_image()).logits, model(an_image()).logits)


def test_masks_and_their_classes_become_logits_of_classes() -> None:
    """Two masks over half of the pixels each: the soft-max shows each pixel's class."""
    output: Any = type("Output", (), {})()
    output.class_queries_logits = torch.tensor([[[9.0, 0, 0, 0], [0, 9.0, 0, 0]]])
    output.masks_queries_logits = torch.tensor([[[[9.0, -9.0]], [[-9.0, 9.0]]]])
    shares = logits_of(output, count=1).softmax(dim=1)
    assert shares.shape == (1, 3, 1, 2)
    assert shares[0, 0, 0, 0] > 0.99 and shares[0, 1, 0, 1] > 0.99
