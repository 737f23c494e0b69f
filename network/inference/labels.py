"""From logits to labels and confidence, piece by piece."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ..layers import ModelError
from .tiling import Piece, strip_rows


class NonFiniteError(ModelError):
    """The largest logit of a pixel is not a finite number, so that there is no label."""


@torch.inference_mode()
def label_and_confidence(logits: Tensor) -> tuple[Tensor, Tensor]:
    """The most probable class and its soft-max probability.

    Logits `[N, C, H, W]` give a label, uint8 `[N, H, W]`, and a confidence, float32 `[N, H, W]`, on
    the device of the logits. Computed in strips, so that no soft-max of all classes is held. Where
    the largest logit is NaN or infinite the label is of no meaning and the confidence is NaN.
    """
    canvas = LabelCanvas(logits, size=(logits.shape[-2], logits.shape[-1]), with_confidence=True)
    for rows in _row_strips(logits):
        canvas.paint(Piece(rows, slice(None), logits[:, :, rows]))
    assert canvas.confidence is not None
    return canvas.label, canvas.confidence


@torch.inference_mode()
def predicted_label(logits: Tensor) -> Tensor:
    """The class of the largest of logits `[N, C, H, W]` at every pixel, uint8 `[N, H, W]`.

    Raises:
        NonFiniteError: the largest logit of a pixel is NaN or infinite.
    """
    canvas = LabelCanvas(logits, size=(logits.shape[-2], logits.shape[-1]), with_confidence=False)
    for rows in _row_strips(logits):
        canvas.paint(Piece(rows, slice(None), logits[:, :, rows]))
    canvas.require_finite()
    return canvas.label


def _row_strips(logits: Tensor) -> Iterator[slice]:
    height, step = logits.shape[-2], strip_rows(logits.device)
    return (slice(start, min(start + step, height)) for start in range(0, height, step))


class LabelCanvas:
    """Labels, and on request confidence, of whole images, painted piece by piece."""

    def __init__(self, logits: Tensor, *, size: tuple[int, int], with_confidence: bool) -> None:
        count, classes = logits.shape[:2]
        assert classes <= 255, f"{classes} classes do not fit into 8 bits beside the ignore label"
        self.label = torch.empty((count, *size), dtype=torch.uint8, device=logits.device)
        self.confidence: Tensor | None = None
        if with_confidence:
            self.confidence = torch.empty((count, *size), device=logits.device)

        # Counted on the device of the logits, so that it is waited for only once, at the end.
        self.without_label = torch.zeros((), dtype=torch.int64, device=logits.device)

    def paint(self, piece: Piece) -> None:
        """Enter a piece of the logits."""
        target = (slice(None), piece.rows, piece.columns)
        largest, self.label[target] = piece.logits.max(dim=1)

        # The largest of the soft-max is 1 / sum(exp(logits - largest)): NaN where `largest` is not
        # finite, for infinite minus infinite is NaN.
        if self.confidence is None:
            self.without_label += largest.isfinite().logical_not_().sum()
        else:
            rest = torch.sub(piece.logits.float(), largest.float().unsqueeze(1)).exp_().sum(dim=1)
            self.confidence[target] = rest.reciprocal_()

    def require_finite(self) -> None:
        """Raise NonFiniteError where a pixel has no label and no confidence would say so."""
        # With a confidence nothing is counted, and there is nothing to wait for.
        if self.confidence is not None:
            return
        count = int(self.without_label)
        if count:
            raise NonFiniteError(
                f"the largest logit of {count} of {self.label.numel()} pixels is not a finite "
                "number (NaN or infinite), so that they have no label: the weights, the image or "
                "the precision (fp16) are at fault."
            )
