"""Learning-rate schedules as pure functions of the step, so that a resumed run needs no schedule state."""

from __future__ import annotations

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
    """Factor of the base learning rate at a step (0-based optimiser steps).

    poly: (1 - t)^poly_exponent with t the fraction of training done (METHOD section 4; the paper does not state the unit: `schedule_per`
    is step, or epoch as in the release). poly2: the exponent doubles from epoch `poly_step` on. scl_poly: (1 - t)^exponent before
    `rescale_epoch`, then rescale * (1 - (e - r) / (E - r))^repoly (RELEASE 1.10). constant: 1. The first `warmup_steps` rise linearly.
    """
    if schedule not in ("poly", "poly2", "scl_poly", "constant"):
        raise ValueError(
            f"optim.schedule: unknown schedule '{schedule}'; choose poly, poly2, scl_poly or constant"
        )
    total = float(epochs)

    def progress(step: int) -> float:
        epoch = step / steps_per_epoch
        return min(float(int(epoch)) if schedule_per == "epoch" else epoch, total)

    def factor(step: int) -> float:
        epoch = progress(step)
        remaining = 1.0 - epoch / total
        if schedule == "constant":
            value = 1.0
        elif schedule == "poly":
            value = remaining**poly_exponent
        elif schedule == "poly2":
            value = remaining ** (poly_exponent if epoch < poly_step else 2.0 * poly_exponent)
        elif epoch < rescale_epoch:
            value = remaining**poly_exponent
        else:
            value = rescale * (1.0 - (epoch - rescale_epoch) / (total - rescale_epoch)) ** repoly
        return value * (step + 1) / warmup_steps if step < warmup_steps else value

    return factor
