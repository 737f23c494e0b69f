"""Inference on images of any size in bounded memory: flip, scales, tiles and the fall-back when memory runs out live here only."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from math import floor
from typing import TypeVar

import torch
from torch import Tensor, nn

from ..layers import ModelError, resize
from ..prediction import Prediction
from .raster import Raster
from .scales import Answer, Wish, answer, is_chained
from .tiling import STRIP, Piece, Span, alignment, overlap_pixels, spans, stitch

SMALLEST_TILE = 64  # pixels; the fall-back gives up below
Size = tuple[int, int]
Result = TypeVar("Result")


@torch.inference_mode()
def predict(
    model: nn.Module,
    image: Tensor,
    *,
    scales: Sequence[float] | None = None,
    flip: bool = False,
    combine: str = "average",
    over: str = "logits",
    tile: Sequence[int] | None = None,
    overlap: float = 0.25,
    keep_scales: bool | str = False,
    autocast_dtype: torch.dtype | None = None,
    fallback: bool = True,
    on_fallback: Callable[[str], None] | None = None,
) -> Prediction:
    """Logits `[N, C, H, W]` of normalised images `[N, 3, H, W]`, in float32 (float64 for a model in float64).

    - `scales`: of the model's own chain (default: those of training); a `single` model is evaluated at each of them and
      its answers are combined by `combine`, "average" or "max" (RELEASE.md 5.1).
    - `flip`: the mean of the answers for the image and for its mirror image.
    - `over`: what is averaged (over flips and scales), or whose maximum is taken: "logits" or "probabilities". In the
      second case the result is the logarithm of the combined probability, so that its soft-max is that probability.
    - `tile`: (height, width) above which an image is cut into overlapping tiles; `overlap` in pixels, or as a share of
      the tile when below 1. Tiles are blended in the middle of their overlap by weights that sum to one.
    - `keep_scales`: also the maps of each scale, at the size of its scaled image, and the attention of the result; with
      "features" those of a chained model stay at the size of its features while the image is whole. With `flip` they are
      means of both ways; tiles are joined there without blending.
    - `autocast_dtype`: run the network under autocast, e.g. torch.bfloat16; combining and logits stay in float32.
    - `fallback`: when memory runs out, try again with smaller and smaller tiles; `on_fallback` is told so in a sentence
      (default: a Python warning). Raises ModelError when not even a tile of 64 pixels fits.

    The model is in evaluation mode meanwhile. `predict_label` needs less memory where labels are all that is wanted.
    """
    wish = Wish(
        scales=_as_tuple(scales),
        flip=flip,
        combine=combine,
        over=over,
        overlap=overlap,
        autocast_dtype=autocast_dtype,
        keep_scales=keep_scales,
    )
    with _evaluating(model):
        return _with_fallback(
            partial(_whole_logits, model, image, wish),
            _first_tile(image, tile, overlap),
            image.device,
            fallback,
            on_fallback,
        )


@torch.inference_mode()
def predict_label(
    model: nn.Module,
    image: Tensor,
    *,
    scales: Sequence[float] | None = None,
    flip: bool = False,
    combine: str = "average",
    over: str = "logits",
    tile: Sequence[int] | None = None,
    overlap: float = 0.25,
    with_confidence: bool = False,
    autocast_dtype: torch.dtype | None = None,
    fallback: bool = True,
    on_fallback: Callable[[str], None] | None = None,
) -> tuple[Tensor, Tensor | None]:
    """(label uint8 `[N, H, W]`, confidence float32 `[N, H, W]` or None), without ever holding logits at full size.

    The options are those of `predict`, and so is the result: what `label_and_confidence` makes of its logits.
    """
    wish = Wish(
        scales=_as_tuple(scales),
        flip=flip,
        combine=combine,
        over=over,
        overlap=overlap,
        autocast_dtype=autocast_dtype,
    )
    run = partial(_whole_label, model, image, wish, with_confidence)
    with _evaluating(model):
        return _with_fallback(
            run, _first_tile(image, tile, overlap), image.device, fallback, on_fallback
        )


@torch.inference_mode()
def label_and_confidence(logits: Tensor) -> tuple[Tensor, Tensor]:
    """The most probable class, uint8 `[N, H, W]`, and its soft-max probability, float32, of logits `[N, C, H, W]`.

    Computed in strips on the device of the logits, so that no soft-max of all classes is held.
    """
    canvas = _LabelCanvas(logits, size=(logits.shape[-2], logits.shape[-1]), with_confidence=True)
    for rows in _row_strips(logits.shape[-2]):
        canvas.paint(Piece(rows, slice(None), logits[:, :, rows]))
    assert canvas.confidence is not None
    return canvas.label, canvas.confidence


@torch.inference_mode()
def predicted_label(logits: Tensor) -> Tensor:
    """The class of the largest of logits `[N, C, H, W]` at every pixel, uint8 `[N, H, W]`."""
    canvas = _LabelCanvas(logits, size=(logits.shape[-2], logits.shape[-1]), with_confidence=False)
    for rows in _row_strips(logits.shape[-2]):
        canvas.paint(Piece(rows, slice(None), logits[:, :, rows]))
    return canvas.label


class _LabelCanvas:
    """Labels of a whole image, painted piece by piece."""

    def __init__(self, logits: Tensor, *, size: Size, with_confidence: bool) -> None:
        count, classes = logits.shape[:2]
        assert classes <= 255, (
            f"{classes} classes do not fit into 8-bit labels beside the ignore label"
        )
        self.label = torch.empty((count, *size), dtype=torch.uint8, device=logits.device)
        self.confidence = (
            torch.empty((count, *size), device=logits.device) if with_confidence else None
        )

    def paint(self, piece: Piece) -> None:
        """Confidence is 1 / sum(exp(logits - largest)), the largest of the soft-max."""
        place = (slice(None), piece.rows, piece.columns)
        largest, self.label[place] = piece.logits.max(dim=1)
        if self.confidence is not None:
            rest = torch.sub(piece.logits.float(), largest.float().unsqueeze(1)).exp_().sum(dim=1)
            self.confidence[place] = rest.reciprocal_()


def _row_strips(height: int) -> Iterator[slice]:
    return (slice(start, min(start + STRIP, height)) for start in range(0, height, STRIP))


def _whole_label(
    model: nn.Module, image: Tensor, wish: Wish, with_confidence: bool, tile: Size
) -> tuple[Tensor, Tensor | None]:
    canvas: _LabelCanvas | None = None
    for piece in _pieces(model, image, wish, tile):
        if canvas is None:
            canvas = _LabelCanvas(piece.logits, size=_size(image), with_confidence=with_confidence)
        canvas.paint(piece)
        del piece  # it may be a view of a whole tile
    assert canvas is not None
    return canvas.label, canvas.confidence


def _whole_logits(model: nn.Module, image: Tensor, wish: Wish, tile: Size) -> Prediction:
    kept = _KeptScales(_size(image), floor if is_chained(model) else round)
    logits: Tensor | None = None
    for piece in _pieces(model, image, wish, tile, kept):
        if logits is None:
            logits = piece.logits.new_empty((*piece.logits.shape[:2], *_size(image)))
        logits[:, :, piece.rows, piece.columns] = piece.logits
        del piece  # it may be a view of a whole tile
    assert logits is not None
    return Prediction(
        logits=logits, attention=kept.attention, scales=kept.scales if wish.keep_scales else None
    )


def _pieces(
    model: nn.Module, image: Tensor, wish: Wish, tile: Size, kept: _KeptScales | None = None
) -> Iterator[Piece]:
    """Finished parts of the logits of whole images."""
    aligned = alignment(wish.scales or tuple(getattr(model, "train_scales", (1.0,))))
    rows, columns = (
        spans(length, tile=side, overlap=overlap_pixels(wish.overlap, side), alignment=aligned)
        for length, side in zip(_size(image), tile, strict=True)
    )

    def tile_of(row: Span, column: Span) -> Raster:
        with _autocast(image.device, wish.autocast_dtype):
            result = answer(
                model, image[:, :, row.start : row.stop, column.start : column.stop], wish
            )
        if kept is not None:
            kept.add(result, row, column)
        return result.logits

    return stitch(tile_of, rows=rows, columns=columns)


class _KeptScales:
    """The maps of single scales of whole images, put together from tiles; each tile counts from the middle of an overlap on."""

    def __init__(self, size: Size, rounded: Callable[[float], int]) -> None:
        self.size = size
        self.rounded = rounded
        self.attention: Tensor | None = None
        self.scales: dict[float, Prediction] = {}

    def add(self, result: Answer, row: Span, column: Span) -> None:
        if result.attention is not None:
            self.attention = self._added(self.attention, result.attention, 1.0, row, column)
        for scale, part in (result.scales or {}).items():
            before = self.scales.get(scale, Prediction(logits=None))  # type: ignore[arg-type]
            logits = self._added(before.logits, part.logits, scale, row, column)
            attention = (
                None
                if part.attention is None
                else self._added(before.attention, part.attention, scale, row, column)
            )
            self.scales[scale] = Prediction(logits=logits, attention=attention)

    def _added(
        self, canvas: Tensor | None, part: Tensor, scale: float, row: Span, column: Span
    ) -> Tensor:
        height, width = (max(1, self.rounded(length * scale)) for length in self.size)
        if canvas is None:
            if (row.stop - row.start, column.stop - column.start) == self.size:
                return part
            canvas = part.new_zeros((*part.shape[:2], height, width))
        top, cut_top, bottom = _places(row, scale, height, last=row.stop == self.size[0])
        left, cut_left, right = _places(column, scale, width, last=column.stop == self.size[1])
        part = resize(
            part, (bottom - top, right - left), align_corners=False
        )  # a scaled tile may be a pixel off
        canvas[:, :, cut_top:bottom, cut_left:right] = part[
            :, :, cut_top - top :, cut_left - left :
        ]
        return canvas


def _places(span: Span, scale: float, length: int, *, last: bool) -> tuple[int, int, int]:
    """Where a tile begins, counts from, and ends on the axis of a scaled image of `length` pixels."""
    start, first, stop = (
        min(length, round(place * scale)) for place in (span.start, span.first, span.stop)
    )
    return start, max(start, first), length if last else stop


def _with_fallback(
    run: Callable[[Size], Result],
    tile: Size,
    device: torch.device,
    fallback: bool,
    on_fallback: Callable[[str], None] | None,
) -> Result:
    """`run(tile)`, with tiles half as large whenever memory runs out; every such step is said aloud."""
    while True:
        try:
            return run(tile)
        except (RuntimeError, MemoryError) as error:
            if not (fallback and out_of_memory(error)):
                raise
        # Outside the except clause nothing refers to the failed attempt's tensors any more.
        if device.type == "cuda":
            torch.cuda.empty_cache()
        smaller = _halved(tile)
        if max(tile) <= SMALLEST_TILE:
            raise ModelError(
                f"not even {tile[0]} x {tile[1]} pixels fit into memory at once: use fewer or smaller scales, or another device."
            )
        (on_fallback or _warn)(
            f"memory ran out with {tile[0]} x {tile[1]} pixels at once: trying again with tiles of {smaller[0]} x {smaller[1]}, "
            "which may change the result slightly (set tile to begin with smaller ones)."
        )
        tile = smaller


def out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that the memory of the device or of the host ran out."""
    text = str(error).lower()
    return (
        isinstance(error, (torch.OutOfMemoryError, MemoryError))
        or "out of memory" in text
        or "can't allocate memory" in text
    )


def _halved(tile: Size) -> Size:
    """About half of the area: the longer side is halved and rounded up to a multiple of 32."""
    height, width = tile
    return (-(-height // 64) * 32, width) if height >= width else (height, -(-width // 64) * 32)


def _first_tile(image: Tensor, tile: Sequence[int] | None, overlap: float) -> Size:
    """The tile to begin with: the one asked for, or the whole image where that is smaller."""
    height, width = _size(image)
    if tile is None:
        return height, width
    if len(tile) != 2 or min(tile) < 1:
        raise ModelError(
            f"tile {list(tile)} must be a height and a width in pixels, such as 1024 1024."
        )
    if overlap >= 1 and overlap >= min(tile):
        raise ModelError(
            f"overlap {overlap:g} must be smaller than the tile ({tile[0]} x {tile[1]}): give pixels, or a share below 1."
        )
    return min(int(tile[0]), height), min(int(tile[1]), width)


def _warn(sentence: str) -> None:
    warnings.warn(sentence, RuntimeWarning, stacklevel=3)


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Every part in evaluation mode, and afterwards in the mode it had."""
    training = [part for part in model.modules() if part.training]
    model.eval()
    try:
        yield
    finally:
        for part in training:
            part.training = True


def _autocast(device: torch.device, dtype: torch.dtype | None) -> AbstractContextManager[object]:
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype=dtype)


def _size(image: Tensor) -> Size:
    return image.shape[-2], image.shape[-1]


def _as_tuple(scales: Sequence[float] | None) -> tuple[float, ...] | None:
    return None if scales is None else tuple(scales)
