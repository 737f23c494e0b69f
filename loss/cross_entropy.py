"""Cross-entropy and what is built on it: class and image weights, and training on the hardest pixels.

All losses are pure functions of (logits, label). Each is a sum over valid pixels divided by their number in the whole
batch (see `pixels.mean_over_pixels`); weights are scaled to a mean of one, so that this stays the right denominator.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .pixels import (
    LossError,
    check_shapes,
    class_index,
    computing_dtype,
    mean_over_pixels,
    row_blocks,
    valid_mask,
    without_autocast,
)
from .sources import Layout, Maps, layout_of

Weighting = Literal["linear", "inverse"]


def cross_entropy(
    logits: Maps,
    label: Tensor,
    *,
    ignore_label: int = 255,
    class_weights: Tensor | None = None,
    image_weights: Weighting | None = None,
    valid_pixels: Tensor | int | None = None,
    parts: int = 1,
) -> Tensor:
    """Mean over valid pixels of -log softmax(logits)[label], times a weight where asked.

    logits: floating [N, C, H, W]; label: integer [N, H, W]. class_weights: [C], as `class_weights_from_counts` makes
    them. image_weights: weigh each image's classes by that image's own label counts instead (the authors' image-based
    weighting, which took one histogram over the whole batch and summed the images' losses).
    Returns a scalar, fp64 for fp64 logits and fp32 otherwise; 0 with zero gradient when every pixel is ignored.
    """
    pixel_loss, valid = pixel_cross_entropy(logits, label, ignore_label=ignore_label)
    if class_weights is not None:
        if class_weights.shape != (logits.shape[1],):
            raise LossError(
                f"class_weights must hold {logits.shape[1]} values, not {list(class_weights.shape)}."
            )
        weights = class_weights.to(pixel_loss).expand(len(label), -1)
        pixel_loss = pixel_loss * _weight_of_pixels(weights, label, valid)
    if image_weights is not None:
        counts = _count_labels(label, valid, num_classes=logits.shape[1])
        weights = class_weights_from_counts(counts, weighting=image_weights).to(pixel_loss)
        pixel_loss = pixel_loss * _weight_of_pixels(weights, label, valid)
    return mean_over_pixels(pixel_loss.sum(), valid, valid_pixels=valid_pixels, parts=parts)


def bootstrapped_cross_entropy(
    logits: Maps,
    label: Tensor,
    *,
    ignore_label: int = 255,
    fraction: float = 0.25,
    valid_pixels: Tensor | int | None = None,
    parts: int = 1,
) -> Tensor:
    """Cross-entropy of the hardest `fraction` of each image's valid pixels (Pohlen et al. 2017; Wu et al. 2016).

    Pixels are chosen image by image, and the mean over an image's chosen pixels stands for all of its valid pixels;
    so the loss does not depend on how a batch is divided among processes. Ties with the last chosen pixel count too.
    """
    if not 0 < fraction <= 1:
        raise LossError(f"fraction must lie in (0, 1], not {fraction}.")
    pixel_loss, valid = pixel_cross_entropy(logits, label, ignore_label=ignore_label)
    chosen = pixel_loss.detach() >= _hardest(pixel_loss, valid, fraction=fraction)
    return _mean_of_chosen(
        pixel_loss, chosen & valid, valid, valid_pixels=valid_pixels, parts=parts
    )


def ohem_cross_entropy(
    logits: Maps,
    label: Tensor,
    *,
    ignore_label: int = 255,
    threshold: float = 0.7,
    min_kept: float = 0.1,
    valid_pixels: Tensor | int | None = None,
    parts: int = 1,
) -> Tensor:
    """Cross-entropy of the pixels whose true class has a probability below `threshold` (online hard example mining).

    At least the hardest `min_kept` (a fraction) of each image's valid pixels are kept. The rest as in
    `bootstrapped_cross_entropy`.
    """
    if not 0 < threshold <= 1 or not 0 < min_kept <= 1:
        raise LossError(
            f"threshold and min_kept must lie in (0, 1], not {threshold} and {min_kept}."
        )
    pixel_loss, valid = pixel_cross_entropy(logits, label, ignore_label=ignore_label)
    hard = pixel_loss.detach() > -math.log(threshold)
    chosen = hard | (pixel_loss.detach() >= _hardest(pixel_loss, valid, fraction=min_kept))
    return _mean_of_chosen(
        pixel_loss, chosen & valid, valid, valid_pixels=valid_pixels, parts=parts
    )


def class_weights_from_counts(
    counts: Tensor, *, weighting: Weighting = "linear", strength: float = 1.0
) -> Tensor:
    """Weights of classes from how many pixels carry each label; rarer classes weigh more.

    counts: [..., C]. With f the share of a class: "linear" is 1 + strength (1 - f), "inverse" 1 + strength / f
    (both from the authors' code), each then divided by its mean over the counted pixels, so that the mean weight of a
    pixel is one. A class without pixels weighs as the authors have it: 1 before that division. Returns fp64 [..., C].
    """
    counts = counts.double()
    share = counts / counts.sum(-1, keepdim=True).clamp(min=1)
    extra = (
        1 - share if weighting == "linear" else 1 / share.clamp(min=torch.finfo(share.dtype).tiny)
    )
    weights = 1 + torch.where(counts > 0, strength * extra, 0.0)
    mean = (share * weights).sum(-1, keepdim=True)
    return weights / torch.where(mean > 0, mean, 1.0)


def pixel_cross_entropy(
    logits: Maps, label: Tensor, *, ignore_label: int = 255
) -> tuple[Tensor, Tensor]:
    """-log softmax(logits)[label] of every pixel [N, H, W], zero where ignored, and the mask of the valid pixels.

    Keeps nothing for the backward pass but its arguments, makes no class map besides the gradient, and runs outside
    autocast.
    """
    check_shapes(logits, label)
    valid = valid_mask(label, num_classes=logits.shape[1], ignore_label=ignore_label)
    layout, tensors = layout_of(logits)
    with without_autocast(logits.device):
        pixel_loss = _PixelCrossEntropy.apply(
            layout, computing_dtype(logits), label, valid, *tensors
        )
    return pixel_loss, valid


class _PixelCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, layout: Layout, dtype: torch.dtype, label: Tensor, valid: Tensor, *tensors: Tensor
    ) -> Tensor:
        reader = layout.reader(tensors)
        result = label.new_empty(label.shape, dtype=dtype)
        for images, rows in row_blocks(layout.shape, label.device, rendered=layout.rendered):
            index = class_index(label[images, rows], valid[images, rows])
            likelihood = torch.log_softmax(reader.read(images, rows), dim=1, dtype=dtype)
            result[images, rows] = -likelihood.gather(1, index[:, None])[:, 0]
        ctx.layout, ctx.dtype = layout, dtype
        ctx.save_for_backward(label, valid, *tensors)
        return torch.where(valid, result, 0.0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        label, valid, *tensors = ctx.saved_tensors
        with without_autocast(grad.device):
            gradient = ctx.layout.gradient(tensors)
            for images, rows in row_blocks(
                ctx.layout.shape, label.device, rendered=ctx.layout.rendered
            ):
                mask = valid[images, rows]
                weight = torch.where(mask, grad[images, rows], 0.0)[:, None]
                block = torch.softmax(gradient.read(images, rows), dim=1, dtype=ctx.dtype).mul_(
                    weight
                )
                block.scatter_add_(1, class_index(label[images, rows], mask)[:, None], -weight)
                gradient.put(images, rows, block)
            return None, None, None, None, *gradient.result()


def _weight_of_pixels(weights: Tensor, label: Tensor, valid: Tensor) -> Tensor:
    """The weight [N, H, W] of each pixel's class from `weights` [N, C]; what ignored pixels get has no effect."""
    return weights.gather(1, class_index(label, valid).flatten(1)).view(label.shape)


def _count_labels(label: Tensor, valid: Tensor, *, num_classes: int) -> Tensor:
    """Valid pixels of each class in each image, int64 [N, C]; without a host synchronisation."""
    index = class_index(label, valid).flatten(1)
    counts = torch.zeros(len(label), num_classes, dtype=torch.int64, device=label.device)
    return counts.scatter_add_(1, index, valid.flatten(1).long())


def _hardest(pixel_loss: Tensor, valid: Tensor, *, fraction: float) -> Tensor:
    """The loss of the last of each image's hardest `fraction` of valid pixels, [N, 1, 1]; at least one pixel."""
    ordered = (
        torch.where(valid, pixel_loss.detach(), -torch.inf)
        .flatten(1)
        .sort(dim=1, descending=True)
        .values
    )
    count = (valid.flatten(1).sum(1, keepdim=True) * fraction).ceil().long().clamp(min=1)
    return ordered.gather(1, count - 1)[:, :, None]


def _mean_of_chosen(
    pixel_loss: Tensor,
    chosen: Tensor,
    valid: Tensor,
    *,
    valid_pixels: Tensor | int | None,
    parts: int,
) -> Tensor:
    """Each image's mean over its chosen pixels, weighted by the image's number of valid pixels."""
    sums = torch.where(chosen, pixel_loss, 0.0).flatten(1).sum(1)
    scale = valid.flatten(1).sum(1) / chosen.flatten(1).sum(1).clamp(min=1)
    return mean_over_pixels((sums * scale).sum(), valid, valid_pixels=valid_pixels, parts=parts)
