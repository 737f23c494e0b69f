"""A configuration that suits the data seen: where to start, not where to end."""

from __future__ import annotations

from typing import Any

from .verify import Verification

STRIDE = 32  # crops that are multiples of it leave no trunk a fraction of a feature
LARGEST_CROP = (1024, 2048)
PIXELS_PER_BATCH = 2**21  # the paper's batch on one GPU: one crop of 1024 x 2048
LARGEST_BATCH = 16
USUAL_LONG_EDGE = 2177  # what the authors' code resizes the varied sizes of Mapillary Vistas to


def suggest_data(verification: Verification) -> dict[str, Any]:
    """Values for the `data` section: crop, batch size, long edge and class-uniform sampling.

    The crop is what nine of ten images hold, up to the paper's; the batch fills the paper's pixels
    per GPU; the tile is the crop's shorter side, so that a crop around a chosen pixel shows about
    its tile. Very large images of mixed sizes are resized to one long edge, as the authors' code
    does.

    Returns:
        Plain values, in the form of a configuration; empty where no image could be read.
    """
    sizes = [size for size, count in verification.sizes.items() for _ in range(count)]
    if not sizes:
        return {}

    longest = sorted(max(size) for size in sizes)[len(sizes) // 2]
    is_mixed = len(verification.sizes) > 1 and longest > max(LARGEST_CROP)
    long_edge = None
    if is_mixed and longest > USUAL_LONG_EDGE:
        long_edge = USUAL_LONG_EDGE
        sizes = [_at_long_edge(size, long_edge) for size in sizes]

    # The crop fits into all but the smallest tenth of the images.
    tenth = len(sizes) // 10
    crop = [
        _crop_side(sorted(size[axis] for size in sizes)[tenth], LARGEST_CROP[axis])
        for axis in (0, 1)
    ]
    batch = min(LARGEST_BATCH, max(1, PIXELS_PER_BATCH // (crop[0] * crop[1])))
    values: dict[str, Any] = {"crop": crop, "batch_size": batch}
    if long_edge is not None:
        values["long_edge"] = long_edge

    # Sampling by class pays where a class is in fewer than half of the images.
    present = verification.images_with[verification.images_with > 0]
    fraction = 0.0
    if len(present) > 1 and present.min() < 0.5 * verification.checked:
        fraction = 0.5
    values["class_uniform"] = {"fraction": fraction, "tile": min(crop)}
    return values


def _at_long_edge(size: tuple[int, int], long_edge: int) -> tuple[int, int]:
    """A size (height, width) whose longer side has become `long_edge`."""
    height, width = size
    longer = max(size)
    return round(height * long_edge / longer), round(width * long_edge / longer)


def _crop_side(side: int, largest: int) -> int:
    """The largest multiple of the stride that fits; a smaller image is padded up to one stride."""
    return max(STRIDE, min(side, largest) // STRIDE * STRIDE)
