"""Binary cross-entropy over classes: each class against all others."""

from __future__ import annotations

from torch import Tensor

from .fast.binary_terms import binary_terms
from .pixels import (
    check_class_weights,
    check_shapes,
    mean_over_pixels,
    valid_mask,
    without_autocast,
)


def binary_cross_entropy(
    logits: Tensor,
    label: Tensor,
    *,
    ignore_label: int = 255,
    class_weights: Tensor | None = None,
    valid_pixels: Tensor | int | None = None,
    parts: int = 1,
) -> Tensor:
    """Sum over classes and valid pixels of the binary cross-entropy, by (valid pixels + 1).

    For a logit z and a target t (1 where z's class is the label, else 0), the binary cross-entropy
    is softplus(z) - t z. It is summed, not averaged, over classes; both this and the added pixel
    are as in the authors' code (docs/release_notes.md, RMI).

    Args:
        logits: floating point [N, C, H, W].
        label: integer [N, H, W].
        ignore_label: pixels of this label do not count.
        class_weights: [C], as `class_weights_from_counts` makes them: the cross-entropies of a
            pixel, those of all classes, weigh as much as its label. So a rare class is missed less
            often, and found more often where it is not.
        valid_pixels: see `pixels.mean_over_pixels`.
        parts: see `pixels.mean_over_pixels`.

    Returns:
        A scalar, fp64 for fp64 logits and fp32 otherwise.

    Raises:
        LossError: the shapes do not fit each other.
    """
    check_shapes(logits, label)
    check_class_weights(class_weights, logits)
    valid = valid_mask(label, num_classes=logits.shape[1], ignore_label=ignore_label)
    with without_autocast(logits.device):
        total, _ = binary_terms(logits, label, valid, pool_size=0, class_weights=class_weights)
        return mean_over_pixels(total, valid, valid_pixels=valid_pixels, parts=parts, added=1)
