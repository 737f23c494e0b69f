"""Joining automatic labels with coarse ones drawn by people: threshold, choice per class, mask of the car's own border."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .errors import DataError
from .reading.decoding import read_confidence, read_label
from .spec import DatasetSpec, did_you_mean

POLICIES = ("auto", "human", "union", "drop")

# The part of a 1024 x 2048 frame without the car's bonnet and the rectification border (release, mask_out_cityscapes): rows, columns, frame.
_INNER_ROWS, _INNER_COLUMNS, _FRAME = (15, 840), (14, 2030), (1024, 2048)


@dataclass(frozen=True)
class LabelPolicy:
    """How the label of an automatically labelled image comes about.

    First, automatic pixels whose confidence is below `confidence_threshold` are ignored. Then, for each class named in `classes`:
    `auto` keeps the automatic pixels (as for classes not named), `human` takes the class from the label drawn by people alone, `union` from both,
    `drop` from neither. At last, `mask_border` ignores what lies outside the inner frame.
    """

    classes: Mapping[str, str] = field(default_factory=dict)
    confidence_threshold: float | None = None
    mask_border: bool = False

    def __post_init__(self) -> None:
        for name, choice in self.classes.items():
            if choice not in POLICIES:
                raise DataError(
                    f"policy of class '{name}': '{choice}' is none of {', '.join(POLICIES)}{did_you_mean(str(choice), POLICIES)}"
                )
        if self.confidence_threshold is not None and not 0 <= self.confidence_threshold <= 1:
            raise DataError(
                f"confidence threshold {self.confidence_threshold} must lie between 0 and 1"
            )

    @property
    def needs_human(self) -> bool:
        """Whether any class looks at the label drawn by people."""
        return any(choice in ("human", "union") for choice in self.classes.values())

    @property
    def is_neutral(self) -> bool:
        """Whether labels stay as they are."""
        return (
            all(choice == "auto" for choice in self.classes.values())
            and self.confidence_threshold is None
            and not self.mask_border
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for cache keys and records."""
        return {
            "classes": dict(self.classes),
            "confidence_threshold": self.confidence_threshold,
            "mask_border": self.mask_border,
        }

    def apply(
        self,
        label: np.ndarray,
        *,
        spec: DatasetSpec,
        human: Path | None,
        confidence: Path | None,
        max_pixels: int,
        path: Path,
    ) -> np.ndarray:
        """The joined label, uint8 [H, W] in train ids, from the automatic `label` and the files beside it; DataError if one lacks or misfits."""
        size = (label.shape[0], label.shape[1])
        confident = None
        if self.confidence_threshold is not None:
            if confidence is None:
                raise DataError(
                    f"{path}: no confidence image beside this automatic label, but a confidence threshold is set",
                    kind="missing",
                )
            confident = read_confidence(confidence, size=size, max_pixels=max_pixels)
        drawn = None
        if self.needs_human:
            if human is None:
                raise DataError(
                    f"{path}: no coarse label drawn by people beside this automatic label, but the policy asks for it",
                    kind="missing",
                )
            drawn = read_label(human, spec=spec, image_size=size, max_pixels=max_pixels)
        return self.merge(label, spec=spec, human=drawn, confidence=confident)

    def merge(
        self,
        label: np.ndarray,
        *,
        spec: DatasetSpec,
        human: np.ndarray | None,
        confidence: np.ndarray | None,
    ) -> np.ndarray:
        """`apply` on arrays: `label` and `human` uint8 [H, W] train ids, `confidence` uint8 [H, W] = floor(255 x probability)."""
        merged = label.copy()
        if self.confidence_threshold is not None:
            assert confidence is not None
            merged[confidence < np.ceil(np.float64(255) * self.confidence_threshold - 1e-9)] = (
                spec.ignore_label
            )
        removed = [
            spec.index_of(name)
            for name, choice in self.classes.items()
            if choice in ("human", "drop")
        ]
        added = [
            spec.index_of(name)
            for name, choice in self.classes.items()
            if choice in ("human", "union")
        ]
        if removed:
            merged[np.isin(merged, removed)] = spec.ignore_label
        if added:
            assert human is not None
            drawn = np.isin(human, added)
            merged[drawn] = human[drawn]
        if self.mask_border:
            merged[~inner_frame(merged.shape)] = spec.ignore_label
        return merged


def inner_frame(size: tuple[int, ...]) -> np.ndarray:
    """Boolean [H, W], true where a Cityscapes frame shows neither bonnet nor rectification border; in proportion for other sizes."""
    height, width = size
    rows = [round(edge * height / _FRAME[0]) for edge in _INNER_ROWS]
    columns = [round(edge * width / _FRAME[1]) for edge in _INNER_COLUMNS]
    inside = np.zeros((height, width), dtype=bool)
    inside[rows[0] : rows[1], columns[0] : columns[1]] = True
    return inside
