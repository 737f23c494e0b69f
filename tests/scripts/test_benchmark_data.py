"""The data benchmarks compare two pipelines that show the same, and say what they measured.

No times are judged here.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from scripts import benchmark
from scripts.benchmarks import data, index
from scripts.measuring.drawn_images import draw_files
from scripts.measuring.harness import ROW_KEYS, Disagreement


@pytest.mark.usefixtures("forked_measuring")
def test_data_benchmark(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """From the command line, small: a row from files and one from the cache for each crop."""
    target = tmp_path / "rows.json"
    words = [
        "data",
        "--image",
        "128x256",
        "--crops",
        "64x64",
        "128x256",
        "--images",
        "2",
        "--samples",
        "4",
        "--rounds",
        "1",
        "--json",
        str(target),
    ]
    assert benchmark.main(words) == 0
    rows = json.loads(target.read_text())
    assert [row["name"] for row in rows] == ["data", "data cached"] * 2 and all(
        set(row) == set(ROW_KEYS) and row["ratio"] > 0 for row in rows
    )
    printed = capsys.readouterr().out
    assert "decoding the PNG of" in printed and "images/s per process" in printed


@pytest.mark.usefixtures("forked_measuring")
def test_index_benchmark(tmp_path: Path) -> None:
    """The loop's centroids equal ours, or the benchmark would end in a disagreement."""
    target = tmp_path / "rows.json"
    assert (
        benchmark.main(
            [
                "index",
                "--image",
                "128x256",
                "--tile",
                "64",
                "--images",
                "2",
                "--rounds",
                "1",
                "--json",
                str(target),
            ]
        )
        == 0
    )
    assert [row["name"] for row in json.loads(target.read_text())] == [
        "index pixel",
        "index centroid",
    ]


def test_drawn_pngs_have_the_promised_size(tmp_path: Path) -> None:
    """3 to 4 MB at 1024 x 2048; labels are raw ids of the 19 classes."""
    files = draw_files(tmp_path, size=(1024, 2048), count=1)
    assert 3.0e6 < files.image_path(0).stat().st_size < 4.0e6
    label = files.read_label(0)
    assert set(np.unique(label).tolist()) == set(range(19))


@pytest.mark.parametrize(
    "spoil", [lambda image: image + 40, lambda image: np.roll(image, 40, axis=1)]
)
def test_pipelines_that_differ_are_noticed(
    tmp_path: Path, spoil: Callable[[np.ndarray], np.ndarray]
) -> None:
    """A brighter or shifted picture on one side ends the benchmark."""
    files = draw_files(tmp_path, size=(128, 256), count=1)
    augmentation = data.Augmentation(crop=(64, 64), scale_range=(1.0, 1.5))
    ours = data.our_samples(data.SampleSource(files), augmentation)(0, 0)
    data.require_same_picture(ours, data.pillow_sample(files, 0, 0, augmentation))
    path = files.image_path(0)
    Image.fromarray(spoil(np.array(Image.open(path))).clip(0, 255).astype(np.uint8)).save(path)
    with pytest.raises(Disagreement, match="local means"):
        data.require_same_picture(ours, data.pillow_sample(files, 0, 0, augmentation))


def test_index_benchmark_notices_a_wrong_centroid(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A place off by one ends the benchmark."""
    files = draw_files(tmp_path, size=(64, 128), count=1)
    index.require_equal(files, (32, 32))
    right = index.class_places
    monkeypatch.setattr(
        index, "class_places", lambda *args, **kwargs: _moved(right(*args, **kwargs))
    )
    with pytest.raises(Disagreement, match="centroids of label 0"):
        index.require_equal(files, (32, 32))


def _moved(places: np.ndarray) -> np.ndarray:
    places["x"][0] += 1
    return places


def test_options_have_help() -> None:
    """As the dispatcher lists them."""
    for module in (data, index):
        parser = argparse.ArgumentParser()
        module.add_arguments(parser)
        assert "default" in parser.format_help()
