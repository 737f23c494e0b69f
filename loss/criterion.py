"""The criterion: main + aux_weight * auxiliary + scale_weight * (each scale), as named terms whose sum is the loss."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from .binary import binary_cross_entropy
from .boundary import relaxed_boundary_loss
from .cross_entropy import bootstrapped_cross_entropy, cross_entropy, ohem_cross_entropy
from .pixels import LossError, valid_mask
from .rmi import check_rmi, rmi_loss, weighted_rmi_loss
from .sources import Maps, at_size

Loss = Callable[..., Tensor | dict[str, Tensor]]
# The names a configuration may use, for the main loss, the auxiliary loss and the per-scale loss alike.
LOSSES: dict[str, Loss] = {
    "cross_entropy": cross_entropy,
    "rmi": weighted_rmi_loss,
    "bootstrapped": bootstrapped_cross_entropy,
    "ohem": ohem_cross_entropy,
    "bce": binary_cross_entropy,
    "relaxed_boundary": relaxed_boundary_loss,
}
# The three arguments in which the paper and the authors' released code differ (METHOD.md section 3, RELEASE.md 2.5).
PRESETS: dict[str, dict[str, Any]] = {
    "paper": {"main": "rmi", "aux": "cross_entropy", "scale_weight": 0.0},
    "release": {"main": "rmi", "aux": "bce", "scale_weight": 0.05},
}


class PredictionLike(Protocol):
    """What the criterion reads of a prediction: logits at image size, and those of the auxiliary head and the scales."""

    @property
    def logits(self) -> Maps: ...
    @property
    def aux(self) -> Maps | None: ...
    @property
    def scales(self) -> Mapping[float, PredictionLike] | None: ...


class Criterion(nn.Module):
    """Judges a prediction; `build_criterion` makes one. `needs_scales` says whether it reads `prediction.scales`."""

    def __init__(
        self,
        *,
        main: str,
        aux: str,
        aux_weight: float,
        scale_weight: float,
        scale_loss: str,
        options: Mapping[str, Mapping[str, Any]],
        ignore_label: int,
        align_corners: bool,
        class_weights: Tensor | None,
    ) -> None:
        super().__init__()
        self.names = {"main": main, "aux": aux, "scale": scale_loss}
        self.aux_weight, self.scale_weight = aux_weight, scale_weight
        self.options = options
        self.ignore_label, self.align_corners = ignore_label, align_corners
        self.register_buffer("class_weights", class_weights, persistent=False)

    @property
    def needs_scales(self) -> bool:
        """Whether the model must keep the per-scale predictions."""
        return self.scale_weight > 0

    def forward(
        self,
        prediction: PredictionLike,
        label: Tensor,
        *,
        valid_pixels: Tensor | int | None = None,
        parts: int = 1,
    ) -> dict[str, Tensor]:
        """The weighted terms by name: those of `main`, "aux" where the prediction has one, "scale_0.5" and so on.

        label: uint8 or int64 [N, H, W]. valid_pixels, parts: see `pixels.mean_over_pixels`.
        """
        counts: dict[str, Any] = {"valid_pixels": valid_pixels, "parts": parts}
        self._check_label(label, prediction.logits.shape[1])
        terms = self.main(prediction.logits, label, **counts)
        if prediction.aux is not None and self.aux_weight > 0:
            terms["aux"] = self.aux_weight * self._sum("aux", prediction.aux, label, counts)
        if self.needs_scales:
            if not prediction.scales:
                raise LossError(
                    "scale_weight is set, but the prediction has no scales; call model(..., keep_scales=True)."
                )
            for scale, own in sorted(prediction.scales.items()):
                terms[f"scale_{scale}"] = self.scale_weight * self._sum(
                    "scale", own.logits, label, counts
                )
        return terms

    def main(
        self,
        logits: Maps,
        label: Tensor,
        *,
        valid_pixels: Tensor | int | None = None,
        parts: int = 1,
    ) -> dict[str, Tensor]:
        """The terms of the main loss alone, as validation reports them."""
        return self._terms("main", logits, label, {"valid_pixels": valid_pixels, "parts": parts})

    def _check_label(self, label: Tensor, num_classes: int) -> None:
        """Raise LossError for a value that is no class; not on a GPU, where it counts as ignored: to ask makes it wait."""
        if label.device.type != "cpu":
            return
        valid = valid_mask(label, num_classes=num_classes, ignore_label=self.ignore_label)
        wrong = ~valid & (label != self.ignore_label)
        if wrong.any():
            raise LossError(
                f"label holds {int(label[wrong][0])}, which is neither a class below {num_classes} nor the ignore label "
                f"{self.ignore_label}; check the class list against the label files."
            )

    def _sum(self, role: str, logits: Maps, label: Tensor, counts: dict[str, Any]) -> Tensor:
        return torch.stack(list(self._terms(role, logits, label, counts).values())).sum()

    def _terms(
        self, role: str, logits: Maps, label: Tensor, counts: dict[str, Any]
    ) -> dict[str, Tensor]:
        name = self.names[role]
        logits = at_size(logits, label.shape[1:], align_corners=self.align_corners)
        options = dict(self.options[name], ignore_label=self.ignore_label, **counts)
        if name == "cross_entropy":
            options["class_weights"] = self.class_weights
        result = LOSSES[name](logits, label, **options)
        return result if isinstance(result, dict) else {name: result}


def build_criterion(
    *,
    main: str = "cross_entropy",
    aux: str = "cross_entropy",
    aux_weight: float = 0.4,
    scale_weight: float = 0.0,
    scale_loss: str | None = None,
    num_classes: int,
    ignore_label: int = 255,
    class_weights: Tensor | Sequence[float] | None = None,
    image_weights: str | None = None,
    rmi: Mapping[str, Any] | None = None,
    bootstrapped: Mapping[str, Any] | None = None,
    ohem: Mapping[str, Any] | None = None,
    relaxed_boundary: Mapping[str, Any] | None = None,
    align_corners: bool = False,
) -> Criterion:
    """Make the criterion. main, aux, scale_loss: names in `LOSSES`; the further mappings are keywords of those losses.

    class_weights: [num_classes], for cross-entropy wherever it stands. scale_loss None is the main loss if that is
    a soft-max loss, and binary cross-entropy otherwise, as in the released code. align_corners: how logits of another
    size than the label are resized.
    """
    scale_loss = scale_loss or ("bce" if main in ("rmi", "bce") else main)
    for role, name in (("main", main), ("aux", aux), ("scale_loss", scale_loss)):
        if name not in LOSSES:
            raise LossError(f"{role} must be one of {', '.join(LOSSES)}, not {name!r}.")
    options: dict[str, Mapping[str, Any]] = {
        "cross_entropy": {"image_weights": image_weights},
        "rmi": rmi or {},
        "bootstrapped": bootstrapped or {},
        "ohem": ohem or {},
        "bce": {},
        "relaxed_boundary": relaxed_boundary or {},
    }
    for name, keywords in options.items():
        _check_keywords(name, keywords)
    check_rmi(**options["rmi"])
    options["rmi"] = {"num_classes": num_classes, **options["rmi"]}
    weights = None if class_weights is None else torch.as_tensor(class_weights, dtype=torch.float32)
    if weights is not None and weights.shape != (num_classes,):
        raise LossError(f"class_weights must hold {num_classes} values, not {weights.numel()}.")
    return Criterion(
        main=main,
        aux=aux,
        aux_weight=aux_weight,
        scale_weight=scale_weight,
        scale_loss=scale_loss,
        options=options,
        ignore_label=ignore_label,
        align_corners=align_corners,
        class_weights=weights,
    )


def _check_keywords(name: str, keywords: Mapping[str, Any]) -> None:
    """Raise LossError for a keyword that the loss `name` does not have."""
    parameters = dict(inspect.signature(LOSSES[name]).parameters)
    if name == "rmi":
        parameters.update(inspect.signature(rmi_loss).parameters)
        del parameters["constants"]
    known = sorted(
        set(parameters)
        - {"logits", "label", "valid_pixels", "parts", "ignore_label", "num_classes"}
    )
    for word in keywords:
        if word not in known:
            raise LossError(
                f"{word!r} is no option of the loss {name!r}; it has {', '.join(known) or 'none'}."
            )
