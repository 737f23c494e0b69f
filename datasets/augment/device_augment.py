"""Colour, blur and normalisation of a whole batch on its device.

The strengths are those that a worker would have drawn for each sample.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from .augmentation import (
    GREY,
    Augmentation,
    Photometric,
    blur_size,
    color_matrix,
    draw_photometric,
    sample_generator,
)
from .normalisation import standardise_


def augment_on_device(
    image: Tensor,
    *,
    region: Tensor,
    position: Tensor | Sequence[int],
    augmentation: Augmentation,
    seed: int,
    epoch: int,
    dtype: torch.dtype = torch.float32,
    channels_last: bool = True,
) -> Tensor:
    """What workers leave out with `photometric=False`: colour, blur and normalisation.

    Pixels differ from those of the workers' own augmentation by rounding, and near the edges of a
    blurred image.

    Args:
        image: crops, uint8 [N, 3, h, w].
        region: top, bottom, left, right of what is not padding, int64 [N, 4].
        position: positions in the epoch's plan [N], on the CPU, where they are used.
        augmentation: the ranges.
        seed: seed of the run.
        epoch: number of the epoch.
        dtype: type of the result.
        channels_last: whether the result lies in channels-last memory.

    Returns:
        `dtype` [N, 3, h, w].
    """
    strengths = [
        draw_photometric(augmentation, sample_generator(seed, epoch, int(number)))
        for number in position
    ]
    inside = _inside(region.to(image.device), (image.shape[2], image.shape[3]))

    # In the workers' order: colour, hue, blur.
    values = image.to(torch.float32)
    values = _shift_hue(_mix_colors(values, inside, strengths), strengths)
    if any(item.sigma > 0 for item in strengths):
        if augmentation.blur == "gaussian":
            values = _gaussian(values, inside, strengths)
        else:
            values = _bilateral(values, inside, strengths)

    # Padding is black before normalisation, as the workers leave it.
    values = values.clamp(0, 255) * inside
    memory_format = torch.contiguous_format
    if channels_last:
        memory_format = torch.channels_last
    return standardise_(values).to(dtype, memory_format=memory_format)


def _sent(numbers: Tensor | Sequence[float], device: torch.device) -> Tensor:
    """Numbers of the host on the device, float32, without waiting for what it is doing."""
    host = torch.as_tensor(numbers, dtype=torch.float32)
    if device.type == "cuda":
        host = host.pin_memory()
    return host.to(device, non_blocking=True)


def _inside(region: Tensor, size: tuple[int, int]) -> Tensor:
    """1 where a crop shows its image, 0 where it is padded, float32 [N, 1, h, w]."""
    top, bottom, left, right = region.view(-1, 4, 1, 1, 1).unbind(1)
    rows = torch.arange(size[0], device=region.device).view(1, 1, -1, 1)
    columns = torch.arange(size[1], device=region.device).view(1, 1, 1, -1)
    inside = (rows >= top) & (rows < bottom) & (columns >= left) & (columns < right)
    return inside.to(torch.float32)


def _mix_colors(values: Tensor, inside: Tensor, strengths: list[Photometric]) -> Tensor:
    """Brightness, contrast and saturation by `color_matrix` of each sample, [N, 3, h, w]."""
    # The offset of the matrix is a factor, known on the host, times the mean grey, known here.
    linear, offset = [], []
    for item in strengths:
        matrix = torch.from_numpy(color_matrix(item, mean_grey=1.0)).float()
        linear.append(matrix[:, :3])
        offset.append(matrix[0, 3])
    weights = _sent(torch.stack(linear), values.device)
    offsets = _sent(torch.stack(offset), values.device).view(-1, 1, 1, 1)

    grey = (values * _sent(GREY, values.device).view(1, 3, 1, 1)).sum(1, keepdim=True)
    mean = (grey * inside).sum((2, 3), keepdim=True) / inside.sum((2, 3), keepdim=True)
    mixed = torch.einsum("nij,njhw->nihw", weights, values) + mean * offsets
    return mixed.clamp_(0, 255)


def _shift_hue(values: Tensor, strengths: list[Photometric]) -> Tensor:
    """Turn the hue circle, [N, 3, h, w] from 0 to 255: RGB to HSV and back in closed form."""
    turns = _sent([item.hue for item in strengths], values.device).view(-1, 1, 1, 1)
    red, green, blue = values.split(1, dim=1)
    value = values.amax(1, keepdim=True)
    chroma = value - values.amin(1, keepdim=True)

    # The hue in sixths of the circle, by which of the three colours is the largest.
    safe = chroma.clamp_min(1e-6)
    sixths = torch.where(
        value == red,
        (green - blue) / safe,
        torch.where(value == green, (blue - red) / safe + 2, (red - green) / safe + 4),
    )

    # Where red, green and blue stand on the turned circle gives their new shares of the chroma.
    standing = _sent([5.0, 3.0, 1.0], values.device).view(1, 3, 1, 1)
    angles = (sixths + 6 * turns + standing) % 6
    return value - chroma * torch.minimum(angles, 4 - angles).clamp(0, 1)


def _gaussian(values: Tensor, inside: Tensor, strengths: list[Photometric]) -> Tensor:
    """Separable blur with each sample's own sigma, [N, 3, h, w].

    Weights outside the image are left out, and the others made to sum to one.
    """
    radius = max(blur_size(item.sigma) for item in strengths if item.sigma > 0) // 2
    steps = torch.arange(-radius, radius + 1, dtype=torch.float32)
    kernels = torch.stack([_kernel(steps, item.sigma) for item in strengths])
    kernels = _sent(kernels, values.device)
    samples = len(values)

    def blurred(planes: Tensor) -> Tensor:
        # Every plane of every sample is a group of its own, since each sample has its own kernel.
        channels = planes.shape[1]
        groups = samples * channels
        weights = kernels.repeat_interleave(channels, dim=0)
        stacked = planes.reshape(1, groups, *planes.shape[2:])

        across = weights.view(-1, 1, 1, 2 * radius + 1)
        stacked = functional.conv2d(stacked, across, padding=(0, radius), groups=groups)
        down = weights.view(-1, 1, 2 * radius + 1, 1)
        stacked = functional.conv2d(stacked, down, padding=(radius, 0), groups=groups)
        return stacked.view(samples, channels, *planes.shape[2:])

    return blurred(values * inside) / blurred(inside).clamp_min(1e-6)


def _kernel(steps: Tensor, sigma: float) -> Tensor:
    """Weights of one sample over `steps` pixels; a single one without blur."""
    if sigma == 0:
        return (steps == 0).to(torch.float32)
    weights = torch.exp(-0.5 * (steps / sigma) ** 2) * (steps.abs() <= blur_size(sigma) // 2)
    return weights / weights.sum()


def _bilateral(values: Tensor, inside: Tensor, strengths: list[Photometric]) -> Tensor:
    """Bilateral filter as opencv's, [N, 3, h, w].

    The window is round, the distance in colour is summed over the channels, and the tolerance is
    the image's standard deviation.
    """
    sigmas = [max(item.sigma, 1e-6) for item in strengths]
    sigma = _sent(sigmas, values.device).view(-1, 1, 1, 1)
    pixels = inside.sum((2, 3), keepdim=True)
    mean = (values * inside).sum((2, 3), keepdim=True) / pixels
    variance = ((values - mean).square() * inside).sum((2, 3), keepdim=True) / pixels
    spread = variance.mean(1, keepdim=True).sqrt().clamp_min(1.0)

    # Samples have windows of different sizes; the largest is walked over, and each takes its own.
    reach = [max(5, blur_size(item.sigma)) // 2 for item in strengths]
    radius = max(reach)
    own_reach = _sent(reach, values.device).view(-1, 1, 1, 1)
    framed, framed_inside = (functional.pad(planes, (radius,) * 4) for planes in (values, inside))

    height, width = values.shape[2:]
    total, weight_sum = torch.zeros_like(values), torch.zeros_like(inside)
    for dy in range(-radius, radius + 1):
        for dx in range(-radius, radius + 1):
            square = dy * dy + dx * dx
            if square > radius * radius:
                continue
            rows = slice(radius + dy, radius + dy + height)
            columns = slice(radius + dx, radius + dx + width)

            # Weight by distance in space and in colour; none outside the image.
            neighbour = framed[:, :, rows, columns]
            far = (neighbour - values).abs().sum(1, keepdim=True)
            weight = (
                torch.exp(-0.5 * (square / sigma**2 + (far / spread) ** 2))
                * framed_inside[:, :, rows, columns]
                * (square <= own_reach**2)
            )
            total += weight * neighbour
            weight_sum += weight

    blurred = [item.sigma > 0 for item in strengths]
    is_blurred = _sent(blurred, values.device).view(-1, 1, 1, 1) > 0
    return torch.where(is_blurred, total / weight_sum.clamp_min(1e-6), values)
