"""`hmsa init`: masks of every usual kind become a data set that is read as it is."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml

from hmsa.datasets import Files, build_files
from hmsa.engine.arguments import init_command
from hmsa.engine.init.splitting import split_off
from hmsa.utils.config import Config, load_config
from tests.datasets.trees import label, photo, save

COLORS = np.array([[0, 0, 0], [250, 10, 10], [10, 250, 10]], np.uint8)
NAMES = [f"rec{number // 4}_{number:03d}" for number in range(12)]


def value(number: int) -> np.ndarray:
    """The label of an image, ids 0 to 2; of the first image 0 alone."""
    return label(seed=number) * np.uint8(number > 0)


def colours(root: Path) -> None:
    for number, name in enumerate(NAMES):
        save(root / f"images/{name}.jpg", photo(seed=number))
        save(root / f"masks/{name}.png", COLORS[value(number)])


def binary(root: Path) -> None:
    for number, name in enumerate(NAMES):
        save(root / f"{name}.jpg", photo(seed=number))
        save(root / f"{name}_mask.png", np.uint8(255) * (value(number) == 1))


def wide_by_annot(root: Path) -> None:
    for number, name in enumerate(NAMES):
        split = "train" if number < 9 else "val"
        save(root / split / f"{name}.png", photo(seed=number))
        save(root / f"{split}annot/{name}.png", value(number).astype(np.uint16))


def shuffled_palettes(root: Path) -> None:
    """Palette pictures whose indices mean something else in each file."""
    for number, name in enumerate(NAMES):
        save(root / f"photos/{name}.jpg", photo(seed=number))
        turned = np.roll(np.arange(3), number)
        palette = np.zeros((256, 3), np.uint8)
        palette[turned] = COLORS
        indices = turned[value(number)].astype(np.uint8)
        save(root / f"drawn/{name}.png", indices, palette=palette.tobytes())


def voc(root: Path) -> None:
    palette = np.zeros((256, 3), np.uint8)
    palette[:3] = COLORS
    for number, name in enumerate(NAMES):
        save(root / f"JPEGImages/{name}.jpg", photo(seed=number))
        save(root / f"SegmentationClass/{name}.png", value(number), palette=palette.tobytes())
    lists = root / "ImageSets/Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("\n".join(NAMES[:9]))
    (lists / "val.txt").write_text("\n".join(NAMES[9:]))


def standard(root: Path) -> None:
    for number, name in enumerate(NAMES):
        split = "train" if number < 9 else "val"
        save(root / f"images/{split}/{name}.jpg", photo(seed=number))
        save(root / f"labels/{split}/{name}.png", value(number))


def listed(root: Path) -> None:
    for number, name in enumerate(NAMES):
        save(root / f"x/{name}.jpg", photo(seed=number))
        save(root / f"y/{number}.png", value(number))
    rows = [f"x/{name}.jpg y/{number}.png" for number, name in enumerate(NAMES)]
    (root / "train.txt").write_text("\n".join(rows[:9]))
    (root / "val.txt").write_text("\n".join(rows[9:]))


KINDS = (colours, binary, wide_by_annot, shuffled_palettes, voc, standard, listed)


def split_of(config: Config, name: str) -> Files:
    data = config.data
    return build_files(dataset="folder", root=data.root, split=name, classes=data.classes)


def content(root: Path) -> dict[str, bytes]:
    files = [path for path in root.rglob("*") if path.is_file()]
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in files}


@pytest.mark.parametrize("make", KINDS, ids=lambda make: make.__name__)
def test_every_kind_of_masks_is_read_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], make
) -> None:
    monkeypatch.chdir(tmp_path)
    root = tmp_path / "mine"
    make(root)
    before = content(root)
    assert init_command(["mine"]) == 0
    said = capsys.readouterr().out
    assert "12 images with labels; " in said and said.endswith("  hmsa train mine.yaml\n")
    assert "mine/classes.yaml, mine.yaml\n" in said

    # Nothing of the user's was changed, and what was added reads back as the labels that were made.
    after = content(root)
    assert before.items() <= after.items()
    config = load_config("mine.yaml")
    splits = [split_of(config, config.data.train_split), split_of(config, config.data.val_split)]
    counts = (10, 2) if "of 0.2" in said else (9, 3)
    if "whole recordings" in said:
        counts = (8, 4)
    assert tuple(map(len, splits)) == counts

    spec = splits[0].spec
    expected_names = 2 if make is binary else 3
    assert spec.num_classes == expected_names
    seen = []
    for files in splits:
        for index in range(len(files)):
            number = NAMES.index(files.image_path(index).stem)
            seen.append(number)
            truth = value(number)
            if make is binary:
                truth = (truth == 1).astype(np.uint8)
            read = files.read_label(index, image_size=(24, 32))
            # Classes of colours come in another order; the same pixels are of one class.
            order = (
                [
                    next(i for i, item in enumerate(spec.classes) if item.color == tuple(color))
                    for color in COLORS.tolist()
                ]
                if make in (colours, shuffled_palettes)
                else list(range(3))
            )
            assert np.array_equal(read, np.array(order, np.uint8)[truth]), make.__name__
    assert sorted(seen) == list(range(12))


def test_names_ignored_values_and_shares(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    colours(tmp_path / "mine")
    words = ["mine", "--ignore", "0,0,0", "--classes", "red", "green", "--val", "0.34"]
    assert init_command([*words, "--output", "sub/my.yaml"]) == 0
    classes = yaml.safe_load((tmp_path / "mine/classes.yaml").read_text())
    assert classes["ignore"] == [[0, 0, 0]]
    assert {item["name"] for item in classes["classes"]} == {"red", "green"}
    config = load_config("sub/my.yaml")
    assert len(split_of(config, config.data.val_split)) == 4
    files = split_of(config, config.data.train_split)
    assert {255} < set(np.unique(np.concatenate([files.read_label(i) for i in range(8)])))


def test_files_that_are_there_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing is written where anything is in the way; an own class list is used."""
    monkeypatch.chdir(tmp_path)
    standard(tmp_path / "mine")
    text = "classes: [{name: x}, {name: y}, {name: z}]\n"
    (tmp_path / "mine/classes.yaml").write_text(text)
    assert init_command(["mine", "--classes", "a"]) == 2
    assert init_command(["mine"]) == 0
    assert (tmp_path / "mine/classes.yaml").read_text() == text
    before = content(tmp_path)
    assert init_command(["mine"]) == 2
    assert "mine.yaml: is there already" in capsys.readouterr().err
    assert content(tmp_path) == before
    assert init_command(["mine", "--force"]) == 0
    assert "class_0" in (tmp_path / "mine/classes.yaml").read_text()


def jpeg_labels(root: Path) -> None:
    standard(root)
    for path in (root / "labels").rglob("*.png"):
        shutil.move(path, path.with_suffix(".jpg"))


def nothing(root: Path) -> None:
    root.mkdir()


def only_photos(root: Path) -> None:
    save(root / "a.jpg", photo())


def photographs(root: Path) -> None:
    for number, name in enumerate(NAMES):
        save(root / f"images/{name}.jpg", photo(seed=number))
        save(root / f"labels/{name}.png", photo(seed=number))


@pytest.mark.parametrize(
    ("make", "words", "said"),
    [
        (jpeg_labels, [], "JPEG, whose compression"),
        (nothing, [], "no image"),
        (only_photos, [], "1 images and no labels"),
        (photographs, [], "different colours, too many for classes"),
        (standard, ["--classes", "a", "b"], "--classes names 2 classes and the labels hold 3"),
    ],
    ids=lambda item: getattr(item, "__name__", None),
)
def test_what_cannot_be_used_is_one_sentence(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    make,
    words: list[str],
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    make(tmp_path / "mine")
    assert init_command(["mine", *words]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and said in error
    assert not (tmp_path / "mine.yaml").exists()


def test_polygons_become_labels_beside_the_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """labelme's JSON: rectangles and polygons, later ones above earlier ones."""
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        save(tmp_path / f"mine/{name}.jpg", photo())
        shapes = [
            {"label": "wall", "shape_type": "rectangle", "points": [[0, 0], [15, 23]]},
            {"label": "door", "points": [[4, 4], [8, 4], [8, 8], [4, 8]]},
            {"label": "line", "shape_type": "line", "points": [[0, 0], [3, 3]]},
        ]
        drawn = {"shapes": shapes, "imageHeight": 24, "imageWidth": 32}
        (tmp_path / f"mine/{name}.json").write_text(json.dumps(drawn))
    assert init_command(["mine"]) == 0
    config = load_config("mine.yaml")
    files = split_of(config, config.data.train_split)
    assert files.spec.names == ("background", "door", "wall")
    read = files.read_label(0, image_size=(24, 32))
    assert (read[6, 6], read[20, 2], read[12, 28]) == (1, 2, 0)


def test_polygons_of_cvat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rows = ""
    for name in ("a", "b"):
        save(tmp_path / f"mine/{name}.jpg", photo())
        rows += (
            f'<image name="{name}.jpg" width="32" height="24">'
            '<polygon label="car" points="0,0;9,0;9,9;0,9"/>'
            '<box label="sky" xtl="20" ytl="0" xbr="31" ybr="5"/></image>'
        )
    (tmp_path / "mine/annotations.xml").write_text(f"<annotations>{rows}</annotations>")
    assert init_command(["mine"]) == 0
    config = load_config("mine.yaml")
    read = split_of(config, config.data.val_split).read_label(0)
    assert (read[5, 5], read[2, 25], read[20, 5]) == (1, 2, 0)


def test_the_share_follows_from_the_names_alone() -> None:
    frames = [f"{place}_{number:04d}.jpg" for place in "abcdef" for number in range(10)]
    chosen, together = split_off(frames, 0.2)
    assert together and len({frames[index][0] for index in chosen}) * 10 == len(chosen) == 10
    assert split_off(frames, 0.2) == (chosen, together)

    # Without recordings single images are drawn, wherever they stand in the list.
    single = [f"photo{number}.jpg" for number in range(30)]
    chosen, together = split_off(single, 0.2)
    assert not together and len(chosen) == 6
    turned, _ = split_off(single[::-1], 0.2)
    assert {single[index] for index in chosen} == {single[::-1][index] for index in turned}
