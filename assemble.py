"""From configuration to parts: the one place where the doors hand a section's fields to a room's builder.

Rooms never see a configuration and a configuration never sees a room; train.py, eval.py and autolabel.py join them through these functions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from datasets import (
    Augmentation,
    ClassUniform,
    DataError,
    DatasetSpec,
    ExtraSource,
    Files,
    TrainLoader,
    build_eval_loader,
    build_files,
    build_train_loader,
    count_pixels,
    verify_files,
)
from loss import LossError, build_criterion, class_weights_from_counts
from network import ModelError, Prediction, build_model, load_weights
from network.inference import predict
from utils.checkpoint import CheckpointError, load_checkpoint, sha256_of
from utils.config import Config, ConfigError, load_config
from utils.image_writer import ImageWriteError
from utils.logbook import logger
from utils.metrics import MetricsError
from utils.optimizer import OptimizerError, build_optimizer, parameter_groups, scaled_learning_rate
from utils.processes import AgreedError, ProcessError, Processes
from utils.run_folder import RunError
from utils.runtime import autocast_dtype, parameter_dtype
from utils.schedule import build_schedule

USER_ERRORS = (ConfigError, DataError, ModelError, LossError, CheckpointError, OptimizerError, ProcessError, RunError, AgreedError,
               ImageWriteError, MetricsError)


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
    def of(cls, section: Any, *, scales: Sequence[float] | None = None, flip: bool | None = None) -> Inference:
        """The eval or autolabel section, with the command line's word on top."""
        return cls(scales=tuple(scales or section.scales), flip=section.flip if flip is None else flip, combine=section.combine, over=section.over,
                   tile=None if section.tile is None else (section.tile[0], section.tile[1]), overlap=section.overlap, precision=section.precision)

    def predict(self, model: nn.Module, image: Tensor, *, keep_scales: bool = False, on_fallback: Callable[[str], None] | None = None) -> Prediction:
        """network.inference.predict with these options; `image` float [N, 3, H, W], normalised."""
        return predict(model, image, scales=self.scales, flip=self.flip, combine=self.combine, over=self.over, tile=self.tile, overlap=self.overlap,
                       keep_scales=keep_scales, autocast_dtype=autocast_dtype(self.precision), on_fallback=on_fallback)

    def describe(self) -> str:
        """Scales and flip as printed beside every number."""
        return "{" + ", ".join(f"{scale:g}" for scale in self.scales) + "}" + (" + flip" if self.flip else "")


def split_files(config: Config, split: str, *, expected: DatasetSpec | None = None, labels: str | None = None) -> Files:
    """The files of a split, as the data section describes them; `labels` none leaves labels alone.

    Raises DataError where its classes are not those `expected` by a checkpoint.
    """
    data = config.data
    files = build_files(dataset=data.dataset, root=data.root, split=split, classes=data.classes, cv=data.cv, labels=labels,
                        max_pixels=data.max_pixels)
    if expected is not None and files.spec.names != expected.names:
        raise DataError(f"{data.root}: has {files.spec.num_classes} classes where the checkpoint was trained for {expected.num_classes} "
                        f"({expected.name}); name the data set it was trained for with data.root, data.dataset and data.classes")
    return files


def split_loader(config: Config, files: Files, processes: Processes, *, with_label: bool = True) -> Iterable[dict[str, Any]]:
    """Every image of `files` once over all ranks, as the eval section loads them."""
    return build_eval_loader(files, workers=config.eval.workers, batch_size=config.eval.batch_size, rank=processes.rank,
                             world_size=processes.world_size, with_label=with_label, long_edge=config.data.long_edge)


def model_from(config: Config, *, num_classes: int, trunk_weights: bool) -> nn.Module:
    """The network of the model section; `trunk_weights` false leaves ImageNet weights alone, where other weights will overwrite them."""
    section = config.model
    return build_model(trunk=section.trunk, decoder=section.decoder, multiscale=section.multiscale, num_classes=num_classes,
                       output_stride=section.output_stride, align_corners=section.align_corners, fuse_at=section.fuse_at,
                       train_scales=tuple(section.train_scales), trunk_weights=section.trunk_weights if trunk_weights else None,
                       attention_channels=section.attention_channels, attention_dropout=section.attention_dropout, head=section.head,
                       explicit_softmax=section.explicit_softmax, activation_checkpointing=config.runtime.activation_checkpointing)


def place(model: nn.Module, config: Config, device: torch.device) -> nn.Module:
    """`model` on its device, in the runtime section's memory format and parameter dtype."""
    memory = torch.channels_last if config.runtime.channels_last else torch.contiguous_format
    return model.to(device, dtype=parameter_dtype(config.runtime.precision), memory_format=memory)  # type: ignore[call-overload]


def initial_model(config: Config, *, num_classes: int) -> nn.Module:
    """The network to begin a training with: from model.init_from when given (its report is logged), else from model.trunk_weights."""
    source = config.model.init_from
    model = model_from(config, num_classes=num_classes, trunk_weights=source is None)
    if source is not None:
        logger.info("%s", load_weights(model, source, strict=False))
    return model


def optimizer(config: Config, model: nn.Module, *, processes: Processes, scaled: bool) -> torch.optim.Optimizer:
    """The optimiser of the optim section, its learning rate scaled to the effective batch when asked for."""
    optim = config.optim
    batch = config.data.batch_size * processes.world_size * optim.accumulate
    lr = scaled_learning_rate(optim.lr, batch=batch, reference_batch=optim.reference_batch, scaling=optim.lr_scaling)
    logger.info("effective batch %d images (%d a process x %d processes x %d accumulated), learning rate %g", batch, config.data.batch_size,
                processes.world_size, optim.accumulate, lr)
    if optim.reference_batch is not None and optim.reference_batch != batch and optim.lr_scaling == "none":
        logger.warning("optim.lr was chosen for a batch of %d; set optim.accumulate or optim.lr_scaling to suit %d", optim.reference_batch, batch)
    heads: Any = model.parameters_of_heads  # nn.Module's __getattr__ hides the method from the type checker
    groups = parameter_groups(model, lr=lr, weight_decay=optim.weight_decay, decay_norm_and_bias=optim.decay_norm_and_bias,
                              head_parameters=heads(), head_lr_multiplier=optim.head_lr_multiplier)
    return build_optimizer(groups, optimizer=optim.optimizer, backend=optim.backend, momentum=optim.momentum, scaled=scaled)


@dataclass(frozen=True)
class Loaded:
    """A checkpoint made ready: the network with its weights, its configuration and classes, and the file's sha256."""

    model: nn.Module
    config: Config
    spec: DatasetSpec
    sha256: str


def load_model(checkpoint: Path, *, config_file: Path | None, overrides: Sequence[str], device: torch.device) -> Loaded:
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
    return Loaded(model=place(model, config, device).eval(), config=config, spec=spec, sha256=sha256_of(checkpoint))


def train_loader(config: Config, files: Files, processes: Processes) -> TrainLoader:
    """The training batches of the data section, for this rank."""
    data = config.data
    augmentation = Augmentation(crop=data.crop, scale_range=data.scale_range, flip=data.flip, color=data.color, hue=data.hue, blur=data.blur,
                                blur_probability=data.blur_probability, long_edge=data.long_edge)
    uniform = ClassUniform(fraction=data.class_uniform.fraction, tile=data.class_uniform.tile, point=data.class_uniform.point)
    return build_train_loader(files, augmentation=augmentation, batch_size=data.batch_size, workers=data.workers, seed=config.experiment.seed,
                              rank=processes.rank, world_size=processes.world_size, accumulate=config.optim.accumulate,
                              class_uniform=uniform if uniform.fraction > 0 else None, extra=extra_source(config), cache=data.cache,
                              cache_dir=data.cache_dir, photometric=not data.augment_on_device)


def extra_source(config: Config) -> ExtraSource | None:
    """The coarse or automatic labels of data.extra, or None."""
    data, extra = config.data, config.data.extra
    if extra is None:
        return None
    files = build_files(dataset=data.dataset, root=data.root, split=extra.split, classes=data.classes, labels=extra.labels, label_root=extra.root,
                        policy=extra.policy, confidence_threshold=extra.confidence_threshold, mask_border=extra.mask_border,
                        max_pixels=data.max_pixels)
    return ExtraSource(files=files, probability=extra.probability, mode=extra.mode, boost_classes=extra.boost_classes)


def verify(config: Config, *splits: Files) -> None:
    """Look for mistakes in the data before they can reach the network, as data.verify says; the first kind found ends the run."""
    if config.data.verify == "none":
        return
    for files in splits:
        sample = None if config.data.verify == "all" else VERIFIED_SAMPLE
        verify_files(files, sample=sample, workers=max(1, config.data.workers)).raise_for_problems()


def criterion(config: Config, files: Files) -> Any:
    """The criterion of the loss section."""
    section = config.loss
    weights = None
    if section.class_weights == "frequency":
        weights = class_weights_from_counts(count_pixels(files, workers=max(1, config.data.workers)))
    return build_criterion(main=section.main, aux=section.aux, aux_weight=section.aux_weight, scale_weight=section.scale_weight,
                           scale_loss=section.scale_loss, num_classes=files.spec.num_classes, ignore_label=files.spec.ignore_label,
                           class_weights=weights, align_corners=config.model.align_corners)


def compiled(model: nn.Module, what: str) -> nn.Module:
    """`model` as runtime.compile says: off, its trunk, or all of it."""
    if what == "model":
        return torch.compile(model)  # type: ignore[return-value]
    if what == "trunk":
        model.compile_trunk()  # type: ignore[operator]
    return model


def schedule(config: Config, *, steps_per_epoch: int) -> Callable[[int], float]:
    """Factor of the learning rate at each step, as the optim section says."""
    optim = config.optim
    return build_schedule(schedule=optim.schedule, epochs=optim.epochs, steps_per_epoch=steps_per_epoch, poly_exponent=optim.poly_exponent,
                          schedule_per=optim.schedule_per, warmup_steps=optim.warmup_steps, poly_step=optim.poly_step,
                          rescale=optim.rescale, repoly=optim.repoly, rescale_epoch=optim.rescale_epoch)


def identity(config: Config, files: Files) -> dict[str, Any]:
    """What makes a checkpoint usable alone: its configuration and its classes."""
    return {"config": config.to_dict(), "spec": files.spec.to_dict()}
