"""Colour, blur and normalisation of a whole batch on its device, with the strengths that a worker would have drawn for each sample."""

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
    """What workers leave out with `photometric=False`: colour and blur, then `normalise`; float [N, 3, h, w] as `dtype`.

    `image` uint8 [N, 3, h, w], `region` [N, 4] and `position` [N] are those of a training batch (`position` on the CPU, where it is used). The
    strengths equal those of the workers' own augmentation; pixels differ from theirs by rounding, and near the edges of a blurred image.
    """
    strengths = [
        draw_photometric(augmentation, sample_generator(seed, epoch, int(place)))
        for place in position
    ]
    inside = _inside(region.to(image.device), (image.shape[2], image.shape[3]))
    values = image.to(torch.float32)
    values = _shift_hue(_mix_colors(values, inside, strengths), strengths)
    if any(item.sigma > 0 for item in strengths):
        blur = _gaussian if augmentation.blur == "gaussian" else _bilateral
        values = blur(values, inside, strengths)
    values = (
        values.clamp(0, 255) * inside
    )  # padding is black before normalisation, as the workers leave it
    memory = torch.channels_last if channels_last else torch.contiguous_format
    return standardise_(values).to(dtype, memory_format=memory)


def _inside(region: Tensor, size: tuple[int, int]) -> Tensor:
    """1 where a crop shows its image, 0 where it is padded, float32 [N, 1, h, w]."""
    top, bottom, left, right = region.view(-1, 4, 1, 1, 1).unbind(1)
    rows = torch.arange(size[0], device=region.device).view(1, 1, -1, 1)
    columns = torch.arange(size[1], device=region.device).view(1, 1, 1, -1)
    return ((rows >= top) & (rows < bottom) & (columns >= left) & (columns < right)).to(
        torch.float32
    )


def _mix_colors(values: Tensor, inside: Tensor, strengths: list[Photometric]) -> Tensor:
    """Brightness, contrast and saturation: `color_matrix` of each sample, whose offset is its mean grey inside times a factor known on the host."""
    linear, offset = [], []
    for item in strengths:
        matrix = torch.from_numpy(color_matrix(item, mean_grey=1.0)).float()
        linear.append(matrix[:, :3])
        offset.append(matrix[0, 3])
    weights = torch.stack(linear).to(values.device)
    grey = (values * values.new_tensor(GREY).view(1, 3, 1, 1)).sum(1, keepdim=True)
    mean = (grey * inside).sum((2, 3), keepdim=True) / inside.sum((2, 3), keepdim=True)
    mixed = torch.einsum("nij,njhw->nihw", weights, values) + mean * torch.stack(offset).to(
        values.device
    ).view(-1, 1, 1, 1)
    return mixed.clamp_(0, 255)


def _shift_hue(values: Tensor, strengths: list[Photometric]) -> Tensor:
    """Turn the hue circle: RGB to HSV and back in closed form, [N, 3, h, w] from 0 to 255."""
    turns = values.new_tensor([item.hue for item in strengths]).view(-1, 1, 1, 1)
    red, green, blue = values.split(1, dim=1)
    value, chroma = (
        values.amax(1, keepdim=True),
        values.amax(1, keepdim=True) - values.amin(1, keepdim=True),
    )
    safe = chroma.clamp_min(1e-6)
    sixths = torch.where(
        value == red,
        (green - blue) / safe,
        torch.where(value == green, (blue - red) / safe + 2, (red - green) / safe + 4),
    )
    places = (
        sixths + 6 * turns + values.new_tensor([5.0, 3.0, 1.0]).view(1, 3, 1, 1)
    ) % 6  # of R, G and B on the circle
    return value - chroma * torch.minimum(places, 4 - places).clamp(0, 1)


def _gaussian(values: Tensor, inside: Tensor, strengths: list[Photometric]) -> Tensor:
    """Separable blur with each sample's own sigma; weights outside the image are left out and the others made to sum to one."""
    radius = max(blur_size(item.sigma) for item in strengths if item.sigma > 0) // 2
    steps = torch.arange(-radius, radius + 1, dtype=torch.float32)
    kernels = torch.stack([_kernel(steps, item.sigma) for item in strengths]).to(values.device)
    samples, channels = values.shape[:2]

    def along_both(planes: Tensor) -> Tensor:
        count = planes.shape[1]
        weights = kernels.repeat_interleave(count, dim=0)
        stacked = planes.reshape(1, samples * count, *planes.shape[2:])
        stacked = functional.conv2d(
            stacked,
            weights.view(-1, 1, 1, 2 * radius + 1),
            padding=(0, radius),
            groups=samples * count,
        )
        stacked = functional.conv2d(
            stacked,
            weights.view(-1, 1, 2 * radius + 1, 1),
            padding=(radius, 0),
            groups=samples * count,
        )
        return stacked.view(samples, count, *planes.shape[2:])

    return along_both(values * inside) / along_both(inside).clamp_min(1e-6)


def _kernel(steps: Tensor, sigma: float) -> Tensor:
    """Weights of one sample over `steps` pixels, its own reach being `blur_size`; a single one without blur."""
    if sigma == 0:
        return (steps == 0).to(torch.float32)
    weights = torch.exp(-0.5 * (steps / sigma) ** 2) * (steps.abs() <= blur_size(sigma) // 2)
    return weights / weights.sum()


def _bilateral(values: Tensor, inside: Tensor, strengths: list[Photometric]) -> Tensor:
    """Bilateral filter as opencv's: a round window, distance in colour summed over the channels, tolerance the image's standard deviation."""
    sigma = values.new_tensor([max(item.sigma, 1e-6) for item in strengths]).view(-1, 1, 1, 1)
    pixels = inside.sum((2, 3), keepdim=True)
    mean = (values * inside).sum((2, 3), keepdim=True) / pixels
    variance = ((values - mean).square() * inside).sum((2, 3), keepdim=True) / pixels
    spread = variance.mean(1, keepdim=True).sqrt().clamp_min(1.0)
    reach = [max(5, blur_size(item.sigma)) // 2 for item in strengths]
    radius = max(reach)
    own_reach = values.new_tensor(reach).view(-1, 1, 1, 1)
    framed, framed_inside = (functional.pad(planes, (radius,) * 4) for planes in (values, inside))
    total, weight_sum = torch.zeros_like(values), torch.zeros_like(inside)
    for dy in range(-radius, radius + 1):
        for dx in range(-radius, radius + 1):
            square = dy * dy + dx * dx
            if square > radius * radius:
                continue
            rows, columns = (
                slice(radius + dy, radius + dy + values.shape[2]),
                slice(radius + dx, radius + dx + values.shape[3]),
            )
            neighbour = framed[:, :, rows, columns]
            far = (neighbour - values).abs().sum(1, keepdim=True)
            weight = (
                torch.exp(-0.5 * (square / sigma**2 + (far / spread) ** 2))
                * framed_inside[:, :, rows, columns]
                * (square <= own_reach**2)
            )
            total += weight * neighbour
            weight_sum += weight
    blurred = values.new_tensor([item.sigma > 0 for item in strengths]).view(-1, 1, 1, 1) > 0
    return torch.where(blurred, total / weight_sum.clamp_min(1e-6), values)
