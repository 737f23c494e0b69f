"""Small parts every trunk, decoder and way of combining scales is made of."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

BATCH_NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm)


class ModelError(ValueError):
    """A wish about a model or its weights that cannot be fulfilled: one sentence for the user, saying what to do."""


def frugal() -> bool:
    """Whether nothing is differentiated, compiled, traced or exported, so that memory may be saved by working in place
    and in strips of rows, with the same numbers."""
    return not (torch.is_grad_enabled() or torch.compiler.is_compiling() or torch.jit.is_tracing())


class BatchNorm(nn.BatchNorm2d):
    """Batch norm that, in evaluation without gradients, overwrites its input: the output of the convolution before it.

    Half the memory of a trunk's largest layers is the copy that `nn.BatchNorm2d` makes.
    """

    def forward(self, tensor: Tensor) -> Tensor:
        if self.training or not frugal() or tensor.dtype != self.weight.dtype:
            return super().forward(tensor)
        assert self.running_mean is not None and self.running_var is not None
        scale = self.weight * torch.rsqrt(self.running_var + self.eps)
        shift = torch.addcmul(self.bias, self.running_mean, scale, value=-1)
        return torch.addcmul(shift.view(1, -1, 1, 1), tensor, scale.view(1, -1, 1, 1), out=tensor)


def resize(tensor: Tensor, size: Sequence[int], *, align_corners: bool) -> Tensor:
    """Bilinear resize of `[N, C, h, w]` to `size` (height, width) without antialiasing: the only resize of this room.

    Half precision is lifted to float32 first: the backward pass of a bf16 upsampling is slow and its rounding costs
    more than one per cent of the loss.
    """
    if tuple(tensor.shape[-2:]) == tuple(size):
        return tensor
    if tensor.dtype in (torch.float16, torch.bfloat16):
        tensor = tensor.float()
    return F.interpolate(tensor, size=tuple(size), mode="bilinear", align_corners=align_corners)


def full_precision(tensor: Tensor) -> AbstractContextManager[object]:
    """Context without autocast on the device of `tensor`, for soft-maxes and products that fp16 or bf16 would spoil."""
    kind = tensor.device.type
    if kind != "meta" and torch.is_autocast_enabled(kind):
        return torch.autocast(kind, enabled=False)
    return nullcontext()


def lifted(tensor: Tensor) -> Tensor:
    """`tensor` in float32 if it is in half precision, else as it is (float64 stays float64)."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


class ConvNorm(nn.Module):
    """Convolution, batch norm and (unless `relu=False`) ReLU: `[N, in, H, W]` to `[N, out, H', W']`."""

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

    One value per channel has no variance, and PyTorch refuses it. The running statistics normalise such a batch (as in
    evaluation) and stay as they are; scale and shift are still learnt. Synchronised batch norm counts the images of
    every process, so it needs no exception.
    """
    lone = pooled.shape[0] * pooled.shape[2] * pooled.shape[3] == 1
    synchronised = isinstance(norm, nn.SyncBatchNorm) or getattr(norm, "synchronised", False)
    if norm.training and lone and not synchronised:
        assert isinstance(norm, nn.BatchNorm2d)
        return F.batch_norm(
            pooled,
            norm.running_mean,
            norm.running_var,
            norm.weight,
            norm.bias,
            False,
            0.0,
            norm.eps,
        )
    return norm(pooled)


@contextmanager
def frozen_statistics(module: nn.Module) -> Iterator[None]:
    """Batch norms inside still use batch statistics but leave their running statistics alone.

    A zero momentum rather than `track_running_stats=False`: the recomputation of a checkpointed stage must save the
    same tensors for the backward pass as the first forward did.
    """
    norms = [part for part in module.modules() if isinstance(part, BATCH_NORMS)]
    kept = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, kept, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, count


def run_stage(
    stage: nn.Module, *inputs: Tensor, save_memory: bool, call: Callable | None = None
) -> Tensor | list[Tensor]:
    """Run a stage; with `save_memory`, in training, keep only its inputs and recompute it in the backward pass.

    Running statistics of batch norm are updated by the first forward only. `call` is the function that runs the stage
    on `inputs` (default: the stage itself).
    """
    function = call or stage
    if not (save_memory and stage.training and torch.is_grad_enabled()):
        return function(*inputs)
    return checkpoint(
        function,
        *inputs,
        use_reentrant=False,
        context_fn=lambda: (nullcontext(), frozen_statistics(stage)),
    )
