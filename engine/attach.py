"""Give a trained single-scale model hierarchical attention: what `hmsa attach` does.

The weights one has stay untouched, and their batch-norm statistics too. Only an attention head is
trained on them, on some hundred crops and on all the scales that will be used: a head of three
convolutions has learnt after two hundred steps what it can, however long the network was trained.
In the end it is calibrated, which mends what so few steps leave wrong between the lowest scales.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from hmsa.utils.config import Config
from hmsa.utils.config.models import OptimSection
from hmsa.utils.words import UserError

from . import build, train
from .trust import TRAINING, require_trust

CROPS = 768  # that the head is trained on, whole epochs and one at least
WARMUP_STEPS = 20  # at most, of so few
RUN_BY_A_HEAD = tuple(key for key in TRAINING if key != "loss.main")  # code of the model's recipe
DEFAULT_SCALES = (0.25, 0.5, 1.0, 2.0)
LEFT_OF_START = 0.05  # share of a head's first weights in the average, at most


class AttachError(UserError, ValueError):
    """The checkpoint cannot be given attention; the message says why."""


def main(arguments: argparse.Namespace) -> int:
    """Train an attention head on the frozen network of a checkpoint; returns the exit status."""
    # Its recipe is read, and nothing of it runs yet. Where the data lies may be said anew.
    places = [text for text in arguments.overrides if text.startswith("data.")]
    opened = build.open_checkpoint(
        arguments.checkpoint, config_file=None, overrides=places, runs=()
    )
    own = opened.config
    if own.model.multiscale != "single":
        raise AttachError(
            f"{opened.path}: its network is model.multiscale: {own.model.multiscale} and has "
            "attention already; hmsa attach is for single-scale ones, and hmsa calibrate may help "
            "this one"
        )

    # Before its data are looked for, it is said what of its code would run. Its loss will not.
    require_trust(own, arguments.overrides, path=opened.path, keys=RUN_BY_A_HEAD)

    scales = sorted(arguments.scales or DEFAULT_SCALES)
    if len(scales) < 2:
        raise AttachError("--scales: attention needs two scales or more, e.g. 0.5 1 2")
    listed = "[" + ",".join(f"{scale:g}" for scale in scales) + "]"
    output = arguments.output or default_output(Path(own.experiment.output))

    # The recipe of the model's own training, but for what attention alone needs. Cross-entropy
    # judges every pixel by itself, which is what attention decides about. The auxiliary logits are
    # no part of what the model says in the end.
    images = len(build.split_files(own, own.data.train_split))
    epochs = epochs_of(images)
    changes = [
        f"experiment.name={own.experiment.name}_attention",
        f"experiment.output={output}",
        "model.multiscale=hierarchical",
        f"model.train_scales={listed}",
        f"model.init_from={opened.path}",
        "model.trunk_weights=null",
        "model.freeze=[trunk,decoder]",
        "loss.main=cross_entropy",
        "loss.aux_weight=0",
        *short_training(own.optim, epochs=epochs),
        f"runtime.val_every={epochs}",
        "runtime.calibrate=true",
        "runtime.calibrate_scales=null",
        f"eval.scales={listed}",
        f"autolabel.scales={listed}",
        *arguments.overrides,
    ]
    config = build.open_checkpoint(
        opened.path, config_file=None, overrides=changes, runs=TRAINING
    ).config
    if not any(word.startswith("optim.ema_decay=") for word in arguments.overrides):
        config = with_fitting_average(config, images=images)
    return train.main(config, resume=arguments.resume)


def epochs_of(images: int) -> int:
    """How many epochs show the head about `CROPS` crops."""
    return max(1, round(CROPS / max(1, images)))


def short_training(optim: OptimSection, *, epochs: int) -> list[str]:
    """Overrides by which the schedule of a long training suits one of so few steps."""
    changes = [
        f"optim.epochs={epochs}",
        f"optim.warmup_steps={min(optim.warmup_steps, WARMUP_STEPS)}",
    ]
    # One that begins anew on its way may do so after the end.
    if optim.schedule == "scl_poly":
        changes.append("optim.schedule=poly")
    return changes


def with_fitting_average(config: Config, *, images: int) -> Config:
    """The configuration with an average of the weights that fits into this shorter training.

    The recipe's own decay may reach back beyond it, to the head's random weights. It stays where
    little enough of them is left.
    """
    optim, data = config.optim, config.data
    if optim.ema_decay is None:
        return config

    steps = optim.epochs * max(1, images // (data.batch_size * optim.accumulate))
    longest = round(LEFT_OF_START ** (1 / steps), 4)
    if optim.ema_decay <= longest:
        return config
    return config.model_copy(update={"optim": optim.model_copy(update={"ema_decay": longest})})


def default_output(run: Path) -> Path:
    """Beside the run of the model, under its name and what was added."""
    return run.with_name(f"{run.name}_attention")
