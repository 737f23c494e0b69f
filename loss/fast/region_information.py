"""The second term of RMI from pooled maps, without a map of the regions.

For each image and class, all R x R regions of the pooled label map and of the pooled probability
map are points in R^2 dimensions. The term is a function of the covariances of these points (see
`loss/rmi.py`), which are sums over 1e4 to 1e5 points. Where predictions are good, all but a part
of about `covariance_epsilon` (5e-4) cancels, beyond the 24 bits of fp32: products and sums are
fp64. Maps are widened block by block, never as a whole.

Covariances of points that overlap share most of their products. A product of two pixels depends on
their two columns and on the distance of their rows; so rows are multiplied with rows once, and a
region's place only decides which of these products are added.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..pixels import without_autocast
from .blocks import block_elements


class PooledMaps(NamedTuple):
    """Pooled label and probability maps, where probability = label + error + offset.

    The sum is taken in fp64. The parts are kept apart because an fp32 probability near a label of 1
    has lost the digits of its error.
    """

    label: Tensor  # [N, C, h, w], fp32 or fp64
    error: Tensor  # [N, C, h, w], the same dtype
    offset: Tensor  # [h, w], fp64


def region_information(
    maps: PooledMaps, *, radius: int, covariance_epsilon: float, log_epsilon: float
) -> Tensor:
    """Half the log-determinant of what the probability regions leave open of the label regions.

    0.5 logdet(S_y - S_yp (S_p + covariance_epsilon)^-1 S_py + covariance_epsilon), with the
    covariances S of the regions of each image and class; see `loss/rmi.py`. The gradient reaches
    `maps.error` alone. Maps smaller than one region have no regions, hence zero covariances. On a
    GPU the host does not wait.

    Returns:
        fp64 [N, C].
    """
    with without_autocast(maps.error.device):
        result: Tensor = _RegionInformation.apply(
            maps.error, maps.label, maps.offset, radius, covariance_epsilon, log_epsilon
        )
    return result


class _RegionInformation(torch.autograd.Function):
    """Keeps the pooled maps and the derivatives by the covariances; regions are built anew."""

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
        regions = _Regions(PooledMaps(label, error, offset), radius)
        covariance, mean = regions.covariances()
        values, slope = _value_and_slope(covariance, covariance_epsilon, log_epsilon)

        # What a class without a labelled pixel has; the others are filled in.
        nothing = covariance.new_zeros(1, *covariance.shape[1:])
        constant, _ = _value_and_slope(nothing, covariance_epsilon, log_epsilon)
        result = constant.expand(label.shape[0] * label.shape[1]).clone()
        result[regions.pairs] = values

        ctx.radius = radius
        ctx.save_for_backward(error, label, offset, mean, slope)
        return result.view(label.shape[:2])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None, None, None]:
        error, label, offset, mean, slope = ctx.saved_tensors
        regions = _Regions(PooledMaps(label, error, offset), ctx.radius)

        # Rows of the slope that belong to probabilities: labels need no gradient.
        weights = slope[:, ctx.radius**2 :] * grad.flatten()[regions.pairs, None, None]

        # Autocast is on in the backward pass if the caller runs that under it.
        with without_autocast(grad.device):
            return regions.error_gradient(weights, mean), None, None, None, None, None


class _Regions:
    """All regions of the maps of those (image, class) pairs that have to be computed.

    `pairs` [B] holds their flat indices. A region's coordinates are ordered (map, row in the
    region, column in the region), where map 0 is the label and map 1 the probability.
    """

    def __init__(self, maps: PooledMaps, radius: int) -> None:
        self.label, self.error = maps.label.flatten(0, 1), maps.error.flatten(0, 1)
        self.offset, self.radius, self.shape = maps.offset, radius, maps.label.shape
        self.height, self.width = self.shape[2:]
        self.rows, self.columns = self.height - radius + 1, self.width - radius + 1
        self.pairs = _pairs_to_compute(self.label)

    def covariances(self) -> tuple[Tensor, Tensor]:
        """Sums of products of centred coordinates [B, 2 R^2, 2 R^2] and means [B, 2 R^2], fp64."""
        radius, size = self.radius, 2 * self.radius**2
        pairs = len(self.pairs)
        moments = self.offset.new_zeros(pairs, radius, 2, radius, radius, 2, radius)
        sums = self.offset.new_zeros(pairs, 2, radius, radius)
        if self.rows < 1 or self.columns < 1:
            return moments.view(-1, size, size), sums.view(-1, size)

        for place, chosen in self._blocks():
            label = self.label[chosen].double()
            probability = label + self.error[chosen] + self.offset
            products, row_sums = _row_products(torch.stack((label, probability), dim=1), radius)

            # Rows `upper` and `lower` of all regions: their products, added over the regions.
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
        """The gradient by the error maps, with their shape and dtype.

        d S / d point is the centred point. So a region at t adds weights[j] (point(t) - mean) to
        the gradient of its pixel t + j.

        Args:
            weights: the gradient by the covariances, [B, R^2, 2 R^2].
            mean: the mean point, [B, 2 R^2].
        """
        result = torch.zeros_like(self.error)
        if self.rows < 1 or self.columns < 1:
            return result.view(self.shape)

        # On a GPU fp32 products might be TF32.
        dtype = self.error.dtype
        if self.error.is_cuda:
            dtype = torch.float64

        # Written in labels and errors, p = y + e, what cancels where predictions are good is
        # cancelled here, in the weights and in fp64; the regions can then be fp32.
        constant = -(weights @ mean[:, :, None]).to(dtype)
        by_label, by_probability = weights.unflatten(2, (2, self.radius, self.radius)).unbind(2)
        weights = torch.stack((by_label + by_probability, by_probability), dim=2).to(dtype)

        offset = self.offset.to(self.error.dtype)
        for place, chosen in self._blocks():
            maps = torch.stack((self.label[chosen], self.error[chosen] + offset), dim=1).to(dtype)
            block = self._added_to_pixels(maps, weights[place], constant[place])
            result[chosen] = block.to(result.dtype)
        return result.view(self.shape)

    def _added_to_pixels(self, maps: Tensor, weights: Tensor, constant: Tensor) -> Tensor:
        """Sums over regions of weights x point + constant at each pixel, [b, h, w].

        Args:
            maps: [b, 2, h, w].
            weights: [b, R^2, 2, R, R].
            constant: [b, R^2, 1].
        """
        radius, rows, columns = self.radius, self.rows, self.columns

        # weights x point, one row of the regions after the other
        shifted = maps.unfold(3, columns, 1).permute(0, 1, 3, 2, 4).contiguous()
        shifted = shifted.flatten(3).flatten(1, 2)  # [b, 2 R, h columns]
        added = constant.expand(-1, -1, rows * columns)
        for row in range(radius):
            part = shifted[:, :, row * columns : (row + rows) * columns]
            added = torch.baddbmm(added, weights[:, :, :, row].flatten(2), part)
        added = added.view(-1, radius, radius, rows, columns)

        # Each pixel receives this from all regions that it is in.
        result = maps.new_zeros(len(maps), self.height, self.width)
        for row in range(radius):
            for column in range(radius):
                result[:, row : row + rows, column : column + columns] += added[:, row, column]
        return result

    def _blocks(self) -> Iterator[tuple[slice, Tensor]]:
        """Places in `pairs` and the flat indices there; regions of a block fit the cache."""
        elements = 2 * self.radius * self.height * self.width
        size = max(block_elements(self.label.device) // elements, 1)
        for first in range(0, len(self.pairs), size):
            yield slice(first, first + size), self.pairs[first : first + size]


def _pairs_to_compute(label: Tensor) -> Tensor:
    """Indices of the maps of `label` [N C, h, w] to compute.

    A class without labelled pixels has S_y = S_yp = 0: a known value and no gradient. On a CPU it
    is left out; on a GPU everything is computed, because to find out would make the host wait.
    """
    if label.device.type != "cpu":
        return torch.arange(len(label), device=label.device)
    return label.flatten(1).amax(1).nonzero()[:, 0]


def _row_products(maps: Tensor, radius: int) -> tuple[list[Tensor], Tensor]:
    """Products of rows, summed along them: all that the covariances of regions are made of.

    Each pair of rows is multiplied once, not once for each place in the region. Rows are taken in
    groups of R - 1, so that both rows of a pair lie in one group or in two neighbours, and a batch
    of small square matrix products does the work. What reaches below the map is not read.

    Args:
        maps: [b, 2, h, w].
        radius: R.

    Returns:
        For each distance d < R, [b, h, 2, R, 2, R]: at row r, the scalar products of (map, shifted
        by column) at r with (map', shifted by column') at r + d. And the sums of the rows,
        [b, h, 2, R].
    """
    number, _, height, width = maps.shape
    group = max(radius - 1, 1)
    groups, complete = math.ceil(height / group), height // group
    columns = width - radius + 1

    # All rows, shifted by 0 to R - 1 columns, in groups; the last one is filled up with zeros.
    shifted = maps.unfold(3, columns, 1)  # [b, 2, h, R, columns]
    rows = maps.new_empty(number, groups, group, 2, radius, columns, dtype=torch.float64)
    grouped = shifted[:, :, : complete * group].unflatten(2, (complete, group))
    rows[:, :complete] = grouped.permute(0, 2, 3, 1, 4, 5)
    if complete < groups:
        rest = height - complete * group
        rows[:, complete, :rest] = shifted[:, :, complete * group :].transpose(1, 2)
        rows[:, complete, rest:].zero_()

    # Products within each group, and with the next one.
    flat = rows.view(number * groups, group * 2 * radius, columns)
    within = torch.bmm(flat, flat.mT)
    across = torch.zeros_like(within)
    if len(flat) > 1:
        torch.bmm(flat[:-1], flat[1:].mT, out=across[:-1])

    # Sorted by the distance of the two rows.
    shape = (number, groups, group, 2, radius, group, 2, radius)
    both = torch.cat((within.view(shape), across.view(shape)), dim=5)
    products = []
    for distance in range(radius):
        pairs = [both[:, :, row, :, :, row + distance] for row in range(group)]
        products.append(torch.stack(pairs, dim=2).flatten(1, 2))
    return products, rows.sum(-1).flatten(1, 2)


def _value_and_slope(
    covariance: Tensor, covariance_epsilon: float, log_epsilon: float
) -> tuple[Tensor, Tensor]:
    """Values [B] of `_half_logdet` and their derivatives by the covariances.

    The derivatives are symmetrised and doubled, since each covariance stands in the matrix twice
    and a point counts on both sides of it.
    """
    # Validation calls this in inference mode.
    with torch.inference_mode(False), torch.enable_grad():
        covariance = covariance.detach().clone().requires_grad_()
        values = _half_logdet(
            covariance, covariance_epsilon=covariance_epsilon, log_epsilon=log_epsilon
        )
        (slope,) = torch.autograd.grad(values.sum(), covariance)
    return values.detach(), slope + slope.mT


def _half_logdet(covariance: Tensor, *, covariance_epsilon: float, log_epsilon: float) -> Tensor:
    """0.5 logdet(S_y - S_yp (S_p + epsilon)^-1 S_py + epsilon), differentiable.

    Args:
        covariance: [B, 2 R^2, 2 R^2], of label and probability coordinates.
        covariance_epsilon: added to the diagonals.
        log_epsilon: added inside the logarithms.

    Returns:
        [B].
    """
    count = covariance.shape[-1] // 2
    identity = torch.eye(count, dtype=covariance.dtype, device=covariance.device)
    label = covariance[:, :count, :count]
    mixed = covariance[:, :count, count:]
    probability = covariance[:, count:, count:]

    # With S_p + epsilon = L L^T, S_yp (L L^T)^-1 S_py is a product of L^-1 S_py with itself.
    factor = _robust_cholesky(probability + covariance_epsilon * identity)
    explained = torch.linalg.solve_triangular(factor, mixed.mT, upper=False)
    remainder = label - explained.mT @ explained
    remainder = 0.5 * (remainder + remainder.mT) + covariance_epsilon * identity

    # logdet(L L^T) = 2 sum(log(diagonal of L))
    diagonal = _robust_cholesky(remainder).diagonal(dim1=-2, dim2=-1)
    return (diagonal + log_epsilon).log().sum(-1)


def _robust_cholesky(matrices: Tensor) -> Tensor:
    """Cholesky factors of matrices that rounding may have made indefinite.

    Such a matrix is factored with the smallest multiple of the identity added that suffices. A
    matrix that is not finite gives a factor that is not finite.

    Args:
        matrices: [B, n, n].

    Returns:
        [B, n, n].
    """
    # Nothing, then 1e-14, 1e-12, ... of the matrix's own trace. All are tried at once, so that the
    # host need not know which one served. The zero comes from the device too: a number assigned
    # to one element would be copied there, and the host would wait.
    steps = torch.logspace(-14, -2, 7, dtype=matrices.dtype, device=matrices.device)
    steps = steps * (torch.arange(len(steps), device=matrices.device) > 0)
    identity = torch.eye(matrices.shape[-1], dtype=matrices.dtype, device=matrices.device)

    with torch.no_grad():
        trace = matrices.diagonal(dim1=-2, dim2=-1).abs().sum(-1)
        tried = matrices + (steps[:, None] * trace)[:, :, None, None] * identity
        failed = torch.linalg.cholesky_ex(tried).info != 0
        chosen = failed.long().cumprod(0).sum(0).clamp(max=len(steps) - 1)
        jitter = steps[chosen] * trace
    return torch.linalg.cholesky_ex(matrices + jitter[:, None, None] * identity).L
