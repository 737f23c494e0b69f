"""Folder data sets: split folders, nested folders, globs and list files; what does not pair is
named.
"""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import yaml

from hmsa.datasets import DataError, Files, build_files, image_files, read_label
from hmsa.datasets.layouts.class_list import Layout
from hmsa.datasets.layouts.listing import glob_to_regex
from tests.datasets.trees import label, make_folder, photo, save, touch, toy_spec, write_class_list


def listed(root: Path, split: str = "train", **options: object) -> Files:
    return build_files(dataset="folder", root=root, split=split, **options)  # type: ignore[arg-type]


def test_reads_the_layout_of_camvid(tmp_path: Path) -> None:
    make_folder(tmp_path, {"train": ["0001TP_006690", "0016E5_00390"], "val": ["Seq05_1"]})
    files = listed(tmp_path)
    assert [files.name(i) for i in range(len(files))] == ["0001TP_006690", "0016E5_00390"]
    assert files.image_path(1) == tmp_path / "images/train/0016E5_00390.jpg"
    assert files.label_path(1) == tmp_path / "labels/train/0016E5_00390.png"
    assert files.split == "train" and files.spec.names == ("a", "b", "c")
    image = files.read_image(0)
    assert files.read_label(0, image_size=image.shape[:2]).shape == image.shape[:2]
    assert len(listed(tmp_path, "val")) == 1


def test_files_are_compact_and_survive_pickling(tmp_path: Path) -> None:
    files = pickle.loads(pickle.dumps(listed(make_folder(tmp_path, {"train": ["b", "a", "c"]}))))
    assert all(array.dtype.kind == "S" for array in (files.images, files.labels, files.names))
    assert [files.name(i) for i in range(3)] == ["a", "b", "c"]
    assert files.label_path(2) == tmp_path / "labels/train/c.png" and files.human is None
    assert files.label_sources(1) == (files.label_path(1),)


def test_label_settings_follow_what_decides_the_label(tmp_path: Path) -> None:
    make_folder(tmp_path, {"train": ["a"]})
    plain = listed(tmp_path).label_settings()
    assert plain == listed(tmp_path).label_settings()
    assert plain != listed(tmp_path, mask_border=True).label_settings()
    write_class_list(
        tmp_path / "other.yaml",
        ["b", "a", "c"],
        classes=[{"name": "b", "id": 1}, {"name": "a", "id": 0}, {"name": "c", "id": 2}],
    )
    assert plain != listed(tmp_path, classes=tmp_path / "other.yaml").label_settings()


def test_class_list_elsewhere_or_relative_to_the_root(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "data", {"train": ["a"]})
    os.rename(root / "classes.yaml", root / "mine.yaml")
    with pytest.raises(DataError, match=r"data\.classes is not set .*classes\.yaml does not exist"):
        listed(root)
    assert listed(root, classes="mine.yaml").spec.num_classes == 3
    assert listed(root, classes=str(root / "mine.yaml")).spec.num_classes == 3


def test_nested_folders_keep_relative_names_and_hidden_files_are_left_out(tmp_path: Path) -> None:
    make_folder(tmp_path, {"train": ["city/a", "city/deep/b", "top"]})
    touch(tmp_path / "images/train/.DS_Store")
    touch(tmp_path / "images/train/._top.jpg")
    touch(tmp_path / "images/train/notes.txt")
    touch(tmp_path / "labels/train/.cache/x.png")
    files = listed(tmp_path)
    assert [files.name(i) for i in range(3)] == ["city/a", "city/deep/b", "top"]


def test_suffixes_in_capitals(tmp_path: Path) -> None:
    make_folder(tmp_path, {"train": ["a"]}, suffix=".JPG")
    assert listed(tmp_path).image_path(0).name == "a.JPG"


def test_links_that_lead_in_circles_end(tmp_path: Path) -> None:
    make_folder(tmp_path, {"train": ["a"]})
    os.symlink(tmp_path / "images", tmp_path / "images/train/again")
    with pytest.raises(DataError, match="without label"):
        listed(tmp_path)


@pytest.mark.parametrize(
    ("where", "said"),
    [
        ("labels", "image in .*images/train without label in .*labels/train: .*b.jpg"),
        ("images", "label in .*labels/train without image in .*images/train: .*b.png"),
    ],
)
def test_image_without_label_and_label_without_image(tmp_path: Path, where: str, said: str) -> None:
    make_folder(tmp_path, {"train": ["a", "b"]})
    next((tmp_path / where / "train").glob("b.*")).unlink()
    with pytest.raises(DataError, match=f"1 {said}"):
        listed(tmp_path)


def test_many_without_partner_are_counted(tmp_path: Path) -> None:
    make_folder(tmp_path, {"train": [f"n{i}" for i in range(9)]})
    for i in range(1, 9):
        (tmp_path / f"labels/train/n{i}.png").unlink()
    with pytest.raises(DataError, match=r"8 images .*n1\.jpg, .*n2\.jpg, .*n3\.jpg and 5 more"):
        listed(tmp_path)


def test_two_images_of_one_name(tmp_path: Path) -> None:
    make_folder(tmp_path, {"train": ["a"]})
    save(tmp_path / "images/train/a.png", photo())
    with pytest.raises(DataError, match=r"a\.jpg and a\.png share the name 'a'"):
        listed(tmp_path)


def test_missing_root_split_and_images_are_told_with_what_is_there(tmp_path: Path) -> None:
    make_folder(tmp_path, {"train": ["a"]})
    with pytest.raises(
        DataError,
        match=r"data root .*/nowhere does not exist .*classes\.yaml, images/, labels/.*"
        r"set data\.root",
    ):
        listed(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"data root .*classes\.yaml is not a folder"):
        listed(tmp_path / "classes.yaml")
    with pytest.raises(
        DataError,
        match=r"image folder of split 'vall' .*images/vall does not exist .*images holds train/",
    ):
        listed(tmp_path, "vall")
    (tmp_path / "images/empty").mkdir()
    touch(tmp_path / "images/empty/readme.md")
    with pytest.raises(
        DataError,
        match=r"split 'empty' is empty: no image .* below .*images/empty, which holds readme\.md",
    ):
        listed(tmp_path, "empty")


def test_a_split_without_label_folder_has_no_labels(tmp_path: Path) -> None:
    make_folder(tmp_path, {"train": ["a"]})
    save(tmp_path / "images/test/x.jpg", photo())
    files = listed(tmp_path, "test")
    assert files.labels is None and files.label_path(0) is None
    with pytest.raises(
        DataError,
        match="split 'test' .* has no labels: it can be predicted, but neither trained on nor "
        "scored",
    ):
        files.require_labels()
    with pytest.raises(DataError, match="has no labels"):
        files.read_label(0)


def test_images_only_needs_no_labels(tmp_path: Path) -> None:
    make_folder(tmp_path, {"train": ["a", "b"]})
    (tmp_path / "labels/train/a.png").unlink()
    files = listed(tmp_path, labels="none")
    assert files.labels is None and len(files) == 2


def test_glob_pairs_by_what_the_wildcards_match(tmp_path: Path) -> None:
    write_class_list(
        tmp_path / "classes.yaml",
        layout={"images": "{split}/**/rgb_*.png", "labels": "masks/{split}/**/*_L.png"},
    )
    for name in ("x/1", "x/2", "y/1", "3"):
        folder, _, base = name.rpartition("/")
        save(tmp_path / "train" / folder / f"rgb_{base}.png", photo())
        save(tmp_path / "masks/train" / folder / f"{base}_L.png", label())
        touch(tmp_path / "train" / folder / f"depth_{base}.png")
    files = listed(tmp_path)
    assert [files.name(i) for i in range(4)] == ["3", "x/1", "x/2", "y/1"]
    assert files.label_path(1) == tmp_path / "masks/train/x/1_L.png"
    with pytest.raises(
        DataError, match=r"split 'val' is empty: no file matches .*val/\*\*/rgb_\*\.png"
    ):
        listed(tmp_path, "val")


def test_globs_whose_wildcards_cannot_tell_files_apart(tmp_path: Path) -> None:
    write_class_list(tmp_path / "classes.yaml")
    save(tmp_path / "in/a/b_c.png", photo())
    layout = Layout(images="in/**/*_*.png", labels="in/**/*_*.png")
    assert listed(tmp_path, layout=layout).name(0) == "a/b/c"
    save(tmp_path / "in/a/b/_c.png", photo())
    with pytest.raises(
        DataError, match=r"in/a/b/_c\.png and in/a/b_c\.png cannot be told apart .*'a/b/c'"
    ):
        listed(tmp_path, layout=layout)


@pytest.mark.parametrize(
    ("pattern", "path", "groups"),
    [
        ("a/*.png", "a/x.png", ("x",)),
        ("a/*.png", "a/b/x.png", None),
        ("a/**/*.png", "a/x.png", ("", "x")),
        ("a/**/*.png", "a/b/c/x.png", ("b/c/", "x")),
        ("?_*.png", "1_q.png", ("1", "q")),
        ("a.c/*.png", "abc/x.png", None),
    ],
)
def test_globs_as_regular_expressions(
    pattern: str, path: str, groups: tuple[str, ...] | None
) -> None:
    match = glob_to_regex(pattern).fullmatch(path)
    assert (None if match is None else match.groups()) == groups


@pytest.mark.parametrize("separator", [" ", "\t", ",", ", "])
def test_list_files(tmp_path: Path, separator: str) -> None:
    make_folder(tmp_path, {"all": ["a", "b", "c"]})
    rows = [f"images/all/{name}.jpg{separator}labels/all/{name}.png" for name in ("c", "a")]
    (tmp_path / "train.txt").write_text("# my split\n\n" + "\n".join(rows) + "\n")
    files = listed(tmp_path)
    assert [files.name(i) for i in range(2)] == ["c", "a"]
    assert files.label_path(0) == tmp_path / "labels/all/c.png"
    (tmp_path / "lists").mkdir()
    os.rename(tmp_path / "train.txt", tmp_path / "lists/mine.txt")
    assert len(listed(tmp_path, "lists/mine.txt")) == 2
    write_class_list(tmp_path / "classes.yaml", layout={"list": "lists/{split}.txt"})
    assert len(listed(tmp_path, "mine")) == 2


def test_list_file_with_images_only_spaces_and_absolute_paths(tmp_path: Path) -> None:
    make_folder(tmp_path / "d", {"train": ["a b", "c"]})
    outside = save(tmp_path / "e/c.jpg", photo())
    (tmp_path / "d/test.txt").write_text(f"images/train/a b.jpg\nimages/train/c.jpg\n{outside}\n")
    files = listed(tmp_path / "d", "test")
    assert files.labels is None and files.image_path(2) == outside
    assert len({files.name(i) for i in range(3)}) == 3


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "images/all/a.jpg labels/all/a.png more\n",
            "line 1: .* does not name 'image label' or 'image'",
        ),
        (
            "images/all/a.jpg labels/all/a.png\nimages/all/b.jpg\n",
            "line 2: .* as many files as the lines above",
        ),
        (
            "images/all/zz.jpg labels/all/a.png\n",
            r"1 of the files listed do not exist below .*: images/all/zz\.jpg",
        ),
        (
            "images/all/a.jpg labels/all/a.png\nimages/all/a.jpg labels/all/a.png\n",
            r"listed more than once: images/all/a\.jpg",
        ),
        ("# nothing\n", "list file names no image"),
    ],
)
def test_list_file_mistakes(tmp_path: Path, text: str, said: str) -> None:
    make_folder(tmp_path, {"all": ["a", "b"]})
    (tmp_path / "train.txt").write_text(text)
    with pytest.raises(DataError, match=said) as caught:
        listed(tmp_path)
    assert "train.txt" in str(caught.value)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"dataset": "cityscape"}, r"'cityscape' is no data set \(did you mean 'cityscapes'\?\)"),
        ({"labels": "cors"}, r"'cors' is no kind of labels \(did you mean 'coarse'\?\)"),
        ({"cv": 1}, r"cross-validation by city \(cv=1\) is for cityscapes"),
        ({"labels": "auto"}, "automatic labels need a folder or a manifest"),
        ({"policy": {"a": "union"}}, "joins automatic labels with others"),
        ({"confidence_threshold": 0.5}, "joins automatic labels with others"),
        ({"labels": "auto", "confidence_threshold": 1.5}, "threshold 1.5 must lie between 0 and 1"),
        (
            {"labels": "auto", "policy": {"a": "onion"}},
            r"'onion' is none of auto, human, union, drop \(did you mean 'union'\?\)",
        ),
        (
            {"labels": "auto", "label_root": ".", "policy": {"d": "union"}},
            "'d' is not a class of toy",
        ),
    ],
)
def test_contradictory_wishes(tmp_path: Path, options: dict, said: str) -> None:
    make_folder(tmp_path, {"train": ["a"]})
    with pytest.raises(DataError, match=said):
        build_files(**{"dataset": "folder", "root": tmp_path, "split": "train", **options})


def test_image_files_from_folders_files_globs_and_lists(tmp_path: Path) -> None:
    for name in ("in/x/1.png", "in/2.jpg", "more/3.png", "more/4.jpg", "list/deep/5.png"):
        save(tmp_path / name, photo())
    (tmp_path / "list/names.txt").write_text("deep/5.png\n")
    inputs = [
        tmp_path / "in",
        tmp_path / "more/3.png",
        f"{tmp_path}/more/*.jpg",
        tmp_path / "list/names.txt",
        str(tmp_path / "in/2.jpg"),
    ]
    files = image_files(inputs, spec=toy_spec())
    assert [files.name(i) for i in range(len(files))] == ["2", "x/1", "3", "4", "deep/5"]
    assert files.labels is None and files.image_path(1) == tmp_path / "in/x/1.png"
    assert files.split == "in and 4 more"
    assert files.read_image(4).shape == (24, 32, 3)


def test_image_files_keep_every_image_apart(tmp_path: Path) -> None:
    for name in ("one/a.png", "one/a.jpg", "one/b.png", "two/b.png", "deep/two/b.png"):
        save(tmp_path / name, photo())
    files = image_files(
        [tmp_path / "one", tmp_path / "two", tmp_path / "deep/two"], spec=toy_spec()
    )
    names = [files.name(i) for i in range(len(files))]
    assert names == ["a.jpg", "a.png", "one/b.png", "two/b.png.1", "two/b.png.2"]


def test_image_files_below_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path / "in/1.png", photo())
    monkeypatch.chdir(tmp_path)
    files = image_files(["in"], spec=toy_spec())
    monkeypatch.chdir("/")
    assert files.image_path(0) == tmp_path / "in/1.png"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("absent", "no such image, folder or list"),
        ("empty", "no image .* which holds nothing"),
        ("*.png", "no file matches this pattern"),
    ],
)
def test_image_files_that_are_not_there(tmp_path: Path, given: str, said: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=said):
        image_files([tmp_path / given], spec=toy_spec())
    with pytest.raises(DataError, match="no image was given"):
        image_files([], spec=toy_spec())


def test_names_with_bytes_that_are_not_utf8(tmp_path: Path) -> None:
    try:
        save(tmp_path / os.fsdecode(b"in/caf\xe9.png"), photo())
    except OSError:
        pytest.skip("the file system refuses such names")
    files = image_files([tmp_path / "in"], spec=toy_spec())
    assert files.read_image(0).shape == (24, 32, 3)


def test_listing_opens_no_file(tmp_path: Path) -> None:
    write_class_list(tmp_path / "classes.yaml")
    for i in range(50):
        touch(tmp_path / f"images/train/{i:05d}.jpg")
        touch(tmp_path / f"labels/train/{i:05d}.png")
    files = listed(tmp_path)
    assert len(files) == 50
    with pytest.raises(DataError, match=r"is empty \(0 bytes\)"):
        files.read_image(0)


def test_labels_outside_the_classes_name_the_file(tmp_path: Path) -> None:
    make_folder(tmp_path, {"train": ["a"]})
    path = save(tmp_path / "labels/train/a.png", label(values=(0, 1, 2, 3)))
    with pytest.raises(DataError, match=r"labels/train/a\.png: label value 3 .* one class more"):
        listed(tmp_path).read_label(0)
    assert np.array_equal(read_label(path, spec=toy_spec(4)), label(values=(0, 1, 2, 3)))


def test_labels_that_do_not_pair_say_what_to_do(tmp_path: Path) -> None:
    """Other endings, and JPEG."""
    root = make_folder(tmp_path, {"train": ["a", "b"]})
    for name in "ab":
        path = root / f"labels/train/{name}.png"
        path.rename(path.with_name(f"{name}_mask.png"))
    with pytest.raises(
        DataError, match=r"labels there end in _mask\.png: write 'layout: "
    ) as caught:
        listed(root)
    written = str(caught.value).split("'layout: ")[1].split("' into")[0]
    layout = Layout(**yaml.safe_load(written))
    assert len(build_files(dataset="folder", root=root, split="train", layout=layout)) == 2

    for name in "ab":
        (root / f"labels/train/{name}_mask.png").rename(root / f"labels/train/{name}.jpg")
    with pytest.raises(DataError, match=r"a\.jpg there is a JPEG, .*export labels as PNG"):
        listed(root)


def test_lists_of_names_as_pascal_voc_has_them(tmp_path: Path) -> None:
    root = make_folder(tmp_path, {"train": ["a", "b", "c"]})
    (root / "images/train").rename(root / "JPEGImages")
    (root / "labels/train").rename(root / "SegmentationClass")
    save_text(root / "ImageSets/Segmentation/train.txt", "b\na\n")
    files = listed(root, split="ImageSets/Segmentation/train.txt")
    assert [files.image_path(index).name for index in range(2)] == ["b.jpg", "a.jpg"]
    assert files.label_path(0) == root / "SegmentationClass/b.png"
    assert files.read_label(0).shape == (24, 32)

    # Names that are nowhere say what a line holds.
    save_text(root / "other.txt", "x\ny\n")
    with pytest.raises(DataError, match="x, y; lines are 'image label'"):
        listed(root, split="other.txt")


def save_text(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
