"""Names from outside: lists of every spelling, odd class lists, and where results go."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from hmsa.datasets import DataError, Files, build_files, image_files
from hmsa.datasets.layouts.class_list import load_class_list
from hmsa.datasets.output_names import LONGEST_PART, output_names
from tests.datasets.trees import make_folder, photo, save, toy_spec, write_class_list


def listed(root: Path, split: str = "train", **options: object) -> Files:
    return build_files(dataset="folder", root=root, split=split, **options)  # type: ignore[arg-type]


def is_safe(name: str) -> bool:
    parts = name.split("/")
    return (
        not os.path.isabs(name)
        and not set(parts) & {"", ".", ".."}
        and "\0" not in name
        and all(len(os.fsencode(part)) <= LONGEST_PART for part in parts)
    )


parts = st.sampled_from(
    ["..", ".", "", "a", "A", "b.png", "~", "n" * 300, ".x", "é" * 150, "\udce9"]
)
paths = st.lists(parts, min_size=1, max_size=4).map("/".join)


@given(st.lists(paths, max_size=8, unique=True))
def test_output_names_stay_below_their_folder_and_apart(names: list[str]) -> None:
    """Whatever a list names: relative, no `..`, room for endings, none twice, whatever the case."""
    found = output_names(names)
    assert all(map(is_safe, found)) and len({name.casefold() for name in found}) == len(names)
    assert found == output_names(names)


@given(st.lists(st.text("ab/_", min_size=1, max_size=6).filter(is_safe), unique=True))
def test_safe_output_names_stay_as_they_are(names: list[str]) -> None:
    assert output_names(names) == names


def test_no_output_carries_the_name_of_another() -> None:
    """A confidence image of "a" is called as the label of an image "a_confidence" would be."""
    names = ["a", "a_confidence", "x_leftImg8bit", "x_gtAuto_labelIds", "b_confidence"]
    found = output_names(names)
    assert (found[0], found[2], found[4]) == ("a", "x_leftImg8bit", "b_confidence")
    assert found[1].startswith("a_confidence-") and found[3].startswith("x_gtAuto_labelIds-")


def test_lists_that_lead_outside_are_read_and_named_inside(tmp_path: Path) -> None:
    """The kind: data sets and images to predict, by `..` and by absolute names."""
    root = make_folder(tmp_path / "data", {"train": ["a"]})
    for name in ("other/a.jpg", "a.jpg", "other/deep/a.jpg"):
        save(tmp_path / name, photo())
    lines = [
        "images/train/a.jpg",
        "../other/a.jpg",
        "../a.jpg",
        str(tmp_path / "other/deep/a.jpg"),
        "images/../../other/deep/../../a.jpg",
    ]
    (root / "mine.txt").write_text("\n".join(lines))
    for files in (
        listed(root, "mine.txt", labels="none"),
        image_files([root / "mine.txt", tmp_path / "other" / ".." / "other"], spec=toy_spec()),
    ):
        for names in ([files.name(index) for index in range(len(files))],):
            assert all(map(is_safe, names)) and len(set(names)) == len(names) >= 4
        outputs = [files.output_name(index) for index in range(len(files))]
        assert all(map(is_safe, outputs)) and len(set(outputs)) == len(outputs)
        assert files.read_image(1).shape == (24, 32, 3)


def test_output_names_survive_pickling_and_long_names(tmp_path: Path) -> None:
    name = "n" * 251 + ".png"
    save(tmp_path / name, photo())
    files = pickle.loads(pickle.dumps(image_files([tmp_path], spec=toy_spec())))
    assert files.name(0) == "n" * 251 and len(files.output_name(0)) == LONGEST_PART
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / f"{files.output_name(0)}_gtAuto_labelTrainIds.failed").touch()


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("ending", ["\n", "\r\n", "\r"])
def test_list_files_of_every_editor(tmp_path: Path, encoding: str, ending: str) -> None:
    root = make_folder(tmp_path, {"all": ["ä", "b"]})
    rows = [f"images/all/{name}.jpg labels/all/{name}.png" for name in ("ä", "b")]
    (root / "train.txt").write_bytes(ending.join(rows).encode(encoding))
    assert [listed(root).name(index) for index in range(2)] == ["ä", "b"]


def test_names_in_lists_that_are_not_utf8(tmp_path: Path) -> None:
    """Bytes of the file system, and what splitlines() would take for an end of line."""
    names = [b"caf\xe9.png", "a\x85b.png".encode(), "c\u2028d.png".encode()]
    try:
        for name in names:
            save(tmp_path / "images" / os.fsdecode(name), photo())
    except OSError:
        pytest.skip("the file system refuses such names")
    (tmp_path / "list.txt").write_bytes(b"\n".join(b"images/" + name for name in names))
    files = image_files([tmp_path / "list.txt"], spec=toy_spec())
    assert len(files) == 3 and all(files.read_image(index).any() for index in range(3))
    os.unlink(files.image_path(0))
    with pytest.raises(DataError) as caught:
        files.read_image(0)
    str(caught.value).encode("utf-8")


def test_the_users_folder_is_known_wherever_a_path_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    root = make_folder(tmp_path / "data", {"train": ["a"]})
    (root / "mine.txt").write_text("~/data/images/train/a.jpg ~/data/labels/train/a.png\n")
    assert listed(Path("~/data"), classes="~/data/classes.yaml").name(0) == "a"
    assert listed(root, "mine.txt").label_path(0) == root / "labels/train/a.png"
    assert len(image_files(["~/data/mine.txt", "~/data/images"], spec=toy_spec())) == 1


@pytest.mark.parametrize("name", ["x" * 300, "a\0b", "x" * 5000])
def test_impossible_paths_are_sentences(tmp_path: Path, name: str) -> None:
    root = make_folder(tmp_path, {"train": ["a"]})
    for wrong in (
        lambda: build_files(dataset="folder", root=f"{root}/{name}", split="train"),
        lambda: listed(root, name),
        lambda: listed(root, f"{name}.txt"),
        lambda: listed(root, classes=f"{root}/{name}"),
        lambda: listed(root, labels="auto", label_root=f"{root}/{name}"),
        lambda: build_files(dataset="cityscapes", root=root, split="train"),
        lambda: build_files(dataset="mapillary", root=root, split="train", classes=name),
        lambda: image_files([f"{root}/{name}"], spec=toy_spec()),
        lambda: image_files([f"{root}/{name}*"], spec=toy_spec()),
    ):
        with pytest.raises(DataError) as caught:
            wrong()
        assert "\0" not in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("classes: [{name: a, id: 2001-99-99}]", r"classes\[0\]\.id: must be an id from 0 to 255"),
        ("classes: [{name: a, id: 2001-01-01}]", r"classes\[0\]\.id: must be an id from 0 to 255"),
        (f"classes: [{{name: a, id: {'9' * 6000}}}]", "digits"),
        (f"classes: [{{name: a, ids: [0x{'f' * 4000}]}}]", "digits|must be an id"),
        ("classes: [{name: a, id: 010}]", "leading zeros"),
        ("classes: [{name: a, id: .nan}]", "must be an id"),
        ("classes: [{name: 2001-99-99, id: 0}, {name: a, id: 1e400}]", "must be an id"),
        ("classes: {a: 1}", "must be a list"),
        ("classes: [{name: a, color: [.inf, 0, 0]}]", "must be .red, green, blue."),
        ("classes: [{name: a}]\nlayout: [1]", "layout: must hold the keys"),
        (
            "classes: [{name: a, id: 255}]\nignore: 255",
            "ignore: id 255 is both .* 'ignore: \\[\\]'",
        ),
        ("classes: [{name: a, id: 255}]\nignore: -1", "ignore: id 255 is both a class and ignore"),
    ],
)
def test_odd_values_in_class_lists_are_one_sentence(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "classes.yaml"
    path.write_text(text)
    with pytest.raises(DataError, match=said) as caught:
        load_class_list(path)
    assert "\n" not in str(caught.value) and "classes.yaml" in str(caught.value)
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize("more", ["", "\nignore: []", "\nignore: null", "\nignore: 254"])
def test_binary_masks_have_a_way_out(tmp_path: Path, more: str) -> None:
    """What the advice for masks of 0 and 255 says can be done: 255 among the ids of a class."""
    path = tmp_path / "classes.yaml"
    path.write_text(f"classes: [{{name: background, id: 0}}, {{name: thing, ids: [1, 255]}}]{more}")
    spec, _ = load_class_list(path)
    assert spec.to_train[[0, 1, 255]].tolist() == [0, 1, 1] and spec.raw_ignore == 254


def test_a_long_list_with_one_line_twice_says_so_at_once(tmp_path: Path) -> None:
    """Counting, not comparing each with each: what took minutes is not even measurable here."""
    root = make_folder(tmp_path, {"all": ["a"]})
    names = [f"images/all/{number}.jpg" for number in range(3000)]
    for name in names:
        (root / name).touch()
    (root / "train.txt").write_text("\n".join([*names, names[0]]))
    with pytest.raises(DataError, match=r"listed more than once: images/all/0\.jpg"):
        listed(root)


def test_fingerprints_follow_the_bytes(tmp_path: Path) -> None:
    """An image replaced by another of the same size and time is another one."""
    first, second = photo(seed=1), photo(seed=2)
    path = tmp_path / "a.bmp"
    Image.fromarray(first).save(path)
    status = path.stat()
    files = image_files([path], spec=toy_spec())
    before = files.fingerprint(0)
    image, own = files.read_image_and_fingerprint(0)
    assert own == before and np.array_equal(image, first) and len(before) == 32
    Image.fromarray(second).save(path)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert path.stat().st_size == status.st_size and files.fingerprint(0) != before
    path.unlink()
    with pytest.raises(DataError, match=r"a\.bmp: file does not exist"):
        files.fingerprint(0)


def test_folders_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    root = make_folder(tmp_path, {"train": ["a"]})
    write_class_list(root / "classes.yaml")
    os.symlink("loop.jpg", root / "images/train/loop.jpg")
    with pytest.raises(DataError, match=r"without label in .*loop\.jpg"):
        listed(root)


@pytest.mark.parametrize("name", ["b.gif", "c.pgm", "d.jfif", "e.jp2", "f.mp4"])
def test_images_in_other_formats_are_said_where_they_are_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    """In a folder to predict, and in a split; what is no image stays unsaid."""
    root = make_folder(tmp_path, {"train": ["a"]})
    (root / "images/train/notes.txt").touch()
    assert len(image_files([root / "images/train"], spec=toy_spec())) == 1
    assert capsys.readouterr().err == ""
    (root / "images/train" / name).touch()
    for list_files in (
        lambda: listed(root),
        lambda: image_files([root / "images/train"], spec=toy_spec()),
    ):
        assert len(list_files()) == 1
        said = capsys.readouterr().err
        assert (
            f"1 files in formats that are not looked for in a folder are left out ({name})" in said
        )
