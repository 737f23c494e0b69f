"""The region mutual information of pooled maps (Zhao et al., Region Mutual Information Loss, NeurIPS 2019).

For each image and class, all R x R windows of the pooled label and probability maps are points of two R^2-dimensional
distributions; the loss is a lower bound of their mutual information, from the covariances of these points (eq. 8-13).
The covariances are sums over ~1e4 to 1e5 points of which all but a part of order `covariance_epsilon` (5e-4) may cancel,
beyond the 24 bits of fp32: products and sums are fp64. Blocks of maps are widened on the way, never whole maps.
"""
from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .pixels import block_elements


def region_information(
    probability: Tensor, label: Tensor, *, radius: int, covariance_epsilon: float, log_epsilon: float
) -> Tensor:
    """The bound 0.5 logdet(S_y - S_yp (S_p + epsilon)^-1 S_py + epsilon) of each image and class, fp64 [N, C].

    probability, label: fp32 or fp64 [N, C, h, w], pooled; no gradient for `label`. Maps smaller than one window have
    no points, hence zero covariances. Runs outside autocast, without a host synchronisation on a GPU.
    """
    with torch.autocast(probability.device.type, enabled=False):
        return _RegionInformation.apply(probability, label, radius, covariance_epsilon, log_epsilon)


class _RegionInformation(torch.autograd.Function):
    """Keeps the pooled maps and the derivatives by the covariances; the windows are built again in the backward pass."""

    @staticmethod
    def forward(
        ctx: Any, probability: Tensor, label: Tensor, radius: int, covariance_epsilon: float, log_epsilon: float
    ) -> Tensor:
        images, classes, height, width = probability.shape
        pairs = _pairs_to_compute(label)
        maps = torch.stack((label.flatten(0, 1)[pairs], probability.flatten(0, 1)[pairs]), dim=1)
        covariance, mean = _covariances(maps, radius)
        bound, slope = _bound_and_slope(covariance, covariance_epsilon, log_epsilon)
        nothing, _ = _bound_and_slope(covariance.new_zeros(1, *covariance.shape[1:]), covariance_epsilon, log_epsilon)
        result = nothing.expand(images * classes).clone()  # what a class without a labelled pixel in the image has
        result[pairs] = bound
        ctx.save_for_backward(maps, slope, mean, pairs)
        ctx.shape, ctx.radius = probability.shape, radius
        return result.view(images, classes)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None, None]:
        maps, slope, mean, pairs = ctx.saved_tensors
        count = ctx.radius**2
        weights = slope[:, count:] * grad.flatten()[pairs, None, None]
        result = maps.new_zeros(ctx.shape).flatten(0, 1)
        result[pairs] = _probability_gradient(maps, weights, mean, ctx.radius)
        return result.view(ctx.shape), None, None, None, None


def _pairs_to_compute(label: Tensor) -> Tensor:
    """Flat indices of the (image, class) pairs to compute: on the CPU those with labelled pixels, on a GPU all of them.

    A class without labelled pixels has S_y = S_yp = 0: a known bound and no gradient. To find out on a GPU which ones
    they are would make the host wait.
    """
    flat = label.flatten(0, 1).flatten(1)
    if label.device.type != "cpu":
        return torch.arange(len(flat), device=label.device)
    return flat.amax(1).nonzero()[:, 0]


def _blocks(maps: Tensor, radius: int) -> Iterator[slice]:
    """Cut `maps` [B, 2, h, w] along B so that the fp64 windows of a block have the size of a block of class maps."""
    size = max(block_elements(maps.device) // (radius * maps[0].numel()), 1) if len(maps) else 1
    for first in range(0, len(maps), size):
        yield slice(first, first + size)


def _covariances(maps: Tensor, radius: int) -> tuple[Tensor, Tensor]:
    """Un-normalised covariances [B, 2 R^2, 2 R^2] and means [B, 2 R^2] of all windows of (label, probability) maps.

    maps: [B, 2, h, w]. Results fp64, ordered (map, row in the window, column in the window).
    """
    number, _, height, width = maps.shape
    size = 2 * radius**2
    rows, columns = height - radius + 1, width - radius + 1
    if rows < 1 or columns < 1:
        return maps.new_zeros(number, size, size, dtype=torch.float64), maps.new_zeros(number, size, dtype=torch.float64)
    moments = maps.new_empty(number, radius, 2, radius, radius, 2, radius, dtype=torch.float64)
    sums = maps.new_empty(number, 2, radius, radius, dtype=torch.float64)
    for block in _blocks(maps, radius):
        products, row_sums = _row_products(maps[block], radius)
        for upper in range(radius):
            sums[block, :, upper] = row_sums[:, upper : upper + rows].sum(1)
            for lower in range(upper, radius):
                moment = products[lower - upper][:, upper : upper + rows].sum(1)
                moments[block, upper, :, :, lower] = moment
                moments[block, lower, :, :, upper] = moment.permute(0, 3, 4, 1, 2)
    second = moments.permute(0, 2, 1, 3, 5, 4, 6).reshape(number, size, size)
    first = sums.reshape(number, size)
    mean = first / (rows * columns)
    return second - first[:, :, None] * mean[:, None, :], mean


def _row_products(maps: Tensor, radius: int) -> tuple[list[Tensor], Tensor]:
    """Products of rows, summed along them: all that covariances of shifted windows are made of.

    For each distance d < R, [b, h, 2, R, 2, R]: at row r, the scalar product of (map, shifted by column) at r with
    (map', shifted by column') at r + d; and the row sums [b, h, 2, R]. Each pair of rows is multiplied once, not once
    for each place in the window. Rows are taken in groups of R - 1, so that all pairs lie in one group or in two
    neighbours, and a batch of small square matrix products does the work. What reaches below the map is not read.
    """
    number, _, height, width = maps.shape
    group = max(radius - 1, 1)
    groups = -(-height // group)
    columns = width - radius + 1
    windows = maps.new_empty(number, groups, group, 2, radius, columns, dtype=torch.float64)
    whole = height // group
    shifted = maps.unfold(3, columns, 1)  # [b, 2, h, R, columns]
    windows[:, :whole] = shifted[:, :, : whole * group].unflatten(2, (whole, group)).permute(0, 2, 3, 1, 4, 5)
    if whole < groups:
        rest = height - whole * group
        windows[:, whole, :rest] = shifted[:, :, whole * group :].transpose(1, 2)
        windows[:, whole, rest:] = 0
    flat = windows.view(number * groups, group * 2 * radius, columns)
    within = torch.bmm(flat, flat.mT)
    across = torch.zeros_like(within)
    if len(flat) > 1:
        torch.bmm(flat[:-1], flat[1:].mT, out=across[:-1])
    shape = (number, groups, group, 2, radius, group, 2, radius)
    both = torch.cat((within.view(shape), across.view(shape)), dim=5)
    products = [
        torch.stack([both[:, :, row, :, :, row + distance] for row in range(group)], dim=2).flatten(1, 2)
        for distance in range(radius)
    ]
    return products, windows.sum(-1).flatten(1, 2)


def _probability_gradient(maps: Tensor, weights: Tensor, mean: Tensor, radius: int) -> Tensor:
    """Gradient by the probability maps [B, h, w], given weights [B, R^2, 2 R^2] that every window's points are due.

    d S / d point is the centred point, so a window at t owes its pixel t + j the amount weights[j] (windows(t) - mean).
    """
    number, _, height, width = maps.shape
    result = maps.new_zeros(number, height, width)
    rows, columns = height - radius + 1, width - radius + 1
    if rows < 1 or columns < 1:
        return result
    offset = -(weights @ mean[:, :, None])
    weights = weights.unflatten(2, (2, radius, radius))
    for block in _blocks(maps, radius):
        shifted = maps[block].double().unfold(3, columns, 1).permute(0, 1, 3, 2, 4).contiguous().flatten(3).flatten(1, 2)
        due = offset[block].expand(-1, -1, rows * columns)
        for row in range(radius):
            part = shifted[:, :, row * columns : (row + rows) * columns]
            due = torch.baddbmm(due, weights[block, :, :, row].flatten(2), part)
        due = due.view(-1, radius, radius, rows, columns)
        for row in range(radius):
            for column in range(radius):
                result[block, row : row + rows, column : column + columns] += due[:, row, column]
    return result


def _bound_and_slope(covariance: Tensor, covariance_epsilon: float, log_epsilon: float) -> tuple[Tensor, Tensor]:
    """`_bound` [B] and its derivatives by the covariances, symmetrised and doubled: what both points of a pair are due."""
    with torch.enable_grad():
        covariance = covariance.detach().requires_grad_()
        bound = _bound(covariance, covariance_epsilon=covariance_epsilon, log_epsilon=log_epsilon)
        (slope,) = torch.autograd.grad(bound.sum(), covariance)
    return bound.detach(), slope + slope.mT


def _bound(covariance: Tensor, *, covariance_epsilon: float, log_epsilon: float) -> Tensor:
    """0.5 logdet(S_y - S_yp (S_p + epsilon)^-1 S_py + epsilon) [B] of covariances [B, 2 R^2, 2 R^2], differentiable."""
    count = covariance.shape[-1] // 2
    identity = torch.eye(count, dtype=covariance.dtype, device=covariance.device)
    label, mixed, probability = covariance[:, :count, :count], covariance[:, :count, count:], covariance[:, count:, count:]
    factor = _robust_cholesky(probability + covariance_epsilon * identity)
    explained = torch.linalg.solve_triangular(factor, mixed.mT, upper=False)
    remainder = label - explained.mT @ explained
    remainder = 0.5 * (remainder + remainder.mT) + covariance_epsilon * identity
    diagonal = _robust_cholesky(remainder).diagonal(dim1=-2, dim2=-1)
    return (diagonal + log_epsilon).log().sum(-1)  # half of 2 sum(log(diagonal))


def _robust_cholesky(matrices: Tensor) -> Tensor:
    """Cholesky factors [B, n, n]; where rounding made a matrix indefinite, of it plus the least jitter that suffices.

    The jitters are parts of the matrix's own trace, and all are tried at once: the host need not know which one served.
    Not finite in, not finite out.
    """
    steps = torch.tensor((0.0, 1e-12, 1e-10, 1e-8, 1e-6, 1e-4, 1e-2), dtype=matrices.dtype, device=matrices.device)
    identity = torch.eye(matrices.shape[-1], dtype=matrices.dtype, device=matrices.device)
    with torch.no_grad():
        trace = matrices.diagonal(dim1=-2, dim2=-1).abs().sum(-1)
        tried = matrices + (steps[:, None] * trace)[:, :, None, None] * identity
        failed = torch.linalg.cholesky_ex(tried).info != 0
        chosen = failed.long().cumprod(0).sum(0).clamp(max=len(steps) - 1)
        jitter = steps[chosen] * trace
    return torch.linalg.cholesky_ex(matrices + jitter[:, None, None] * identity).L
