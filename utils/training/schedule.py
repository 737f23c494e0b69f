"""Learning-rate schedules as pure functions of the step: a resumed run needs no schedule state."""

from __future__ import annotations

import math
from collections.abc import Callable


def build_schedule(
    *,
    schedule: str,
    epochs: int,
    steps_per_epoch: int,
    poly_exponent: float = 2.0,
    schedule_per: str = "step",
    warmup_steps: int = 0,
    poly_step: int = 110,
    rescale: float = 1.0,
    repoly: float = 1.5,
    rescale_epoch: int = 0,
) -> Callable[[int], float]:
    """The factor of the base learning rate at an optimiser step, counted from 0.

    With t the part of the training that is done, e = t * epochs, and p = `poly_exponent`:
    - poly: (1 - t)^p. The paper (section 4) does not say whether t grows with each step or each
      epoch; `schedule_per` is step, or epoch as in the authors' release.
    - poly2: the exponent is 2p from epoch `poly_step` on.
    - scl_poly: (1 - t)^p before `rescale_epoch` r, then
      rescale * (1 - (e - r) / (epochs - r))^repoly (docs/release_notes.md, schedules).
    - cosine: (1 + cos(pi t)) / 2, one half of a wave without restarts, as in Loshchilov and Hutter
      2017, equation 5 (https://arxiv.org/abs/1608.03983).
    - constant: 1.

    During the first `warmup_steps` the factor rises linearly from 1 / `warmup_steps` of its value.
    """
    if schedule not in ("poly", "poly2", "scl_poly", "cosine", "constant"):
        raise ValueError(
            f"optim.schedule: unknown schedule '{schedule}'; choose poly, poly2, scl_poly, cosine "
            "or constant"
        )
    total = float(epochs)

    # The end may be asked for as well; beyond it the base of a power would be negative.

    def epochs_done(step: int) -> float:
        epoch = step / steps_per_epoch
        if schedule_per == "epoch":
            epoch = float(int(epoch))
        return min(epoch, total)

    def factor(step: int) -> float:
        epoch = epochs_done(step)
        remaining = 1.0 - epoch / total
        if schedule == "constant":
            value = 1.0
        elif schedule == "cosine":
            value = (1.0 + math.cos(math.pi * (1.0 - remaining))) / 2.0
        elif schedule == "poly":
            value = remaining**poly_exponent
        elif schedule == "poly2":
            exponent = poly_exponent
            if epoch >= poly_step:
                exponent *= 2.0
            value = remaining**exponent
        elif epoch < rescale_epoch:
            value = remaining**poly_exponent
        else:
            # A new fall from `rescale` to 0 over what is left of the training.
            value = rescale * (1.0 - (epoch - rescale_epoch) / (total - rescale_epoch)) ** repoly

        # The warm-up multiplies the schedule instead of delaying it.
        if step < warmup_steps:
            return value * (step + 1) / warmup_steps
        return value

    return factor
