"""Verification: exact counts, one sentence for each kind of fault, and a configuration that suits
the data.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hmsa.datasets import (
    DataError,
    Files,
    Verification,
    build_files,
    count_pixels,
    find_duplicates,
    suggest_data,
    verify_files,
)
from hmsa.datasets.checks import verify as verify_module
from hmsa.datasets.checks.verify import histogram
from tests.datasets.trees import (
    encoded,
    label,
    make_cityscapes,
    make_folder,
    make_mapillary,
    photo,
    png_with_size,
    save,
    toy_spec,
)


def listed(root: Path, split: str = "train") -> Files:
    return build_files(dataset="folder", root=root, split=split)


def test_counts_are_exact(tmp_path: Path) -> None:
    files = listed(make_folder(tmp_path, {"train": ["a", "b", "c"]}))
    save(tmp_path / "labels/train/b.png", np.full((24, 32), 255, np.uint8))
    save(tmp_path / "images/train/c.jpg", photo((20, 30)))
    save(tmp_path / "labels/train/c.png", np.zeros((20, 30), np.uint8))
    found = verify_files(files, workers=2)
    own = label(seed=5000)
    assert found.counts.tolist() == [
        int((own == i).sum()) + (600 if i == 0 else 0) for i in range(3)
    ]
    assert found.images_with.tolist() == [2, 1, 1]
    assert (found.ignored, found.checked, found.total) == (768, 3, 3)
    assert found.sizes == {(24, 32): 2, (20, 30): 1}
    assert found.problems == [] and found.absent == ()
    found.raise_for_problems()


def test_pixels_are_counted_without_opening_an_image(tmp_path: Path) -> None:
    files = listed(make_folder(tmp_path, {"train": ["a", "b", "c"]}))
    expected = verify_files(files).counts
    for index in range(3):
        files.image_path(index).unlink()
    assert count_pixels(files, workers=2).tolist() == expected.tolist()
    save(tmp_path / "labels/train/b.png", label(values=(0, 9)))
    with pytest.raises(DataError, match=r"b\.png: label value 9"):
        count_pixels(files)
    with pytest.raises(DataError, match="has no labels"):
        count_pixels(
            build_files(
                dataset="folder",
                root=make_folder(tmp_path / "d", {"train": ["a"]}),
                split="train",
                labels="none",
            )
        )


def test_each_kind_of_fault_has_one_sentence(tmp_path: Path) -> None:
    names = [
        "good",
        "value1",
        "value2",
        "size",
        "rgb",
        "cut",
        "empty",
        "bomb",
        "wide",
        "cmyk",
        "swapped",
    ]
    make_folder(tmp_path, {"train": names}, suffix=".png")
    images, labels = tmp_path / "images/train", tmp_path / "labels/train"
    for name in ("value1", "value2"):
        save(labels / f"{name}.png", label(values=(0, 3)))
    save(labels / "size.png", label((12, 16)))
    save(labels / "rgb.png", toy_spec().palette[label()] + 1)
    (images / "cut.png").write_bytes(encoded(photo(), "PNG")[:300])
    (images / "empty.png").write_bytes(b"")
    (images / "bomb.png").write_bytes(png_with_size(60_000, 60_000))
    save(labels / "wide.png", label().astype(np.uint16) + 1000)
    Image.fromarray(photo()).convert("CMYK").save(images / "cmyk.png", "JPEG")
    (labels / "swapped.png").write_bytes(encoded(photo(), "JPEG"))
    found = verify_files(listed(tmp_path), workers=2)
    text = "\n".join(found.problems)
    for said in (
        "value1.png: label value 3",
        "size.png: label has 12 x 16",
        "rgb.png: label colours",
        "cut.png: image is truncated",
        "empty.png: image is empty",
        "bomb.png: image declares 60000 x 60000",
        "wide.png: label has 16",
        "cmyk.png: image has four CMYK channels",
        "images and labels swapped",
    ):
        assert said in text
    (value_sentence,) = [line for line in found.problems if "label value 3" in line]
    assert value_sentence.endswith("(the same kind of fault in 1 more: value2)")
    assert found.checked == len(names)
    with pytest.raises(
        DataError,
        match=r"split 'train': .* more kinds of fault; `hmsa check` lists them",
    ):
        found.raise_for_problems()


def test_a_label_is_compared_even_where_its_image_cannot_be_decoded(tmp_path: Path) -> None:
    make_folder(tmp_path, {"train": ["a"]}, suffix=".png")
    (tmp_path / "images/train/a.png").write_bytes(encoded(photo((48, 64)), "PNG")[:500])
    problems = verify_files(listed(tmp_path)).problems
    assert len(problems) == 2 and "but its image 48 x 64" in problems[1]


def test_files_that_vanish_after_listing_are_named(tmp_path: Path) -> None:
    files = listed(make_folder(tmp_path, {"train": ["a", "b"]}))
    (tmp_path / "images/train/a.jpg").unlink()
    (tmp_path / "labels/train/b.png").unlink()
    problems = verify_files(files).problems
    assert (
        len(problems) == 2
        and "a.jpg: image does not exist" in problems[0]
        and "b.png: label does not exist" in problems[1]
    )


def test_binary_masks_whose_255_would_be_ignore(tmp_path: Path) -> None:
    make_folder(tmp_path, {"train": ["a", "b"]}, classes=("background", "thing"))
    for name in "ab":
        save(tmp_path / f"labels/train/{name}.png", label(values=(0, 255)))
    (problem,) = verify_files(listed(tmp_path)).problems
    assert (
        "all 2 labels looked at hold only 0 and 255" in problem
        and "binary masks?" in problem
        and "write 'id: 255' for 'thing'" in problem
    )
    save(tmp_path / "labels/train/b.png", label(values=(0, 1, 255)))
    assert verify_files(listed(tmp_path)).problems == []


def test_labels_without_a_single_class_are_a_fault_and_mostly_ignored_ones_a_note(
    tmp_path: Path,
) -> None:
    make_folder(tmp_path, {"train": ["a"]})
    save(tmp_path / "labels/train/a.png", np.full((24, 32), 255, np.uint8))
    assert (
        "are ignored, so there is nothing to learn or to score"
        in verify_files(listed(tmp_path)).problems[0]
    )
    values = np.full((24, 32), 255, np.uint8)
    values[:3] = 1
    save(tmp_path / "labels/train/a.png", values)
    found = verify_files(listed(tmp_path))
    assert found.problems == []
    assert found.notes == [
        "88 % of the label pixels looked at are ignored",
        "2 of 3 classes do not occur: a, c",
    ]
    assert found.absent == ("a", "c")


def test_a_split_without_labels_is_looked_at_all_the_same(tmp_path: Path) -> None:
    make_cityscapes(tmp_path, {"test": {"berlin": 2}})
    found = verify_files(
        build_files(dataset="cityscapes", root=tmp_path, split="test", labels="none")
    )
    assert found.sizes == {(24, 48): 2} and found.problems == []
    assert "has no labels" in found.notes[0]


def test_a_sample_is_spread_evenly_and_small_splits_are_checked_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = listed(make_folder(tmp_path, {"train": [f"{i:02d}" for i in range(10)]}))
    save(tmp_path / "labels/train/05.png", label(values=(0, 9)))
    assert verify_files(files, sample=2).checked == 10
    monkeypatch.setattr(verify_module, "SMALL_BYTES", 1000)
    found = verify_files(files, sample=3)
    assert found.checked == 3 and found.total == 10 and found.problems == []
    assert verify_files(files, sample=10).problems != []
    monkeypatch.setattr(verify_module, "SMALL_BYTES", 10**9)
    monkeypatch.setattr(verify_module, "SMALL_FILES", 5)
    assert verify_files(files, sample=5).checked == 5


def test_any_number_of_workers_finds_the_same(tmp_path: Path) -> None:
    files = listed(make_folder(tmp_path, {"train": list("abcdef")}))
    save(tmp_path / "labels/train/c.png", label(values=(0, 9)))
    one, three = verify_files(files, workers=1), verify_files(files, workers=3)
    assert (
        one.counts.tolist() == three.counts.tolist()
        and one.problems == three.problems
        and one.sizes == three.sizes
    )


def test_histogram_is_exact_beyond_float32() -> None:
    values = np.zeros((4097, 4097), np.uint8)
    values[0, :5] = 7
    assert histogram(values)[0] == 4097**2 - 5 and histogram(values)[7] == 5
    assert np.array_equal(
        histogram(label(values=(3, 200))),
        np.bincount(label(values=(3, 200)).ravel(), minlength=256),
    )


def test_duplicates_between_splits_by_content(tmp_path: Path) -> None:
    make_folder(tmp_path, {"train": ["a", "b"], "val": ["x", "y"]}, suffix=".bmp")
    train, val = listed(tmp_path, "train"), listed(tmp_path, "val")
    assert find_duplicates(train, val) == []  # all of equal length, none equal
    (tmp_path / "images/val/y.bmp").write_bytes((tmp_path / "images/train/b.bmp").read_bytes())
    assert find_duplicates(train, val, workers=2) == [
        (tmp_path / "images/train/b.bmp", tmp_path / "images/val/y.bmp")
    ]
    (tmp_path / "images/val/x.bmp").unlink()
    assert len(find_duplicates(train, val)) == 1


def seen(
    sizes: dict[tuple[int, int], int], images_with: tuple[int, ...] = (10, 10, 10)
) -> Verification:
    total = sum(sizes.values())
    counts = np.array(images_with, dtype=np.int64)
    return Verification(
        toy_spec(),
        "train",
        total=total,
        checked=total,
        counts=counts,
        images_with=counts,
        sizes=sizes,
    )


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        (
            {(1024, 2048): 10},
            {
                "crop": [1024, 2048],
                "batch_size": 1,
                "class_uniform": {"fraction": 0.0, "tile": 1024},
            },
        ),
        (
            {(360, 480): 10},
            {"crop": [352, 480], "batch_size": 12, "class_uniform": {"fraction": 0.0, "tile": 352}},
        ),
        (
            {(20, 10): 10},
            {"crop": [32, 32], "batch_size": 16, "class_uniform": {"fraction": 0.0, "tile": 32}},
        ),
        (
            {(3000, 4000): 9, (2448, 3264): 1},
            {
                "crop": [1024, 2048],
                "batch_size": 1,
                "long_edge": 2177,
                "class_uniform": {"fraction": 0.0, "tile": 1024},
            },
        ),
        (
            {(500, 700): 19, (100, 100): 1},
            {"crop": [480, 672], "batch_size": 6, "class_uniform": {"fraction": 0.0, "tile": 480}},
        ),
    ],
)
def test_suggested_configuration(sizes: dict[tuple[int, int], int], expected: dict) -> None:
    assert suggest_data(seen(sizes)) == expected


def test_suggests_class_uniform_sampling_where_a_class_is_in_few_images() -> None:
    assert suggest_data(seen({(64, 64): 10}, (10, 10, 1)))["class_uniform"]["fraction"] == 0.5
    assert suggest_data(seen({(64, 64): 10}, (10, 10, 0)))["class_uniform"]["fraction"] == 0.0
    assert suggest_data(seen({})) == {}


def test_mapillary_miniature_is_sound(tmp_path: Path) -> None:
    make_mapillary(tmp_path, version="2.0", splits={"training": 3})
    found = verify_files(build_files(dataset="mapillary", root=tmp_path, split="train"))
    assert found.problems == [] and len(found.sizes) == 3 and found.images_with[122] == 3
