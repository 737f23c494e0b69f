"""The criterion: the loss of a whole prediction, as named terms.

main(prediction) + aux_weight * aux(auxiliary output) + scale_weight * scale(each scale's own)
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from hmsa.utils.words import did_you_mean

from .binary import binary_cross_entropy
from .boundary import relaxed_boundary_loss
from .cross_entropy import cross_entropy
from .dice import dice_loss
from .focal import focal_loss
from .hard_pixels import bootstrapped_cross_entropy, ohem_cross_entropy
from .lovasz import lovasz_loss
from .pixels import LossError, computing_dtype, valid_mask
from .rmi import check_rmi_settings, rmi_loss, weighted_rmi_loss

Loss = Callable[..., Tensor | dict[str, Tensor]]

# The names a configuration may use, for the main, the auxiliary and the per-scale loss alike.
LOSSES: dict[str, Loss] = {
    "cross_entropy": cross_entropy,
    "rmi": weighted_rmi_loss,
    "bootstrapped": bootstrapped_cross_entropy,
    "ohem": ohem_cross_entropy,
    "bce": binary_cross_entropy,
    "relaxed_boundary": relaxed_boundary_loss,
    "dice": dice_loss,
    "focal": focal_loss,
    "lovasz": lovasz_loss,
}

# What the criterion itself hands to a loss; the remaining keywords of a loss are its options.
_GIVEN = {
    "logits",
    "label",
    "valid_pixels",
    "parts",
    "ignore_label",
    "num_classes",
    "class_weights",
}


class PredictionLike(Protocol):
    """What the criterion reads of a prediction."""

    @property
    def logits(self) -> Tensor: ...
    @property
    def aux(self) -> Tensor | None: ...
    @property
    def scales(self) -> Mapping[float, PredictionLike] | None: ...


class Criterion(nn.Module):
    """Judges a prediction. `build_criterion` makes one."""

    def __init__(
        self,
        *,
        main: str | Loss,
        aux: str | Loss,
        aux_weight: float,
        scale_weight: float,
        scale_loss: str | Loss,
        options: Mapping[str, Mapping[str, Any]],
        ignore_label: int,
        align_corners: bool,
        class_weights: Tensor | None,
        binary_class_weights: Tensor | None,
    ) -> None:
        """Losses by name in `LOSSES` or as functions, and the options of each loss by name."""
        super().__init__()
        self.main_loss, self.aux_loss, self.scale_loss = main, aux, scale_loss
        self.aux_weight, self.scale_weight = aux_weight, scale_weight
        self.options = options
        self.ignore_label, self.align_corners = ignore_label, align_corners
        self.register_buffer("class_weights", class_weights, persistent=False)
        self.register_buffer("binary_class_weights", binary_class_weights, persistent=False)

    @property
    def needs_scales(self) -> bool:
        """Whether the model must keep each scale's own prediction."""
        return self.scale_weight > 0

    def forward(
        self,
        prediction: PredictionLike,
        label: Tensor,
        *,
        valid_pixels: Tensor | int | None = None,
        parts: int = 1,
    ) -> dict[str, Tensor]:
        """The weighted terms of the loss by name; their sum is the loss.

        Args:
            prediction: `logits` [N, C, H, W], `aux` of the same shape or None, and with
                `needs_scales` the prediction of each scale in `scales`. Maps of another size than
                the label are resized to it.
            label: uint8 or int64 [N, H, W].
            valid_pixels: see `pixels.mean_over_pixels`.
            parts: see `pixels.mean_over_pixels`.

        Returns:
            The terms of the main loss, "aux" where the prediction has an auxiliary output, and
            "scale_0.5" and so on. Scalars.

        Raises:
            LossError: the label holds what is no class, or scales are needed and missing.
        """
        self._check_label(label, prediction.logits.shape[1])
        counts: dict[str, Any] = {"valid_pixels": valid_pixels, "parts": parts}
        terms = self.main(prediction.logits, label, **counts)

        if prediction.aux is not None and self.aux_weight > 0:
            aux = self._terms(self.aux_loss, prediction.aux, label, **counts)
            terms["aux"] = self.aux_weight * _sum(aux)

        if self.needs_scales:
            if not prediction.scales:
                raise LossError(
                    "scale_weight is set, but the prediction has no scales; call "
                    "model(..., keep_scales=True)."
                )
            for scale, own in sorted(prediction.scales.items()):
                logits = self._at_scale(own.logits, label, scale)
                judged = self._terms(self.scale_loss, logits, label, **counts)
                terms[f"scale_{scale}"] = self.scale_weight * _sum(judged)
        return terms

    def main(
        self,
        logits: Tensor,
        label: Tensor,
        *,
        valid_pixels: Tensor | int | None = None,
        parts: int = 1,
    ) -> dict[str, Tensor]:
        """The terms of the main loss alone, as validation reports them."""
        return self._terms(self.main_loss, logits, label, valid_pixels=valid_pixels, parts=parts)

    def _terms(
        self, loss: str | Loss, logits: Tensor, label: Tensor, **counts: Any
    ) -> dict[str, Tensor]:
        """The terms of one loss; a loss of one term is called by its own name."""
        options: dict[str, Any] = {"ignore_label": self.ignore_label, **counts}
        if isinstance(loss, str):
            name, function = loss, LOSSES[loss]
            options |= self.options[name]
        else:
            name, function = str(getattr(loss, "__name__", "loss")), loss
        if name == "cross_entropy" and function is not loss:
            options["class_weights"] = self.class_weights
        elif name in ("bce", "rmi") and function is not loss:
            options["class_weights"] = self.binary_class_weights

        result = function(self._resized(logits, label.shape[1:]), label, **options)
        if isinstance(result, Tensor):
            return {name: result}
        return result

    def _at_scale(self, logits: Tensor, label: Tensor, scale: float) -> Tensor:
        """Logits at feature resolution, at the size of the image as it was resized by `scale`.

        As in the authors' code, a scale's logits take this size first and then that of the label.
        """
        height, width = (max(1, math.floor(length * scale)) for length in label.shape[1:])
        return self._resized(logits, (height, width))

    def _resized(self, logits: Tensor, size: Sequence[int]) -> Tensor:
        """Logits [N, C, h, w] interpolated to `size` (height, width)."""
        if tuple(logits.shape[2:]) == tuple(size):
            return logits

        # The backward pass of an interpolation in half precision is slow and loses digits.
        logits = logits.to(computing_dtype(logits))
        return functional.interpolate(
            logits, tuple(size), mode="bilinear", align_corners=self.align_corners
        )

    def _check_label(self, label: Tensor, num_classes: int) -> None:
        """Raise LossError for a value that is no class.

        Not on a GPU, where it counts as ignored: to ask for it would make the host wait.
        """
        if label.device.type != "cpu":
            return

        valid = valid_mask(label, num_classes=num_classes, ignore_label=self.ignore_label)
        wrong = ~valid & (label != self.ignore_label)
        if wrong.any():
            raise LossError(
                f"label holds {int(label[wrong][0])}, which is neither a class below {num_classes} "
                f"nor the ignore label {self.ignore_label}; check the class list against the label "
                "files."
            )


def build_criterion(
    *,
    num_classes: int,
    main: str | Loss = "rmi",
    aux: str | Loss = "cross_entropy",
    aux_weight: float = 0.4,
    scale_weight: float = 0.0,
    scale_loss: str | Loss | None = None,
    ignore_label: int = 255,
    class_weights: Tensor | Sequence[float] | None = None,
    binary_class_weights: Tensor | Sequence[float] | None = None,
    image_weights: str | None = None,
    rmi: Mapping[str, Any] | None = None,
    bootstrapped: Mapping[str, Any] | None = None,
    ohem: Mapping[str, Any] | None = None,
    relaxed_boundary: Mapping[str, Any] | None = None,
    dice: Mapping[str, Any] | None = None,
    focal: Mapping[str, Any] | None = None,
    align_corners: bool = False,
) -> Criterion:
    """Make the criterion; defaults are those of the `loss` section of a configuration.

    Args:
        num_classes: C.
        main: loss of the fused prediction, a name in `LOSSES` or a function of logits, label and
            the keywords ignore_label, valid_pixels and parts, as those in `LOSSES`.
        aux: loss of the auxiliary output, likewise.
        aux_weight: weight of the auxiliary loss (0.4 in the authors' code).
        scale_weight: weight of each scale's own loss (0.05 in the authors' recipes, 0 in the
            paper).
        scale_loss: loss of each scale's own prediction, likewise. None is the main loss
            if that is a soft-max loss and binary cross-entropy otherwise, as in the authors' code.
        ignore_label: pixels of this label do not count.
        class_weights: [num_classes], for cross-entropy wherever it is used.
        binary_class_weights: [num_classes], for binary cross-entropy wherever it is used, alone or
            beside RMI.
        image_weights: see `cross_entropy`.
        rmi: options of that loss; so are `bootstrapped`, `ohem`, `relaxed_boundary`, `dice` and
            `focal`.
        align_corners: how logits of another size than the label are resized, which is the model's
            own way.

    Raises:
        LossError: a name or an option does not exist, or weights of classes have another length.
    """
    if scale_loss is None:
        scale_loss = main
        if main == "rmi":
            scale_loss = "bce"
    for role, name in (("main", main), ("aux", aux), ("scale_loss", scale_loss)):
        if not callable(name) and name not in LOSSES:
            hint = did_you_mean(str(name), LOSSES)
            raise LossError(f"{role} must be one of {', '.join(LOSSES)}, not {name!r}{hint}.")

    options: dict[str, Mapping[str, Any]] = {
        "cross_entropy": {"image_weights": image_weights},
        "rmi": rmi or {},
        "bootstrapped": bootstrapped or {},
        "ohem": ohem or {},
        "bce": {},
        "relaxed_boundary": relaxed_boundary or {},
        "dice": dice or {},
        "focal": focal or {},
        "lovasz": {},
    }
    for name, keywords in options.items():
        _check_keywords(name, keywords)
    check_rmi_settings(options["rmi"])
    options["rmi"] = {"num_classes": num_classes, **options["rmi"]}

    return Criterion(
        main=main,
        aux=aux,
        aux_weight=aux_weight,
        scale_weight=scale_weight,
        scale_loss=scale_loss,
        options=options,
        ignore_label=ignore_label,
        align_corners=align_corners,
        class_weights=_checked_weights("class_weights", class_weights, num_classes),
        binary_class_weights=_checked_weights(
            "binary_class_weights", binary_class_weights, num_classes
        ),
    )


def _checked_weights(
    name: str, values: Tensor | Sequence[float] | None, num_classes: int
) -> Tensor | None:
    """Weights of classes as fp32 [num_classes], or None; a LossError for another length."""
    if values is None:
        return None
    weights = torch.as_tensor(values, dtype=torch.float32)
    if weights.shape != (num_classes,):
        raise LossError(f"{name} must hold {num_classes} values, not {weights.numel()}.")
    return weights


def _check_keywords(name: str, keywords: Mapping[str, Any]) -> None:
    """Raise LossError for a keyword that the loss `name` does not have."""
    parameters = dict(inspect.signature(LOSSES[name]).parameters)
    # Weighted RMI hands what it does not know itself to `rmi_loss`.
    if name == "rmi":
        del parameters["settings"]
        parameters.update(inspect.signature(rmi_loss).parameters)

    known = sorted(parameters.keys() - _GIVEN)
    for word in keywords:
        if word not in known:
            raise LossError(
                f"{word!r} is no option of the loss {name!r}; it has {', '.join(known) or 'none'}."
            )


def _sum(terms: Mapping[str, Tensor]) -> Tensor:
    return torch.stack(list(terms.values())).sum()
