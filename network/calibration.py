"""Calibration of hierarchical attention for lists of scales that training did not see.

Training shows the attention head a few pairs of scales, 0.5x and 1x in the paper. At inference a
chain holds any pairs, and for those the head tends to trust one side too much or too little, by an
amount that depends on what is seen. For each pair and class two numbers mend that (`PairBias`),
which are added to the attention's scores before the sigmoid (`model.calibrated`),

    a' = sigmoid(logit(a) + sum over classes c of p_lower,c * lower_c + p_higher,c * higher_c),

where p is what each scale of the pair thinks it sees, the soft-max of its logits. The head itself
reads the features of the lower scale alone; what the higher one makes of the image is news.

The biases are fitted by the cross-entropy of the fused logits, on maps that are computed once for a
few images; the network itself stays as it is. The maps are fused at the full size of the image:
fitted at the resolution of the features, the largest scale looks worse than it is. The numbers of
a pair are drawn together, so that a class that the images hardly show has that of the others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from .layers import ModelError, resize
from .model import Hierarchical, PairBias, PairBiases, ScalePair, Size, adjacent_pairs, calibrated
from .prediction import Prediction

STEPS = 16
LEARNING_RATE = 0.5
SPREAD_PENALTY = 1e-5  # for the squared distances of a pair's biases from one number
LARGEST_BIAS = 6.0  # an attention of 0.9975 where it was 0.5: more would be as good as all
SWITCHED_OFF = 40.0  # far above the score of a saturated attention, 14 (`model.SATURATED`)
WINDOW = (512, 1024)  # pixels of an image (height, width) that judge, at most
FITTED_WINDOW = (192, 384)  # and that are fitted: each of the steps fuses them again
ALIGNMENT = 64  # windows begin at multiples of it, so that maps of every scale are cut alike


@dataclass(frozen=True)
class KeptMaps:
    """What fusing needs of one image: maps of each scale at the resolution of its features."""

    scales: Mapping[float, Prediction]  # logits float16 [1, C, h, w], attention float32
    label: Tensor  # uint8 [H, W]


@torch.inference_mode()
def keep_maps(
    model: Hierarchical,
    image: Tensor,
    label: Tensor,
    scales: Sequence[float],
    *,
    window: Size = WINDOW,
    place: tuple[float, float] = (0.5, 0.5),
) -> KeptMaps:
    """Run the network, without a bias, on one normalised image `[1, 3, H, W]` with its label.

    Of an image that is larger than `window` (height, width) the maps of a part of that size are
    kept. `place` says where it lies, down and across, from 0 to 1: in the middle by default. The
    network sees all of the image, as it does in an evaluation.
    """
    held, model.attention_bias = model.attention_bias, {}
    try:
        predictions = model.predict_scales(image, scales)
    finally:
        model.attention_bias = held

    rows = _window(label.shape[0], window[0], place=place[0])
    columns = _window(label.shape[1], window[1], place=place[1])
    size = (label.shape[0], label.shape[1])

    def cut(maps: Tensor, dtype: torch.dtype) -> Tensor:
        height, width = maps.shape[-2:]
        own_rows = _scaled_slice(rows, height / size[0])
        own_columns = _scaled_slice(columns, width / size[1])
        return maps[..., own_rows, own_columns].to("cpu", dtype, copy=True)

    kept = {}
    for scale, part in predictions.items():
        attention = part.attention
        if attention is not None:
            attention = cut(attention, torch.float32)
        # Half precision is finer than what moves a bias, and a hundred images fit into memory.
        kept[scale] = Prediction(logits=cut(part.logits, torch.float16), attention=attention)
    return KeptMaps(kept, label[rows, columns].cpu().clone())


def fuse_kept(model: Hierarchical, kept: KeptMaps, biases: PairBiases) -> Tensor:
    """Fused logits `[1, C, H, W]` of kept maps, with `biases` for pairs of their scales.

    It is the model's own fusion, differentiable with respect to the biases.
    """
    scales = {
        scale: Prediction(logits=part.logits.float(), attention=part.attention)
        for scale, part in kept.scales.items()
    }
    for lower, higher in adjacent_pairs(list(scales)):
        bias = biases.get((lower, higher))
        if bias is not None:
            scales[lower] = calibrated(
                scales[lower], scales[higher], bias, align_corners=model.align_corners
            )

    height, width = kept.label.shape
    return model.fuse_scales(scales, (height, width)).logits


def average_kept(model: Hierarchical, kept: KeptMaps) -> Tensor:
    """Mean logits `[1, C, H, W]` of the scales of kept maps: what everybody does without attention.

    It tells what attention is worth on images that have been computed anyway.
    """
    height, width = kept.label.shape
    whole = [
        resize(part.logits.float(), (height, width), align_corners=model.align_corners)
        for part in kept.scales.values()
    ]
    return torch.stack(whole).mean(dim=0)


def fit_attention_bias(
    model: Hierarchical, images: Sequence[KeptMaps], *, ignore_label: int
) -> dict[ScalePair, PairBias]:
    """Fit biases for every class and every pair of neighbouring scales that the maps hold.

    The loss is the mean cross-entropy over images, each the mean over its labelled pixels. Labels
    above the number of classes are ignored.

    Raises:
        ModelError: there is no image with a labelled pixel.
    """
    usable = [kept for kept in images if bool((kept.label != ignore_label).any())]
    if not usable:
        raise ModelError("no image for the calibration has a labelled pixel")

    pairs = adjacent_pairs(list(usable[0].scales))
    classes = usable[0].scales[pairs[0][0]].logits.shape[1]
    tensors = torch.zeros(len(pairs), 2, classes, requires_grad=True)
    optimizer = torch.optim.Adam([tensors], lr=LEARNING_RATE, betas=(0.7, 0.95))
    for step in range(STEPS):
        # Smaller steps towards the end, so that the last one does not decide.
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * (1 - step / STEPS)

        optimizer.zero_grad()
        biases = {pair: PairBias(*of_pair) for pair, of_pair in zip(pairs, tensors, strict=True)}
        for kept in usable:
            logits = fuse_kept(model, kept, biases)
            label = kept.label.long()[None]
            loss = functional.cross_entropy(logits, label, ignore_index=ignore_label)
            (loss / len(usable)).backward()

        # What the images hardly show stays near the rest of its pair.
        (SPREAD_PENALTY * _spread(tensors)).backward()
        optimizer.step()
        with torch.no_grad():
            tensors.clamp_(-LARGEST_BIAS, LARGEST_BIAS)
    return {
        pair: PairBias(*(tuple(numbers) for numbers in of_pair))
        for pair, of_pair in zip(pairs, tensors.tolist(), strict=True)
    }


def switched_off() -> PairBias:
    """The bias with which the lower scale of a pair has no share of the fused result."""
    return PairBias((-SWITCHED_OFF,))


def scales_switched_off(biases: PairBiases) -> list[float]:
    """The scales, rising, of which nothing is left in the fused result."""
    off = switched_off()
    return sorted(lower for (lower, _), bias in biases.items() if tuple(bias.lower) == off.lower)


def _spread(biases: Tensor) -> Tensor:
    """How far biases `[P, 2, C]` are from one number for each pair, which the lower scale has."""
    lower, higher = biases.unbind(dim=1)
    return (lower - lower.mean(dim=1, keepdim=True)).square().sum() + higher.square().sum()


def _window(length: int, largest: int, *, place: float) -> slice:
    """`largest` pixels of a length, at `place` (0 to 1), from a multiple of `ALIGNMENT` on."""
    if length <= largest:
        return slice(0, length)
    start = int((length - largest) * place) // ALIGNMENT * ALIGNMENT
    return slice(start, start + largest)


def _scaled_slice(pixels: slice, factor: float) -> slice:
    return slice(round(pixels.start * factor), max(round(pixels.stop * factor), 1))
