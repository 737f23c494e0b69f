"""On a GPU the losses copy nothing to or from the host, and use nothing that is not deterministic.

Fake tensors say they are on a GPU; every operation on them is seen, though none is computed. Their
gradients cannot be taken by autograd where there is no GPU, so the backward passes are called.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from hmsa.loss import LOSSES, build_criterion
from hmsa.loss.fast import binary_terms, region_information, softmax

# Operations that make the host wait for a value.
WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "bincount", "unique")


class Operations(TorchDispatchMode):
    """Notes the names of all operations, and those that involve the host."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.with_host: list[str] = []

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        name = str(function)
        self.names.add(name)
        tensors = [value for value in (*args, result) if isinstance(value, Tensor)]
        devices = {tensor.device.type for tensor in tensors}
        if ("copy" in name and len(devices) > 1) or any(word in name for word in WAITING):
            self.with_host.append(name)
        return result


class Context:
    """Stands for the context of an autograd function."""

    def save_for_backward(self, *tensors: Tensor) -> None:
        self.saved_tensors = tensors


@pytest.fixture
def operations(monkeypatch: pytest.MonkeyPatch) -> Iterator[Operations]:
    """Every operation on fake tensors of a GPU."""
    monkeypatch.setattr(torch.autograd, "grad", lambda output, inputs: (torch.zeros_like(inputs),))
    with FakeTensorMode(), torch.no_grad(), Operations() as seen:
        yield seen


def inputs() -> tuple[Tensor, Tensor]:
    logits = torch.empty(2, 3, 40, 36, device="cuda")
    return logits, torch.zeros(2, 40, 36, dtype=torch.uint8, device="cuda")


@pytest.mark.parametrize("main", LOSSES)
@pytest.mark.parametrize("pool", ["avg", "max", "interp"])
def test_forward(main: str, pool: str, operations: Operations) -> None:
    if main != "rmi" and pool != "avg":
        return
    logits, label = inputs()
    scales = {0.5: SimpleNamespace(logits=torch.empty(2, 3, 5, 5, device="cuda"))}
    prediction = SimpleNamespace(logits=logits, aux=logits, scales=scales)
    criterion = build_criterion(
        num_classes=3, main=main, scale_weight=0.05, image_weights="linear", rmi={"pool": pool}
    )
    count = torch.zeros((), dtype=torch.int64, device="cuda")
    terms = criterion(prediction, label, valid_pixels=count, parts=2)
    assert {term.device.type for term in terms.values()} == {"cuda"}
    assert operations.names and not operations.with_host


@pytest.mark.parametrize(
    ("function", "arguments", "gradients"),
    [
        (softmax._SoftmaxCrossEntropy, (), [(2, 40, 36)]),
        (binary_terms._BinaryTerms, (4, None), [(), (2, 3, 11, 10)]),
        (binary_terms._BinaryTerms, (4, "weights"), [(), (2, 3, 11, 10)]),
    ],
    ids=["softmax", "binary", "binary, weighted"],
)
def test_backward_of_pixels(
    function: Any,
    arguments: tuple[Any, ...],
    gradients: list[tuple[int, ...]],
    operations: Operations,
) -> None:
    logits, label = inputs()
    context = Context()
    if "weights" in arguments:
        arguments = (arguments[0], torch.empty(3, device="cuda"))
    function.forward(context, logits, label, label < 3, *arguments)
    grads = [torch.empty(shape, device="cuda") for shape in gradients]
    assert function.backward(context, *grads)[0].shape == logits.shape
    assert not operations.with_host


def test_backward_of_regions(operations: Operations) -> None:
    context = Context()
    label, error = (
        torch.empty(2, 3, 11, 10, device="cuda"),
        torch.empty(2, 3, 11, 10, device="cuda"),
    )
    offset = torch.empty(11, 10, dtype=torch.float64, device="cuda")
    function: Any = region_information._RegionInformation
    function.forward(context, error, label, offset, 3, 5e-4, 1e-8)
    grad = torch.empty(2, 3, dtype=torch.float64, device="cuda")
    assert function.backward(context, grad)[0].shape == error.shape
    assert not operations.with_host


def test_a_copy_would_be_seen(operations: Operations) -> None:
    torch.zeros(7, device="cuda")[0] = 0
    assert operations.with_host == ["aten.copy_.default"]


def test_deterministic_runs_interpolate_by_what_has_a_deterministic_gradient(
    operations: Operations,
) -> None:
    """torch has a deterministic stand-in for bilinear interpolation on CUDA, none for linear."""
    logits, label = inputs()
    small = torch.empty(2, 3, 5, 5, device="cuda")
    prediction = SimpleNamespace(
        logits=small, aux=small, scales={0.5: SimpleNamespace(logits=small)}
    )
    torch.use_deterministic_algorithms(True)
    build_criterion(num_classes=3, scale_weight=0.05)(prediction, label)
    assert not [name for name in operations.names if "upsample" in name]
    torch.use_deterministic_algorithms(False)
    build_criterion(num_classes=3, scale_weight=0.05)(prediction, label)
    upsampled = [name for name in operations.names if "upsample" in name]
    assert upsampled and all("bilinear2d" in name for name in upsampled)
