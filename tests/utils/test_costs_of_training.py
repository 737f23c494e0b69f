"""What a training says of its time, and how often it validates."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hmsa.utils.config import load_config
from hmsa.utils.training.cost import (
    VALIDATION_SHARE,
    Outlook,
    validation_cost,
    validation_interval,
)
from hmsa.utils.words import counted, duration

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.2, "0 s"),
        (59.4, "59 s"),
        (60, "1 min"),
        (263, "4 min 23 s"),
        (3599.7, "1 h"),
        (3630, "1 h"),
        (7500, "2 h 5 min"),
        (7199, "2 h"),
        (86399, "24 h"),
        (273600, "3 d 4 h"),
    ],
)
def test_a_time_has_two_units(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_numbers_have_their_nouns() -> None:
    assert (counted(1, "step"), counted(0, "step"), counted(2, "step")) == (
        "1 step",
        "0 steps",
        "2 steps",
    )


@pytest.mark.parametrize(
    ("name", "share", "every"),
    [
        ("cityscapes/hrnet_ocr_hierarchical", 0.235, 5),
        ("cityscapes/hrnet_ocr_single", 0.294, 6),
        ("mapillary/hrnet_ocr_hierarchical", 0.589, 12),
        ("mapillary/hrnet_ocr_single", 0.069, 2),
    ],
)
def test_validation_costs_at_most_a_twentieth_of_the_papers_trainings(
    name: str, share: float, every: int
) -> None:
    config = load_config(ROOT / "configs" / f"{name}.yaml")
    assert config.runtime.val_every == "auto"
    images, epoch = (500, 2975) if name.startswith("cityscapes") else (2000, 18000)
    height, width = config.data.crop
    # Images of Mapillary Vistas are 4:3, and resized to data.long_edge.
    pixels = 1024 * 2048 if config.data.long_edge is None else 0.75 * config.data.long_edge**2
    cost = validation_cost(
        images=images,
        image_pixels=pixels,
        scales=config.eval.scales,
        flip=config.eval.flip,
        epoch_images=epoch,
        crop_pixels=height * width,
        train_scales=config.model.train_scales,
    )
    assert cost == pytest.approx(share, abs=0.002)
    assert validation_interval(cost, epochs=config.optim.epochs) == every
    assert cost / every <= VALIDATION_SHARE


@given(st.floats(0.001, 10), st.integers(1, 300))
def test_validations_are_as_often_as_they_may_be(cost: float, epochs: int) -> None:
    every = validation_interval(cost, epochs=epochs)
    assert 1 <= every <= epochs
    assert every == epochs or cost / every <= VALIDATION_SHARE * (1 + 1e-6)
    assert every == 1 or cost / (every - 1) > VALIDATION_SHARE


@given(st.integers(1, 40), st.integers(1, 12))
def test_the_validations_left_are_those_that_come(epochs: int, every: int) -> None:
    outlook = Outlook(epochs, steps_per_epoch=3, val_every=every, validation_cost=0.5)
    due = [epoch for epoch in range(1, epochs + 1) if epoch == epochs or epoch % every == 0]
    for done in range(epochs + 1):
        assert outlook.validations_after(done) == sum(epoch > done for epoch in due)


def test_an_outlook_adds_up_what_is_left() -> None:
    outlook = Outlook(epochs=10, steps_per_epoch=30, val_every=5, validation_cost=0.5)
    text = outlook.describe(step_s=2.0, epoch=1, step_in_epoch=0, validation_s=None)
    # 270 steps of 2 s, and two validations of half an epoch's 60 s.
    assert "an epoch takes about 1 min and a validation about 30 s" in text
    assert text.endswith("270 steps and 2 validations are left, about 10 min in all")
    text = outlook.describe(step_s=2.0, epoch=9, step_in_epoch=10, validation_s=5.0)
    assert text.endswith("20 steps and 1 validation are left, about 45 s in all")


def test_the_share_of_validations_is_that_of_the_epochs_there_are() -> None:
    """Epochs may be changed on the command line, and the last one is always validated."""
    said = Outlook(40, 2, val_every=20, validation_cost=0.2).describe_validations("{1}")
    assert said == "every 20 epochs at {1}, about 1 % of the computing"
    said = Outlook(2, 2, val_every=20, validation_cost=0.2).describe_validations("{1}")
    assert said == "after the last epoch at {1}, about 10 % of the computing"
