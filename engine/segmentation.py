"""What a model found in one image, as Python users get it: arrays, pictures and files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from hmsa.datasets import DatasetSpec
from hmsa.utils.files.png import write_png
from hmsa.utils.report.visualise import colorize, overlay
from hmsa.utils.words import UserError, did_you_mean

Kind = Literal["labels", "colours", "overlay", "confidence"]
KINDS = ("labels", "colours", "overlay", "confidence")


@dataclass(frozen=True, repr=False)
class Segmentation:
    """Label and confidence of one image; `label, confidence = segmentation` takes both.

    Attributes:
        label: train id of every pixel, uint8 [H, W]; `classes[id]` is the name of the class.
        confidence: probability of that class, float32 [H, W].
        classes: names of the classes in the order of their train ids.
        attention: by scale, how much that scale counts at every pixel, float32 [H, W]; over the
            scales these weights sum to one (paper, figure 3). None unless it was asked for.
    """

    label: np.ndarray
    confidence: np.ndarray
    classes: tuple[str, ...]
    spec: DatasetSpec
    image: np.ndarray
    attention: Mapping[float, np.ndarray] | None = None

    def __iter__(self) -> Iterator[np.ndarray]:
        yield self.label
        yield self.confidence

    def __repr__(self) -> str:
        height, width = self.label.shape
        shares = sorted(self.shares().items(), key=lambda item: -item[1])
        found = ", ".join(f"{name} {100 * share:.0f} %" for name, share in shares[:3])
        if len(shares) > 3:
            found += f", {len(shares) - 3} more"
        return f"Segmentation({height} x {width}: {found})"

    def shares(self) -> dict[str, float]:
        """The share of the image's pixels of every class that was found."""
        counts = np.bincount(self.label.reshape(-1), minlength=len(self.classes))
        pixels = zip(self.classes, counts.tolist(), strict=False)
        return {name: count / self.label.size for name, count in pixels if count}

    def mask(self, name: str) -> np.ndarray:
        """Where the class of that name was found, bool [H, W].

        Raises:
            DataError: there is no class of that name.
        """
        return self.label == self.spec.index_of(name)

    def raw_label(self) -> np.ndarray:
        """The label in the ids of the data set's own files, uint8 [H, W]."""
        return self.spec.to_raw[self.label]

    def colours(self) -> np.ndarray:
        """The label in the colours of its classes, uint8 RGB [H, W, 3]."""
        return colorize(self.label, self.spec.palette)

    def overlay(self, alpha: float = 0.5) -> np.ndarray:
        """The image tinted by those colours, uint8 RGB [H, W, 3]; `alpha` is their share."""
        return overlay(self.image, self.label, self.spec.palette, alpha)

    def save(self, path: str | Path, kind: Kind = "colours") -> Path:
        """Write a PNG and return its path.

        Args:
            path: ends in .png.
            kind: "colours", "overlay", "labels" (ids as in the data set's own files) or
                "confidence" (0 to 255).

        Raises:
            UserError: another kind or suffix, or the file cannot be written.
        """
        target = Path(path).expanduser()
        if target.suffix.lower() != ".png":
            raise UserError(f"{target}: pictures are written as PNG; end the name in .png")
        if kind not in KINDS:
            hint = did_you_mean(str(kind), KINDS)
            raise UserError(f"kind {kind!r} is not known{hint}: choose one of {', '.join(KINDS)}")

        if kind == "labels":
            picture = self.raw_label()
        elif kind == "colours":
            picture = self.colours()
        elif kind == "overlay":
            picture = self.overlay()
        else:
            picture = (self.confidence * 255).astype(np.uint8)
        write_png(target, picture)
        return target
