"""Validation reports the loss in inference mode: every loss gives the numbers of training."""

from __future__ import annotations

import pytest
import torch

from hmsa.loss import LOSSES, build_criterion


@pytest.mark.parametrize("main", sorted(LOSSES))
def test_every_main_loss_works_in_inference_mode(main: str) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(1, 4, 24, 32, generator=generator)
    label = torch.randint(0, 4, (1, 24, 32), generator=generator, dtype=torch.uint8)
    criterion = build_criterion(main=main, num_classes=4)
    expected = criterion.main(logits, label)
    with torch.inference_mode():
        found = criterion.main(logits * 1, label)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value)
