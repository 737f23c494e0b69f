"""A training that suits one's own images and this machine, where a configuration leaves it open.

The defaults of a configuration are the paper's, for Cityscapes on GPUs. A folder of photographs
needs less: a small network that starts from pre-trained weights, crops that suit the size of the
images, and as many epochs as give some ten thousand crops. Nothing here imports torch at the top.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hmsa.utils.config import Config
from hmsa.utils.words import counted

Values = dict[str, dict[str, Any]]

STRIDE = 32  # crops that are multiples of it leave no trunk a fraction of a feature
LOOKED_AT = 32  # images of a split whose sizes are read
CROP_SHARE = 0.6  # side of a crop relative to the image: scale and place are drawn at random
SMALL_CROP = 384  # pixels, below which the rates of DeepLab V3+ are too large
MOST_EPOCHS, LEAST_EPOCHS = 200, 10
FEWEST_TO_CALIBRATE = 20  # training images; fewer leave too few to judge by
# Pixels of crops that one of two cores trains on in a second, measured with the network below at
# 224 x 288 in bf16; validation comes on top, 5 % at most.
PIXELS_PER_CORE_SECOND = 190_000
PIXELS_PER_GPU_SECOND = 25_000_000


@dataclass(frozen=True)
class Machine:
    """What a training may use here: processor cores, whether there is a GPU, and bf16."""

    cores: int
    has_gpu: bool
    has_bf16: bool

    @property
    def words(self) -> str:
        """For people: what it is."""
        if self.has_gpu:
            return f"a GPU and {self.cores} cores"
        return counted(self.cores, "core")


@dataclass(frozen=True)
class DataFacts:
    """What a recipe follows from.

    Attributes:
        images: how many there are to train on.
        sizes: (height, width) of some of them.
        has_rare_class: whether a class is in fewer than half of them; None: not looked at.
    """

    images: int
    sizes: Sequence[tuple[int, int]]
    has_rare_class: bool | None = None


@dataclass(frozen=True)
class Recipe:
    """Values of a configuration by section, and what the training will take."""

    values: Values
    seconds: float

    @property
    def duration(self) -> str:
        """For people: about how long."""
        if self.seconds < 90:
            return "a minute"
        if self.seconds < 90 * 60:
            return f"{round(self.seconds / 60)} minutes"
        return f"{self.seconds / 3600:.1f} hours"


def this_machine() -> Machine:
    """The machine that this runs on."""
    import torch

    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS
        cores = os.cpu_count() or 1
    has_gpu = torch.cuda.is_available()
    return Machine(cores, has_gpu, has_bf16=has_gpu or _cpu_has_bf16())


def _cpu_has_bf16() -> bool:
    """Whether the processor computes in bf16 by itself; without that it is slower than fp32."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            flags = file.read()
    except OSError:
        return False
    return "amx_bf16" in flags or "avx512_bf16" in flags


def recipe_for(facts: DataFacts, machine: Machine, *, epochs: int | None = None) -> Recipe:
    """The values that suit data and machine; sections and keys are those of a configuration.

    Args:
        facts: what the training images are like.
        machine: where they are trained on.
        epochs: how many are wanted; None: as many as give enough crops.
    """
    crop, long_edge = _crop(facts, machine)
    batch = max(1, min(16 if machine.has_gpu else 8, facts.images))
    crops = 40_000 if machine.has_gpu else 8_800
    if epochs is None:
        epochs = min(MOST_EPOCHS, max(LEAST_EPOCHS, round(crops / max(1, facts.images))))
    steps = epochs * max(1, facts.images // batch)

    data: dict[str, Any] = {
        "crop": list(crop),
        "hue": 0.02,
        "blur": "none",
        "batch_size": batch,
        "workers": max(1, min(8 if machine.has_gpu else 4, machine.cores - 1)),
        "class_uniform": {
            "fraction": 0.0 if facts.has_rare_class is False else 0.5,
            "tile": [min(crop)] * 2,
        },
    }
    if long_edge is not None:
        data["long_edge"] = long_edge

    # Attention is trained on the pair 0.5 and 1; the doubled image costs four times as much.
    precision = "bf16" if machine.has_bf16 else "fp32"
    inference = {"scales": [0.5, 1.0, 2.0][: 3 if machine.has_gpu else 2], "precision": precision}
    values: Values = {
        "data": data,
        "model": _network(crop),
        "optim": {
            "optimizer": "adamw",
            "lr": 5e-4,
            "head_lr_multiplier": 4.0,
            "weight_decay": 0.03,
            "decay_norm_and_bias": False,
            "epochs": epochs,
            "poly_exponent": 0.9,
            "warmup_steps": min(100, steps // 20),
            "ema_decay": 0.99 if steps >= 300 else None,
        },
        "runtime": {
            "precision": precision,
            "val_every": "auto",
            "image_every": epochs,
            # Attention with 2x, which training does not show, and better attention with 0.5x.
            "calibrate": facts.images >= FEWEST_TO_CALIBRATE,
            "calibrate_scales": [0.5, 1.0, 2.0],
        },
        "eval": dict(inference),
        "autolabel": dict(inference),
    }
    speed = PIXELS_PER_GPU_SECOND if machine.has_gpu else machine.cores * PIXELS_PER_CORE_SECOND
    return Recipe(values, seconds=steps * batch * crop[0] * crop[1] / speed)


def _network(crop: tuple[int, int]) -> dict[str, Any]:
    """The smallest network that is good: EfficientNet-Lite where timm is, else a ResNet."""
    trunk = "resnet18"
    if importlib.util.find_spec("timm") is not None:
        trunk = "timm:tf_efficientnet_lite0"

    # The features of a small crop are narrower than the published rates reach.
    is_small = min(crop) < SMALL_CROP
    return {
        "trunk": trunk,
        "decoder": "deeplabv3plus",
        "decoder_channels": 96,
        "aspp_rates": [2, 4, 6] if is_small else [6, 12, 18],
        "aspp_pooling": not is_small,
        "attention_channels": 96,
        "output_stride": 16,
    }


def _crop(facts: DataFacts, machine: Machine) -> tuple[tuple[int, int], int | None]:
    """Crop (height, width), and the long edge that large photographs are made smaller to."""
    largest_edge, most_pixels = (2048, 512 * 1024) if machine.has_gpu else (960, 256 * 320)
    sizes = list(facts.sizes) or [(512, 512)]
    longest = sorted(max(size) for size in sizes)[len(sizes) // 2]
    long_edge = None
    if longest > 1.25 * largest_edge:
        long_edge = largest_edge
        sizes = [(h * long_edge // max(h, w), w * long_edge // max(h, w)) for h, w in sizes]

    # The crop fits into all but the smallest tenth of the images.
    tenth = len(sizes) // 10
    height, width = (sorted(size[axis] for size in sizes)[tenth] * CROP_SHARE for axis in (0, 1))
    shrink = min(1.0, (most_pixels / (height * width)) ** 0.5)
    return (_side(height * shrink), _side(width * shrink)), long_edge


def _side(side: float) -> int:
    return max(STRIDE, round(side / STRIDE) * STRIDE)


# --- what a configuration leaves open ---


def suited(config: Config) -> tuple[Config, str | None]:
    """A configuration of a folder data set with what it leaves open chosen for data and machine.

    Where it names no trunk, everything that it does not name follows the recipe; optimiser, rate
    and schedule only together, where it names neither optimiser nor rate. Where it names a trunk,
    only crop, batch and tiles follow from the images, and only if it names no crop. Other data sets
    keep the paper's values.

    Returns:
        The configuration, and a sentence with what was chosen; None where nothing was.

    Raises:
        UserError: the training split cannot be listed.
    """
    data = config.data
    names_trunk = bool({"trunk", "decoder"} & config.model.model_fields_set)
    if data.dataset != "folder" or (names_trunk and "crop" in data.model_fields_set):
        return config, None
    facts, machine = facts_of(config), this_machine()

    # Warm-up and average of the weights follow from how many steps there are.
    epochs = config.optim.epochs if "epochs" in config.optim.model_fields_set else None
    chosen = recipe_for(facts, machine, epochs=epochs).values
    if names_trunk:
        wanted = {name: chosen["data"][name] for name in ("crop", "batch_size", "class_uniform")}
        wanted["class_uniform"] = {"tile": wanted["class_uniform"]["tile"]}
        chosen = {"data": wanted}
    elif {"optimizer", "lr"} & config.optim.model_fields_set:
        # The other values of a schedule mean nothing beside another optimiser or rate.
        chosen["optim"] = {"epochs": chosen["optim"]["epochs"]}

    # What the configuration names stays as it is.
    values, said = config.to_dict(), []
    for section, fields in chosen.items():
        for name, value in _unnamed(getattr(config, section), fields).items():
            merged = values[section][name]
            if isinstance(value, dict):
                values[section][name] = {**merged, **value}
            else:
                values[section][name] = value
            said.append(f"{section}.{name}={_written(value)}")
    if not said:
        return config, None
    sentence = f"chosen for {facts.images} images and {machine.words}: {' '.join(said)}"
    return Config.from_dict(values), sentence


def _unnamed(section: Any, fields: dict[str, Any]) -> dict[str, Any]:
    """Those of `fields` that a section of a configuration does not name."""
    found: dict[str, Any] = {}
    for name, value in fields.items():
        if isinstance(value, dict):
            inner = getattr(section, name)
            value = {key: item for key, item in value.items() if key not in inner.model_fields_set}
            if value:
                found[name] = value
        elif name not in section.model_fields_set:
            found[name] = value
    return found


def _written(value: Any) -> str:
    """A value as an override spells it."""
    if value is None:
        return "null"
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}: {_written(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(_written(item) for item in value) + "]"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def facts_of(config: Config) -> DataFacts:
    """Number and sizes of the training images; only the beginnings of some files are read.

    Raises:
        DataError: the training split cannot be listed.
    """
    from hmsa.datasets import DataError, build_files

    data = config.data
    files = build_files(
        dataset=data.dataset,
        root=data.root,
        split=data.train_split,
        classes=data.classes,
        labels="none",
        max_pixels=data.max_pixels,
    )
    sizes = []
    for index in range(0, len(files), max(1, len(files) // LOOKED_AT)):
        try:
            sizes.append(files.image_size(index))
        except DataError:
            continue  # a damaged file is named when the split is checked
    return DataFacts(len(files), sizes)
