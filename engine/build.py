"""From configuration to parts: the one place where the doors hand a section's fields to a room's builder.

Rooms never see a configuration and a configuration never sees a room; train.py, eval.py and autolabel.py join them through these functions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

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
    normalise,
    verify_files,
)
from hmsa.loss import LossError, build_criterion, class_weights_from_counts
from hmsa.network import ModelError, Prediction, build_model, load_weights
from hmsa.network.inference.predict import out_of_memory, predict, predict_label
from hmsa.network.model import MultiScale
from hmsa.utils.config import Config, ConfigError, load_config
from hmsa.utils.files.image_writer import ImageWriteError
from hmsa.utils.metrics.confusion import MetricsError
from hmsa.utils.processes import AgreedError, ProcessError, Processes, synchronise_batch_norm
from hmsa.utils.runtime import autocast_dtype, parameter_dtype
from hmsa.utils.training.checkpoint import CheckpointError, load_checkpoint, sha256_of
from hmsa.utils.training.cost import MemoryShortage
from hmsa.utils.training.ema import WeightAverage
from hmsa.utils.training.logbook import logger
from hmsa.utils.training.optimizer import (
    OptimizerError,
    build_optimizer,
    parameter_groups,
    scaled_learning_rate,
)
from hmsa.utils.training.run_folder import RunError
from hmsa.utils.training.schedule import build_schedule
from hmsa.utils.training.training_state import TrainingState

USER_ERRORS = (
    ConfigError,
    DataError,
    ModelError,
    LossError,
    CheckpointError,
    OptimizerError,
    ProcessError,
    RunError,
    AgreedError,
    ImageWriteError,
    MetricsError,
    MemoryShortage,
)


VERIFIED_SAMPLE = 64  # files of a split whose label values are looked at with data.verify: sample


@dataclass(frozen=True)
class Inference:
    """How to infer: the options of network.inference.predict that a configuration or a command line sets."""

    scales: tuple[float, ...]
    flip: bool = False
    combine: str = "average"
    over: str = "logits"
    tile: tuple[int, int] | None = None
    overlap: float = 0.25
    precision: str = "fp32"

    @classmethod
    def of(
        cls,
        section: Any,
        *,
        scales: Sequence[float] | None = None,
        flip: bool | None = None,
        combine: str | None = None,
        over: str | None = None,
    ) -> Inference:
        """The eval or autolabel section, with the command line's word on top."""
        return cls(
            scales=tuple(scales or section.scales),
            flip=section.flip if flip is None else flip,
            combine=combine or section.combine,
            over=over or section.over,
            tile=None if section.tile is None else (section.tile[0], section.tile[1]),
            overlap=section.overlap,
            precision=section.precision,
        )

    def predict(
        self,
        model: MultiScale,
        image: Tensor,
        *,
        keep_scales: bool | str = False,
        on_fallback: Callable[[str], None] | None = None,
    ) -> Prediction:
        """network.inference.predict with these options; `image` float [N, 3, H, W], normalised."""
        return predict(
            model,
            image,
            scales=self.scales,
            flip=self.flip,
            combine=self.combine,
            over=self.over,
            tile=self.tile,
            overlap=self.overlap,
            keep_scales=keep_scales,
            autocast_dtype=autocast_dtype(self.precision),
            on_fallback=on_fallback,
        )

    def label(
        self,
        model: MultiScale,
        image: Tensor,
        *,
        with_confidence: bool = False,
        on_fallback: Callable[[str], None] | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """network.inference.predict_label with these options: what `predict` says, without ever holding logits at full size."""
        return predict_label(
            model,
            image,
            scales=self.scales,
            flip=self.flip,
            combine=self.combine,
            over=self.over,
            tile=self.tile,
            overlap=self.overlap,
            with_confidence=with_confidence,
            autocast_dtype=autocast_dtype(self.precision),
            on_fallback=on_fallback,
        )

    def describe(self) -> str:
        """Scales and flip as printed beside every number, and how they are combined where that is not the mean of logits."""
        way = (
            ""
            if (self.combine, self.over) == ("average", "logits")
            else f", {self.combine} of {self.over}"
        )
        return (
            "{"
            + ", ".join(f"{scale:g}" for scale in self.scales)
            + "}"
            + (" + flip" if self.flip else "")
            + way
        )


def split_files(
    config: Config, split: str, *, expected: DatasetSpec | None = None, labels: str | None = None
) -> Files:
    """The files of a split, as the data section describes them; `labels` none leaves labels alone.

    Raises DataError where its classes are not those `expected` by a checkpoint.
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
        raise DataError(
            f"{data.root}: has {files.spec.num_classes} classes where the checkpoint was trained for {expected.num_classes} "
            f"({expected.name}); name the data set it was trained for with data.root, data.dataset and data.classes"
        )
    return files


def split_loader(
    config: Config,
    files: Files,
    processes: Processes,
    *,
    with_label: bool = True,
    workers: int | None = None,
) -> Iterable[dict[str, Any]]:
    """Every image of `files` once over all ranks, as the eval section loads them (but with `workers` when given)."""
    workers = config.eval.workers if workers is None else workers
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


def model_from(config: Config, *, num_classes: int, trunk_weights: bool) -> MultiScale:
    """The network of the model section; `trunk_weights` false leaves ImageNet weights alone, where other weights will overwrite them."""
    keywords = config.model.model_dump(
        exclude={"init_from"} if trunk_weights else {"init_from", "trunk_weights"}
    )
    return build_model(
        num_classes=num_classes,
        activation_checkpointing=config.runtime.activation_checkpointing,
        **keywords,
    )


def place(model: MultiScale, config: Config, device: torch.device) -> MultiScale:
    """`model` on its device, in the runtime section's memory format and parameter dtype."""
    memory = torch.channels_last if config.runtime.channels_last else torch.contiguous_format
    return model.to(device, dtype=parameter_dtype(config.runtime.precision), memory_format=memory)  # type: ignore[call-overload]


def initial_model(config: Config, *, num_classes: int) -> MultiScale:
    """The network to begin a training with: from model.init_from when given (its report is logged), else from model.trunk_weights."""
    source = config.model.init_from
    model = model_from(config, num_classes=num_classes, trunk_weights=source is None)
    if source is not None:
        logger.info("%s", load_weights(model, source, strict=False))
    return model


def optimizer(
    config: Config, model: MultiScale, *, processes: Processes, scaled: bool
) -> torch.optim.Optimizer:
    """The optimiser of the optim section, its learning rate scaled to the effective batch when asked for."""
    optim = config.optim
    batch = config.data.batch_size * processes.world_size * optim.accumulate
    lr = scaled_learning_rate(
        optim.lr, batch=batch, reference_batch=optim.reference_batch, scaling=optim.lr_scaling
    )
    logger.info(
        "effective batch %d images (%d a process x %d processes x %d accumulated), learning rate %g",
        batch,
        config.data.batch_size,
        processes.world_size,
        optim.accumulate,
        lr,
    )
    if (
        optim.reference_batch is not None
        and optim.reference_batch != batch
        and optim.lr_scaling == "none"
    ):
        logger.warning(
            "optim.lr was chosen for a batch of %d; set optim.accumulate or optim.lr_scaling to suit %d",
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
    )
    return build_optimizer(
        groups,
        optimizer=optim.optimizer,
        backend=optim.backend,
        momentum=optim.momentum,
        scaled=scaled,
    )


def training_state(config: Config, files: Files, processes: Processes) -> TrainingState:
    """Model, optimiser, scaler and averaged weights of a training that begins, on their device."""
    scaler = torch.amp.GradScaler(processes.device.type, enabled=config.runtime.precision == "fp16")
    model = initial_model(config, num_classes=files.spec.num_classes)
    if config.runtime.sync_batchnorm == "auto":
        model = synchronise_batch_norm(model, processes)
    model = place(model, config, processes.device)
    compile_in_place(model, config.runtime.compile)
    average = (
        None
        if config.optim.ema_decay is None
        else WeightAverage(model, decay=config.optim.ema_decay)
    )
    return TrainingState(
        model,
        optimizer(config, model, processes=processes, scaled=scaler.is_enabled()),
        scaler,
        average,
    )


def lazily(config: Config) -> bool:
    """Whether losses render logits strip by strip as they read them: always, but where the compiler wants plain tensors."""
    return config.runtime.compile != "model"


@torch.no_grad()
def attention_means(prediction: Prediction, scales: Sequence[float]) -> dict[str, Tensor]:
    """attention_SCALE -> mean weight of that training scale over a batch's pixels, on the device; nothing for a model without attention.

    Explicit attention has a map per scale. A chain has that of its lowest scale, and with two scales the other one has the rest.
    """
    maps: Any = prediction.attention
    if maps is None:
        return {}
    means = (maps if isinstance(maps, Tensor) else maps.whole()).float().mean(dim=(0, 2, 3))
    if len(means) == 1 and len(scales) == 2:
        means = torch.cat([means, 1 - means])
    return {
        f"attention_{scale:g}": mean for scale, mean in zip(sorted(scales), means, strict=False)
    }


@contextmanager
def explained(config: Config, doing: str) -> Iterator[None]:
    """Full memory and a lost worker, which torch tells in its own words from wherever it was, as user errors that say what to change."""
    try:
        yield
    except (RuntimeError, OSError, EOFError, MemoryError) as error:
        for link in _with_causes(
            error
        ):  # noticed in the middle of something else, which then failed in its own way
            lost = explain_lost_worker(link)
            if lost is not None:
                raise DataError(lost, kind="worker") from error
        if not out_of_memory(error):
            raise
        crop, batch = list(config.data.crop), config.data.batch_size
        advice = {
            "training": f"one step takes {batch} x {crop} pixels: try runtime.precision=bf16, runtime.activation_checkpointing=true, a smaller "
            "data.batch_size (with optim.accumulate for the same effective batch) or a smaller data.crop",
            "validation": "try eval.batch_size=1, eval.tile=[1024,1024], eval.precision=bf16 or fewer eval.scales",
        }
        raise MemoryShortage(
            f"memory ran out in {doing}; {advice[doing]} ({str(error).strip().splitlines()[0][:200]})"
        ) from error


def _with_causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


@dataclass(frozen=True)
class Loaded:
    """A checkpoint made ready: the network with its weights, its configuration and classes, and the file's sha256."""

    model: MultiScale
    config: Config
    spec: DatasetSpec
    sha256: str


def load_model(
    checkpoint: Path, *, config_file: Path | None, overrides: Sequence[str], device: torch.device
) -> Loaded:
    """Build the network a checkpoint was trained with, or, for weights from elsewhere, the one `config_file` describes, and load it."""
    if config_file is None:
        content = load_checkpoint(checkpoint)
        config = Config.from_dict(content["config"], overrides)
        spec = DatasetSpec.from_dict(content["spec"])
    else:
        config = load_config(config_file, overrides)
        spec = split_files(config, config.data.val_split).spec
    model = model_from(config, num_classes=spec.num_classes, trunk_weights=False)
    load_weights(model, checkpoint)
    return Loaded(
        model=place(model, config, device).eval(),
        config=config,
        spec=spec,
        sha256=sha256_of(checkpoint),
    )


def augmentation(config: Config) -> Augmentation:
    """What the data section draws for each training sample."""
    names = {field.name for field in fields(Augmentation)}
    return Augmentation(**config.data.model_dump(include=names))


def train_loader(config: Config, files: Files, processes: Processes) -> TrainLoader:
    """The training batches of the data section, for this rank."""
    data = config.data
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
    )


def prepared(
    config: Config, batch: dict[str, Any], *, epoch: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Image float [N, 3, h, w] and label uint8 [N, h, w] of a training batch on the device, normalised there."""
    image, label = (
        batch["image"].to(device, non_blocking=True),
        batch["label"].to(device, non_blocking=True),
    )
    options: Any = {
        "dtype": parameter_dtype(config.runtime.precision),
        "channels_last": config.runtime.channels_last,
    }
    if config.data.augment_on_device:
        return augment_on_device(
            image,
            region=batch["region"].to(device),
            position=batch["position"],
            augmentation=augmentation(config),
            seed=config.experiment.seed,
            epoch=epoch,
            **options,
        ), label
    return normalise(image, **options), label


def extra_source(config: Config) -> ExtraSource | None:
    """The coarse or automatic labels of data.extra, or None."""
    data, extra = config.data, config.data.extra
    if extra is None:
        return None
    files = build_files(
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
    return ExtraSource(
        files=files,
        probability=extra.probability,
        mode=extra.mode,
        boost_classes=extra.boost_classes,
    )


def verify(config: Config, *splits: Files) -> None:
    """Look for mistakes in `splits` and in data.extra before they can reach the network, as data.verify says; the first kind found ends the run."""
    if config.data.verify == "none":
        return
    extra = extra_source(config)
    for files in (*splits, *([] if extra is None else [extra.files])):
        sample = None if config.data.verify == "all" else VERIFIED_SAMPLE
        verify_files(files, sample=sample, workers=max(1, config.data.workers)).raise_for_problems()


def criterion(config: Config, files: Files) -> Any:
    """The criterion of the loss section."""
    weighting, weights = config.loss.class_weights, None
    if weighting != "none":
        counts = torch.from_numpy(count_pixels(files, workers=max(1, config.data.workers)))
        weights = class_weights_from_counts(counts, weighting=weighting)
    return build_criterion(
        num_classes=files.spec.num_classes,
        ignore_label=files.spec.ignore_label,
        class_weights=weights,
        align_corners=config.model.align_corners,
        **config.loss.model_dump(exclude={"class_weights"}),
    )


def compile_in_place(model: MultiScale, what: str) -> None:
    """Compile what runtime.compile names: nothing (off), the trunk, or the model; the state dict's keys stay as they are.

    For fixed sizes: a training step has those of its scales, and kernels for any size are slower. Sizes beyond torch's limit run uncompiled.
    """
    if what == "trunk":
        model.trunk.compile(dynamic=False)
    elif what == "model":
        model.compile(dynamic=False)


def schedule(config: Config, *, steps_per_epoch: int) -> Callable[[int], float]:
    """Factor of the learning rate at each step, as the optim section says."""
    return build_schedule(steps_per_epoch=steps_per_epoch, **config.optim.schedule_arguments())


def identity(config: Config, files: Files) -> dict[str, Any]:
    """What makes a checkpoint usable alone: its configuration and its classes."""
    return {"config": config.to_dict(), "spec": files.spec.to_dict()}
