"""A copy of a model for inference: batch norms folded into convolutions, channels-last memory."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import MethodType
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..layers import BATCH_NORMS, BatchNorm, ModelError

FOLDABLE = (*BATCH_NORMS, BatchNorm)  # these alone: another subclass may do more than normalise
PROBE = 64  # pixels; side of the image that shows which layer feeds which
Model = TypeVar("Model", bound=nn.Module)


@torch.no_grad()
def prepare_for_inference(model: Model, *, autocast_dtype: torch.dtype | None = None) -> Model:
    """A copy of `model` in evaluation mode that gives the same, to rounding, in less time.

    A batch norm that reads the output of a convolution is folded into it (in float64, then
    rounded). With `autocast_dtype` the weights of convolutions are stored in that type, so that
    autocast need not convert them for every image: infer under the same autocast then. The copy is
    not for training, and its state dict has other names.

    Raises:
        ModelError: a weight or running statistic is NaN or infinite, or a logit for noise is.
    """
    prepared = _frozen_copy(model)
    _require_finite(prepared)
    first = next(prepared.parameters())
    probe = torch.randn(1, 3, PROBE, PROBE, generator=torch.Generator().manual_seed(0)).to(first)
    pairs, expected = _pairs(prepared, probe)
    if not expected.isfinite().all():
        raise ModelError(
            "the model gives logits that are NaN or infinite: its weights are too large, so use "
            "another checkpoint or precision."
        )
    _fold_all(prepared, pairs)

    # Where a convolution feeds more than its norm, only the result tells.
    tolerance = 1e-3 * float(expected.abs().max())
    if not torch.allclose(prepared(probe).logits, expected, rtol=1e-3, atol=tolerance):
        prepared = _frozen_copy(model)

    if autocast_dtype is not None:
        for part in prepared.modules():
            if isinstance(part, nn.Conv2d):
                part.to(autocast_dtype)
                if autocast_dtype == torch.bfloat16 and first.device.type == "cpu":
                    _keep_output_wide(part)
    return prepared.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def _keep_output_wide(convolution: nn.Conv2d) -> None:
    """Let a convolution with a stride never compute an output that is one column wide.

    On the CPU torch 2.14 reads memory that nobody wrote for such outputs in bfloat16: the result is
    NaN, or wrong without a sign of it. Columns of zeros on the right, as many as the stride, leave
    the first column of the output as it is.
    """
    kind, stride = type(convolution), convolution.stride[1]
    if stride == 1:
        return

    def forward_wide(self: nn.Conv2d, maps: Tensor) -> Tensor:
        if maps.shape[-1] > stride:
            return kind.forward(self, maps)
        return kind.forward(self, functional.pad(maps, (0, stride)))[..., :1]

    # A bound method: a copy of the model then has its own, with its own weights.
    convolution.forward = MethodType(forward_wide, convolution)  # type: ignore[method-assign]


def _frozen_copy(model: Model) -> Model:
    return copy.deepcopy(model).eval().requires_grad_(False)


def _require_finite(model: nn.Module) -> None:
    """An infinite variance alone would give finite logits, of a layer that is switched off."""
    state = model.state_dict()
    # One copy for all tensors, since the host waits for a GPU in each.
    finite = torch.stack([tensor.isfinite().all() for tensor in state.values()]).tolist()
    for name, is_finite in zip(state, finite, strict=True):
        if not is_finite:
            raise ModelError(
                f"{name} holds values that are no finite numbers: use another checkpoint."
            )


def _pairs(model: nn.Module, probe: Tensor) -> tuple[list[tuple[nn.Conv2d, nn.Module]], Tensor]:
    """Every (convolution, norm) that follow directly upon each other in a forward pass.

    Returned with the logits of that pass.
    """
    # Outputs of convolutions by id; the tensors are kept, so that an id stands for one of them.
    makers: dict[int, tuple[nn.Conv2d, Tensor, int]] = {}
    readers: dict[nn.Module, set[nn.Conv2d | None]] = {}

    def after_convolution(part: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        assert isinstance(part, nn.Conv2d)
        makers[id(output)] = part, output, output._version

    def before_norm(part: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        maker, output, version = makers.get(id(inputs[0]), (None, inputs[0], 0))
        # An operation in place, such as a ReLU between the two, raises the version.
        changed = output._version != version
        readers.setdefault(part, set()).add(None if changed else maker)

    with _hooks(model, after_convolution, before_norm):
        logits = model(probe).logits

    # A convolution is folded where it feeds one norm, and the norm reads it alone.
    pairs = [(next(iter(sources)), norm) for norm, sources in readers.items() if len(sources) == 1]
    uses = Counter(convolution for convolution, _ in pairs)
    foldable = [
        (convolution, norm)
        for convolution, norm in pairs
        if convolution is not None and uses[convolution] == 1
    ]
    return foldable, logits


@contextmanager
def _hooks(model: nn.Module, after_convolution: Callable, before_norm: Callable) -> Iterator[None]:
    handles = []
    for part in model.modules():
        if isinstance(part, nn.Conv2d):
            handles.append(part.register_forward_hook(after_convolution))
        elif type(part) in FOLDABLE:
            handles.append(part.register_forward_pre_hook(before_norm))

    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _fold_all(model: nn.Module, pairs: list[tuple[nn.Conv2d, nn.Module]]) -> None:
    names = {part: name for name, part in model.named_modules()}
    for convolution, norm in pairs:
        _fold(convolution, norm)
        parent, _, name = names[norm].rpartition(".")
        setattr(model.get_submodule(parent), name, nn.Identity().eval())


def _fold(convolution: nn.Conv2d, norm: nn.Module) -> None:
    """norm(w * x + b) = (g w) * x + g (b - mean) + shift, g = scale / sqrt(variance + eps)."""
    assert isinstance(norm, (nn.BatchNorm2d, nn.SyncBatchNorm))
    assert norm.running_mean is not None and norm.running_var is not None

    gain = (_exact(norm.running_var) + norm.eps).rsqrt()
    if norm.weight is not None:
        gain = gain * _exact(norm.weight)
    bias = -_exact(norm.running_mean) * gain
    if convolution.bias is not None:
        bias = bias + _exact(convolution.bias) * gain
    if norm.bias is not None:
        bias = bias + _exact(norm.bias)

    weight = convolution.weight
    convolution.bias = nn.Parameter(bias.to(weight.dtype).to(weight.device), requires_grad=False)
    weight.copy_((_exact(weight) * gain.view(-1, 1, 1, 1)).to(weight.dtype))


def _exact(tensor: Tensor) -> Tensor:
    """A tensor in float64, on the CPU where its device has none."""
    if tensor.device.type == "mps":
        tensor = tensor.cpu()
    return tensor.double()
