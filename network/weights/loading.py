"""Loading weights: the authors' checkpoints, HRNet-OCR's, ours, bare ones, and trunks trained on ImageNet."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ..layers import ModelError
from ..model import MultiScale
from ..trunks.timm_features import TimmFeatures
from .files import read_tensors
from .key_names import from_authors, stripped

Tensors = dict[str, Tensor]

PREFIXES = (
    "module.",
    "_orig_mod.",
    "model.",
)  # of data parallelism, compilation, and a loss around the model
NOT_THE_MODEL = ("criterion.", "loss.")  # buffers of losses that were saved along
# Layers of classification and plain segmentation networks that no trunk here has.
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
COUNTER = "num_batches_tracked"  # absent from old files, and without influence while batch norm has a momentum


@dataclass(frozen=True)
class LoadReport:
    """What became of the tensors of the model (by our names) and of those of the file that it has no place for."""

    source: str
    kind: str  # authors, hrnet_ocr, ours, trunk
    loaded: tuple[str, ...]
    reshaped: tuple[str, ...]  # loaded; the shapes differed by dimensions of one only
    skipped: tuple[
        str, ...
    ]  # kept their initial values: missing from the file, or of another shape there
    missing: tuple[str, ...]  # those of `skipped` that the file does not hold
    unexpected: tuple[str, ...]  # in the file only

    @property
    def fraction(self) -> float:
        """Share of the model's tensors (for a trunk's file: of the trunk's) that were loaded."""
        filled = len(self.loaded) + len(self.reshaped)
        return filled / max(1, filled + len(self.skipped))

    def __str__(self) -> str:
        rows = [f"{self.source} ({self.kind}): {100 * self.fraction:.1f} % of the tensors loaded"]
        for name in ("loaded", "reshaped", "skipped", "unexpected"):
            keys: tuple[str, ...] = getattr(self, name)
            listed = "" if name == "loaded" else _groups(keys)
            rows.append(f"  {name:<10} {len(keys):>5}  {listed}".rstrip())
        return "\n".join(rows)


def load_weights(
    model: MultiScale,
    source: str | Path | Mapping[str, object],
    *,
    strict: bool = True,
    min_fraction: float = 0.5,
    say: Callable[[str], object] = print,
) -> LoadReport:
    """Load a file or a state dict into `model` and report what was done.

    Recognised are the authors' checkpoints (`{"state_dict": {"module.backbone..."}}`), HRNet-OCR's own (flat, or under
    `model.`), bare state dicts of either, ours (`{"model": ...}`), and trunks (official HRNet, torchvision, timm), which
    fill the trunk and leave the heads. Files are read as tensors and plain values only.

    `strict`: every tensor must fit. Otherwise (fine-tuning) what does not fit keeps its initial values, `say` receives
    the report, and loading less than `min_fraction` of the tensors is an error. Raises ModelError; the model is then
    unchanged.
    """
    name = "the state dict" if isinstance(source, Mapping) else str(source)
    kind, tensors = recognise(read_tensors(source), name=name, trunk=model.trunk)
    if kind == "hrnet_ocr" and not model.align_corners:
        raise ModelError(
            f"{name} holds HRNet-OCR's own weights, which were trained with aligned corners: build the model with "
            "align_corners=True."
        )
    if kind == "trunk":
        return _load_trunk(model.trunk, tensors, name=name)
    if strict:
        _check_classes(model, tensors, name=name)
    report, copies = _matched(model, tensors, kind=kind, name=name)
    if strict:
        _check_complete(report)
    else:
        say(str(report))
        if report.fraction < min_fraction:
            raise ModelError(
                f"only {100 * report.fraction:.1f} % of the model's tensors are in {name}, less than the "
                f"{100 * min_fraction:.0f} % asked for: choose the trunk and decoder it was trained with."
            )
    _copy(copies)
    return report


def load_trunk_weights(trunk: nn.Module, source: str | Path | Mapping[str, object]) -> LoadReport:
    """Load ImageNet weights (official HRNet, torchvision, timm; or the trunk of a whole model) into a trunk, completely.

    Classifier layers of the file are left out. Raises ModelError when a tensor of the trunk is not in the file.
    """
    name = "the state dict" if isinstance(source, Mapping) else str(source)
    kind, tensors = recognise(read_tensors(source), name=name, trunk=trunk)
    if kind != "trunk":
        tensors = {
            key.removeprefix("trunk."): value
            for key, value in tensors.items()
            if key.startswith("trunk.")
        }
    return _load_trunk(trunk, tensors, name=name)


def recognise(
    tensors: Tensors, *, name: str, trunk: nn.Module | None = None
) -> tuple[str, Tensors]:
    """(kind, tensors by our names) of a state dict by anybody's names; for `trunk`, by the names within the trunk.

    `trunk` helps to recognise a file of a trunk that is neither HRNet nor ResNet.
    """
    tensors = {key: value for key, value in tensors.items() if not key.startswith(NOT_THE_MODEL)}
    tensors = stripped(tensors, PREFIXES)
    tensors = {key: value for key, value in tensors.items() if not key.startswith(NOT_THE_MODEL)}
    rooms = Counter(key.split(".")[0] for key in tensors)
    if rooms["trunk"] and rooms["decoder"]:
        return "ours", tensors
    if rooms["backbone"] and (rooms["ocr"] or rooms["aspp"]):
        return "authors", from_authors(tensors)
    if rooms["ocr_distri_head"]:
        heads = ("conv3x3_ocr.", "ocr_distri_head.", "cls_head.", "aux_head.")
        prefixed = {
            ("ocr." if key.startswith(heads) else "backbone.") + key: value
            for key, value in tensors.items()
        }
        return "hrnet_ocr", from_authors(prefixed)
    tensors = stripped(tensors, ("backbone.", "trunk."))
    if isinstance(trunk, TimmFeatures):
        tensors = trunk.own_names(tensors)
    known = {"conv1.weight", "layer1.0.conv1.weight"} <= set(tensors)
    if known or (
        trunk is not None and len(tensors.keys() & trunk.state_dict().keys()) > len(tensors) // 2
    ):
        return "trunk", tensors
    raise ModelError(
        f"{name} holds {len(tensors)} tensors ({_groups(tensors)}) of no kind known here: give a checkpoint of this "
        "project, of the authors, of HRNet-OCR, or of a trunk from torchvision or timm."
    )


def _matched(
    model: nn.Module, tensors: Tensors, *, kind: str, name: str
) -> tuple[LoadReport, list[tuple[Tensor, Tensor]]]:
    """The report, and the pairs (of the model, of the file) that are to be copied."""
    own = model.state_dict()
    loaded: list[str] = []
    reshaped: list[str] = []
    skipped: list[str] = []
    missing: list[str] = []
    copies: list[tuple[Tensor, Tensor]] = []
    for key, target in own.items():
        given = tensors.get(key)
        if given is None:
            if not key.endswith(COUNTER) or key.rsplit(".", 1)[0] + ".running_mean" not in tensors:
                missing.append(key)
                skipped.append(key)
        elif given.squeeze().shape != target.squeeze().shape:
            skipped.append(key)
        else:
            (loaded if given.shape == target.shape else reshaped).append(key)
            copies.append((target, given))
    unexpected = tuple(key for key in tensors if key not in own)
    report = LoadReport(
        name, kind, tuple(loaded), tuple(reshaped), tuple(skipped), tuple(missing), unexpected
    )
    return report, copies


@torch.no_grad()
def _copy(copies: Iterable[tuple[Tensor, Tensor]]) -> None:
    for target, given in copies:
        target.copy_(given.reshape(target.shape))


def _check_classes(model: MultiScale, tensors: Tensors, *, name: str) -> None:
    for layer in model.decoder.classifiers:
        weight = tensors.get(f"decoder.{layer}.weight")
        if weight is not None and weight.shape[0] != model.num_classes:
            raise ModelError(
                f"{name} was trained for {weight.shape[0]} classes and the model has {model.num_classes}: build the "
                f"model with num_classes={weight.shape[0]}, or fine-tune from it with new class layers "
                "(model.init_from, or strict=False)."
            )


def _check_complete(report: LoadReport) -> None:
    unfit = [key for key in report.skipped if key not in set(report.missing)]
    counts = (
        (report.missing, "missing from it"),
        (unfit, "of another shape"),
        (report.unexpected, "unexpected"),
    )
    faults = [f"{len(keys)} {what} ({_groups(keys)})" for keys, what in counts if keys]
    if faults:
        raise ModelError(
            f"{report.source} does not fit the model (tensors: {'; '.join(faults)}): build the model it was trained as, or "
            "fine-tune from it (model.init_from, or strict=False)."
        )


def _load_trunk(trunk: nn.Module, tensors: Tensors, *, name: str) -> LoadReport:
    flat = {key: value for key, value in tensors.items() if not key.startswith(CLASSIFIERS)}
    report, copies = _matched(trunk, flat, kind="trunk", name=name)
    if report.skipped:
        raise ModelError(
            f"{name} does not fill the trunk: {len(report.skipped)} of its {len(trunk.state_dict())} tensors are missing "
            f"or of another shape ({_groups(report.skipped)}), so choose the file of the same trunk."
        )
    _copy(copies)
    return report


def _groups(keys: Iterable[str]) -> str:
    """Names by their first two parts, with counts, the first few: `attention.hidden.* 12, attention.output.weight`."""
    groups: dict[str, list[str]] = {}
    for key in keys:
        groups.setdefault(".".join(key.split(".")[:2]), []).append(key)
    ordered = sorted(groups.items(), key=lambda item: -len(item[1]))
    shown = [
        f"{group}.* {len(names)}" if len(names) > 1 else names[0] for group, names in ordered[:6]
    ]
    return ", ".join(shown) + (", ..." if len(groups) > 6 else "")
