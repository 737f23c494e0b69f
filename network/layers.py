"""Small parts that trunks, decoders and ways of combining scales are made of."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from hmsa.utils.words import UserError

BATCH_NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm)
HALF_PRECISION = (torch.float16, torch.bfloat16)
Method = TypeVar("Method", bound=Callable)


class ModelError(UserError, ValueError):
    """A model, its weights or its options cannot be what was asked for."""


class RowDependence(NamedTuple):
    """Which rows of the input a row of the output depends on."""

    halo: int  # rows on either side
    overwrites: bool  # the result may be written over the input, which nobody reads afterwards


def row_by_row(*, halo: int, overwrites: bool = False) -> Callable[[Method], Method]:
    """Mark a method of a module: each row of its output needs `halo` input rows on either side.

    The mark changes nothing in training. Inference (`inference/strips.py`) runs marked methods on
    strips of rows of their first argument, so that their hidden features never exist as a whole.
    """

    def mark(method: Method) -> Method:
        method.row_dependence = RowDependence(halo, overwrites)  # type: ignore[attr-defined]
        return method

    return mark


def over_image(method: Method) -> Method:
    """Mark a method of a module whose result depends on all of the image, as a global mean does.

    The mark changes nothing in training. Where inference runs a network on parts of an image
    (`inference/refinement.py`), a marked method gives what it gave for the whole image.
    """
    method.over_image = True  # type: ignore[attr-defined]
    return method


def resize(tensor: Tensor, size: Sequence[int], *, align_corners: bool) -> Tensor:
    """Resize `[N, C, h, w]` bilinearly, without antialiasing, to `size` (height, width).

    Half precision becomes float32 first: the backward pass of a bfloat16 upsampling is slow, and
    its rounding costs more than one per cent of the loss.
    """
    if tuple(tensor.shape[-2:]) == tuple(size):
        return tensor
    tensor = at_least_float32(tensor)
    return F.interpolate(tensor, size=tuple(size), mode="bilinear", align_corners=align_corners)


def at_least_float32(tensor: Tensor) -> Tensor:
    """`tensor` in float32 if it is in half precision, else as it is (float64 stays float64)."""
    return tensor.float() if tensor.dtype in HALF_PRECISION else tensor


class Concatenate(nn.Module):
    """Feature maps `[N, c, h, w]` to one: all at the size and in the dtype of the first.

    A module rather than a function, so that inference can put it off (`inference/strips.py`):
    the concatenated branches of HRNet-W48 are its largest tensor.
    """

    def __init__(self, *, align_corners: bool) -> None:
        super().__init__()
        self.align_corners = align_corners

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        first = maps[0]
        resized = [
            resize(part, first.shape[-2:], align_corners=self.align_corners) for part in maps
        ]
        return torch.cat([part.to(first.dtype) for part in resized], dim=1)


def full_precision(tensor: Tensor) -> AbstractContextManager[object]:
    """A context without autocast, for soft-maxes and products that half precision would spoil."""
    kind = tensor.device.type
    if kind != "meta" and torch.is_autocast_enabled(kind):
        return torch.autocast(kind, enabled=False)
    return nullcontext()


class BatchNorm(nn.BatchNorm2d):
    """Batch norm that overwrites its input in evaluation without gradients.

    Its input is the output of the convolution before it, which nobody else reads. The copy that
    `nn.BatchNorm2d` makes is half the memory of a trunk's largest layers.

    In training off the CPU batches are counted here: to add 1 to `num_batches_tracked` is a kernel
    of its own in each of some hundred layers. `batches_to_count` is what is still to be added, by
    the training for all layers at once, or by `state_dict`.
    """

    batches_to_count = 0

    def forward(self, tensor: Tensor) -> Tensor:
        # A compiler and the exporters want operations that leave their inputs alone.
        traced = torch.compiler.is_compiling() or torch.jit.is_tracing()
        if self.training and not traced and self._counts_later(tensor):
            self.batches_to_count += 1
            return F.batch_norm(
                tensor,
                self.running_mean,
                self.running_var,
                self.weight,
                self.bias,
                training=True,
                momentum=self.momentum,  # type: ignore[arg-type]
                eps=self.eps,
            )

        differentiated = self.training or torch.is_grad_enabled()
        if traced or differentiated or tensor.dtype != self.weight.dtype:
            return super().forward(tensor)

        assert self.running_mean is not None and self.running_var is not None
        scale = self.weight * torch.rsqrt(self.running_var + self.eps)
        shift = torch.addcmul(self.bias, self.running_mean, scale, value=-1)
        return torch.addcmul(shift.view(1, -1, 1, 1), tensor, scale.view(1, -1, 1, 1), out=tensor)

    def _counts_later(self, tensor: Tensor) -> bool:
        """Whether nothing of this batch depends on how many there were before it."""
        counted = self.num_batches_tracked is not None and self.momentum is not None
        return counted and tensor.device.type != "cpu"

    def _save_to_state_dict(self, *arguments: Any) -> None:
        if self.batches_to_count and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(self.batches_to_count)
            self.batches_to_count = 0
        super()._save_to_state_dict(*arguments)


class ConvNorm(nn.Module):
    """Convolution, batch norm, ReLU (unless `relu=False`): `[N, in, H, W]` to `[N, out, h, w]`."""

    def __init__(
        self,
        *,
        inputs: int,
        outputs: int,
        kernel: int = 1,
        stride: int = 1,
        dilation: int = 1,
        bias: bool = False,
        relu: bool = True,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            inputs,
            outputs,
            kernel,
            stride,
            padding=dilation * (kernel // 2),
            dilation=dilation,
            bias=bias,
        )
        self.norm = BatchNorm(outputs)
        self.relu = relu

    def forward(self, tensor: Tensor) -> Tensor:
        tensor = self.norm(self.conv(tensor))
        return F.relu(tensor, inplace=True) if self.relu else tensor


def initialise_kaiming(module: nn.Module) -> None:
    """Kaiming-normal (fan out, ReLU) convolutions, zero biases, unit batch norms, in place."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")
            if part.bias is not None:
                nn.init.zeros_(part.bias)
        elif isinstance(part, BATCH_NORMS):
            nn.init.ones_(part.weight)
            nn.init.zeros_(part.bias)


def normalise_pooled(norm: nn.Module, pooled: Tensor) -> Tensor:
    """Batch norm of globally pooled features `[N, C, 1, 1]` that also trains on a single image.

    One value per channel has no variance, and PyTorch refuses it. The running statistics normalise
    such a batch (as in evaluation) and stay as they are; scale and shift are still learnt.
    Synchronised batch norm counts the images of every process, so it needs no exception.
    """
    one_value = pooled.shape[0] * pooled.shape[2] * pooled.shape[3] == 1
    synchronised = isinstance(norm, nn.SyncBatchNorm) or getattr(norm, "synchronised", False)
    if not (norm.training and one_value) or synchronised:
        return norm(pooled)

    assert isinstance(norm, nn.BatchNorm2d)
    mean, variance = norm.running_mean, norm.running_var
    return F.batch_norm(
        pooled, mean, variance, norm.weight, norm.bias, training=False, eps=norm.eps
    )


@contextmanager
def frozen_statistics(module: nn.Module) -> Iterator[None]:
    """Batch norms inside use the statistics of the batch but leave their running ones alone.

    A zero momentum rather than `track_running_stats=False`: the recomputation of a checkpointed
    stage must save the same tensors for the backward pass as the first forward pass did.
    """
    norms = [part for part in module.modules() if isinstance(part, BATCH_NORMS)]
    kept = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    to_count = [getattr(norm, "batches_to_count", None) for norm in norms]

    # They count batches in a tensor that is thrown away: synchronised batch norms need one.
    counts = [count for _, count in kept if count is not None]
    spare = torch.zeros_like(counts[0]) if counts else None
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, spare

    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, kept, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, count
        for norm, later in zip(norms, to_count, strict=True):
            if later is not None:
                norm.batches_to_count = later  # type: ignore[assignment]


def run_stage(stage: nn.Module, *inputs: Tensor, save_memory: bool) -> Tensor | list[Tensor]:
    """Run a stage; with `save_memory`, in training, recompute it in the backward pass.

    Only the inputs of the stage are kept then. Running statistics of batch norm are updated by the
    first forward pass only.
    """
    if not (save_memory and stage.training and torch.is_grad_enabled()):
        return stage(*inputs)

    # The compiler takes no context, and needs none: its graph updates statistics once, whatever
    # it recomputes.
    if torch.compiler.is_compiling():
        return checkpoint(stage, *inputs, use_reentrant=False)
    return checkpoint(
        stage,
        *inputs,
        use_reentrant=False,
        context_fn=lambda: (nullcontext(), frozen_statistics(stage)),
    )
