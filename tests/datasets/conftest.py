"""Tiny data sets on disk."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hmsa.datasets import ClassInfo, DatasetSpec, Files
from hmsa.datasets.files import pack


@pytest.fixture
def make_files(tmp_path: Path) -> Callable[..., Files]:
    """make_files(labels, images=None, num_classes=4, name="data"): Files of PNG pairs; random
    images where none are given.
    """

    def make(
        labels: Sequence[np.ndarray],
        images: Sequence[np.ndarray] | None = None,
        *,
        num_classes: int = 4,
        name: str = "data",
    ) -> Files:
        root, rng = tmp_path / name, np.random.default_rng(len(labels))
        root.mkdir()
        for index, label in enumerate(labels):
            image = (
                images[index]
                if images is not None
                else rng.integers(0, 256, (*label.shape, 3), dtype=np.uint8)
            )
            Image.fromarray(image).save(root / f"{index:03d}.image.png")
            Image.fromarray(label).save(root / f"{index:03d}.label.png")
        spec = DatasetSpec(
            name="tiny",
            classes=tuple(
                ClassInfo(name=f"class {c}", color=(c, c, c), raw_ids=(c,))
                for c in range(num_classes)
            ),
            raw_ignore=255,
        )
        stems = [f"{index:03d}" for index in range(len(labels))]
        images_of, labels_of = (
            pack(f"{stem}.{what}.png" for stem in stems) for what in ("image", "label")
        )
        return Files(
            spec=spec,
            split="train",
            root=root,
            images=images_of,
            labels=labels_of,
            names=pack(stems),
        )

    return make
