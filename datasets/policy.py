"""Joining automatic labels with coarse ones drawn by people (paper, section 4).

A confidence threshold, a choice for each class, and a mask of what the car itself covers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from hmsa.utils.words import did_you_mean

from .errors import DataError
from .reading.decoding import read_confidence, read_label
from .spec import DatasetSpec

POLICIES = ("auto", "human", "union", "drop")

# The part of a 1024 x 2048 frame of Cityscapes without the car's bonnet and the border that comes
# from rectifying the camera, as the authors' code masks it (docs/release_notes.md, coarse labels).
_INNER_ROWS = (15, 840)
_INNER_COLUMNS = (14, 2030)
_FRAME = (1024, 2048)


@dataclass(frozen=True)
class LabelPolicy:
    """How the label of an automatically labelled image comes about, in three steps.

    1. Automatic pixels whose confidence is below `confidence_threshold` are ignored.
    2. Each class named in `classes` is taken as its choice says: `auto` keeps the automatic pixels
       (as for classes not named), `human` takes the class from the label drawn by people alone,
       `union` from both, `drop` from neither.
    3. `mask_border` ignores what lies outside the inner frame of Cityscapes.

    Raises:
        DataError: a choice that does not exist, or a threshold outside [0, 1].
    """

    classes: Mapping[str, str] = field(default_factory=dict)
    confidence_threshold: float | None = None
    mask_border: bool = False

    def __post_init__(self) -> None:
        for name, choice in self.classes.items():
            if choice not in POLICIES:
                near = did_you_mean(str(choice), POLICIES)
                raise DataError(
                    f"policy of class '{name}': '{choice}' is none of {', '.join(POLICIES)}{near}"
                )
        threshold = self.confidence_threshold
        if threshold is not None and not 0 <= threshold <= 1:
            raise DataError(f"confidence threshold {threshold} must lie between 0 and 1")

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
        """The joined label, from the automatic one and the files beside it.

        Args:
            label: the automatic label in train ids, uint8 [H, W].
            spec: classes of the data set.
            human: file of the label drawn by people, if there is one.
            confidence: file of the confidence image, if there is one.
            max_pixels: limit on the size of both files, in pixels.
            path: file of the automatic label, for messages.

        Returns:
            The joined label in train ids, uint8 [H, W].

        Raises:
            DataError: a file that the policy needs is missing, or does not fit the label.
        """
        size = (label.shape[0], label.shape[1])

        confident = None
        if self.confidence_threshold is not None:
            if confidence is None:
                raise DataError(
                    f"{path}: no confidence image beside this automatic label, but a confidence "
                    "threshold is set",
                    kind="missing",
                )
            confident = read_confidence(confidence, size=size, max_pixels=max_pixels)

        drawn = None
        if self.needs_human:
            if human is None:
                raise DataError(
                    f"{path}: no coarse label drawn by people beside this automatic label, but the "
                    "policy asks for it",
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
        """`apply` on arrays.

        Args:
            label: automatic label in train ids, uint8 [H, W]; it is not changed.
            spec: classes of the data set.
            human: label drawn by people in train ids, uint8 [H, W].
            confidence: floor(255 x probability of the class chosen), uint8 [H, W].
        """
        merged = label.copy()
        if self.confidence_threshold is not None:
            assert confidence is not None
            # The small step back keeps a threshold such as 0.2 = 51 / 255 from rounding up.
            least = np.ceil(np.float64(255) * self.confidence_threshold - 1e-9)
            merged[confidence < least] = spec.ignore_label

        # Classes that the automatic label may not keep, then those that people's label adds.
        removed = self._train_ids(spec, ("human", "drop"))
        if removed:
            merged[np.isin(merged, removed)] = spec.ignore_label

        added = self._train_ids(spec, ("human", "union"))
        if added:
            assert human is not None
            drawn = np.isin(human, added)
            merged[drawn] = human[drawn]

        if self.mask_border:
            merged[~inner_frame((merged.shape[0], merged.shape[1]))] = spec.ignore_label
        return merged

    def _train_ids(self, spec: DatasetSpec, choices: tuple[str, ...]) -> list[int]:
        """Train ids of the classes for which one of `choices` was made."""
        return [spec.index_of(name) for name, choice in self.classes.items() if choice in choices]


def inner_frame(size: tuple[int, int]) -> np.ndarray:
    """Where a Cityscapes frame shows neither bonnet nor rectification border, bool [H, W].

    `size` is (height, width); frames of another size than 1024 x 2048 are cut in proportion.
    """
    height, width = size
    rows = [round(edge * height / _FRAME[0]) for edge in _INNER_ROWS]
    columns = [round(edge * width / _FRAME[1]) for edge in _INNER_COLUMNS]

    inside = np.zeros((height, width), dtype=bool)
    inside[rows[0] : rows[1], columns[0] : columns[1]] = True
    return inside
