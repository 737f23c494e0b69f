"""The maps of single scales of whole images, put together from tiles."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from ..layers import resize
from ..prediction import Prediction
from .scales import ImageMaps
from .tiling import Span


class KeptScales:
    """Attention and the maps of each scale; a tile counts from the middle of an overlap on.

    `rounded` makes whole pixels of a scaled length, as the model does.
    """

    def __init__(self, size: tuple[int, int], rounded: Callable[[float], int]) -> None:
        self.size = size
        self.rounded = rounded
        self.attention: Tensor | None = None
        self.scales: dict[float, Prediction] = {}

    def add(self, maps: ImageMaps, row: Span, column: Span) -> None:
        """Enter the maps of one tile."""
        self.attention = self._added(self.attention, maps.attention, 1.0, row, column)
        for scale, part in (maps.scales or {}).items():
            before = self.scales.get(scale, Prediction(logits=None))  # type: ignore[arg-type]
            logits = self._added(before.logits, part.logits, scale, row, column)
            attention = self._added(before.attention, part.attention, scale, row, column)
            assert logits is not None
            self.scales[scale] = Prediction(logits=logits, attention=attention)

    def _added(
        self, canvas: Tensor | None, part: Tensor | None, scale: float, row: Span, column: Span
    ) -> Tensor | None:
        if part is None:
            return canvas
        height, width = (max(1, self.rounded(length * scale)) for length in self.size)
        if canvas is None:
            # The tile may be the whole image.
            if (row.stop - row.start, column.stop - column.start) == self.size:
                return part
            canvas = part.new_zeros((*part.shape[:2], height, width))
        # Where only attention is kept, logits have no channels.
        if part.shape[1] == 0:
            return canvas

        top, cut_top, bottom = _scaled_span(row, scale, height, last=row.stop == self.size[0])
        left, cut_left, right = _scaled_span(column, scale, width, last=column.stop == self.size[1])
        # The tile was scaled by itself and may be a pixel larger or smaller than its place.
        part = resize(part, (bottom - top, right - left), align_corners=False)
        inner = part[:, :, cut_top - top :, cut_left - left :]
        canvas[:, :, cut_top:bottom, cut_left:right] = inner
        return canvas


def _scaled_span(span: Span, scale: float, length: int, *, last: bool) -> tuple[int, int, int]:
    """Where a tile begins, counts from, and ends on the axis of a scaled image of `length`."""
    start, first, stop = (
        min(length, round(position * scale)) for position in (span.start, span.first, span.stop)
    )
    if last:
        stop = length
    return start, max(start, first), stop
