"""What the losses share: which pixels count, and how a sum over pixels becomes a mean."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from hmsa.utils.words import UserError


class LossError(UserError, ValueError):
    """A mistake in what the user asked of the losses, in one sentence that says what to do."""


def check_shapes(logits: Tensor, label: Tensor) -> None:
    """Check that `logits` is floating point [N, C, H, W] and `label` integer [N, H, W].

    Raises:
        LossError: one of them has another shape or dtype.
    """
    if len(logits.shape) != 4 or not logits.dtype.is_floating_point:
        raise LossError(
            f"logits must be floating point [N, C, H, W], not {logits.dtype} {list(logits.shape)}."
        )

    expected = [logits.shape[0], *logits.shape[2:]]
    if list(label.shape) != expected or label.is_floating_point():
        raise LossError(
            f"label must be integer {expected} to match the logits, not {label.dtype} "
            f"{list(label.shape)}."
        )


def valid_mask(label: Tensor, *, num_classes: int, ignore_label: int) -> Tensor:
    """Where `label` [N, H, W] names one of the classes and is not `ignore_label`; bool, same shape.

    Every value that is no class counts as ignored, as in the authors' code (their mask is
    label < C).
    """
    valid = torch.ones_like(label, dtype=torch.bool)

    # torch compares a uint8 tensor with a number modulo 256, so larger numbers are left out.
    limit = 256 if label.dtype == torch.uint8 else math.inf
    if num_classes < limit:
        valid &= label < num_classes
    if label.dtype != torch.uint8:
        valid &= label >= 0

    # An ignore label beyond the classes is excluded already.
    if 0 <= ignore_label < min(num_classes, limit):
        valid &= label != ignore_label
    return valid


def class_index(label: Tensor, valid: Tensor) -> Tensor:
    """`label` as an int64 index for gather and scatter, 0 where it is not valid; same shape."""
    return torch.where(valid, label, 0).long()


def mean_over_pixels(
    total: Tensor,
    valid: Tensor,
    *,
    valid_pixels: Tensor | int | None,
    parts: int,
    added: int = 0,
) -> Tensor:
    """`parts * total / (valid pixels + added)`: a sum over pixels as part of a batch's mean.

    A batch may be divided among processes and micro-batches. The mean over all parts of what this
    returns is the loss of the whole batch, however it was divided.

    Args:
        total: sum over the valid pixels of this part of the batch.
        valid: bool [N, H, W], the valid pixels of this part.
        valid_pixels: number of valid pixels of the whole batch; None takes the count of `valid`,
            which is right when this part is the whole.
        parts: into how many equal parts the batch was divided.
        added: a constant beside the number of pixels.

    Returns:
        A scalar with the dtype of `total`; zero when no pixel is valid.
    """
    if valid_pixels is None:
        valid_pixels = valid.sum()

    # A count on the device stays there: to read it would make the host wait.
    if isinstance(valid_pixels, Tensor):
        count = (valid_pixels.to(total.device) + added).clamp(min=1).to(total.dtype)
        return parts * total / count
    return parts * total / max(valid_pixels + added, 1)


def check_class_weights(class_weights: Tensor | None, logits: Tensor) -> None:
    """Raise LossError unless there is one weight for each class of logits [N, C, H, W], or none."""
    if class_weights is not None and class_weights.shape != (logits.shape[1],):
        raise LossError(
            f"class_weights must hold {logits.shape[1]} values, not {list(class_weights.shape)}."
        )


def mean_over_images(
    image_loss: Tensor, valid: Tensor, *, valid_pixels: Tensor | int | None, parts: int
) -> Tensor:
    """The mean of one loss per image, in which an image counts by its valid pixels.

    Such a mean is the same however a batch is divided; see `mean_over_pixels`, whose arguments
    these are.

    Args:
        image_loss: [N], of any value where an image has no valid pixel.
        valid: bool [N, H, W].
        valid_pixels: number of valid pixels of the whole batch, or None.
        parts: into how many equal parts the batch was divided.
    """
    total = (image_loss * valid.flatten(1).sum(1)).sum()
    return mean_over_pixels(total, valid, valid_pixels=valid_pixels, parts=parts)


def computing_dtype(logits: Tensor) -> torch.dtype:
    """The dtype that losses compute in: fp64 for fp64 logits, fp32 for all others."""
    return torch.float64 if logits.dtype == torch.float64 else torch.float32


def exact_device(device: torch.device) -> torch.device:
    """Where fp64 is computed for tensors on `device`: there, or on the CPU for GPUs of Apple's.

    These have no fp64. What needs it is small beside the logits.
    """
    return torch.device("cpu") if device.type == "mps" else device


def without_autocast(device: torch.device) -> AbstractContextManager[None]:
    """A context in which operations on `device` keep the dtype that they are given."""
    if not torch.amp.is_autocast_available(device.type):
        return nullcontext()
    return torch.autocast(device.type, enabled=False)
