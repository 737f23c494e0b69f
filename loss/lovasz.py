"""Lovász-Softmax loss: a convex stand-in for the intersection over union itself."""

from __future__ import annotations

import torch
from torch import Tensor

from .dice import probability_and_target
from .pixels import check_shapes, mean_over_images, valid_mask, without_autocast


def lovasz_loss(
    logits: Tensor,
    label: Tensor,
    *,
    ignore_label: int = 255,
    valid_pixels: Tensor | int | None = None,
    parts: int = 1,
) -> Tensor:
    """The Lovász extension of one minus IoU, the mean over the classes that an image shows.

    With p the soft-max probabilities, the error of class c at pixel i is m_i = |[y_i = c] - p_ic|.
    Let the errors fall, m_1 >= m_2 >= ..., and let J_k be one minus the IoU of class c when
    exactly the first k of these pixels are wrong:

        J_k = 1 - (P - positives among the first k) / (P + negatives among the first k),

    with P the pixels of class c. Then the loss of the class is sum_k m_k (J_k - J_(k-1)), J_0 = 0.

    Source: Berman, Triki, Blaschko 2018, equations 8, 9 and 11 and algorithm 1
    (https://arxiv.org/abs/1705.08790), image by image. An image counts by its valid pixels, so
    that the loss does not depend on how a batch is divided among processes. It sorts the pixels of
    every class: at full size it costs several times as much as cross-entropy.

    Args:
        logits: floating point [N, C, H, W].
        label: integer [N, H, W].
        ignore_label: pixels of this label do not count.
        valid_pixels: see `pixels.mean_over_pixels`.
        parts: see `pixels.mean_over_pixels`.

    Returns:
        A scalar, fp64 for fp64 logits and fp32 otherwise; 0 with zero gradient when every pixel is
        ignored.

    Raises:
        LossError: the shapes do not fit each other.

    Example:
        >>> label = torch.tensor([[[0, 1]]])
        >>> logits = torch.tensor([[[[50.0, 50.0]], [[0.0, 0.0]]]])  # all is taken for class 0
        >>> lovasz_loss(logits, label)  # IoU 1/2 of class 0 and 0 of class 1
        tensor(0.7500)
    """
    check_shapes(logits, label)
    valid = valid_mask(label, num_classes=logits.shape[1], ignore_label=ignore_label)

    with without_autocast(logits.device):
        probability, target = probability_and_target(logits, label, valid)
        shown = target.sum(2) > 0

        # Class by class: sorting all at once would take the memory of several sets of logits.
        classes = zip(probability.unbind(1), target.unbind(1), strict=True)
        losses = torch.stack([_loss_of_class(own, wanted) for own, wanted in classes], dim=1)
        image_loss = torch.where(shown, losses, 0).sum(1) / shown.sum(1).clamp(min=1)
    return mean_over_images(image_loss, valid, valid_pixels=valid_pixels, parts=parts)


def _loss_of_class(probability: Tensor, target: Tensor) -> Tensor:
    """The loss [N] of one class, from its probabilities and its one-hot label [N, P].

    Pixels that are not valid hold 0 in both. Their error of 0 comes last and changes no term.
    """
    error, order = (target - probability).abs().sort(dim=1, descending=True)

    # Whole numbers, since sums of floating-point ones have no deterministic kernel on a GPU.
    wanted = target.gather(1, order).long()
    positives = wanted.sum(1, keepdim=True)
    found = wanted.cumsum(1)
    number = torch.arange(1, wanted.shape[1] + 1, device=wanted.device)
    intersection, union = positives - found, positives + number - found

    # Without a pixel of the class its union may be empty, and the term is left out by the caller.
    jaccard = 1 - intersection.to(error) / union.clamp(min=1).to(error)
    steps = torch.cat([jaccard[:, :1], jaccard[:, 1:] - jaccard[:, :-1]], dim=1)
    return (error * steps).sum(1)
