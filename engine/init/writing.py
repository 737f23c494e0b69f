"""The text of a class list and of a configuration, with what each line is for."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hmsa.utils.config.models import ModelSection

from ..recipe import Recipe
from .classes import FoundClasses

PLAIN = re.compile(r"[A-Za-z][\w -]*[\w]|[A-Za-z]")
NOT_TEXT = ("true", "false", "null", "yes", "no", "on", "off", "y", "n")


def class_list_text(found: FoundClasses, *, name: str, command: str) -> str:
    """The text of a classes.yaml."""
    lines = [
        f"# Written by `{command}`. Names may be changed freely.",
        f"name: {quoted(name)}",
        f"ignore: {json.dumps(found.ignore)}    # values or colours that are no class",
    ]
    if found.by_colors:
        lines.append("labels: colors    # labels are read by the colours of the classes")
    if found.ignores_unknown:
        lines.append("unknown: ignore   # odd colours, as smoothed borders have, do not count")

    lines.append("classes:")
    for item in found.classes:
        values = f"name: {quoted(item.name)}, color: {list(item.color)}"
        if item.id is not None:
            values += f", id: {item.id}"
        lines.append(f"  - {{{values}}}    # {100 * item.share:.3g} % of the pixels")
    return "\n".join(lines) + "\n"


def configuration_text(
    recipe: Recipe,
    *,
    name: str,
    root: Path,
    classes: Path,
    splits: tuple[str, str],
    machine: str,
    command: str,
) -> str:
    """The text of a configuration: every value that the recipe chose, and why."""
    values = recipe.values
    data, model, optim = values["data"], values["model"], values["optim"]
    runtime, inference = values["runtime"], values["eval"]
    uniform = data["class_uniform"]

    # What the trunk starts from is a default that is worth seeing.
    weights = ModelSection.model_fields["trunk_weights"].default
    lines = [
        f"# Written by `{command}` for this machine ({machine}).",
        f"# A training takes about {recipe.duration}; --dry-run measures a step of it.",
        "experiment:",
        f"  name: {quoted(name)}              # results go to runs/NAME",
        "",
        "data:",
        "  dataset: folder",
        f"  root: {quoted(str(root))}",
        f"  classes: {quoted(str(classes))}",
        f"  train_split: {quoted(splits[0])}",
        f"  val_split: {quoted(splits[1])}",
        f"  crop: {data['crop']}        # height and width of what a step sees of an image",
        "  scale_range: [0.5, 2.0]  # images are made smaller and larger at random",
        f"  hue: {data['hue']}              # little: colours tell classes apart",
        f"  blur: {data['blur']}",
        f"  batch_size: {data['batch_size']}",
        f"  workers: {data['workers']}               # processes that read images",
    ]
    if "long_edge" in data:
        lines.append(f"  long_edge: {data['long_edge']}       # images are made this small first")
    lines += [
        f"  class_uniform: {{fraction: {uniform['fraction']:g}, tile: {uniform['tile'][0]}}}"
        "  # share of an epoch drawn class by class, for rare classes",
        "",
        "model:                    # small, from pre-trained weights",
        f"  trunk: {model['trunk']}",
        f"  trunk_weights: {'null' if weights is None else weights}",
        f"  decoder: {model['decoder']}",
        f"  decoder_channels: {model['decoder_channels']}",
        f"  aspp_rates: {model['aspp_rates']}   # suit the crop",
        f"  aspp_pooling: {str(model['aspp_pooling']).lower()}",
        f"  attention_channels: {model['attention_channels']}",
        f"  output_stride: {model['output_stride']}",
        "  multiscale: hierarchical",
        "",
        "loss:",
        "  main: rmi",
        "",
        "optim:",
        f"  optimizer: {optim['optimizer']}",
        f"  lr: {optim['lr']:g}",
        f"  head_lr_multiplier: {optim['head_lr_multiplier']:g}   # the trunk knows much already",
        f"  weight_decay: {optim['weight_decay']:g}",
        f"  decay_norm_and_bias: {str(optim['decay_norm_and_bias']).lower()}",
        f"  epochs: {optim['epochs']}",
        f"  poly_exponent: {optim['poly_exponent']:g}",
        f"  warmup_steps: {optim['warmup_steps']}",
        f"  ema_decay: {_number(optim['ema_decay'])}  # of the average that is scored; null: none",
        "",
        "runtime:",
        f"  precision: {runtime['precision']}",
        f"  val_every: {runtime['val_every']}         # epochs; auto: for 5 % of the time",
        f"  image_every: {runtime['image_every']}",
        f"  calibrate: {str(runtime['calibrate']).lower()}         # attention, at the end",
        f"  calibrate_scales: {runtime['calibrate_scales']}",
        "",
        "eval:                     # eval --compare tells whether [0.5, 1.0, 2.0] is better",
        f"  scales: {inference['scales']}",
        f"  precision: {inference['precision']}",
        "",
        "autolabel:",
        f"  scales: {inference['scales']}",
        f"  precision: {inference['precision']}",
    ]
    return "\n".join(lines) + "\n"


def list_text(pairs: Sequence[tuple[str, str]], *, command: str) -> str:
    """A list file: lines of image and label, separated by a tab."""
    lines = [f"# Written by `{command}`: image and label, relative to the folder."]
    return "\n".join([*lines, *("\t".join(pair) for pair in pairs)]) + "\n"


def quoted(text: str) -> str:
    """A text as YAML needs it: in quotes unless it is plain words."""
    if PLAIN.fullmatch(text) and text.lower() not in NOT_TEXT:
        return text
    return json.dumps(text, ensure_ascii=False)


def _number(value: Any) -> str:
    return "null" if value is None else f"{value:g}"
