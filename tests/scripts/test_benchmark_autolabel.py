"""The benchmark of auto-labelling compares a job with a network that gives the same labels."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from scripts import benchmark
from scripts.benchmarks import autolabel as measured
from scripts.measuring.drawn_images import draw_files
from scripts.measuring.harness import ROW_KEYS, Disagreement

SMALL = [
    "autolabel",
    "--size",
    "64",
    "96",
    "--images",
    "2",
    "--trunk",
    "resnet18",
    "--decoder",
    "fcn",
    "--rounds",
    "1",
]


def test_the_job_and_the_bare_network_give_the_same_labels(tmp_path: Path) -> None:
    arguments = benchmark.build_parser("autolabel").parse_args(SMALL)
    files = draw_files(tmp_path, size=(64, 96), count=2)
    shared = {"arguments": arguments, "files": files, "output": tmp_path / "out"}
    failed, expected = measured.ours(**shared)(), measured.baseline(**shared)()
    measured.require_same_labels(failed, expected, tmp_path / "out", files)
    assert len(np.unique(expected)) > 2, "a label of one class says little"
    with pytest.raises(Disagreement, match="of the pixels have the label"):
        measured.require_same_labels(0, (expected + 1) % 19, tmp_path / "out", files)
    with pytest.raises(Disagreement, match="could not label 1"):
        measured.require_same_labels(1, expected, tmp_path / "out", files)


def test_every_encoder_is_read_back_and_reported() -> None:
    rows = measured.png_rows((32, 64), rounds=1)
    assert [row["name"] for row in rows] == ["png labels", "png confidences"]
    for row in rows:
        assert set(ROW_KEYS) <= set(row) and row["ratio"] > 0
        for encoder in ("ours 1", "opencv 1", "Pillow 6"):
            assert f"{encoder}: " in row["note"]


def test_encoders_agree_on_the_pixels() -> None:
    array = np.random.default_rng(0).integers(0, 19, (9, 13), dtype=np.uint8)
    for name, encode in measured.all_encoders(array).items():
        assert np.array_equal(np.array(Image.open(BytesIO(encode()))), array), name
