"""Mapillary Vistas: the class list comes from its own JSON, the version from what lies there, ids
from palette PNGs.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from hmsa.datasets import DataError, Files, build_files
from hmsa.datasets.layouts.mapillary import load_mapillary_spec
from tests.datasets.trees import make_mapillary, mapillary_config

SPLITS = {"training": 3, "validation": 2, "testing": 1}


def listed(root: Path, split: str, **options: object) -> Files:
    return build_files(dataset="mapillary", root=root, split=split, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("version", "classes", "place"), [("1.2", 65, "labels"), ("2.0", 123, "v2.0/labels")]
)
def test_packages(tmp_path: Path, version: str, classes: int, place: str) -> None:
    make_mapillary(tmp_path, version=version, splits=SPLITS)
    train = listed(tmp_path, "train")
    assert (len(train), train.spec.num_classes, train.spec.name) == (
        3,
        classes,
        f"mapillary-v{version}",
    )
    assert train.name(2) == "img002"
    assert train.label_path(2) == tmp_path / "training" / place / "img002.png"
    image = train.read_image(2)
    assert image.shape == (32, 40, 3)
    own = train.read_label(2, image_size=image.shape[:2])
    assert set(np.unique(own)) == {
        0,
        1,
        classes - 1,
        255,
    }  # the last class counts, unlabeled is ignored
    assert train.spec.to_raw[255] == classes
    assert len(listed(tmp_path, "val")) == len(listed(tmp_path, "validation")) == 2
    assert len(listed(tmp_path, "trainval")) == 5
    assert listed(tmp_path, "test").labels is None


def test_the_class_list_chooses_among_versions(tmp_path: Path) -> None:
    make_mapillary(tmp_path, version="2.0", splits=SPLITS)
    files = listed(tmp_path, "train", classes="config_v1.2.json")
    assert files.spec.num_classes == 65
    assert files.label_path(0) == tmp_path / "training/v1.2/labels/img000.png"
    assert set(np.unique(files.read_label(0))) == {0, 1, 64, 255}


def test_labels_of_another_version_are_refused(tmp_path: Path) -> None:
    make_mapillary(tmp_path, version="2.0", splits={"training": 1})
    (tmp_path / "config_v2.0.json").write_text(json.dumps(mapillary_config("1.1", 66)))
    with pytest.raises(DataError, match=r"labels of v1\.2, v2\.0 but a class list of v1\.1"):
        listed(tmp_path, "train")
    v1 = make_mapillary(tmp_path / "one", version="1.2", splits={"training": 1})
    (v1 / "config.json").write_text(json.dumps(mapillary_config("1.2", 30)))
    with pytest.raises(DataError, match="label values 64 .* outside the classes of mapillary-v1.2"):
        listed(v1, "train").read_label(0)


def test_names_categories_colours_and_instances(tmp_path: Path) -> None:
    config = mapillary_config("1.2", 66)
    config["labels"][0].update(
        name="animal--ground-animal", readable="Ground Animal", color=[0, 192, 0]
    )
    config["labels"][1].update(readable="Twice")
    config["labels"][2].update(readable="Twice")
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config))
    spec, version = load_mapillary_spec(path)
    assert version == "1.2"
    first = spec.classes[0]
    assert (first.name, first.category, first.color, first.has_instances, first.raw_ids) == (
        "Ground_Animal",
        "animal",
        (0, 192, 0),
        True,
        (0,),
    )
    assert spec.names[1:4] == ("object--kind-1", "object--kind-2", "Kind_3")


@pytest.mark.parametrize(
    ("name", "count", "version"),
    [("config.json", 66, "1.2"), ("config.json", 124, "2.0"), ("config_v1.2.json", 66, "1.2")],
)
def test_version_without_a_key(tmp_path: Path, name: str, count: int, version: str) -> None:
    (tmp_path / name).write_text(json.dumps(mapillary_config(None, count)))
    assert load_mapillary_spec(tmp_path / name)[1] == version


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        '{"labels": 3}',
        '{"labels": [{"name": "x"}]}',
        '{"labels": [{"name": "x", "color": [1, 2]}]}',
    ],
)
def test_foreign_json_is_refused(tmp_path: Path, text: str) -> None:
    make_mapillary(tmp_path, version="1.2", splits={"training": 1})
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(DataError, match=r"config\.json: not a configuration of Mapillary Vistas"):
        listed(tmp_path, "train")


def test_mistakes_name_places(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no config_v2\.0\.json or .* in .*, which holds nothing"):
        listed(tmp_path, "train")
    make_mapillary(tmp_path, version="1.2", splits={"training": 2})
    with pytest.raises(
        DataError, match=r"image folder of split 'val' .*validation/images does not exist"
    ):
        listed(tmp_path, "val")
    with pytest.raises(DataError, match="has no split 'foo'"):
        listed(tmp_path, "foo")
    (tmp_path / "training/labels/img001.png").unlink()
    with pytest.raises(DataError, match=r"1 image .* without label .*img001\.jpg"):
        listed(tmp_path, "train")
