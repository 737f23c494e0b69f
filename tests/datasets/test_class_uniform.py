"""The class index: the release's centroids exactly, places that are pixels of their class, full
coverage, a cache that is never stale.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from hmsa.datasets import CITYSCAPES, DataError, EpochPlan, Files, LabelPolicy, build_class_index
from hmsa.datasets.files import pack
from hmsa.datasets.sampling import class_uniform as index_module
from hmsa.datasets.sampling.class_uniform import class_places
from tests.datasets.trees import subset

MakeFiles = Callable[..., Files]


@pytest.fixture(scope="module")
def golden(data_folder: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Numbers from the authors' code, and the label maps (raw ids) they were made from, in train
    ids.
    """
    with np.load(data_folder / "class_uniform_labelmaps.npz") as stored:
        maps = {name: CITYSCAPES.to_train[stored[name]] for name in stored.files}
    return json.loads((data_folder / "class_uniform_golden.json").read_text()), maps


@pytest.mark.parametrize("tile", [128, 256, 512, 1024])
def test_centroids_are_the_releases(
    golden: tuple[dict[str, Any], dict[str, np.ndarray]], tile: int
) -> None:
    """Map by map and tile by tile, in the release's order, [x, y] truncated; whole tiles only; at
    1024 none at all.
    """
    expected, maps = golden
    found: dict[str, list[Any]] = {}
    for name, label in maps.items():
        for place in class_places(label, tile=(tile, tile), point="centroid", num_classes=19):
            found.setdefault(str(place["class"]), []).append(
                [name, [int(place["x"]), int(place["y"])], int(place["class"])]
            )
    reference = expected["tiles"][str(tile)]
    assert {key: len(value) for key, value in found.items()} == reference["counts_per_class"]
    if "centroids" in reference:
        assert found == reference["centroids"]
        assert sum(map(len, found.values())) > 100


def by_loop(
    label: np.ndarray, tile: tuple[int, int], num_classes: int
) -> list[tuple[int, set[tuple[int, ...]]]]:
    """Per tile and class in order: the class and the pixels of it that lie nearest to its centre of
    mass, written as plainly as possible.
    """
    found = []
    for top in range(0, label.shape[0], tile[0]):
        for left in range(0, label.shape[1], tile[1]):
            part = label[top : top + tile[0], left : left + tile[1]]
            for class_id in range(num_classes):
                pixels = np.argwhere(part == class_id)
                if len(pixels):
                    distance = ((pixels - pixels.mean(0)) ** 2).sum(1)
                    nearest = distance.min()
                    found.append(
                        (
                            class_id,
                            {
                                tuple(pixel)
                                for pixel in (
                                    pixels[distance <= nearest + 1e-6] + (top, left)
                                ).tolist()
                            },
                        )
                    )
    return found


@given(
    label=hnp.arrays(
        np.uint8,
        st.tuples(st.integers(1, 25), st.integers(1, 25)),
        elements=st.sampled_from([0, 1, 2, 3, 255]),
    ),
    tile=st.tuples(st.integers(1, 30), st.integers(1, 30)),
)
def test_places_are_the_nearest_pixels_of_their_class(
    label: np.ndarray, tile: tuple[int, int]
) -> None:
    """Any label, any tile, partial tiles and images smaller than a tile included, against a plain
    loop.
    """
    places = class_places(label, tile=tile, point="pixel", num_classes=4)
    expected = by_loop(label, tile, 4)
    assert len(places) == len(expected)
    for place, (class_id, nearest) in zip(places, expected, strict=True):
        assert place["class"] == class_id and (int(place["y"]), int(place["x"])) in nearest
        assert label[place["y"], place["x"]] == class_id


def test_a_ring_gets_a_pixel_of_its_own() -> None:
    """The centre of mass of a ring lies outside it; the release's centroid is there, ours is on the
    ring.
    """
    y, x = np.mgrid[:41, :41]
    label = ((np.hypot(y - 20, x - 20) > 12) & (np.hypot(y - 20, x - 20) < 16)).astype(np.uint8)
    ring, centroid = (
        class_places(label, tile=(41, 41), point=point, num_classes=2)[1]
        for point in ("pixel", "centroid")
    )
    assert (
        label[ring["y"], ring["x"]] == 1
        and label[centroid["y"], centroid["x"]] == 0
        and (centroid["y"], centroid["x"]) == (20, 20)
    )


def test_a_frame_of_1080_by_1920_is_covered_fully(make_files: MakeFiles) -> None:
    """A class that occurs only in the right and bottom remainders is found, in each of the 2 x 2
    tiles.
    """
    label = np.zeros((1080, 1920), dtype=np.uint8)
    label[1070:, :500], label[30:40, 1900:], label[1075:, 1915:] = 1, 2, 3
    index = build_class_index(make_files([label]), tile=1024)
    assert index.counts().tolist() == [4, 1, 1, 1]
    assert [
        (int(p["y"]) >= 1070, int(p["x"]) >= 1900)
        for p in (index.pool(1)[0], index.pool(2)[0], index.pool(3)[0])
    ] == [
        (True, False),
        (False, True),
        (True, True),
    ]


def test_index_of_files(make_files: MakeFiles) -> None:
    """Sorted by class then image; absent classes are empty pools, not errors; the second run reads
    the same from the cache.
    """
    labels = [
        np.full((20, 30), 2, dtype=np.uint8),
        np.zeros((20, 30), dtype=np.uint8),
        np.full((8, 8), 255, dtype=np.uint8),
    ]
    labels[0][3:5, 4:6] = 0
    files = make_files(labels)
    for _ in range(2):
        index = build_class_index(files, tile=(16, 16))
        assert (
            index.num_classes == 4
            and index.counts().tolist() == [1 + 4, 0, 4, 0]
            and len(index.pool(3)) == 0
        )
        assert (
            index.pool(0)["image"].tolist() == [0, 1, 1, 1, 1]
            and (index.pool(2)["image"] == 0).all()
        )
    assert len(list((files.root / ".hmsa").glob("class_index-*.npz"))) == 1


def test_several_processes_give_the_index_of_one(make_files: MakeFiles, tmp_path: Path) -> None:
    """Order included."""
    rng = np.random.default_rng(0)
    files = make_files([rng.integers(0, 4, (12, 12), dtype=np.uint8) for _ in range(40)])
    one, two = (
        build_class_index(files, tile=8, cache_dir=tmp_path / str(n), workers=n) for n in (1, 2)
    )
    assert np.array_equal(one.places, two.places) and np.array_equal(one.bounds, two.bounds)


def test_a_faulty_label_is_named_by_whichever_process_meets_it(make_files: MakeFiles) -> None:
    """A value outside the classes; nothing is cached."""
    labels = [np.zeros((8, 8), dtype=np.uint8) for _ in range(40)]
    labels[33][2, 2] = 9
    files = make_files(labels)
    for workers in (1, 2):
        with pytest.raises(DataError, match=r"033\.label\.png.*9"):
            build_class_index(files, tile=8, workers=workers)
    assert not list((files.root / ".hmsa").glob("class_index-*.npz"))


class Counted:
    """Counts how often an index is built."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.times, built = 0, index_module._index_files

        def join(*arguments: Any) -> Any:
            self.times += 1
            return built(*arguments)

        monkeypatch.setattr(index_module, "_index_files", join)


def test_cache_is_rebuilt_when_anything_that_matters_changes(
    make_files: MakeFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tile, point, a label's content, the list of files, the reading of ids: each its own index.
    The same again, or moved elsewhere: not built.
    """
    files, built = (
        make_files([np.zeros((16, 16), dtype=np.uint8) for _ in range(3)]),
        Counted(monkeypatch),
    )

    def build(changed: Files = files, **options: Any) -> int:
        build_class_index(changed, **{"tile": 8, "cache_dir": tmp_path / "cache", **options})
        return built.times

    assert build() == 1 and build() == 1
    assert (
        build(tile=16) == 2
        and build(tile=(8, 16)) == 3
        and build(point="centroid") == 4
        and build(subset(files, [0, 1])) == 5
    )
    assert build(replace(files, spec=replace(files.spec, classes=files.spec.classes[::-1]))) == 6
    assert build(replace(files, policy=LabelPolicy(classes={"class 0": "drop"}))) == 7
    path = files.label_path(1)
    assert path is not None
    Image.fromarray(np.ones((16, 16), dtype=np.uint8)).save(path)
    assert build() == 8
    index = build_class_index(files, tile=8, cache_dir=tmp_path / "cache")
    assert index.counts().tolist() == [8, 4, 0, 0] and built.times == 8
    moved = files.root.rename(tmp_path / "moved")
    assert build(replace(files, root=moved)) == 8
    os.utime(moved / "000.label.png", ns=(1, 1))
    assert build(replace(files, root=moved)) == 9


def test_a_damaged_index_is_built_again(make_files: MakeFiles, tmp_path: Path) -> None:
    """Truncated or empty: never an error, never half an index."""
    files = make_files([np.zeros((16, 16), dtype=np.uint8)])
    expected = build_class_index(files, tile=8, cache_dir=tmp_path)
    (path,) = tmp_path.glob("class_index-*.npz")
    whole = path.read_bytes()
    for damage in (b"", whole[: len(whole) // 2], b"x" * 100, whole[:-30] + b"\0" * 30):
        path.write_bytes(damage)
        assert np.array_equal(
            build_class_index(files, tile=8, cache_dir=tmp_path).places, expected.places
        )
        assert path.read_bytes() == whole or np.array_equal(
            np.load(path)["places"], expected.places
        )


def _start_together(files: Files, folder: Path, log: Path, rank: int) -> None:
    built = index_module._index_files

    def slow_join(*arguments: Any) -> Any:
        with open(log, "a") as file:
            file.write(f"{rank}\n")
        time.sleep(0.3)
        return built(*arguments)

    index_module._index_files = slow_join
    assert build_class_index(files, tile=8, cache_dir=folder).counts().sum() == 12


def test_ranks_that_start_together_build_once(make_files: MakeFiles, tmp_path: Path) -> None:
    """By a file lock alone."""
    files, log = (
        make_files([np.zeros((16, 16), dtype=np.uint8) for _ in range(3)]),
        tmp_path / "log",
    )
    context = multiprocessing.get_context("fork")
    ranks = [
        context.Process(target=_start_together, args=(files, tmp_path / "cache", log, rank))
        for rank in range(4)
    ]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join()
    assert [rank.exitcode for rank in ranks] == [0] * 4 and len(log.read_text().split()) == 1
    assert not list((tmp_path / "cache").glob("*.tmp"))


def test_confidence_threshold_is_honoured(make_files: MakeFiles, tmp_path: Path) -> None:
    """Places never point at pixels that the threshold ignores (the release's did)."""
    label = np.zeros((16, 16), dtype=np.uint8)
    label[:, 8:] = 1
    files = make_files([label])
    confidence = np.full((16, 16), 250, dtype=np.uint8)
    confidence[:, 8:15] = 100
    Image.fromarray(confidence).save(files.root / "000.confidence.png")
    files = replace(
        files, confidence=pack(["000.confidence.png"]), policy=LabelPolicy(confidence_threshold=0.9)
    )
    index = build_class_index(files, tile=16, cache_dir=tmp_path)
    assert index.counts().tolist() == [1, 1, 0, 0] and index.pool(1)["x"].tolist() == [15]


def test_user_mistakes(make_files: MakeFiles, tmp_path: Path) -> None:
    """A sentence each."""
    files = make_files([np.zeros((8, 8), dtype=np.uint8)])
    with pytest.raises(
        DataError, match=r"data\.class_uniform\.tile must be at least 1 pixel, not 0"
    ):
        build_class_index(files, tile=0)
    with pytest.raises(
        DataError, match=r"data\.class_uniform\.point must be pixel or centroid, not 'middle'"
    ):
        build_class_index(files, point="middle")
    with pytest.raises(DataError, match="has no labels"):
        build_class_index(replace(files, labels=None))
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"cannot be written; set data\.cache_dir"):
        build_class_index(files, cache_dir=tmp_path / "file")


def test_quotas_are_the_releases(golden: tuple[dict[str, Any], dict[str, np.ndarray]]) -> None:
    """Per class and random counts of the authors' epochs; where they lose the absent class's share,
    ours goes to the present ones.
    """
    expected, maps = golden
    places = [
        class_places(label, tile=(256, 256), point="centroid", num_classes=19)
        for label in maps.values()
    ]
    stacked = np.concatenate(places)
    order = np.argsort(stacked["class"], kind="stable")
    index = index_module.ClassIndex(
        places=stacked[order], bounds=np.searchsorted(stacked["class"][order], np.arange(20))
    )
    for name, reference in expected["build_epoch"].items():
        fraction, images = (
            float(part) for part in name.replace("pct", "").replace("nimg", "").split("_")
        )
        entries = EpochPlan(int(images), index, fraction, seed=1).entries(0)
        assert len(entries) == images
        random = entries[entries["class"] < 0]
        assert (
            len(random) == reference["n_random_entries"]
            and len(np.unique(random["image"])) == reference["n_random_distinct"]
        )
        counts = np.bincount(entries["class"][entries["class"] >= 0], minlength=19)
        share = reference["per_class"].get("0", 0)
        present = (
            np.array([str(c) in reference["per_class"] for c in range(19)]) if share else counts > 0
        )
        assert counts.sum() == 19 * share and (counts[~present] == 0).all()
        assert all(share <= counts[c] <= share + 1 + share // 18 for c in np.flatnonzero(present))
        for class_id, repetition in (reference["repetition"] or {}).items():
            mine = entries[entries["class"] == int(class_id)]
            visits = np.unique(mine[["image", "y", "x"]], return_counts=True)[1]
            assert (
                visits.max() - visits.min() <= 1
                and repetition["max_rep"] - repetition["min_rep"] <= 1
            )
