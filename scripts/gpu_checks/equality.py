"""Whether the GPU computes what the CPU computes."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from hmsa.loss import build_criterion
from hmsa.loss.reference import reference_rmi_loss
from hmsa.loss.rmi import rmi_loss
from hmsa.network import InferenceOptions, MultiScaleModel, build_model
from hmsa.network.inference import predict_label

from .findings import Finding, GpuSetup, each_of, not_above, not_below, relative_difference

CLASSES, IGNORE = 19, 255
# Trunk, decoder and the ways of combining scales that are compared with it.
NETWORKS = (
    ("hrnet_w48", "ocr", ("hierarchical",)),
    ("resnet50", "deeplabv3plus", ("single", "hierarchical", "hierarchical_dual", "explicit")),
    ("resnet50", "fcn", ("hierarchical",)),
)
HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}


class StepResult(NamedTuple):
    """What a forward and backward pass gave, on the CPU."""

    logits: Tensor
    loss: Tensor
    gradient: Tensor  # of all parameters in a row, fp64


def check_equality(setup: GpuSetup) -> Iterator[Finding]:
    """Every network in fp32 and half precision, RMI against its definition, and labels."""
    networks = NETWORKS[:1] if setup.rehearsal else NETWORKS
    for trunk, decoder, ways in networks:
        for multiscale in ways:
            compare = partial(_compare_network, trunk=trunk, decoder=decoder, multiscale=multiscale)
            yield from each_of(setup, compare)

    yield from each_of(setup, _compare_rmi, _compare_labels)


def _compare_network(
    setup: GpuSetup, trunk: str, decoder: str, multiscale: str
) -> Iterator[Finding]:
    name = f"{trunk} {decoder} {multiscale}"
    model = network(setup, trunk, decoder, multiscale)
    image, label = noise_batch(setup.size(128, 256))

    wanted = one_step(model, image, label, torch.device("cpu"), dtype=None)
    found = one_step(model, image, label, setup.device, dtype=None)
    yield not_above(
        f"{name}: logits in fp32", relative_difference(found.logits, wanted.logits), 1e-4
    )
    yield not_above(f"{name}: loss in fp32", relative_difference(found.loss, wanted.loss), 1e-5)
    cosine = nn.functional.cosine_similarity(found.gradient, wanted.gradient, dim=0)
    yield not_below(f"{name}: cosine of the gradients", float(cosine), 0.9999)

    # The CPU has no fp16 convolutions worth waiting for, so half precision is the GPU's alone.
    for precision, dtype in HALF.items():
        if setup.device.type == "cuda" or precision == "bf16":
            half = one_step(model, image, label, setup.device, dtype=dtype)
            difference = relative_difference(half.loss, wanted.loss)
            yield not_above(f"{name}: loss in {precision}", difference, 0.02)


def network(setup: GpuSetup, trunk: str, decoder: str, multiscale: str) -> MultiScaleModel:
    """A network with random weights, without dropout: its random numbers differ by device."""
    torch.manual_seed(0)
    model = build_model(**setup.network(trunk, decoder), multiscale=multiscale, num_classes=CLASSES)
    for part in model.modules():
        if isinstance(part, nn.modules.dropout._DropoutNd):
            part.p = 0.0
    return model


def noise_batch(size: tuple[int, int], *, count: int = 2) -> tuple[Tensor, Tensor]:
    """Noise as images [N, 3, H, W], and labels [N, H, W] in blocks, some of them ignored."""
    generator = torch.Generator().manual_seed(1)
    image = torch.randn(count, 3, *size, generator=generator)
    coarse = torch.randint(CLASSES, (count, size[0] // 16, size[1] // 16), generator=generator)
    label = coarse.repeat_interleave(16, 1).repeat_interleave(16, 2)
    label[:, :8] = IGNORE
    return image, label


def one_step(
    model: MultiScaleModel,
    image: Tensor,
    label: Tensor,
    device: torch.device,
    *,
    dtype: torch.dtype | None,
) -> StepResult:
    """Forward and backward of a copy of `model` on `device`, autocast to `dtype`."""
    own: Any = copy.deepcopy(model).to(device).train()
    criterion = build_criterion(num_classes=CLASSES, ignore_label=IGNORE, main="rmi")
    with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
        prediction = own(image.to(device))
    terms = criterion(prediction, label.to(device))
    loss = torch.stack(list(terms.values())).sum()
    loss.backward()

    gradients = [parameter.grad for parameter in own.parameters()]
    gradient = torch.cat([part.flatten().cpu().double() for part in gradients if part is not None])
    return StepResult(prediction.logits.detach().cpu(), loss.detach().cpu(), gradient)


def _compare_rmi(setup: GpuSetup) -> Iterator[Finding]:
    """The fast RMI on the device against the definition in fp64 on the CPU."""
    _, label = noise_batch(setup.size(256, 512))
    generator = torch.Generator().manual_seed(2)
    logits = torch.randn(2, CLASSES, *label.shape[1:], generator=generator)

    wanted = reference_rmi_loss(logits.double(), label, num_classes=CLASSES)
    found = rmi_loss(logits.to(setup.device), label.to(setup.device), num_classes=CLASSES)
    for term, value in wanted.items():
        difference = relative_difference(found[term], value)
        yield not_above(f"RMI against its definition: {term}", difference, 1e-5)


def _compare_labels(setup: GpuSetup) -> Iterator[Finding]:
    """Labels at three scales with mirror images, as auto-labelling makes them."""
    model = network(setup, "resnet50", "deeplabv3plus", "hierarchical").eval()
    image, _ = noise_batch(setup.size(256, 512), count=1)
    options = InferenceOptions(scales=(0.5, 1.0, 2.0), flip=True)

    wanted, _ = predict_label(model, image, options)
    found, _ = predict_label(model.to(setup.device), image.to(setup.device), options)
    share = float((found.cpu() == wanted).double().mean())
    yield not_below("labels that are the CPU's", share, 0.999)
