"""From a configuration to parts: the one place where a section's fields become arguments.

The packages network, datasets and loss never see a configuration, and utils.config never sees them.
Training, evaluation and auto-labelling join the two sides through these functions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hmsa.datasets import (
    Augmentation,
    ClassUniform,
    DataError,
    DatasetSpec,
    ExtraSource,
    Files,
    TrainLoader,
    augment_on_device,
    build_eval_loader,
    build_files,
    build_train_loader,
    count_pixels,
    explain_lost_worker,
    known_classes,
    normalise,
    verify_files,
)
from hmsa.loss import build_criterion, class_weights_from_counts
from hmsa.network import (
    InferenceOptions,
    ModelError,
    MultiScaleModel,
    Prediction,
    build_model,
    load_trunk_weights,
    load_weights,
)
from hmsa.network.calibration import scales_switched_off
from hmsa.network.inference import out_of_memory
from hmsa.network.model import Hierarchical, PairBias, PairBiases, ScalePair, adjacent_pairs
from hmsa.network.weights.files import numpy_scalars, read_file
from hmsa.network.weights.pretrained import find_weights
from hmsa.network.weights.recognition import recognise_model
from hmsa.utils.config import Config, load_config
from hmsa.utils.imported import is_reference
from hmsa.utils.processes import Processes, first_line
from hmsa.utils.runtime import autocast_dtype, parameter_dtype
from hmsa.utils.synchronised_norm import synchronise_batch_norm
from hmsa.utils.training.checkpoint import (
    CheckpointError,
    ForeignCheckpointError,
    load_checkpoint,
    sha256_of,
)
from hmsa.utils.training.cost import MemoryShortage
from hmsa.utils.training.ema import WeightAverage
from hmsa.utils.training.logbook import logger
from hmsa.utils.training.loggers import LOGGERS, RunLogger
from hmsa.utils.training.optimizer import build_optimizer, parameter_groups, scaled_learning_rate
from hmsa.utils.training.schedule import build_schedule
from hmsa.utils.training.training_state import TrainingState
from hmsa.utils.words import shortened

from .model_source import (
    carried_description,
    classes_by_number,
    configuration_of,
    is_safetensors,
    model_file,
)
from .plugins import OwnAugmentation, OwnLogger, OwnLoss, own_decoder, own_trunk
from .trust import NETWORK, require_trust
from .wrapped import wrapped_model

SCALES_STREAM = 0x5CA1E  # tells the random numbers of training scales from others of a step
VERIFIED_SAMPLE = 64  # files of a split whose label values are looked at with data.verify: sample

# What to change when memory runs out, by what was being done.
MEMORY_ADVICE = {
    "training": "one step takes {batch} x {crop} pixels: try runtime.precision=bf16, "
    "runtime.activation_checkpointing=true, a smaller data.batch_size (with optim.accumulate for "
    "the same effective batch) or a smaller data.crop",
    "evaluation": "try eval.batch_size=1, eval.tile=[1024,1024], eval.precision=bf16 or fewer "
    "scales",
    "auto-labelling": "try autolabel.tile=[1024,1024], autolabel.precision=bf16 or fewer scales",
    "validation": "try eval.batch_size=1, eval.tile=[1024,1024], eval.precision=bf16 or fewer "
    "eval.scales",
}


# --- data ---


def split_files(
    config: Config, split: str, *, expected: DatasetSpec | None = None, labels: str | None = None
) -> Files:
    """The files of a split, as the data section describes them; `labels="none"` reads no labels.

    Raises:
        DataError: files are missing, or their classes are not those `expected` by a checkpoint.
    """
    data = config.data
    files = build_files(
        dataset=data.dataset,
        root=data.root,
        split=split,
        classes=data.classes,
        cv=data.cv,
        labels=labels,
        max_pixels=data.max_pixels,
    )

    if expected is not None and files.spec.names != expected.names:
        found = f"{files.spec.num_classes} classes"
        trained_for = f"{expected.num_classes} ({expected.name})"
        # Of as many classes the first that differs says more than their number.
        if files.spec.num_classes == expected.num_classes:
            pairs = zip(files.spec.names, expected.names, strict=True)
            found, trained_for = next(
                (f"'{own}' as class {number}", f"'{other}'")
                for number, (own, other) in enumerate(pairs)
                if own != other
            )
        raise DataError(
            f"{data.root}: has {found} where the checkpoint was trained for {trained_for}; name "
            "the data set it was trained for with data.root, data.dataset and data.classes"
        )
    return files


def configured_classes(config: Config) -> DatasetSpec:
    """The classes of the data set that a configuration names; see `datasets.known_classes`.

    Raises:
        DataError: its class list is missing or cannot be read.
    """
    data = config.data
    return known_classes(dataset=data.dataset, root=data.root, classes=data.classes)


def extra_files(config: Config) -> Files | None:
    """The images with coarse or automatic labels that data.extra describes, or None."""
    data, extra = config.data, config.data.extra
    if extra is None:
        return None

    return build_files(
        dataset=data.dataset,
        root=data.root,
        split=extra.split,
        classes=data.classes,
        labels=extra.labels,
        label_root=extra.root,
        policy=extra.policy,
        confidence_threshold=extra.confidence_threshold,
        mask_border=extra.mask_border,
        max_pixels=data.max_pixels,
    )


def extra_source(config: Config) -> ExtraSource | None:
    """The coarse or automatic labels of data.extra, or None."""
    extra, files = config.data.extra, extra_files(config)
    if extra is None or files is None:
        return None

    return ExtraSource(
        files=files,
        probability=extra.probability,
        mode=extra.mode,
        boost_classes=extra.boost_classes,
    )


def verify(config: Config, *splits: Files) -> None:
    """Look for mistakes in `splits` and in data.extra before training, as data.verify says.

    Raises:
        DataError: names the first kind of mistake that was found, and its files.
    """
    if config.data.verify == "none":
        return

    extra = extra_source(config)
    all_files = list(splits)
    if extra is not None:
        all_files.append(extra.files)

    sample = None if config.data.verify == "all" else VERIFIED_SAMPLE
    workers = max(1, config.data.workers)
    for files in all_files:
        verify_files(files, sample=sample, workers=workers).raise_for_problems()


def augmentation(config: Config) -> Augmentation:
    """What the data section draws at random for each training sample."""
    names = {field.name for field in fields(Augmentation)}
    return Augmentation(**config.data.model_dump(include=names))


def train_loader(config: Config, files: Files, processes: Processes) -> TrainLoader:
    """The training batches of the data section, for this rank.

    Raises:
        UserError: files are missing, or data.augment names no function.
    """
    data = config.data
    augment = None
    if data.augment is not None:
        augment = OwnAugmentation(data.augment)
    uniform = ClassUniform(**data.class_uniform.model_dump())
    return build_train_loader(
        files,
        augmentation=augmentation(config),
        batch_size=data.batch_size,
        workers=data.workers,
        seed=config.experiment.seed,
        rank=processes.rank,
        world_size=processes.world_size,
        accumulate=config.optim.accumulate,
        class_uniform=uniform if uniform.fraction > 0 else None,
        extra=extra_source(config),
        cache=data.cache,
        cache_dir=data.cache_dir,
        photometric=not data.augment_on_device,
        augment=augment,
    )


def split_loader(
    config: Config,
    files: Files,
    processes: Processes,
    *,
    with_label: bool = True,
    workers: int | None = None,
) -> Iterable[dict[str, Any]]:
    """Every image of `files` once over all ranks, as the eval section loads them.

    `workers` replaces eval.workers when given.
    """
    if workers is None:
        workers = config.eval.workers
    return build_eval_loader(
        files,
        workers=workers,
        batch_size=config.eval.batch_size,
        rank=processes.rank,
        world_size=processes.world_size,
        with_label=with_label,
        long_edge=config.data.long_edge,
        score_native=config.eval.score_native,
    )


def prepared(
    config: Config, batch: dict[str, Any], *, epoch: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """A training batch on the device, normalised there.

    Returns image float [N, 3, h, w] and label uint8 [N, h, w].
    """
    image = batch["image"].to(device, non_blocking=True)
    label = batch["label"].to(device, non_blocking=True)
    dtype = parameter_dtype(config.runtime.precision)
    channels_last = config.runtime.channels_last
    if not config.data.augment_on_device:
        return normalise(image, dtype=dtype, channels_last=channels_last), label

    image = augment_on_device(
        image,
        region=batch["region"].to(device, non_blocking=True),
        position=batch["position"],
        augmentation=augmentation(config),
        seed=config.experiment.seed,
        epoch=epoch,
        dtype=dtype,
        channels_last=channels_last,
    )
    return image, label


# --- network ---


def model_from(config: Config, *, num_classes: int, trunk_weights: bool) -> MultiScaleModel:
    """The network of the model section.

    With `trunk_weights` false the trunk stays random, for weights that other weights will replace.

    Raises:
        UserError: a part of the user's own cannot be made, or weights of the trunk not be had.
    """
    if config.model.wrap is not None:
        return wrapped_model(config, num_classes=num_classes)

    excluded = {"init_from", "freeze", "wrap", "random_ratio"}
    if not trunk_weights:
        excluded.add("trunk_weights")
    values = config.model.model_dump(exclude=excluded)

    # Parts of the user's own are named by module:name and handed over as functions.
    for part, own in (("trunk", own_trunk), ("decoder", own_decoder)):
        if is_reference(values[part]):
            values[part] = own(values[part])
    return build_model(
        num_classes=num_classes,
        activation_checkpointing=config.runtime.activation_checkpointing,
        **values,
    )


def place(model: MultiScaleModel, config: Config, device: torch.device) -> MultiScaleModel:
    """`model` on its device, in the runtime section's memory format and parameter dtype."""
    memory = torch.channels_last if config.runtime.channels_last else torch.contiguous_format
    dtype = parameter_dtype(config.runtime.precision)
    return model.to(device, dtype=dtype, memory_format=memory)  # type: ignore[call-overload]


def initial_model(config: Config, *, num_classes: int) -> MultiScaleModel:
    """The network that a training begins with.

    Its weights come from model.init_from when given, else from model.trunk_weights; where they
    came from is logged.
    """
    source, of_trunk = config.model.init_from, config.model.trunk_weights
    model = model_from(config, num_classes=num_classes, trunk_weights=False)
    if source is not None:
        file = model_file(source)
        load_weights(model, file, strict=False, say=lambda text: logger.info("%s", text))
    elif config.model.wrap is not None:
        # A wrapped model has its weights already, and no trunk of ours.
        logger.info("the weights are those of %s", config.model.wrap.builder)
    elif of_trunk == "auto" and is_reference(config.model.trunk):
        # Nobody publishes weights for it, and to say so would be no news to whoever wrote it.
        logger.info("the trunk %s starts as it makes itself", config.model.trunk)
    elif of_trunk is not None:
        found = find_weights(of_trunk, trunk=config.model.trunk)
        if found.path is None:
            logger.warning("%s", found.sentence)
        else:
            load_trunk_weights(model.trunk, found.path, mean=found.mean, std=found.std)
            logger.info("%s", found.sentence)
        model.trunk_origin = found.sentence
    return model


def with_random_weights(config: Config) -> Config:
    """`config` for a network whose weights stay random, as where only its speed matters.

    What the builder of model.wrap gives a model by itself stays.
    """
    changes: dict[str, Any] = {"init_from": None, "trunk_weights": None}
    if config.model.wrap is not None:
        changes["wrap"] = config.model.wrap.model_copy(update={"weights": None})
    return config.model_copy(update={"model": config.model.model_copy(update=changes)})


def compile_in_place(model: MultiScaleModel, what: str) -> None:
    """Compile what runtime.compile names: nothing (off), the trunk, or the model.

    The keys of the state dict stay as they are. Kernels are made for fixed sizes: a training step
    has those of its scales, and kernels for any size are slower. Sizes beyond torch's limit run
    uncompiled.
    """
    if what == "trunk":
        model.trunk.compile(dynamic=False)
    elif what == "model":
        model.compile(dynamic=False)


def criterion(config: Config, files: Files, *, pixels: np.ndarray | None = None) -> Any:
    """The criterion of the loss section; the pixels of `files` are counted to weigh classes.

    `pixels`, int64 [C], are taken for that count when given.
    """
    values = config.loss.model_dump()
    # The pixels are counted once, and only where a weighting asks for them.
    for name in ("class_weights", "binary_class_weights"):
        weighting, values[name] = values[name], None
        if weighting != "none":
            if pixels is None:
                pixels = count_pixels(files, workers=max(1, config.data.workers))
            counts = torch.from_numpy(pixels)
            values[name] = class_weights_from_counts(counts, weighting=weighting)

    num_classes = files.spec.num_classes
    for role in ("main", "aux", "scale_loss"):
        name = values[role]
        if name is not None and is_reference(name):
            values[role] = OwnLoss(name, key=f"loss.{role}", num_classes=num_classes)
    return build_criterion(
        num_classes=num_classes,
        ignore_label=files.spec.ignore_label,
        align_corners=config.model.align_corners,
        **values,
    )


# --- training ---


def training_state(config: Config, files: Files, processes: Processes) -> TrainingState:
    """Model, optimiser, scaler and averaged weights of a training that begins, on their device."""
    # fp16 needs its losses scaled, so that small gradients do not vanish.
    scaler = torch.amp.GradScaler(processes.device.type, enabled=config.runtime.precision == "fp16")

    model = initial_model(config, num_classes=files.spec.num_classes)
    if config.runtime.sync_batchnorm == "auto":
        model = synchronise_batch_norm(model, processes)
    model = place(model, config, processes.device)
    model.freeze(config.model.freeze)
    compile_in_place(model, config.runtime.compile)

    average = None
    if config.optim.ema_decay is not None:
        average = WeightAverage(model, decay=config.optim.ema_decay)
    made = optimizer(config, model, processes=processes, scaled=scaler.is_enabled())
    return TrainingState(model, made, scaler, average)


def training_scales(config: Config, *, step: int) -> tuple[float, ...]:
    """The scales of a training step, from low to high.

    With model.random_ratio ("any scale-down ratio could be selected", section 3.1 of the paper) the
    ratio of neighbours is drawn, evenly in its logarithm. It follows from the seed and the number
    of the step, so that it is the same on all ranks and after a resume.
    """
    model = config.model
    if model.random_ratio is None:
        return model.train_scales
    generator = np.random.default_rng((config.experiment.seed, step, SCALES_STREAM))
    lowest, highest = np.log(model.random_ratio)
    ratio = math.exp(generator.uniform(lowest, highest))
    top, count = max(model.train_scales), len(model.train_scales)
    return tuple(top * ratio**steps_down for steps_down in reversed(range(count)))


def optimizer(
    config: Config, model: MultiScaleModel, *, processes: Processes, scaled: bool
) -> torch.optim.Optimizer:
    """The optimiser of the optim section.

    Its learning rate is scaled to the effective batch, the images of a step over all processes and
    accumulated batches, when optim.lr_scaling asks for it. `scaled` says that a GradScaler is used.
    """
    optim = config.optim
    batch = config.data.batch_size * processes.world_size * optim.accumulate
    lr = scaled_learning_rate(
        optim.lr, batch=batch, reference_batch=optim.reference_batch, scaling=optim.lr_scaling
    )

    logger.info(
        "effective batch %d images (%d a process x %d processes x %d accumulated), "
        "learning rate %g",
        batch,
        config.data.batch_size,
        processes.world_size,
        optim.accumulate,
        lr,
    )
    differs = optim.reference_batch not in (None, batch)
    if differs and optim.lr_scaling == "none" and processes.is_main:
        logger.warning(
            "optim.lr was chosen for a batch of %d; set optim.accumulate or optim.lr_scaling to "
            "suit %d",
            optim.reference_batch,
            batch,
        )

    groups = parameter_groups(
        model,
        lr=lr,
        weight_decay=optim.weight_decay,
        decay_norm_and_bias=optim.decay_norm_and_bias,
        head_parameters=model.parameters_of_heads(),
        head_lr_multiplier=optim.head_lr_multiplier,
        attention_parameters=model.parameters_of_attention(),
        attention_lr_multiplier=optim.attention_lr_multiplier,
    )
    return build_optimizer(
        groups,
        optimizer=optim.optimizer,
        backend=optim.backend,
        momentum=optim.momentum,
        scaled=scaled,
    )


def schedule(config: Config, *, steps_per_epoch: int) -> Callable[[int], float]:
    """Factor of the learning rate at each step, as the optim section says."""
    return build_schedule(steps_per_epoch=steps_per_epoch, **config.optim.schedule_arguments())


def loggers(names: Sequence[str]) -> list[RunLogger]:
    """The loggers that runtime.loggers names, not begun yet.

    Raises:
        UserError: the package of one is not installed, or there is no such class.
    """
    return [OwnLogger(name) if is_reference(name) else LOGGERS[name]() for name in names]


def checkpoint_identity(config: Config, files: Files, *, trunk_origin: str = "") -> dict[str, Any]:
    """What makes a checkpoint usable alone: its configuration and its classes.

    With `trunk_origin`, the sentence about the weights its trunk started from, for reports.
    """
    identity: dict[str, Any] = {"config": config.to_dict(), "spec": files.spec.to_dict()}
    if trunk_origin:
        identity["trunk_origin"] = trunk_origin
    return identity


@torch.no_grad()
def attention_means(prediction: Prediction, scales: Sequence[float]) -> dict[str, Tensor]:
    """Mean weight of each training scale over a batch's pixels, on the device.

    Keys are attention_SCALE; a model without attention has none. Explicit attention has a map per
    scale. A chain has that of its lowest scale, and with two scales the other one has the rest.
    """
    if prediction.attention is None:
        return {}

    means = prediction.attention.float().mean(dim=(0, 2, 3))
    if len(means) == 1 and len(scales) == 2:
        means = torch.cat([means, 1 - means])
    return {
        f"attention_{scale:g}": mean for scale, mean in zip(sorted(scales), means, strict=False)
    }


@contextmanager
def explained(config: Config, doing: str) -> Iterator[None]:
    """Turn full memory and a lost loader process into user errors that say what to change.

    torch reports both as RuntimeError or OSError from wherever it was at that moment. `doing` is
    a key of MEMORY_ADVICE.

    Raises:
        DataError: a loader process was lost.
        MemoryShortage: the memory of the device or of the host ran out.
    """
    try:
        yield
    except (RuntimeError, OSError, EOFError, MemoryError) as error:
        # A lost process may be noticed in the middle of something else, which then failed.
        for link in _with_causes(error):
            lost = explain_lost_worker(link)
            if lost is not None:
                raise DataError(lost, kind="worker") from error

        if not out_of_memory(error):
            raise
        advice = MEMORY_ADVICE[doing].format(
            batch=config.data.batch_size, crop=list(config.data.crop)
        )
        reason = shortened(first_line(error), 200)
        raise MemoryShortage(f"memory ran out in {doing}; {advice} ({reason})") from error


def _with_causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


# --- inference ---


def attention_bias_of(
    content: Mapping[str, Any], *, classes: int | None = None
) -> dict[ScalePair, PairBias]:
    """The attention biases that `hmsa calibrate` wrote into a checkpoint, by pair of scales.

    A row is a lower scale, a higher scale and what `rows_of_bias` writes of the rest. Older
    calibrations have one number there, for all classes.

    Raises:
        CheckpointError: they are not such rows, not of finite numbers, or not of so many `classes`.
    """
    biases = {}
    for row in content.get("attention_bias", []):
        try:
            lower, higher = (float(scale) for scale in row[:2])
            # A bare number of an older calibration is a list of one, for every class.
            numbers = [
                tuple(map(float, part if isinstance(part, list | tuple) else [part]))
                for part in row[2:]
            ]
            bias = PairBias(*numbers)
        except (TypeError, ValueError) as error:
            raise CheckpointError(
                f"attention_bias: {shortened(repr(row), 100)} is not [lower scale, higher scale, "
                "biases]; calibrate the checkpoint again, or set eval.calibration=off"
            ) from error

        sound = all(part and all(map(math.isfinite, part)) for part in bias)
        if not (0 < lower < higher and sound):
            raise CheckpointError(
                f"attention_bias: {shortened(repr(row), 100)} is not a pair of rising scales and "
                "finite numbers; calibrate the checkpoint again, or set eval.calibration=off"
            )
        if classes is not None and not {len(part) for part in bias} <= {1, classes}:
            raise CheckpointError(
                f"attention_bias: {shortened(repr(row), 100)} is not of the {classes} classes of "
                "the network; calibrate the checkpoint again, or set eval.calibration=off"
            )
        biases[(lower, higher)] = bias
    return biases


def rows_of_bias(biases: PairBiases) -> list[list[Any]]:
    """Rows for files, from the lowest pair: lower scale, higher scale, and both lists of biases."""
    return [
        [*pair, *(list(map(float, numbers)) for numbers in bias)]
        for pair, bias in sorted(biases.items())
    ]


def used_attention_bias(model: MultiScaleModel, options: InferenceOptions) -> list[list[Any]]:
    """Rows [lower scale, higher scale, bias] of the biases that this way to infer uses."""
    if not isinstance(model, Hierarchical):
        return []
    bias = model.attention_bias
    return rows_of_bias({p: bias[p] for p in adjacent_pairs(options.scales) if p in bias})


def describe_inference(model: MultiScaleModel, options: InferenceOptions) -> str:
    """The way to infer, with the pairs that are calibrated and the scales switched off."""
    rows = used_attention_bias(model, options)
    if not rows:
        return options.describe()
    pairs = ", ".join(f"{lower:g}-{higher:g}" for lower, higher, *_ in rows)
    off = scales_switched_off(attention_bias_of({"attention_bias": rows}))
    idle = "".join(f", {scale:g}x switched off" for scale in off)
    return f"{options.describe()} (attention calibrated for {pairs}{idle})"


def inference_options(
    section: Any,
    *,
    scales: Sequence[float] | None = None,
    flip: bool | None = None,
    combine: str | None = None,
    over: str | None = None,
    refine: Any = None,
) -> InferenceOptions:
    """How to infer, from the eval or autolabel section; what a command line says comes first."""
    tile = None
    if section.tile is not None:
        tile = (section.tile[0], section.tile[1])
    return InferenceOptions(
        scales=tuple(scales or section.scales),
        flip=section.flip if flip is None else flip,
        combine=combine or section.combine,
        over=over or section.over,
        tile=tile,
        overlap=section.overlap,
        refine=section.refine if refine is None else refine,
        autocast_dtype=autocast_dtype(section.precision),
    )


@dataclass(frozen=True)
class Loaded:
    """A checkpoint made ready: the network with its weights, its configuration and its classes."""

    model: MultiScaleModel
    config: Config
    spec: DatasetSpec
    sha256: str  # of the checkpoint's file
    path: Path = Path()  # of that file
    trunk_origin: str = ""  # what its trunk started from, where the checkpoint says so
    validation: Mapping[str, Any] = field(default_factory=dict)  # its scores, where it carries any


def load_model(
    checkpoint: str | Path,
    *,
    config_file: Path | None,
    overrides: Sequence[str],
    device: torch.device,
) -> Loaded:
    """Build and load the network of a checkpoint.

    Raises:
        UserError: a file cannot be read, or its weights do not fit the network.
    """
    opened = open_checkpoint(checkpoint, config_file=config_file, overrides=overrides)
    return build_loaded(opened, device=device)


@dataclass(frozen=True)
class OpenedCheckpoint:
    """A checkpoint that was read, and the configuration that says which network it belongs to."""

    path: Path
    config: Config
    spec: DatasetSpec | None  # None where the configuration file names the data set
    weights: Mapping[str, Any] | None  # None for weights from elsewhere, not read yet
    sha256: str  # of the bytes that the weights were read from
    recognised: str = ""  # what weights without a configuration were taken for


def open_checkpoint(
    checkpoint: str | Path,
    *,
    config_file: Path | None,
    overrides: Sequence[str],
    runs: Sequence[str] = NETWORK,
) -> OpenedCheckpoint:
    """Read a checkpoint and its configuration.

    `checkpoint` is anything that `model_file` knows: a run folder, a file, a folder of
    `save_pretrained`, a name of published weights or hf:owner/name. Ours carry their configuration
    and classes. Of the authors' and HRNet-OCR's files the network follows from names and shapes,
    and the classes from their number. With `config_file` that file describes the network, and its
    data set the classes.

    `runs` are the keys whose code the caller is going to run. Code that the checkpoint names there
    must be trusted (see `trust`); a configuration file is the user's own word.

    Raises:
        UserError: a file cannot be read or is damaged, or the checkpoint names code that its user
            has not named.
    """
    path = model_file(checkpoint)
    if config_file is not None:
        config = load_config(config_file, overrides)
        if not path.is_file():
            raise CheckpointError(f"{path}: no such checkpoint file")
        return OpenedCheckpoint(path, config, spec=None, weights=None, sha256=sha256_of(path))

    carried = carried_description(path)
    if carried is not None:
        sha256 = sha256_of(path)
        content: Mapping[str, Any] = {**carried, "model": read_file(path)}
    elif is_safetensors(path):
        return _recognised(path, overrides)
    else:
        # The bytes are read once, so that the hash is that of the weights that are used. NumPy
        # numbers are let in because the authors' files hold some.
        try:
            with numpy_scalars():
                content, sha256 = load_checkpoint(path)
        except ForeignCheckpointError as error:
            return _recognised(path, overrides, otherwise=error)

    config = Config.from_dict(content["config"], overrides, source=f"{path}: configuration")
    require_trust(config, overrides, path=path, keys=runs)
    if config.model.wrap is not None:
        # The weights are those of the checkpoint.
        wrap = config.model.wrap.model_copy(update={"weights": None})
        model = config.model.model_copy(update={"wrap": wrap})
        config = config.model_copy(update={"model": model})
    try:
        spec = DatasetSpec.from_dict(content["spec"])
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
        raise CheckpointError(
            f"{path}: damaged, its classes cannot be read ({type(error).__name__}: {error}); take "
            "another one of the run's checkpoints"
        ) from error
    return OpenedCheckpoint(path, config, spec=spec, weights=content, sha256=sha256)


def _recognised(
    path: Path, overrides: Sequence[str], *, otherwise: CheckpointError | None = None
) -> OpenedCheckpoint:
    """Weights without a configuration, whose network their names and shapes tell.

    Raises:
        CheckpointError: they do not; `otherwise` says what to do about it.
    """
    sha256 = sha256_of(path)
    try:
        found = recognise_model(path)
        spec = classes_by_number(found.num_classes)
    except ModelError as error:
        hint = "name the configuration it was trained with by --config"
        if otherwise is not None:
            hint = str(otherwise).removeprefix(f"{path}: ")
        raise CheckpointError(f"{str(error).rstrip('.')}; {hint}") from error

    config = configuration_of(found, overrides, source=f"{path}: recognised network")
    model = config.model
    described = f"{model.trunk}, {model.decoder}, {model.multiscale}, {spec.name}"
    return OpenedCheckpoint(
        path,
        config,
        spec=spec,
        weights=found.tensors,
        sha256=sha256,
        recognised=f"{path} has no configuration; by its tensors it is {described}",
    )


def build_loaded(opened: OpenedCheckpoint, *, device: torch.device) -> Loaded:
    """Build the network of an opened checkpoint, with its weights, on `device`.

    Raises:
        UserError: the weights do not fit the network, or are not finite.
    """
    config, spec, path = opened.config, opened.spec, opened.path
    if opened.recognised:
        logger.info("%s", opened.recognised)
    if spec is None:
        spec = configured_classes(config)

    # Weights of the trunk alone would be replaced at once.
    model = model_from(config, num_classes=spec.num_classes, trunk_weights=False)
    try:
        load_weights(model, path if opened.weights is None else opened.weights)
    except ModelError as error:
        # What is loaded from memory has no name of its own.
        if str(path) in str(error):
            raise
        raise CheckpointError(f"{path}: {error}") from error
    if opened.weights is None and sha256_of(path) != opened.sha256:
        raise CheckpointError(f"{path}: was changed while it was read; start again")

    # Not-a-number would be scored as the first class, and would stay unseen.
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise CheckpointError(
                f"{path}: {name} is not finite; take another checkpoint, of before the training "
                "diverged"
            )
    model = place(model, config, device).eval()
    if isinstance(model, Hierarchical) and config.eval.calibration == "auto":
        try:
            model.attention_bias = attention_bias_of(opened.weights or {}, classes=spec.num_classes)
        except CheckpointError as error:
            raise CheckpointError(f"{path}: {error}") from error
    origin = (opened.weights or {}).get("trunk_origin", "")
    return Loaded(
        model=model,
        config=config,
        spec=spec,
        sha256=opened.sha256,
        path=path,
        trunk_origin=str(origin),
        validation=validation_of(opened.weights or {}),
    )


def validation_of(content: Mapping[str, Any]) -> dict[str, Any]:
    """The scores of the validation that chose a checkpoint: "miou", and "iou" by class."""
    scores: dict[str, Any] = {}
    if isinstance(content.get("miou"), float):
        scores["miou"] = content["miou"]
    by_class = content.get("iou")
    if isinstance(by_class, Mapping):
        scores["iou"] = {
            name: iou for name, iou in by_class.items() if isinstance(iou, int | float)
        }
    return scores
