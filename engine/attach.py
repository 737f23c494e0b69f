"""Give a trained single-scale model hierarchical attention: what `hmsa attach` does.

The weights one has stay untouched, and their batch-norm statistics too. Only an attention head is
trained on them, a quarter as long as the model was trained, on all the scales that will be used.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from hmsa.utils.words import UserError

from . import build, train
from .trust import TRAINING

EPOCHS_SHARE = 4  # one epoch for so many of the model's own training
DEFAULT_SCALES = (0.25, 0.5, 1.0, 2.0)


class AttachError(UserError, ValueError):
    """The checkpoint cannot be given attention; the message says why."""


def main(arguments: argparse.Namespace) -> int:
    """Train an attention head on the frozen network of a checkpoint; returns the exit status."""
    # Its recipe is read, and nothing of it runs yet.
    opened = build.open_checkpoint(arguments.checkpoint, config_file=None, overrides=(), runs=())
    own = opened.config
    if own.model.multiscale != "single":
        raise AttachError(
            f"{opened.path}: its network is model.multiscale: {own.model.multiscale} and has "
            "attention already; hmsa attach is for single-scale ones, and hmsa calibrate may help "
            "this one"
        )

    scales = sorted(arguments.scales or DEFAULT_SCALES)
    if len(scales) < 2:
        raise AttachError("--scales: attention needs two scales or more, e.g. 0.5 1 2")
    listed = "[" + ",".join(f"{scale:g}" for scale in scales) + "]"
    output = arguments.output or default_output(Path(own.experiment.output))

    # The recipe of the model's own training, but for what attention alone needs. Cross-entropy
    # judges every pixel by itself, which is what attention decides about.
    changes = [
        f"experiment.name={own.experiment.name}_attention",
        f"experiment.output={output}",
        "model.multiscale=hierarchical",
        f"model.train_scales={listed}",
        f"model.init_from={opened.path}",
        "model.trunk_weights=null",
        "model.freeze=[trunk,decoder]",
        "loss.main=cross_entropy",
        f"optim.epochs={max(1, round(own.optim.epochs / EPOCHS_SHARE))}",
        f"eval.scales={listed}",
        f"autolabel.scales={listed}",
        *arguments.overrides,
    ]
    config = build.open_checkpoint(
        opened.path, config_file=None, overrides=changes, runs=TRAINING
    ).config
    return train.main(config, resume=arguments.resume)


def default_output(run: Path) -> Path:
    """Beside the run of the model, under its name and what was added."""
    return run.with_name(f"{run.name}_attention")
