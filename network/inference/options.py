"""How to infer: scales, flip, how they are combined, tiles, precision."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from ..layers import ModelError
from ..model import checked_scales

COMBINE = ("average", "max")
OVER = ("logits", "probabilities")


@dataclass(frozen=True)
class InferenceOptions:
    """The options of `predict` and `predict_label`.

    Attributes:
        scales: those of the model's own chain; a `single` model is evaluated at each of them, and
            the results are combined.
        flip: take the mean of the results for the image and for its mirror image.
        combine: "average" or "max", over the scales of a `single` model.
        over: what is combined, over scales and flips: "logits" or "probabilities". In the second
            case logits become the logarithm of the combined probability, so that their soft-max
            is that probability.
        tile: (height, width) in pixels above which an image is cut into overlapping tiles.
        overlap: of tiles, in pixels, or as a share of the tile when below 1. Tiles are blended in
            the middle of their overlap by weights that sum to one.
        refine: share of the image, 0 to 1, on which scales above 1 are computed, where the
            attention leaves most to them; 1 computes them everywhere. "auto" takes as much of each
            image as the attention asks for. For hierarchical models (`refinement`).
        autocast_dtype: run the network under autocast, e.g. torch.bfloat16; combining and logits
            stay in float32.

    Raises:
        ModelError: a value makes no sense.
    """

    scales: tuple[float, ...]
    flip: bool = False
    combine: str = "average"
    over: str = "logits"
    tile: tuple[int, int] | None = None
    overlap: float = 0.25
    autocast_dtype: torch.dtype | None = None
    refine: float | Literal["auto"] = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "scales", checked_scales(self.scales))
        for name, value, choices in (("combine", self.combine, COMBINE), ("over", self.over, OVER)):
            if value not in choices:
                raise ModelError(
                    f"{name} {value!r} is not known: choose one of {', '.join(choices)}."
                )
        if self.overlap < 0:
            raise ModelError(
                f"overlap {self.overlap:g} is negative: give pixels, or a share of the tile "
                "below 1."
            )
        if self.tile is not None:
            self._check_tile(self.tile)
        # A comparison with NaN is false, so that NaN is refused as well.
        if self.refine != "auto" and not (
            isinstance(self.refine, (int, float)) and 0 <= self.refine <= 1
        ):
            raise ModelError(
                f"refine {self.refine!r} is not known: give a share of the image from 0 to 1, such "
                "as 0.3, or auto."
            )

    @property
    def refined_scales(self) -> tuple[float, ...]:
        """The scales that are computed on a part of the image, ascending: those above 1.

        The lowest scale of all is computed whole, whatever it is.
        """
        if self.refine == 1:
            return ()
        return tuple(scale for scale in sorted(self.scales)[1:] if scale > 1)

    def _check_tile(self, tile: tuple[int, int]) -> None:
        if len(tile) != 2 or min(tile) < 1:
            raise ModelError(
                f"tile {list(tile)} must be a height and a width in pixels, such as 1024 1024."
            )
        if self.overlap >= 1 and self.overlap >= min(tile):
            raise ModelError(
                f"overlap {self.overlap:g} must be smaller than the tile ({tile[0]} x {tile[1]}): "
                "give pixels, or a share below 1."
            )

    def describe(self) -> str:
        """Scales, flip and combination as they stand beside a number, e.g. `{0.5, 1} + flip`.

        The mean of logits is not mentioned.
        """
        text = "{" + ", ".join(f"{scale:g}" for scale in self.scales) + "}"
        if self.flip:
            text += " + flip"
        if self.refined_scales:
            above = " and ".join(f"{scale:g}x" for scale in self.refined_scales)
            where = "where attention asks"
            if self.refine != "auto":
                where = f"on {100 * self.refine:g} %"
            text += f", {above} {where}"
        if (self.combine, self.over) != ("average", "logits"):
            text += f", {self.combine} of {self.over}"
        return text
