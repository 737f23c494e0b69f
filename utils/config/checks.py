"""What must hold between options of different fields: each check yields the paths it concerns, the mistaken one first, and a sentence."""

from __future__ import annotations

from collections.abc import Iterator

from .models import Data, Extra, Model, Optim, Sections

Finding = tuple[tuple[str, ...], str]


def check_sections(config: Sections) -> Iterator[Finding]:
    """Every contradiction between fields that are right by themselves."""
    yield from _check_data(config.data)
    yield from _check_model(config.model)
    yield from _check_optim(config.optim)


def _check_data(data: Data) -> Iterator[Finding]:
    for name, bounds in (
        ("data.scale_range", data.scale_range),
        ("data.blur_sigma", data.blur_sigma),
    ):
        if bounds is not None and bounds[0] > bounds[1]:
            yield (
                (name,),
                f"[{bounds[0]:g}, {bounds[1]:g}] runs backwards; write [{bounds[1]:g}, {bounds[0]:g}]",
            )
    if data.dataset == "cityscapes" and data.classes is not None:
        yield (
            ("data.classes", "data.dataset"),
            "Cityscapes brings its own classes; remove this, or set data.dataset to folder",
        )
    if data.cv is not None and data.dataset != "cityscapes":
        yield (
            ("data.cv", "data.dataset"),
            f"only Cityscapes has cross-validation splits, not '{data.dataset}'; set it to null",
        )
    if data.extra is not None:
        yield from _check_extra(data, data.extra)


def _check_extra(data: Data, extra: Extra) -> Iterator[Finding]:
    if extra.labels == "auto" and extra.root is None:
        yield (
            ("data.extra.root", "data.extra.labels"),
            "automatic labels need their folder or manifest, as autolabel.py wrote it",
        )
    if extra.labels == "coarse":
        for name in ("root", "policy", "confidence_threshold", "mask_border"):
            if getattr(extra, name) != type(extra).model_fields[name].get_default(
                call_default_factory=True
            ):
                yield (
                    (f"data.extra.{name}", "data.extra.labels"),
                    "is for automatic labels; remove it, or set data.extra.labels to auto",
                )
    if extra.mode == "boost":
        if not extra.boost_classes:
            yield (
                ("data.extra.boost_classes", "data.extra.mode"),
                "mode 'boost' needs the names of the classes to boost",
            )
        if data.class_uniform.fraction == 0:
            places = ("data.extra.mode", "data.class_uniform.fraction")
            yield (
                places,
                "'boost' works through class-uniform sampling, which is off; set data.class_uniform.fraction",
            )
    elif extra.boost_classes:
        yield (
            ("data.extra.boost_classes", "data.extra.mode"),
            "is for mode 'boost'; remove it, or set data.extra.mode to boost",
        )


def _check_model(model: Model) -> Iterator[Finding]:
    scales = model.train_scales
    place = ("model.train_scales", "model.multiscale")
    if model.multiscale == "single":
        if scales != (1.0,):
            yield (
                place,
                "a single-scale model trains at [1.0]; remove this, or choose another model.multiscale",
            )
        return
    if 1.0 not in scales:
        yield (
            place,
            f"must contain 1.0, the scale of the label, for multiscale '{model.multiscale}'",
        )
    if len(scales) < 2:
        yield (
            place,
            f"multiscale '{model.multiscale}' needs at least two scales, such as [0.5, 1.0]",
        )
    if any(low >= high for low, high in zip(scales, scales[1:], strict=False)):
        yield place, f"write the scales from small to large: {sorted(scales)}"


def _check_optim(optim: Optim) -> Iterator[Finding]:
    if optim.lr_scaling != "none" and optim.reference_batch is None:
        yield (
            ("optim.reference_batch", "optim.lr_scaling"),
            f"lr_scaling '{optim.lr_scaling}' needs the global batch that optim.lr was chosen for",
        )
    if optim.schedule == "scl_poly" and optim.rescale_epoch >= optim.epochs:
        yield (
            ("optim.rescale_epoch", "optim.schedule", "optim.epochs"),
            f"the restart must come before the end (optim.epochs: {optim.epochs})",
        )
