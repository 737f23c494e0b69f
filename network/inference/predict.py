"""Inference on images of any size in bounded memory: scales, flip, tiles and the fall-back."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor, nn

from ..layers import ModelError
from ..prediction import Prediction
from .kept_scales import KeptScales
from .labels import LabelCanvas, label_and_confidence, predicted_label
from .options import InferenceOptions
from .refinement import RefinedArea
from .scales import KeepScales, describe_logits, is_chained
from .strips import StripMap
from .tiling import Piece, Span, alignment, overlap_pixels, spans, stitch

__all__ = ["label_and_confidence", "out_of_memory", "predict", "predict_label", "predicted_label"]

SMALLEST_TILE = 64  # pixels; the fall-back gives up below
# In messages of torch's allocators, and of cuBLAS and cuDNN, which take memory of their own. Where
# no kernel of a convolution has room for its workspace, none is found.
SIGNS_OF_FULL_MEMORY = (
    "out of memory",
    "can't allocate memory",
    "_status_alloc_failed",
    "unable to find a valid cudnn algorithm",
)
Size = tuple[int, int]  # (height, width) in pixels
Result = TypeVar("Result")


@torch.inference_mode()
def predict(
    model: nn.Module,
    image: Tensor,
    options: InferenceOptions,
    *,
    keep_scales: KeepScales = False,
    on_fallback: Callable[[str], None] | None = None,
    area: RefinedArea | None = None,
) -> Prediction:
    """Logits `[N, C, H, W]` of normalised images `[N, 3, H, W]`.

    They are in float32, or float64 for a model in float64. With `keep_scales` the result also holds
    the attention, and the maps of each scale at the size of its scaled image: with `flip` means of
    both ways; from tiles joined without blending. With "attention" the logits of the scales are
    left out (they have no channels), which saves most of that memory. How much of the images is
    computed at scales above 1, where the options ask for a part, is added to `area`.

    When memory runs out it tries again with smaller and smaller tiles; `on_fallback` is told so in
    a sentence (default: a Python warning). The model is in evaluation mode meanwhile and must not
    be used by another thread. Logits that are NaN or infinite are returned as they are.
    `predict_label` needs less memory where labels are all that is wanted.

    Raises:
        ModelError: the model does not take these scales, or not even a tile of 64 pixels fits.
    """
    run = partial(_whole_logits, model, image, options, keep_scales, area)
    with _evaluating(model):
        return _with_fallback(run, _first_tile(image, options), image.device, on_fallback)


@torch.inference_mode()
def predict_label(
    model: nn.Module,
    image: Tensor,
    options: InferenceOptions,
    *,
    with_confidence: bool = False,
    on_fallback: Callable[[str], None] | None = None,
    area: RefinedArea | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Label uint8 `[N, H, W]` and confidence float32 `[N, H, W]` (or None) of normalised images.

    They are what `label_and_confidence` makes of the logits of `predict`, but logits never exist
    at full size. Where the largest logit of a pixel is NaN or infinite, the label is of no meaning
    and the confidence is NaN. `on_fallback` and `area` are those of `predict`.

    Raises:
        ModelError: as `predict`.
        NonFiniteError: (a ModelError) without confidence, where a pixel's would be NaN.
    """
    run = partial(_whole_label, model, image, options, with_confidence, area)
    with _evaluating(model):
        return _with_fallback(run, _first_tile(image, options), image.device, on_fallback)


def out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that the memory of the device or of the host ran out."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    text = str(error).lower()
    return any(sign in text for sign in SIGNS_OF_FULL_MEMORY)


def _whole_logits(
    model: nn.Module,
    image: Tensor,
    options: InferenceOptions,
    keep_scales: KeepScales,
    area: RefinedArea | None,
    tile: Size,
) -> Prediction:
    # A model that fuses scales rounds their sizes down; averaging rounds to the nearest pixel.
    rounded: Callable[[float], int] = math.floor if is_chained(model) else round
    kept: KeptScales | None = None
    if keep_scales:
        kept = KeptScales(_size(image), rounded)

    logits: Tensor | None = None
    counted = RefinedArea()
    for piece in _pieces(model, image, options, tile, counted, kept, keep_scales):
        if logits is None:
            logits = piece.logits.new_empty((*piece.logits.shape[:2], *_size(image)))
        logits[:, :, piece.rows, piece.columns] = piece.logits
        del piece  # it may be a view of a whole tile

    assert logits is not None
    if area is not None:
        area.add(counted)
    if kept is None:
        return Prediction(logits)
    return Prediction(logits, attention=kept.attention, scales=kept.scales)


def _whole_label(
    model: nn.Module,
    image: Tensor,
    options: InferenceOptions,
    with_confidence: bool,
    area: RefinedArea | None,
    tile: Size,
) -> tuple[Tensor, Tensor | None]:
    canvas: LabelCanvas | None = None
    counted = RefinedArea()
    for piece in _pieces(model, image, options, tile, counted):
        if canvas is None:
            canvas = LabelCanvas(piece.logits, size=_size(image), with_confidence=with_confidence)
        canvas.paint(piece)
        del piece  # it may be a view of a whole tile

    assert canvas is not None
    if area is not None:
        area.add(counted)
    canvas.require_finite()
    return canvas.label, canvas.confidence


def _pieces(
    model: nn.Module,
    image: Tensor,
    options: InferenceOptions,
    tile: Size,
    area: RefinedArea,
    kept: KeptScales | None = None,
    keep_scales: KeepScales = False,
) -> Iterator[Piece]:
    """Finished parts of the logits of whole images."""
    aligned = alignment(options.scales)
    rows, columns = (
        spans(length, tile=side, overlap=overlap_pixels(options.overlap, side), alignment=aligned)
        for length, side in zip(_size(image), tile, strict=True)
    )

    def logits_of_tile(row: Span, column: Span) -> StripMap:
        part = image[:, :, row.start : row.stop, column.start : column.stop]
        with _autocast(image.device, options.autocast_dtype):
            maps = describe_logits(model, part, options, keep_scales=keep_scales, area=area)
        if kept is not None:
            kept.add(maps, row, column)
        return maps.logits

    return stitch(logits_of_tile, rows=rows, columns=columns)


def _with_fallback(
    run: Callable[[Size], Result],
    tile: Size,
    device: torch.device,
    on_fallback: Callable[[str], None] | None,
) -> Result:
    """`run(tile)`, with tiles half as large whenever memory runs out; every such step is said."""
    say = on_fallback or _warn
    while True:
        try:
            return run(tile)
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise

        # Outside the except clause nothing refers to the failed attempt's tensors any more.
        if device.type == "cuda":
            torch.cuda.empty_cache()
        if max(tile) <= SMALLEST_TILE:
            raise ModelError(
                f"not even {tile[0]} x {tile[1]} pixels fit into memory at once: use fewer or "
                "smaller scales, or another device."
            )
        smaller = _halved(tile)
        say(
            f"memory ran out with {tile[0]} x {tile[1]} pixels at once: trying again with tiles of "
            f"{smaller[0]} x {smaller[1]}, which may change the result slightly (set tile to begin "
            "with smaller ones)."
        )
        tile = smaller


def _halved(tile: Size) -> Size:
    """About half of the area: the longer side is halved and rounded up to a multiple of 32."""
    height, width = tile
    if height >= width:
        return math.ceil(height / 64) * 32, width
    return height, math.ceil(width / 64) * 32


def _first_tile(image: Tensor, options: InferenceOptions) -> Size:
    """The tile to begin with: the one asked for, or the whole image where that is smaller."""
    height, width = _size(image)
    if options.tile is None:
        return height, width
    return min(options.tile[0], height), min(options.tile[1], width)


def _warn(sentence: str) -> None:
    warnings.warn(sentence, RuntimeWarning, stacklevel=3)


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Every part in evaluation mode, and afterwards in the mode it had."""
    training = [part for part in model.modules() if part.training]
    if training:
        model.eval()
    try:
        yield
    finally:
        for part in training:
            part.training = True


def _autocast(device: torch.device, dtype: torch.dtype | None) -> AbstractContextManager[object]:
    if dtype is None:
        return nullcontext()
    return torch.autocast(device.type, dtype=dtype)


def _size(image: Tensor) -> Size:
    return image.shape[-2], image.shape[-1]
