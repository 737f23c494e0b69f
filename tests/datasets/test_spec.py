"""DatasetSpec: one table decides names, colours and ids, and `classes.yaml` is read strictly."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

import hmsa.datasets as datasets
from hmsa.datasets import CITYSCAPES, ClassInfo, DataError, DatasetSpec
from hmsa.datasets.layouts.class_list import load_class_list
from tests.datasets.trees import toy_spec, write_class_list


def test_every_export_exists_and_is_itself() -> None:
    for name in datasets.__all__:
        assert (
            getattr(datasets, name).__name__ == name
            if callable(getattr(datasets, name))
            else getattr(datasets, name) is not None
        )
    with pytest.raises(AttributeError):
        _ = datasets.nothing_of_the_kind


def test_cityscapes_table_against_cityscapesscripts() -> None:
    labels = pytest.importorskip("cityscapesscripts.helpers.labels").labels
    scored = {item.trainId: item for item in labels if not item.ignoreInEval}
    assert CITYSCAPES.num_classes == 19 == len(scored)
    for train_id, own in enumerate(CITYSCAPES.classes):
        theirs = scored[train_id]
        assert (own.name, own.color, own.raw_ids, own.category, own.has_instances) == (
            theirs.name,
            theirs.color,
            (theirs.id,),
            theirs.category,
            theirs.hasInstances,
        )
    assert set(CITYSCAPES.known_raw_ids) == {item.id for item in labels if item.ignoreInEval}
    for item in labels:
        assert CITYSCAPES.to_train[item.id % 256] == (255 if item.ignoreInEval else item.trainId)


def test_cityscapes_writes_raw_ids_and_zero_for_ignore() -> None:
    assert CITYSCAPES.to_raw[[0, 18, 255, 40]].tolist() == [7, 33, 0, 0]
    assert CITYSCAPES.palette[13].tolist() == [0, 0, 142]
    assert CITYSCAPES.palette[255].tolist() == [0, 0, 0]


@given(st.permutations(range(6)))
def test_any_permutation_of_ids_maps_and_returns(ids: list[int]) -> None:
    spec = DatasetSpec(
        "p",
        tuple(ClassInfo(str(i), (i, i, i), (raw,)) for i, raw in enumerate(ids)),
        known_raw_ids=(255,),
    )
    values = np.array([*range(6), 255], dtype=np.uint8)
    assert spec.to_train[np.array(ids)].tolist() == list(range(6))
    assert np.array_equal(spec.to_raw[spec.to_train[values]], values)


def test_several_ids_for_one_class() -> None:
    spec = DatasetSpec(
        "m", (ClassInfo("x", (1, 2, 3), (4, 9)), ClassInfo("y", (1, 2, 4), (0,))), raw_ignore=7
    )
    assert spec.to_train[[4, 9, 0, 7]].tolist() == [0, 0, 1, 255]
    assert spec.to_raw[[0, 1, 255]].tolist() == [4, 0, 7]


def test_travels_as_plain_values_and_by_pickle() -> None:
    for spec in (CITYSCAPES, toy_spec(2, raw_ignore=9, known_raw_ids=(9, 11))):
        plain = yaml.safe_load(yaml.safe_dump(spec.to_dict()))
        assert DatasetSpec.from_dict(plain) == spec
        assert pickle.loads(pickle.dumps(spec)).to_train.tolist() == spec.to_train.tolist()


@pytest.mark.parametrize(
    ("classes", "options", "said"),
    [
        ((), {}, "0 classes"),
        (
            (ClassInfo("a", (0, 0, 0), (0,)), ClassInfo("a", (0, 0, 1), (1,))),
            {},
            "name 'a' occurs more than once",
        ),
        (
            (ClassInfo("a", (0, 0, 0), (0,)), ClassInfo("b", (0, 0, 1), (0,))),
            {},
            "id 0 occurs more than once",
        ),
        ((ClassInfo("a", (0, 0, 0), (300,)),), {}, "needs ids from 0 to 255"),
        ((ClassInfo("a", (0, 0, 999), (0,)),), {}, "needs a colour"),
        ((ClassInfo("a", (0, 0, 0), (255,)),), {}, "both a class and ignore"),
        (
            (ClassInfo("a", (0, 0, 0), (255,)),),
            {"raw_ignore": 0, "known_raw_ids": (-1,)},
            "both a class and ignore",
        ),
        ((ClassInfo("a", (0, 0, 0), (0,)),), {"ignore_label": 0}, "ignore label 0"),
    ],
)
def test_refuses_contradictions(classes: tuple[ClassInfo, ...], options: dict, said: str) -> None:
    with pytest.raises(DataError, match=said):
        DatasetSpec("s", classes, **options)


def test_unknown_class_name_suggests_the_nearest() -> None:
    assert CITYSCAPES.index_of("train") == 16
    with pytest.raises(DataError, match="did you mean 'traffic light'"):
        CITYSCAPES.index_of("trafic light")


def test_class_list_of_camvid_form(tmp_path: Path) -> None:
    names = ["Sky", "Building", "Pole"]
    spec, layout = load_class_list(write_class_list(tmp_path / "classes.yaml", names))
    assert spec.names == tuple(names)
    assert spec.to_train[[0, 1, 2, 255]].tolist() == [0, 1, 2, 255]
    assert (layout.images, layout.labels, layout.list) == ("images/{split}", "labels/{split}", None)


def test_class_list_with_ids_several_ignores_and_no_colors(tmp_path: Path) -> None:
    path = tmp_path / "classes.yaml"
    path.write_text(
        "ignore: [11, 255]\nclasses:\n"
        "  - {name: road, ids: [5, 3]}\n  - {name: sky, id: 9, category: high}\n"
    )
    spec, _ = load_class_list(path)
    assert spec.name == tmp_path.name
    assert spec.to_train[[5, 3, 9, 11, 255]].tolist() == [0, 0, 1, 255, 255]
    assert spec.to_raw[255] == 11
    assert spec.classes[0].color != spec.classes[1].color
    assert spec.classes[1].category == "high"


def test_class_list_may_ignore_minus_one(tmp_path: Path) -> None:
    path = tmp_path / "classes.yaml"
    path.write_text("ignore: -1\nclasses: [{name: a}]\n")
    spec, _ = load_class_list(path)
    assert spec.to_train[255] == 255 and spec.to_raw[255] == 255 and spec.tables("raw")[1][255] == 0


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "classes: [{name: a, colour: [1, 2, 3]}]",
            r"classes\[0\]: unknown key 'colour' \(did you mean 'color'\?\)",
        ),
        ("clases: [{name: a}]", r"unknown key 'clases' \(did you mean 'classes'\?\)"),
        ("classes: [{name: a}, {name: a}]", "name 'a' occurs more than once"),
        ("classes: [{name: a, id: 1}, {name: b, id: 1}]", "id 1 occurs more than once"),
        ("classes: [{name: a, id: 256}]", "must be an id from 0 to 255"),
        ("classes: [{name: a, id: true}]", "must be an id from 0 to 255"),
        ("classes: [{name: a, id: 1, ids: [2]}]", "give id or ids, not both"),
        ("classes: [{name: false}]", r"classes\[0\].name: must be text, not False"),
        ("classes: [{name: a, color: [1, 2]}]", r"color: must be \[red, green, blue\]"),
        ("classes: []", "classes: must be a list"),
        ("- a", "must hold the keys"),
        ("classes: [{name: a, name: b}]", r"classes\[0\]\.name: duplicate key"),
        ("ignore: 0\nclasses: [{name: a, id: 0}]", "id 0 is both a class and ignore"),
        (
            "classes: [{name: a}]\nlayout: {list: x.txt, images: y}",
            "give either list, or images and labels",
        ),
        (
            "classes: [{name: a}]\nlayout: {lists: x.txt}",
            r"layout: unknown key 'lists' \(did you mean 'list'\?\)",
        ),
        ("classes: &a [*a]", "an alias to something that contains it"),
        ("classes: [", "not valid YAML"),
        ("classes: [!!python/name:os.system {}]", "the tag !!python/name:os.system is not allowed"),
        ("[" * 4000, "nested more than 32 deep"),
    ],
)
def test_class_list_mistakes_are_named_with_file_and_key(
    tmp_path: Path, text: str, said: str
) -> None:
    path = tmp_path / "classes.yaml"
    path.write_text(text)
    with pytest.raises(DataError, match=said) as caught:
        load_class_list(path)
    assert str(path) in str(caught.value)


def test_missing_class_list_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"class list cannot be read: .*absent\.yaml"):
        load_class_list(tmp_path / "absent.yaml")


def test_class_list_with_colours(tmp_path: Path) -> None:
    """Several colours of a class, ignored ones beside ids, and what is unknown."""
    path = tmp_path / "classes.yaml"
    path.write_text(
        "ignore: [254, [1, 2, 3]]\nlabels: colors\nunknown: ignore\n"
        "classes: [{name: a, colors: [[4, 5, 6], [7, 8, 9]]}, {name: b, color: [0, 0, 0]}]\n"
    )
    spec, _ = load_class_list(path)
    assert spec.classes[0].color == (4, 5, 6)
    assert (spec.label_form, spec.ignore_unknown, spec.raw_ignore) == ("colors", True, 254)
    codes, train_ids = spec.color_table
    assert dict(zip(codes.tolist(), train_ids.tolist(), strict=True)) == {
        0: 1,
        0x010203: 255,
        0x040506: 0,
        0x070809: 0,
    }
    assert DatasetSpec.from_dict(spec.to_dict()) == spec


def test_records_of_data_sets_without_colours_to_read_stay_as_they_were() -> None:
    assert set(toy_spec().to_dict()) == {
        "name",
        "classes",
        "ignore_label",
        "raw_ignore",
        "known_raw_ids",
    }
    assert "other_colors" not in toy_spec().to_dict()["classes"][0]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("ignore: [[1, 2]]", "ignore: must be .red, green, blue."),
        ("labels: colours", "did you mean 'colors'"),
        ("unknown: ignored", "did you mean 'ignore'"),
    ],
)
def test_mistakes_about_colours_are_named(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "classes.yaml"
    path.write_text(f"{text}\nclasses: [{{name: a}}]\n")
    with pytest.raises(DataError, match=said):
        load_class_list(path)
    path.write_text("classes: [{name: a, color: [1, 2, 3], colors: [[1, 2, 3]]}]\n")
    with pytest.raises(DataError, match="give color or colors, not both"):
        load_class_list(path)
