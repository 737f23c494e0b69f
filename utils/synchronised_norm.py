"""Batch normalisation over the images of all ranks, in which the host never waits for a GPU.

One gather forward and one all-reduce backward a layer. torch's own SyncBatchNorm looks in every
layer for ranks without pixels, by masks whose size the host must wait for. Here every rank has
pixels: a batch holds an image of the crop's size at least.
"""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .processes import Processes, add_over_ranks, gather_rows, ranks_in_group

Network = TypeVar("Network", bound=nn.Module)


class _PlainNorm(torch.autograd.Function):
    """The definition in operations of torch that every device has, and that compilers fuse.

    Statistics travel as (mean, sum of squared deviations, count) and are merged after Chan, Golub
    and LeVeque (1979), "Updating formulae and a pairwise algorithm for computing sample variances".
    This does not cancel as E[x^2] - E[x]^2 does, and allows ranks of unequal size.
    """

    @staticmethod
    def forward(
        ctx: Any, image: Tensor, weight: Tensor, bias: Tensor, eps: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        # Statistics in at least fp32, whatever autocast has made of the image [N, C, H, W].
        channels = image.shape[1]
        wide = image.to(torch.promote_types(image.dtype, torch.float32))
        count = wide.new_full((1,), image.numel() // max(channels, 1))
        variance, mean = torch.var_mean(wide, dim=(0, 2, 3), correction=0)

        # A rank without pixels has nan here, and a count of 0 that makes it weigh nothing.
        own = torch.cat([torch.nan_to_num(mean), torch.nan_to_num(variance) * count, count])
        means, squares, counts = gather_rows(own).split([channels, channels, 1], dim=1)

        total = counts.sum()
        mean = (means * counts).sum(0) / total
        variance = (squares + counts * (means - mean) ** 2).sum(0) / total

        ctx.save_for_backward(image, weight, mean, variance, total)
        ctx.eps = eps
        ctx.mark_non_differentiable(mean, variance, total)

        scale = weight.to(wide.dtype)
        result = nn.functional.batch_norm(
            wide, mean, variance, scale, bias.to(wide.dtype), training=False, eps=eps
        )
        return result.to(image.dtype), mean, variance, total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor, None]:
        image, weight, mean, variance, total = ctx.saved_tensors
        wide = gradient.to(mean.dtype)
        inverse = torch.rsqrt(variance + ctx.eps)
        shape = (1, -1, 1, 1)
        normalised = (image.to(mean.dtype) - mean.view(shape)) * inverse.view(shape)

        # Gradients of weight and bias stay this rank's own: DistributedDataParallel averages them.
        bias_gradient = wide.sum((0, 2, 3))
        weight_gradient = (wide * normalised).sum((0, 2, 3))

        # The image's gradient runs through mean and variance, hence through every rank's images.
        sums = torch.cat([bias_gradient, weight_gradient])
        add_over_ranks(sums)
        mean_gradient, mean_product = (sums / total).chunk(2)
        inner = wide - mean_gradient.view(shape) - normalised * mean_product.view(shape)
        result = inner * (inverse * weight.to(mean.dtype)).view(shape)
        return (
            result.to(gradient.dtype),
            weight_gradient.to(weight.dtype),
            bias_gradient.to(weight.dtype),
            None,
        )


class _FusedNorm(torch.autograd.Function):
    """The same by the kernels of torch's SyncBatchNorm, which exist on CUDA alone.

    Source: torch/nn/modules/_functions.py. Statistics travel as (mean, 1 / deviation, count), and
    the kernel that merges them moves the running statistics too.
    """

    @staticmethod
    def forward(
        ctx: Any,
        image: Tensor,
        weight: Tensor,
        bias: Tensor,
        running_mean: Tensor,
        running_var: Tensor,
        momentum: float,
        eps: float,
    ) -> Tensor:
        assert image.numel() > 0, "every rank has pixels"
        image = image.contiguous(memory_format=_memory_format(image))
        channels = image.shape[1]

        mean, inverse = torch.batch_norm_stats(image, eps)
        count = mean.new_full((1,), image.numel() // channels)
        rows = gather_rows(torch.cat([mean, inverse, count]))
        means, inverses, counts = rows.split([channels, channels, 1], dim=1)

        # The counts have the dtype of the running statistics, by which the kernel is chosen.
        mean, inverse = torch.batch_norm_gather_stats_with_counts(
            image,
            means.contiguous(),
            inverses.contiguous(),
            running_mean,
            running_var,
            momentum,
            eps,
            counts.reshape(-1).to(running_mean.dtype),
        )
        ctx.save_for_backward(image, weight, mean, inverse, counts.reshape(-1).to(torch.int32))
        return torch.batch_norm_elemt(image, weight, bias, mean, inverse, eps)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        image, weight, mean, inverse, counts = ctx.saved_tensors
        # The faster kernels want both in channels-last memory.
        gradient = gradient.contiguous(memory_format=_memory_format(image))

        # Gradients of weight and bias stay this rank's own: DistributedDataParallel averages them.
        sums, products, weight_gradient, bias_gradient = torch.batch_norm_backward_reduce(
            gradient, image, mean, inverse, weight, *ctx.needs_input_grad[:3]
        )
        image_gradient = None
        if ctx.needs_input_grad[0]:
            both = torch.cat([sums, products])
            add_over_ranks(both)
            sums, products = both.chunk(2)
            image_gradient = torch.batch_norm_backward_elemt(
                gradient, image, mean, inverse, weight.to(mean.dtype), sums, products, counts
            )
        return image_gradient, weight_gradient, bias_gradient, None, None, None, None


def _memory_format(image: Tensor) -> torch.memory_format:
    """The layout in which the kernels read an image; channels-last also where both would do."""
    if image.is_contiguous(memory_format=torch.channels_last):
        return torch.channels_last
    return torch.contiguous_format


def has_kernels(image: Tensor) -> bool:
    """Whether torch's kernels for synchronised batch norm can be called on this tensor."""
    return image.is_cuda


class SynchronisedBatchNorm(nn.BatchNorm2d):
    """BatchNorm2d over the images of all ranks, on any backend; state-dict keys are BatchNorm2d's.

    torch's SyncBatchNorm refuses CPU tensors, and DistributedDataParallel refuses its subclasses on
    the CPU. `synchronised` tells layers that treat a batch of one image differently that there are
    more images on other ranks.
    """

    synchronised = True
    batches_to_count = 0  # see `network.layers.BatchNorm`

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or ranks_in_group() == 1:
            return super().forward(input)

        # A compiler makes better kernels of the plain operations than it could of calls.
        plain = torch.compiler.is_compiling() or not has_kernels(input)
        if plain or not self.track_running_stats or self.momentum is None:
            result, mean, variance, total = _PlainNorm.apply(
                input, self.weight, self.bias, self.eps
            )
            if self.track_running_stats:
                self._update(mean.detach(), variance.detach(), total.detach())
            return result

        # `training_state.count_batches` adds them up for all layers at once.
        momentum = 0.0
        if self.num_batches_tracked is not None:
            self.batches_to_count += 1
            momentum = self.momentum
        return _FusedNorm.apply(
            input,
            self.weight,
            self.bias,
            self.running_mean,
            self.running_var,
            momentum,
            self.eps,
        )

    @torch.no_grad()
    def _update(self, mean: Tensor, variance: Tensor, total: Tensor) -> None:
        """Move the running statistics towards those of this batch, as nn.BatchNorm2d does."""
        # Without a counter the statistics stay as they are: activation checkpointing may take it
        # away while it runs a layer for the second time on images that have moved them already.
        if self.num_batches_tracked is None:
            return
        assert self.running_mean is not None and self.running_var is not None
        self.num_batches_tracked.add_(1)
        momentum = self.momentum
        if momentum is None:
            momentum = 1.0 / float(self.num_batches_tracked)

        # Running variances are unbiased ones, the batch is normalised by the biased one.
        unbiased = variance * (total / (total - 1).clamp(min=1))
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), momentum)
        self.running_var.lerp_(unbiased.to(self.running_var.dtype), momentum)

    def _save_to_state_dict(self, *arguments: Any) -> None:
        if self.batches_to_count and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(self.batches_to_count)
            self.batches_to_count = 0
        super()._save_to_state_dict(*arguments)


def synchronise_batch_norm(model: Network, processes: Processes) -> Network:
    """`model` with every BatchNorm2d synchronised over the ranks; state-dict keys do not change."""
    if processes.world_size == 1:
        return model
    # Changing the class keeps the parameters, which optimiser and averaged weights may hold.
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.__class__ = SynchronisedBatchNorm
    return model
