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

from .pixels import block_elements, without_autocast


def region_information(
    error: Tensor,
    label: Tensor,
    offset: Tensor,
    *,
    radius: int,
    covariance_epsilon: float,
    log_epsilon: float,
) -> Tensor:
    """The bound 0.5 logdet(S_y - S_yp (S_p + epsilon)^-1 S_py + epsilon) of each image and class, fp64 [N, C].

    y = `label` and p = label + `error` + `offset`; pooled maps, fp32 or fp64 [N, C, h, w], the offset fp64 [h, w]. They
    are added in fp64, so that p keeps what fp32 loses beside a label of 1. Gradient for `error` alone. Maps smaller
    than one window have no points, hence zero covariances. Outside autocast; without a host synchronisation on a GPU.
    """
    with without_autocast(error.device):
        return _RegionInformation.apply(
            error, label, offset, radius, covariance_epsilon, log_epsilon
        )


class _RegionInformation(torch.autograd.Function):
    """Keeps the pooled maps and the derivatives by the covariances; the windows are built again in the backward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        error: Tensor,
        label: Tensor,
        offset: Tensor,
        radius: int,
        covariance_epsilon: float,
        log_epsilon: float,
    ) -> Tensor:
        maps = _Maps(label, error, offset, radius)
        covariance, mean = maps.covariances()
        bound, slope = _bound_and_slope(covariance, covariance_epsilon, log_epsilon)
        nothing, _ = _bound_and_slope(
            covariance.new_zeros(1, *covariance.shape[1:]), covariance_epsilon, log_epsilon
        )
        result = nothing.expand(
            label.shape[0] * label.shape[1]
        ).clone()  # what a class without a labelled pixel has
        result[maps.pairs] = bound
        ctx.save_for_backward(error, label, offset, mean, slope)
        ctx.radius = radius
        return result.view(label.shape[:2])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None, None, None]:
        error, label, offset, mean, slope = ctx.saved_tensors
        maps = _Maps(label, error, offset, ctx.radius)
        weights = slope[:, ctx.radius**2 :] * grad.flatten()[maps.pairs, None, None]
        with without_autocast(
            grad.device
        ):  # on in the backward pass if the caller runs that under it
            return maps.error_gradient(weights, mean), None, None, None, None, None


class _Maps:
    """The label and probability maps of the (image, class) pairs `pairs`, flat indices, taken block by block."""

    def __init__(self, label: Tensor, error: Tensor, offset: Tensor, radius: int) -> None:
        self.label, self.error = label.flatten(0, 1), error.flatten(0, 1)
        self.offset, self.radius, self.shape = offset, radius, label.shape
        self.height, self.width = label.shape[2:]
        self.rows, self.columns = self.height - radius + 1, self.width - radius + 1
        self.pairs = _pairs_to_compute(self.label)

    def blocks(self) -> Iterator[tuple[slice, Tensor]]:
        """(places in `pairs`, the flat indices there), so that the windows of a block are as large as one of class maps."""
        size = max(
            block_elements(self.label.device) // (2 * self.radius * self.height * self.width), 1
        )
        for first in range(0, len(self.pairs), size):
            yield slice(first, first + size), self.pairs[first : first + size]

    def covariances(self) -> tuple[Tensor, Tensor]:
        """Un-normalised covariances [B, 2 R^2, 2 R^2] and means [B, 2 R^2] of all windows of (label, probability) maps.

        Both fp64, ordered (map, row in the window, column in the window).
        """
        radius, size = self.radius, 2 * self.radius**2
        moments = self.offset.new_zeros(len(self.pairs), radius, 2, radius, radius, 2, radius)
        sums = self.offset.new_zeros(len(self.pairs), 2, radius, radius)
        if self.rows < 1 or self.columns < 1:
            return moments.view(-1, size, size), sums.view(-1, size)
        for place, chosen in self.blocks():
            label = self.label[chosen].double()
            products, row_sums = _row_products(
                torch.stack((label, label + self.error[chosen] + self.offset), dim=1), radius
            )
            for upper in range(radius):
                sums[place, :, upper] = row_sums[:, upper : upper + self.rows].sum(1)
                for lower in range(upper, radius):
                    moment = products[lower - upper][:, upper : upper + self.rows].sum(1)
                    moments[place, upper, :, :, lower] = moment
                    moments[place, lower, :, :, upper] = moment.permute(0, 3, 4, 1, 2)
        second = moments.permute(0, 2, 1, 3, 5, 4, 6).reshape(-1, size, size)
        first = sums.view(-1, size)
        mean = first / (self.rows * self.columns)
        return second - first[:, :, None] * mean[:, None, :], mean

    def error_gradient(self, weights: Tensor, mean: Tensor) -> Tensor:
        """Gradient by the error maps, shaped and typed like them, given weights [B, R^2, 2 R^2] of the points.

        d S / d point is the centred point, so a window at t owes its pixel t + j the amount weights[j] (point(t) - mean).
        Written in labels and errors, p = y + e, the terms that cancel where predictions are good are cancelled in the
        weights, in fp64; the windows can then be fp32.
        """
        result = torch.zeros_like(self.error)
        if self.rows < 1 or self.columns < 1:
            return result.view(self.shape)
        radius = self.radius
        dtype = (
            torch.float64 if self.error.is_cuda else self.error.dtype
        )  # fp32 products might be TF32 there
        constant = -(weights @ mean[:, :, None]).to(dtype)
        by_label, by_probability = weights.unflatten(2, (2, radius, radius)).unbind(2)
        weights = torch.stack((by_label + by_probability, by_probability), dim=2).to(dtype)
        for place, chosen in self.blocks():
            maps = torch.stack(
                (self.label[chosen], self.error[chosen] + self.offset.to(self.error.dtype)), dim=1
            ).to(dtype)
            result[chosen] = self._owed(maps, weights[place], constant[place]).to(result.dtype)
        return result.view(self.shape)

    def _owed(self, maps: Tensor, weights: Tensor, constant: Tensor) -> Tensor:
        radius, rows, columns = self.radius, self.rows, self.columns
        shifted = (
            maps.unfold(3, columns, 1).permute(0, 1, 3, 2, 4).contiguous().flatten(3).flatten(1, 2)
        )
        owed = constant.expand(-1, -1, rows * columns)
        for row in range(radius):
            part = shifted[:, :, row * columns : (row + rows) * columns]
            owed = torch.baddbmm(owed, weights[:, :, :, row].flatten(2), part)
        owed = owed.view(-1, radius, radius, rows, columns)
        result = maps.new_zeros(len(maps), self.height, self.width)
        for row in range(radius):
            for column in range(radius):
                result[:, row : row + rows, column : column + columns] += owed[:, row, column]
        return result


def _pairs_to_compute(label: Tensor) -> Tensor:
    """Indices of the maps of `label` [N C, h, w] to compute: on the CPU those with labelled pixels, on a GPU all of them.

    A class without labelled pixels has S_y = S_yp = 0: a known bound and no gradient. To find out on a GPU which ones
    they are would make the host wait.
    """
    if label.device.type != "cpu":
        return torch.arange(len(label), device=label.device)
    return label.flatten(1).amax(1).nonzero()[:, 0]


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
    windows[:, :whole] = (
        shifted[:, :, : whole * group].unflatten(2, (whole, group)).permute(0, 2, 3, 1, 4, 5)
    )
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
        torch.stack([both[:, :, row, :, :, row + distance] for row in range(group)], dim=2).flatten(
            1, 2
        )
        for distance in range(radius)
    ]
    return products, windows.sum(-1).flatten(1, 2)


def _bound_and_slope(
    covariance: Tensor, covariance_epsilon: float, log_epsilon: float
) -> tuple[Tensor, Tensor]:
    """`_bound` [B] and its derivatives by the covariances, symmetrised and doubled: what both points of a pair are due."""
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
    ):  # validation calls this in inference mode
        covariance = covariance.detach().clone().requires_grad_()
        bound = _bound(covariance, covariance_epsilon=covariance_epsilon, log_epsilon=log_epsilon)
        (slope,) = torch.autograd.grad(bound.sum(), covariance)
    return bound.detach(), slope + slope.mT


def _bound(covariance: Tensor, *, covariance_epsilon: float, log_epsilon: float) -> Tensor:
    """0.5 logdet(S_y - S_yp (S_p + epsilon)^-1 S_py + epsilon) [B] of covariances [B, 2 R^2, 2 R^2], differentiable."""
    count = covariance.shape[-1] // 2
    identity = torch.eye(count, dtype=covariance.dtype, device=covariance.device)
    label, mixed, probability = (
        covariance[:, :count, :count],
        covariance[:, :count, count:],
        covariance[:, count:, count:],
    )
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
    steps = torch.logspace(-14, -2, 7, dtype=matrices.dtype, device=matrices.device)
    steps[0] = 0
    identity = torch.eye(matrices.shape[-1], dtype=matrices.dtype, device=matrices.device)
    with torch.no_grad():
        trace = matrices.diagonal(dim1=-2, dim2=-1).abs().sum(-1)
        tried = matrices + (steps[:, None] * trace)[:, :, None, None] * identity
        failed = torch.linalg.cholesky_ex(tried).info != 0
        chosen = failed.long().cumprod(0).sum(0).clamp(max=len(steps) - 1)
        jitter = steps[chosen] * trace
    return torch.linalg.cholesky_ex(matrices + jitter[:, None, None] * identity).L
