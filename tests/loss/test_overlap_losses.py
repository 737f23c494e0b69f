"""Dice, focal and Lovász losses against their definitions and, where it agrees, smp."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from hmsa.loss import LossError, build_criterion, dice_loss, focal_loss, lovasz_loss


def image(size: int = 5) -> tuple[Tensor, Tensor]:
    logits = torch.randn(1, 3, size, size + 1, dtype=torch.float64)
    label = torch.randint(3, (1, size, size + 1))
    label[0, 0, :2] = 255
    return logits, label


def pixels(logits: Tensor, label: Tensor) -> list[tuple[list[float], int]]:
    """(probabilities, class) of every pixel that is not ignored."""
    probability = logits.softmax(1)[0].movedim(0, 2).reshape(-1, logits.shape[1]).tolist()
    classes = label.reshape(-1).tolist()
    return [(p, c) for p, c in zip(probability, classes, strict=True) if c != 255]


def test_dice_is_its_definition() -> None:
    logits, label = image()
    label[label == 1] = 0  # class 1 is not shown
    terms = []
    for c in (0, 2):
        overlap = sum(p[c] for p, own in pixels(logits, label) if own == c)
        total = sum(p[c] + (own == c) for p, own in pixels(logits, label))
        terms.append(1 - (2 * overlap + 0.5) / (total + 0.5))
    assert dice_loss(logits, label, smooth=0.5).item() == pytest.approx(sum(terms) / 2, rel=1e-12)


def test_focal_is_its_definition() -> None:
    logits, label = image()
    losses = [-((1 - p[own]) ** 1.5) * math.log(p[own]) for p, own in pixels(logits, label)]
    expected = sum(losses) / len(losses)
    assert focal_loss(logits, label, gamma=1.5).item() == pytest.approx(expected, rel=1e-12)


def test_lovasz_is_its_definition() -> None:
    """The sum over pixels, in the order of their errors, of error x growth of one minus IoU."""
    logits, label = image()
    found = pixels(logits, label)
    losses = []
    for c in range(3):
        errors = [abs((own == c) - p[c]) for p, own in found]
        order = sorted(range(len(errors)), key=lambda index: -errors[index])
        wanted = {index for index, (_, own) in enumerate(found) if own == c}
        loss, before, wrong = 0.0, 0.0, set()
        for index in order:
            wrong.add(index)
            # IoU of class c where exactly these pixels are wrong.
            taken = wanted ^ wrong
            now = 1 - len(taken & wanted) / len(taken | wanted)
            loss, before = loss + errors[index] * (now - before), now
        losses.append(loss)
    assert lovasz_loss(logits, label).item() == pytest.approx(sum(losses) / 3, rel=1e-9)


def test_lovasz_of_hard_labels_is_one_minus_iou() -> None:
    _, label = image(9)
    label[label == 255] = 0
    guess = torch.randint(3, label.shape)
    logits = torch.nn.functional.one_hot(guess, 3).movedim(3, 1).double() * 1e3
    ious = [
        ((guess == c) & (label == c)).sum() / ((guess == c) | (label == c)).sum() for c in range(3)
    ]
    expected = 1 - torch.stack(ious).mean()
    assert lovasz_loss(logits, label).item() == pytest.approx(expected.item(), abs=1e-6)


def test_segmentation_models_pytorch_agrees() -> None:
    smp = pytest.importorskip("segmentation_models_pytorch")
    logits, label = image(8)
    expected = smp.losses.DiceLoss("multiclass", ignore_index=255)(logits, label)
    torch.testing.assert_close(dice_loss(logits, label), expected)
    # Its Lovász loss takes single precision only.
    logits = logits.float()
    expected = smp.losses.LovaszLoss("multiclass", per_image=True, ignore_index=255)(logits, label)
    torch.testing.assert_close(lovasz_loss(logits, label), expected, rtol=1e-5, atol=0)

    # Its focal loss has a sigmoid a class, which is the soft-max of two.
    score = torch.randn(1, 1, 6, 7, dtype=torch.float64)
    two = torch.cat([torch.zeros_like(score), score], dim=1)
    binary = torch.randint(2, (1, 6, 7))
    expected = smp.losses.FocalLoss("binary", gamma=2.0)(score, binary)
    torch.testing.assert_close(focal_loss(two, binary, gamma=2.0), expected, rtol=1e-5, atol=0)


def test_settings_that_make_no_sense_are_refused_and_names_reach_the_losses() -> None:
    logits, label = image()
    for loss, option in ((dice_loss, "smooth"), (focal_loss, "gamma")):
        with pytest.raises(LossError, match=f"{option} must not be negative, and is -1"):
            loss(logits, label, **{option: -1})
    criterion = build_criterion(num_classes=3, main="focal", focal={"gamma": 0.0})
    expected = torch.nn.functional.cross_entropy(logits, label, ignore_index=255)
    torch.testing.assert_close(criterion.main(logits, label)["focal"], expected)
