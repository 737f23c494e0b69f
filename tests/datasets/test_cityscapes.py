"""Cityscapes in both layouts: splits, cross-validation by city with the true counts, coarse labels,
official names.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hmsa.datasets import CITYSCAPES, DataError, Files, build_files
from tests.datasets.trees import (
    OFFICIAL,
    RELEASE,
    TRAIN_CITIES,
    VAL_CITIES,
    label,
    make_cityscapes,
    save,
)

LAYOUTS = pytest.mark.parametrize("layout", [OFFICIAL, RELEASE], ids=["official", "release"])


def listed(root: Path, split: str, **options: object) -> Files:
    return build_files(dataset="cityscapes", root=root, split=split, **options)  # type: ignore[arg-type]


def cities_of(files: Files) -> dict[str, int]:
    cities = [files.name(i).partition("/")[0] for i in range(len(files))]
    return {city: cities.count(city) for city in sorted(set(cities))}


@pytest.fixture(scope="module")
def names_only(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The 3475 true names of train and val in the official layout; every file is empty."""
    return make_cityscapes(
        tmp_path_factory.mktemp("cityscapes"),
        {"train": TRAIN_CITIES, "val": VAL_CITIES},
        empty=True,
    )


@LAYOUTS
def test_splits_of_a_miniature(tmp_path: Path, layout: dict[str, str]) -> None:
    cities = {
        "train": {"aachen": 2, "ulm": 1},
        "val": {"lindau": 2},
        "test": {"berlin": 1},
        "train_extra": {"augsburg": 3},
    }
    make_cityscapes(tmp_path, cities, layout=layout)
    train = listed(tmp_path, "train")
    assert [train.name(i) for i in range(3)] == [
        "aachen/aachen_000000_000019_leftImg8bit",
        "aachen/aachen_000001_000019_leftImg8bit",
        "ulm/ulm_000000_000019_leftImg8bit",
    ]
    label_path = train.label_path(0)
    assert (
        label_path
        == tmp_path / layout["fine"] / "train/aachen/aachen_000000_000019_gtFine_labelIds.png"
    )
    assert train.spec is CITYSCAPES
    assert set(np.unique(train.read_label(0, image_size=(24, 48)))) == {0, 1, 2, 13, 255}
    assert cities_of(listed(tmp_path, "trainval")) == {"aachen": 2, "lindau": 2, "ulm": 1}
    extra = listed(tmp_path, "train_extra")
    assert (
        extra.label_path(2)
        == tmp_path
        / layout["coarse"]
        / "train_extra/augsburg/augsburg_000002_000019_gtCoarse_labelIds.png"
    )
    assert set(np.unique(extra.read_label(0))) == {0, 1, 2, 255}


@LAYOUTS
def test_test_split_has_labels_where_they_are_known_and_none_where_placeholders_lie(
    tmp_path: Path, layout: dict[str, str]
) -> None:
    make_cityscapes(tmp_path, {"test": {"berlin": 2}}, layout=layout)
    assert set(np.unique(listed(tmp_path, "test").read_label(1))) == {0, 1, 2, 13, 255}
    for path in (tmp_path / layout["fine"] / "test").rglob("*_labelIds.png"):
        save(path, label((24, 48), values=[0, 1, 3]))
    files = listed(tmp_path, "test")
    assert files.labels is None and len(files) == 2
    with pytest.raises(DataError, match="'test' .* has no labels"):
        files.require_labels()


def test_coarse_labels_of_train_and_val(tmp_path: Path) -> None:
    make_cityscapes(
        tmp_path, {"train": {"aachen": 1}, "val": {"lindau": 1}}, coarse=("train", "val")
    )
    assert str(listed(tmp_path, "train", labels="coarse").label_path(0)).endswith(
        "gtCoarse/train/aachen/aachen_000000_000019_gtCoarse_labelIds.png"
    )
    assert len(listed(tmp_path, "trainval", labels="coarse")) == 2
    with pytest.raises(DataError, match="'train_extra' of Cityscapes has coarse labels only"):
        listed(tmp_path, "train_extra", labels="fine")


@pytest.mark.parametrize(
    ("cv", "val", "train_count"),
    [
        (None, {"frankfurt": 267, "lindau": 59, "munster": 174}, 2975),
        (0, {"frankfurt": 267, "lindau": 59, "munster": 174}, 2975),
        (1, {"darmstadt": 85, "dusseldorf": 221, "erfurt": 109}, 3060),
        (2, {"monchengladbach": 94, "strasbourg": 365, "stuttgart": 196}, 2820),
    ],
)
def test_cross_validation_counts_of_the_release(
    names_only: Path, cv: int | None, val: dict[str, int], train_count: int
) -> None:
    held_out, trained = listed(names_only, "val", cv=cv), listed(names_only, "train", cv=cv)
    assert cities_of(held_out) == val
    assert len(trained) == train_count
    assert cities_of(trained) == {
        city: count for city, count in {**VAL_CITIES, **TRAIN_CITIES}.items() if city not in val
    }
    both = {files.name(i) for files in (held_out, trained) for i in range(len(files))}
    assert len(both) == 3475 == len(listed(names_only, "trainval", cv=cv))


def test_cross_validation_needs_enough_cities(tmp_path: Path) -> None:
    make_cityscapes(tmp_path, {"train": {"aachen": 1, "ulm": 1}, "val": {"lindau": 1}})
    assert cities_of(listed(tmp_path, "val", cv=0)) == {"aachen": 1, "lindau": 1, "ulm": 1}
    with pytest.raises(DataError, match="cross-validation split 1 needs 10 cities .* holds 3"):
        listed(tmp_path, "val", cv=1)
    with pytest.raises(DataError, match="cross-validation split 5 must be 0, 1 or 2"):
        listed(tmp_path, "val", cv=5)


def test_missing_partners_are_named(tmp_path: Path) -> None:
    make_cityscapes(tmp_path, {"train": {"aachen": 2}})
    (tmp_path / "gtFine/train/aachen/aachen_000001_000019_gtFine_labelIds.png").unlink()
    with pytest.raises(
        DataError,
        match=r"1 image in .* without label in .*: .*aachen_000001_000019_leftImg8bit\.png",
    ):
        listed(tmp_path, "train")
    assert len(listed(tmp_path, "train", labels="none")) == 2
    (tmp_path / "leftImg8bit/train/aachen/aachen_000001_000019_leftImg8bit.png").unlink()
    (tmp_path / "leftImg8bit/train/aachen/aachen_000000_000019_leftImg8bit.png").unlink()
    with pytest.raises(DataError, match="split 'train' is empty"):
        listed(tmp_path, "train", labels="none")


def test_wrong_roots_say_what_was_looked_for(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    with pytest.raises(
        DataError,
        match="no images of Cityscapes 'val' in .*: looked for leftImg8bit/val, .*; it holds "
        "images/",
    ):
        listed(tmp_path, "val")
    make_cityscapes(tmp_path, {"train_extra": {"augsburg": 1}}, coarse=())
    with pytest.raises(DataError, match="no coarse labels of Cityscapes 'train_extra'"):
        listed(tmp_path, "train_extra")
    with pytest.raises(DataError, match="has no split 'validation'"):
        listed(tmp_path, "validation")
