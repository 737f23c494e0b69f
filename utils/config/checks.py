"""What must hold between options of different fields.

Each check yields what it finds: the dotted paths that it concerns, the mistaken one first, and a
sentence.
"""

from __future__ import annotations

from collections.abc import Iterator

from .models import (
    DataSection,
    ExtraSection,
    ModelSection,
    OptimSection,
    RuntimeSection,
    Sections,
)

Finding = tuple[tuple[str, ...], str]

# A training at a smaller scale sees nothing: no shorter than the least scale of a model.
LEAST_SCALE = 1 / 64


def check_sections(config: Sections) -> Iterator[Finding]:
    """Every contradiction between fields that are right by themselves."""
    yield from _check_data(config.data)
    yield from _check_model(config.model)
    yield from _check_optim(config.optim)
    yield from _check_runtime(config.runtime)


def _check_data(data: DataSection) -> Iterator[Finding]:
    ranges = (("data.scale_range", data.scale_range), ("data.blur_sigma", data.blur_sigma))
    for name, bounds in ranges:
        if bounds is not None and bounds[0] > bounds[1]:
            low, high = bounds
            yield (name,), f"[{low:g}, {high:g}] runs backwards; write [{high:g}, {low:g}]"

    # What only some layouts of data sets have.
    if data.dataset == "cityscapes" and data.classes is not None:
        message = "Cityscapes brings its own classes; remove this, or set data.dataset to folder"
        yield ("data.classes", "data.dataset"), message
    if data.cv is not None and data.dataset != "cityscapes":
        message = (
            f"only Cityscapes has cross-validation splits, not '{data.dataset}'; set it to null"
        )
        yield ("data.cv", "data.dataset"), message

    if data.extra is not None:
        yield from _check_extra(data, data.extra)


def _check_extra(data: DataSection, extra: ExtraSection) -> Iterator[Finding]:
    if extra.labels == "auto" and extra.root is None:
        message = "automatic labels need their folder or manifest, as autolabel.py wrote it"
        yield ("data.extra.root", "data.extra.labels"), message

    # Coarse labels are files of the data set: what only automatic labels have must be left alone.
    if extra.labels == "coarse":
        for name in ("root", "policy", "confidence_threshold", "mask_border"):
            default = ExtraSection.model_fields[name].get_default(call_default_factory=True)
            if getattr(extra, name) != default:
                message = "is for automatic labels; remove it, or set data.extra.labels to auto"
                yield (f"data.extra.{name}", "data.extra.labels"), message

    # Boosting adds images to the pools of class-uniform sampling, so it needs both.
    if extra.mode == "boost" and not extra.boost_classes:
        message = "mode 'boost' needs the names of the classes to boost"
        yield ("data.extra.boost_classes", "data.extra.mode"), message
    if extra.mode == "boost" and data.class_uniform.fraction == 0:
        message = (
            "'boost' works through class-uniform sampling, which is off; "
            "set data.class_uniform.fraction"
        )
        yield ("data.extra.mode", "data.class_uniform.fraction"), message
    if extra.mode != "boost" and extra.boost_classes:
        message = "is for mode 'boost'; remove it, or set data.extra.mode to boost"
        yield ("data.extra.boost_classes", "data.extra.mode"), message


def _check_model(model: ModelSection) -> Iterator[Finding]:
    if "decoder" in model.freeze and model.init_from is None:
        message = "a decoder that is not trained needs weights; set model.init_from"
        yield ("model.freeze", "model.init_from"), message

    if model.wrap is not None:
        yield from _check_wrap(model)

    yield from _check_pairs(model)
    scales = model.train_scales
    paths = ("model.train_scales", "model.multiscale")

    if model.multiscale == "single":
        if scales != (1.0,):
            message = (
                "a single-scale model trains at [1.0]; remove this, "
                "or choose another model.multiscale"
            )
            yield paths, message
        if {"trunk", "decoder"} <= set(model.freeze):
            message = "a single-scale model has nothing left to train; remove one of them"
            yield ("model.freeze", "model.multiscale"), message
        return

    if 1.0 not in scales:
        message = f"must contain 1.0, the scale of the label, for multiscale '{model.multiscale}'"
        yield paths, message
    if len(scales) < 2:
        message = f"multiscale '{model.multiscale}' needs at least two scales, such as [0.5, 1.0]"
        yield paths, message
    if any(low >= high for low, high in zip(scales, scales[1:], strict=False)):
        yield paths, f"write the scales from small to large: {sorted(scales)}"


def _check_pairs(model: ModelSection) -> Iterator[Finding]:
    # Only hierarchical attention judges pairs of scales.
    if not model.multiscale.startswith("hierarchical"):
        for name in ("random_ratio", "attention_reads_scales"):
            if getattr(model, name):
                message = "is for hierarchical attention; remove it, or set model.multiscale"
                yield (f"model.{name}", "model.multiscale"), message
    if model.random_ratio is None:
        return

    least, largest = model.random_ratio
    scales = model.train_scales
    if least > largest:
        yield ("model.random_ratio",), "write the smaller ratio first"
    elif max(scales) * least ** (len(scales) - 1) < LEAST_SCALE:
        message = f"makes scales below {LEAST_SCALE:g} of {len(scales)}; begin it with a larger one"
        yield ("model.random_ratio", "model.train_scales"), message


def _check_runtime(runtime: RuntimeSection) -> Iterator[Finding]:
    if runtime.calibrate_scales is not None and len(runtime.calibrate_scales) < 2:
        message = "calibration is between scales; name at least two, such as [0.5, 1.0, 2.0]"
        yield ("runtime.calibrate_scales",), message

    # What GPUs of Apple's, or torch on them, lack.
    if runtime.device != "mps":
        return
    if runtime.precision in ("fp16", "fp64"):
        message = f"device 'mps' does not train in {runtime.precision}; set it to fp32 or bf16"
        yield ("runtime.precision", "runtime.device"), message
    if runtime.compile != "off":
        message = "device 'mps' runs uncompiled networks only; set it to off"
        yield ("runtime.compile", "runtime.device"), message
    if runtime.deterministic:
        message = "torch knows no deterministic kernels for device 'mps'; set it to false"
        yield ("runtime.deterministic", "runtime.device"), message


def _check_wrap(model: ModelSection) -> Iterator[Finding]:
    if model.multiscale != "hierarchical":
        message = (
            f"attention is attached as multiscale 'hierarchical', not '{model.multiscale}'; "
            "set model.multiscale"
        )
        yield ("model.multiscale", "model.wrap"), message

    # Trunk and decoder of a file that this one inherits from are not used, which does no harm. What
    # would change the result of the wrapped model must not be asked for in vain.
    for name in ("trunk_weights", "align_corners", "fuse_at"):
        if getattr(model, name) != ModelSection.model_fields[name].get_default():
            message = "does not act on the model of model.wrap; remove it"
            yield (f"model.{name}", "model.wrap"), message


def _check_optim(optim: OptimSection) -> Iterator[Finding]:
    if optim.lr_scaling != "none" and optim.reference_batch is None:
        message = (
            f"lr_scaling '{optim.lr_scaling}' needs the global batch that optim.lr was chosen for"
        )
        yield ("optim.reference_batch", "optim.lr_scaling"), message
    if optim.schedule == "scl_poly" and optim.rescale_epoch >= optim.epochs:
        paths = ("optim.rescale_epoch", "optim.schedule", "optim.epochs")
        yield paths, f"the restart must come before the end (optim.epochs: {optim.epochs})"
