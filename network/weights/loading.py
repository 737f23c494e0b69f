"""Loading weights: checkpoints of this project and of others, and trunks trained on ImageNet."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..layers import ModelError
from ..trunks.input_statistics import IMAGENET_MEAN, IMAGENET_STD, take_imagenet_images
from ..trunks.timm_features import TimmFeatures
from .files import read_tensors
from .key_names import from_authors, without_prefixes

if TYPE_CHECKING:
    from ..model import MultiScaleModel

Tensors = dict[str, Tensor]

# What data parallelism, compilation, and a loss around the model put before names.
PREFIXES = ("module.", "_orig_mod.", "model.")

# Buffers of losses that were saved along with the model.
NOT_THE_MODEL = ("criterion.", "loss.")

# Layers of classification and segmentation networks that a trunk here does not have.
CLASSIFIERS = (
    "fc.",
    "classifier.",
    "head.",
    "incre_modules.",
    "downsamp_modules.",
    "final_layer.",
    "last_layer.",
    "cls_head.",
    "aux_head.",
)

# Old files do not hold it, and while batch norm has a momentum it has no influence.
COUNTER = "num_batches_tracked"


@dataclass(frozen=True)
class LoadReport:
    """What became of the tensors of a model, by our names, and of those of a file."""

    source: str
    kind: str  # authors, hrnet_ocr, ours, trunk
    loaded: tuple[str, ...]
    reshaped: tuple[str, ...]  # loaded; the shapes differed by dimensions of one only
    skipped: tuple[str, ...]  # kept their values: missing in the file, or of another shape there
    missing: tuple[str, ...]  # those of `skipped` that are not in the file
    unexpected: tuple[str, ...]  # in the file only

    @property
    def fraction(self) -> float:
        """Share of the model's tensors (for a trunk's file: of the trunk's) that were loaded."""
        filled = len(self.loaded) + len(self.reshaped)
        return filled / max(1, filled + len(self.skipped))

    def __str__(self) -> str:
        rows = [f"{self.source} ({self.kind}): {100 * self.fraction:.1f} % of the tensors loaded"]
        listings = {
            "loaded": (self.loaded, ""),
            "reshaped": (self.reshaped, summary_of_names(self.reshaped)),
            "skipped": (self.skipped, summary_of_names(self.skipped)),
            "unexpected": (self.unexpected, summary_of_names(self.unexpected)),
        }
        for name, (keys, listed) in listings.items():
            rows.append(f"  {name:<10} {len(keys):>5}  {listed}".rstrip())
        return "\n".join(rows)


def load_weights(
    model: MultiScaleModel,
    source: str | Path | Mapping[str, object],
    *,
    strict: bool = True,
    min_fraction: float = 0.5,
    say: Callable[[str], object] = print,
) -> LoadReport:
    """Load a file or a state dict into `model`, and report what was done.

    Recognised are our checkpoints (`{"model": ...}`), the authors'
    (`{"state_dict": {"module.backbone..."}}`), HRNet-OCR's own (flat, or under `model.`), bare
    state dicts of each, and trunks (official HRNet, torchvision, timm), which fill the trunk and
    leave the heads. Files are read as tensors and plain values only.

    Args:
        model: the model to fill; it is unchanged when an error is raised.
        source: path of a torch or safetensors file, or what such a file holds.
        strict: every tensor must fit. Otherwise (fine-tuning) what does not fit keeps its values.
        min_fraction: without `strict`, the share of the model's tensors that must be loaded.
        say: without `strict`, receives the report as text.

    Raises:
        ModelError: the file cannot be read or does not fit the model.
    """
    name = _name_of(source)
    kind, tensors = recognise(read_tensors(source), name=name, trunk=model.trunk)
    if kind == "hrnet_ocr" and not model.align_corners:
        raise ModelError(
            f"{name} holds HRNet-OCR's own weights, which were trained with aligned corners: build "
            "the model with align_corners=True."
        )
    if kind == "trunk":
        return _load_trunk(model.trunk, tensors, name=name)

    # Another number of classes has its own sentence, so it is looked for before anything else.
    if strict:
        _check_classes(model, tensors, name=name)
    report, copies = _match(model, tensors, kind=kind, name=name)
    if strict:
        _check_complete(report)
    else:
        say(str(report))
        if report.fraction < min_fraction:
            raise ModelError(
                f"only {100 * report.fraction:.1f} % of the model's tensors are in {name}, less "
                f"than the {100 * min_fraction:.0f} % asked for: choose the trunk and decoder it "
                "was trained with."
            )

    _copy(copies, name=name)
    return report


def load_trunk_weights(
    trunk: nn.Module,
    source: str | Path | Mapping[str, object],
    *,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
) -> LoadReport:
    """Load ImageNet weights into a trunk, completely, and report what was done.

    Recognised are official HRNet's, torchvision's and timm's files, and the trunk of a whole model.
    Classifier layers of the file are left out.

    Args:
        trunk: what to fill.
        source: path of a torch or safetensors file, or what such a file holds.
        mean: of the images the weights were trained with. Images come in ImageNet's normalisation
            everywhere, so weights of another one are changed to give the same features for them.
        std: their standard deviation.

    Raises:
        ModelError: the file cannot be read, or does not hold every tensor of the trunk.
    """
    name = _name_of(source)
    kind, tensors = recognise(read_tensors(source), name=name, trunk=trunk)
    if kind != "trunk":
        tensors = {
            key.removeprefix("trunk."): value
            for key, value in tensors.items()
            if key.startswith("trunk.")
        }
    report = _load_trunk(trunk, tensors, name=name)
    take_imagenet_images(trunk, mean=mean, std=std)
    return report


def load_plain_weights(model: nn.Module, source: str | Path | Mapping[str, object]) -> LoadReport:
    """Fill any module, completely, with a state dict by its own names; prefixes are removed.

    Heads that only training needs (`aux...`) may be in the file alone.

    Raises:
        ModelError: the file cannot be read, or does not fit the module; nothing is changed.
    """
    name = _name_of(source)
    tensors = read_tensors(source)
    if not tensors.keys() & model.state_dict().keys():
        tensors = without_prefixes(tensors, PREFIXES)
    own = model.state_dict()
    tensors = {
        key: value for key, value in tensors.items() if key in own or not key.startswith("aux")
    }
    report, copies = _match(model, tensors, kind="plain", name=name)
    _check_complete(report, advice="name the file of this very model.")
    _copy(copies, name=name)
    return report


def recognise(
    tensors: Tensors, *, name: str, trunk: nn.Module | None = None
) -> tuple[str, Tensors]:
    """Whose state dict this is, and the same tensors by our names.

    Args:
        tensors: a state dict by anybody's names.
        name: what errors call it.
        trunk: helps to recognise a file of a trunk that is neither HRNet nor ResNet.

    Returns:
        The kind ("authors", "hrnet_ocr", "ours", "trunk"), and the tensors; those of a trunk by
        their names within the trunk.

    Raises:
        ModelError: it is of no known kind.
    """
    # Buffers of a loss may stand beside the prefix of the model or behind it.
    tensors = _without_losses(without_prefixes(_without_losses(tensors), PREFIXES))

    first_words = Counter(key.split(".")[0] for key in tensors)
    # Attention attached to somebody's model has no decoder of ours.
    if first_words["trunk"] and (first_words["decoder"] or first_words["attention"]):
        return "ours", tensors
    if first_words["backbone"] and (first_words["ocr"] or first_words["aspp"]):
        return "authors", from_authors(tensors)
    if first_words["ocr_distri_head"]:
        return "hrnet_ocr", from_authors(_as_authors_ocr(tensors))

    tensors = without_prefixes(tensors, ("backbone.", "trunk."))
    if isinstance(trunk, TimmFeatures):
        tensors = trunk.own_names(tensors)
    if {"conv1.weight", "layer1.0.conv1.weight"} <= tensors.keys():
        return "trunk", tensors

    # Any other trunk is known by most names being its own.
    if trunk is not None:
        shared = tensors.keys() & trunk.state_dict().keys()
        if len(shared) > len(tensors) // 2:
            return "trunk", tensors

    raise ModelError(
        f"{name} holds {len(tensors)} tensors ({summary_of_names(tensors)}) of no kind known here: "
        "give a checkpoint of this project, of the authors, of HRNet-OCR, or of a trunk from "
        "torchvision or timm."
    )


def summary_of_names(keys: Iterable[str]) -> str:
    """Names by their first two words, with counts, such as `attention.hidden.* 12, trunk.bn1.bias`.

    The largest six groups are listed.
    """
    groups: dict[str, list[str]] = {}
    for key in keys:
        groups.setdefault(".".join(key.split(".")[:2]), []).append(key)

    shown = []
    for group, names in sorted(groups.items(), key=lambda item: -len(item[1]))[:6]:
        if len(names) > 1:
            shown.append(f"{group}.* {len(names)}")
        else:
            shown.append(names[0])
    if len(groups) > 6:
        shown.append("...")
    return ", ".join(shown)


def _name_of(source: str | Path | Mapping[str, object]) -> str:
    """What errors and reports call a source of weights."""
    if isinstance(source, Mapping):
        return "the state dict"
    return str(source)


def _without_losses(tensors: Tensors) -> Tensors:
    return {key: value for key, value in tensors.items() if not key.startswith(NOT_THE_MODEL)}


def _as_authors_ocr(tensors: Tensors) -> Tensors:
    """HRNet-OCR's flat names as the authors have them, behind `ocr.` and `backbone.`."""
    heads = ("conv3x3_ocr.", "ocr_distri_head.", "cls_head.", "aux_head.")
    result = {}
    for key, value in tensors.items():
        prefix = "backbone."
        if key.startswith(heads):
            prefix = "ocr."
        result[prefix + key] = value
    return result


def _match(
    model: nn.Module, tensors: Tensors, *, kind: str, name: str
) -> tuple[LoadReport, dict[str, tuple[Tensor, Tensor]]]:
    """The report of loading `tensors`, and the pairs (of the model, of the file) to copy.

    Raises:
        ModelError: a tensor is sparse, complex or of another kind that a model does not have.
    """
    _check_kinds(model, tensors, name=name)
    own = model.state_dict()
    loaded: list[str] = []
    reshaped: list[str] = []
    skipped: list[str] = []
    missing: list[str] = []
    copies: dict[str, tuple[Tensor, Tensor]] = {}

    for key, target in own.items():
        given = tensors.get(key)
        if given is None:
            layer, _, last_word = key.rpartition(".")
            if last_word == COUNTER and f"{layer}.running_mean" in tensors:
                continue
            missing.append(key)
            skipped.append(key)
        elif given.squeeze().shape != target.squeeze().shape:
            skipped.append(key)
        elif given.shape == target.shape:
            loaded.append(key)
            copies[key] = target, given
        else:
            reshaped.append(key)
            copies[key] = target, given

    report = LoadReport(
        source=name,
        kind=kind,
        loaded=tuple(loaded),
        reshaped=tuple(reshaped),
        skipped=tuple(skipped),
        missing=tuple(missing),
        unexpected=tuple(key for key in tensors if key not in own),
    )
    return report, copies


def _check_kinds(model: nn.Module, tensors: Tensors, *, name: str) -> None:
    """Raise ModelError when a tensor of the file is of a kind that a model does not have."""
    faults: dict[str, list[str]] = {}
    for key, target in model.state_dict().items():
        given = tensors.get(key)
        if given is None:
            continue
        if given.layout != torch.strided or given.is_nested:
            faults.setdefault("sparse or nested", []).append(key)
        elif given.is_quantized or (target.is_floating_point() > given.is_floating_point()):
            faults.setdefault(f"of {given.dtype}, not floating point", []).append(key)
        elif given.is_complex():
            faults.setdefault("complex", []).append(key)
        elif given.is_meta:
            faults.setdefault("without values", []).append(key)
    for kind, keys in faults.items():
        raise ModelError(
            f"{name} holds {len(keys)} tensors that are {kind} ({summary_of_names(keys)}): save "
            "plain floating point tensors instead."
        )


def _check_finite(copies: Mapping[str, tuple[Tensor, Tensor]], *, name: str) -> None:
    """Raise ModelError when a tensor to be copied holds NaN or infinity in the model's dtype."""
    keys = [
        key
        for key, (target, given) in copies.items()
        if target.is_floating_point() and not given.to(target.dtype).isfinite().all()
    ]
    if keys:
        raise ModelError(
            f"{name} holds numbers that are NaN or infinite in {len(keys)} tensors "
            f"({summary_of_names(keys)}): it comes from a training that failed, or is damaged; "
            "give an earlier checkpoint."
        )


@torch.no_grad()
def _copy(copies: Mapping[str, tuple[Tensor, Tensor]], *, name: str) -> None:
    """Copy each pair (of the model, of the file); nothing when a number is not finite."""
    _check_finite(copies, name=name)
    for target, given in copies.values():
        target.copy_(given.reshape(target.shape))


def _load_trunk(trunk: nn.Module, tensors: Tensors, *, name: str) -> LoadReport:
    """Fill a trunk completely, leaving the classifier of the file out."""
    kept = {key: value for key, value in tensors.items() if not key.startswith(CLASSIFIERS)}
    report, copies = _match(trunk, kept, kind="trunk", name=name)
    if report.skipped:
        raise ModelError(
            f"{name} does not fill the trunk: {len(report.skipped)} of its "
            f"{len(trunk.state_dict())} tensors are missing or of another shape "
            f"({summary_of_names(report.skipped)}), so choose the file of the same trunk."
        )
    _copy(copies, name=name)
    return report


def _check_classes(model: MultiScaleModel, tensors: Tensors, *, name: str) -> None:
    """Raise ModelError when the file was trained for another number of classes."""
    for layer in model.decoder.classifiers:
        weight = tensors.get(f"decoder.{layer}.weight")
        if weight is not None and weight.shape[0] != model.num_classes:
            raise ModelError(
                f"{name} was trained for {weight.shape[0]} classes and the model has "
                f"{model.num_classes}: build the model with num_classes={weight.shape[0]}, or "
                "fine-tune from it with new class layers (model.init_from, or strict=False)."
            )


def _check_complete(
    report: LoadReport,
    *,
    advice: str = "build the model it was trained as, or fine-tune from it (model.init_from, or "
    "strict=False).",
) -> None:
    """Raise ModelError unless every tensor of the model and of the file found its place."""
    missing = set(report.missing)
    groups = {
        "missing from it": report.missing,
        "of another shape": [key for key in report.skipped if key not in missing],
        "unexpected": report.unexpected,
    }
    faults = [
        f"{len(keys)} {what} ({summary_of_names(keys)})" for what, keys in groups.items() if keys
    ]
    if faults:
        raise ModelError(
            f"{report.source} does not fit the model (tensors: {'; '.join(faults)}): {advice}"
        )
