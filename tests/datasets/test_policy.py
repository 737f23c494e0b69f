"""Automatic labels: found by folder or manifest, joined with coarse ones by class, cut at a
confidence, masked at the border.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from hmsa.datasets import CITYSCAPES, DataError, Files, LabelPolicy, build_files
from hmsa.datasets.policy import POLICIES, inner_frame
from hmsa.utils.labelling.autolabels import confidence_name, encode_label, label_name, manifest
from tests.datasets.trees import (
    label,
    make_auto_labels,
    make_cityscapes,
    make_folder,
    save,
    toy_spec,
)

LABELS = arrays(np.uint8, (5, 7), elements=st.sampled_from([0, 1, 2, 255]))


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Coarse images of two cities."""
    return make_cityscapes(tmp_path / "data", {"train_extra": {"augsburg": 2, "bamberg": 1}})


def listed(tree: Path, place: Path | None, **options: object) -> Files:
    return build_files(
        dataset="cityscapes",
        root=tree,
        split="train_extra",
        labels="auto",
        label_root=place,
        **options,
    )  # type: ignore[arg-type]


def names_of(tree: Path) -> list[str]:
    files = build_files(dataset="cityscapes", root=tree, split="train_extra", labels="none")
    return [files.name(i) for i in range(len(files))]


@given(
    LABELS,
    LABELS,
    st.fixed_dictionaries({}, optional={name: st.sampled_from(POLICIES) for name in "abc"}),
)
def test_policies_pixel_by_pixel(
    auto: np.ndarray, human: np.ndarray, classes: Mapping[str, str]
) -> None:
    spec = toy_spec()
    merged = LabelPolicy(classes=classes).merge(auto, spec=spec, human=human, confidence=None)
    policy = [classes.get(name, "auto") for name in spec.names]
    for own, drawn, result in zip(auto.flat, human.flat, merged.flat, strict=True):
        if drawn != 255 and policy[drawn] in ("human", "union"):
            expected = drawn
        elif own != 255 and policy[own] in ("human", "drop"):
            expected = 255
        else:
            expected = own
        assert result == expected


@pytest.mark.parametrize("threshold", [0.0, 0.2, 0.5, 0.9, 1.0])
def test_threshold_keeps_at_least_its_confidence(threshold: float) -> None:
    confidence = np.arange(256, dtype=np.uint8)[None]
    merged = LabelPolicy(confidence_threshold=threshold).merge(
        np.zeros_like(confidence), spec=toy_spec(), human=None, confidence=confidence
    )
    kept = np.arange(256) / 255 >= threshold
    assert np.array_equal(merged[0] == 0, kept)


def test_threshold_comes_before_the_label_drawn_by_people() -> None:
    policy = LabelPolicy(classes={"b": "union"}, confidence_threshold=0.9)
    merged = policy.merge(
        np.array([[1, 0, 2]], np.uint8),
        spec=toy_spec(),
        human=np.array([[255, 1, 255]], np.uint8),
        confidence=np.array([[10, 10, 255]], np.uint8),
    )
    assert merged.tolist() == [[255, 1, 2]]


def test_border_mask_is_the_releases_at_full_size_and_in_proportion() -> None:
    inside = inner_frame((1024, 2048))
    rows, columns = np.flatnonzero(inside.any(axis=1)), np.flatnonzero(inside.any(axis=0))
    assert (rows[0], rows[-1], columns[0], columns[-1]) == (15, 839, 14, 2029)
    assert inside.sum() == (839 - 14) * (2029 - 13)
    half = inner_frame((512, 1024))
    assert abs(half.mean() - inside.mean()) < 0.002
    merged = LabelPolicy(mask_border=True).merge(
        np.zeros((512, 1024), np.uint8), spec=toy_spec(), human=None, confidence=None
    )
    assert np.array_equal(merged == 0, half)


def test_a_policy_leaves_its_inputs_alone_and_knows_what_it_needs() -> None:
    auto = np.zeros((2, 2), np.uint8)
    LabelPolicy(classes={"a": "drop"}).merge(auto, spec=toy_spec(), human=None, confidence=None)
    assert not auto.any()
    assert (
        LabelPolicy(classes={"a": "union"}).needs_human
        and not LabelPolicy(classes={"a": "drop"}).needs_human
    )
    assert (
        LabelPolicy(classes={"a": "auto"}).is_neutral
        and not LabelPolicy(confidence_threshold=0.0).is_neutral
    )


@pytest.mark.parametrize("form", ["ids", "train", "release"])
@pytest.mark.parametrize(("level", "manifest"), [("", False), ("train_extra", False), ("", True)])
def test_automatic_labels_in_every_form(
    tree: Path, tmp_path: Path, form: str, level: str, manifest: bool
) -> None:
    place = tmp_path / "no_telling_name"
    make_auto_labels(place / level, names_of(tree), form=form, manifest=manifest)
    files = listed(tree, place)
    assert [files.name(i) for i in range(3)] == names_of(tree)
    assert files.label_ids == ("train" if form == "train" else "raw")
    assert set(np.unique(files.read_label(1, image_size=(24, 48)))) == {0, 2, 13, 255}
    cut = listed(tree, place, confidence_threshold=0.9)
    assert np.array_equal(
        cut.read_label(1),
        np.where(label((24, 48), values=(120, 240), seed=1) == 240, files.read_label(1), 255),
    )
    assert len(cut.label_sources(1)) == 2


def test_policy_reads_the_coarse_label_beside(tree: Path, tmp_path: Path) -> None:
    place = make_auto_labels(tmp_path / "auto", names_of(tree), form="ids", manifest=True)
    files = listed(
        tree,
        place / "manifest.json",
        policy={"road": "human", "car": "drop", "sidewalk": "union"},
        mask_border=True,
    )
    coarse = build_files(dataset="cityscapes", root=tree, split="train_extra").read_label(2)
    auto = listed(tree, place).read_label(2)
    expected = auto.copy()
    expected[np.isin(auto, [0, 13])] = 255
    expected[np.isin(coarse, [0, 1])] = coarse[np.isin(coarse, [0, 1])]
    expected[~inner_frame((24, 48))] = 255
    assert np.array_equal(files.read_label(2), expected)
    assert (
        files.human_path(2)
        == tree / "gtCoarse/train_extra/bamberg/bamberg_000000_000019_gtCoarse_labelIds.png"
    )
    assert files.label_sources(2) == (
        files.label_path(2),
        files.human_path(2),
        files.confidence_path(2),
    )


def test_manifest_decides_which_images_are_used(tree: Path, tmp_path: Path) -> None:
    place = make_auto_labels(tmp_path / "auto", names_of(tree)[1:], form="ids", manifest=True)
    assert [files.name(0) for files in (listed(tree, place),)] == names_of(tree)[1:2]
    folder_only = make_auto_labels(tmp_path / "plain", names_of(tree)[1:], form="ids")
    with pytest.raises(
        DataError,
        match=r"1 of 3 images have no automatic label .*augsburg_000000_000019_gtAuto_labelIds\."
        "png",
    ):
        listed(tree, folder_only)


def test_images_are_found_by_the_end_of_their_path(tree: Path, tmp_path: Path) -> None:
    place = make_auto_labels(
        tmp_path / "auto",
        [name.partition("/")[2] for name in names_of(tree)],
        form="ids",
        manifest=True,
    )
    assert len(listed(tree, place)) == 3


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"format": "other"}, "its format is not 'hmsa-autolabel'"),
        ({"version": 2}, "version 2 is not 1"),
        ({"label_ids": "both"}, "label_ids 'both' is neither"),
        (
            {"classes": toy_spec().to_dict()},
            "its labels are of toy with 3 classes, not of cityscapes with 19",
        ),
        ({"classes": {"name": "x"}}, "not a manifest of automatic labels"),
        ({"complete": False}, "this labelling is not finished"),
        ({"failures": [{"image": "x.png", "why": "?"}]}, r"1 images were not labelled \(x\.png\)"),
    ],
)
def test_manifests_that_do_not_fit(tree: Path, tmp_path: Path, change: dict, said: str) -> None:
    place = make_auto_labels(tmp_path / "auto", names_of(tree), form="ids", manifest=True, **change)
    with pytest.raises(DataError, match=said) as caught:
        listed(tree, place)
    assert "manifest.json" in str(caught.value)


@pytest.mark.parametrize("outside", ["/etc/passwd", "../secret.png", "a/../../b.png"])
def test_manifest_cannot_point_outside_its_folder(tree: Path, tmp_path: Path, outside: str) -> None:
    place = make_auto_labels(tmp_path / "auto", names_of(tree), form="ids", manifest=True)
    (place / "images.jsonl").write_text(
        json.dumps({"image": names_of(tree)[0] + ".png", "label": outside}) + "\n"
    )
    with pytest.raises(DataError, match="lies outside its folder"):
        listed(tree, place)


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (
            [{"image": "berlin/foreign.png", "label": "x.png"}],
            r"1 of its images are not in this split: berlin/foreign\.png",
        ),
        (
            [{"image": "augsburg_000000_000019_leftImg8bit.png", "label": "absent.png"}],
            r"1 of the files it lists do not exist: .*absent\.png",
        ),
        ([{"label": "x.png"}], "line 1 names no image and label"),
        ([], "it lists no image"),
    ],
)
def test_entries_that_do_not_fit(tree: Path, tmp_path: Path, lines: list, said: str) -> None:
    place = make_auto_labels(tmp_path / "auto", names_of(tree), form="ids", manifest=True)
    (place / "images.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(DataError, match=said):
        listed(tree, place)


def test_what_is_missing_for_a_wish_is_said(tree: Path, tmp_path: Path) -> None:
    place = make_auto_labels(tmp_path / "auto", names_of(tree), form="ids", confidence=False)
    with pytest.raises(
        DataError, match="a confidence threshold is set, but there are no confidence images"
    ):
        listed(tree, place, confidence_threshold=0.5)
    with pytest.raises(
        DataError,
        match=r"no automatic labels in .*empty.* expected "
        r"augsburg/augsburg_000000_000019_gtAuto_labelIds\.png",
    ):
        (tmp_path / "empty").mkdir()
        listed(tree, tmp_path / "empty")
    with pytest.raises(DataError, match=r"folder of automatic labels .*nowhere does not exist"):
        listed(tree, tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"set data\.extra\.root"):
        listed(tree, None)
    save(place / "augsburg/augsburg_000000_000019_gtAuto_confidence.png", label((9, 9)))
    save(place / "augsburg/augsburg_000001_000019_gtAuto_confidence.png", label((24, 48)))
    save(place / "bamberg/bamberg_000000_000019_gtAuto_confidence.png", label((24, 48)))
    with pytest.raises(DataError, match="confidence has 9 x 9 pixels but its label 24 x 48"):
        listed(tree, place, confidence_threshold=0.5).read_label(0)


def test_automatic_labels_of_a_folder_data_set(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "data", {"train": ["x/a", "b"]})
    for name in ("x/a", "b"):
        save(tmp_path / f"auto/{name}.png", label(values=(2, 255)))
    files = build_files(
        dataset="folder",
        root=root,
        split="train",
        labels="auto",
        label_root=tmp_path / "auto",
        policy={"a": "union"},
    )
    drawn = build_files(dataset="folder", root=root, split="train").read_label(1)
    merged = files.read_label(1, image_size=(24, 32))
    assert np.array_equal(merged, np.where(drawn == 0, 0, label(values=(2, 255))))


def test_labels_written_from_the_spec_are_read_back(tree: Path, tmp_path: Path) -> None:
    place = tmp_path / "auto"
    train = label((24, 48), values=(*range(19), 255))
    for name in names_of(tree):
        save(
            place / f"{name.removesuffix('_leftImg8bit')}_gtAuto_labelIds.png",
            CITYSCAPES.to_raw[train],
        )
    assert np.array_equal(listed(tree, place).read_label(0), train)


def test_reads_what_the_commands_write(tree: Path, tmp_path: Path) -> None:
    place, train = tmp_path / "out", label((24, 48), values=(0, 13, 255))
    records, lines = [], []
    for name in names_of(tree):
        path = place / label_name(name, label_ids="raw")
        path.parent.mkdir(parents=True, exist_ok=True)
        counts = np.bincount(train[train != 255], minlength=19).tolist()
        records.append({"counts": counts, "predicted": counts, "mean_confidence": 0.9})
        path.write_bytes(encode_label(CITYSCAPES.to_raw[train], records[-1]))
        (place / confidence_name(name)).write_bytes(
            encode_label(np.full((24, 48), 255, np.uint8), {})
        )
        lines.append(
            {
                "image": f"{name}.png",
                "label": path.relative_to(place).as_posix(),
                "confidence": confidence_name(name),
            }
        )
    settings = {"label_ids": "raw", "classes": CITYSCAPES.to_dict()}
    (place / "images.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (place / "manifest.json").write_text(
        json.dumps(manifest(settings, records, [], CITYSCAPES.names))
    )
    assert np.array_equal(listed(tree, place, confidence_threshold=1.0).read_label(2), train)
    (place / "manifest.json").unlink()
    assert np.array_equal(
        listed(tree, place, confidence_threshold=1.0).read_label(2), train
    )  # the names alone suffice
    failed = manifest(
        settings,
        records[1:],
        [{"image": names_of(tree)[0], "why": "not labelled yet"}],
        CITYSCAPES.names,
    )
    (place / "manifest.json").write_text(json.dumps(failed))
    with pytest.raises(DataError, match="1 images were not labelled"):
        listed(tree, place)
