"""Auto-labelling as a job: what it writes, what it refuses, and that no accident shows in it."""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from hmsa.datasets import CITYSCAPES, build_files, normalise
from hmsa.engine import autolabel, build
from hmsa.engine.arguments import autolabel_command, parse_autolabel
from hmsa.network import InferenceOptions
from hmsa.network.inference import predict
from hmsa.network.inference.predict import label_and_confidence
from hmsa.network.trunks import TRUNKS
from hmsa.utils.config import load_config
from hmsa.utils.labelling.autolabels import read_record
from hmsa.utils.training.checkpoint import load_checkpoint, save_checkpoint, sha256_of
from tests.datasets.trees import make_cityscapes
from tests.engine.conftest import configuration, draw
from tests.engine.small import Small
from tests.programs import CONTEXT, free_port, prepare_fork_server

Run = Callable[..., int]
LABELS = "*_labelIds.png"


def make_teacher(folder: Path, config_file: Path) -> Path:
    """A checkpoint that was never trained, unsure enough that thresholds cut.

    Its batch norms are used to the images.
    """
    config = load_config(config_file)
    files = build.split_files(config, config.data.val_split)
    torch.manual_seed(0)
    model = build.model_from(config, num_classes=files.spec.num_classes, trunk_weights=False)
    image = normalise(torch.from_numpy(np.stack([files.read_image(index) for index in range(2)])))
    model.train()
    with torch.no_grad():
        for _ in range(20):
            model(image)
    path = folder / f"{config.data.dataset}.pt"
    save_checkpoint(
        path,
        {"model": model.state_dict(), **build.checkpoint_identity(config, files)},
        sidecar=False,
    )
    return path


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Street scenes in a folder data set."""
    return draw(tmp_path_factory.mktemp("images"), train=8, val=2, size=(32, 48))


@pytest.fixture(scope="module")
def teacher(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An unsure teacher of the street's three classes."""
    folder = tmp_path_factory.mktemp("teacher")
    return make_teacher(folder, configuration(folder, images))


@pytest.fixture(scope="module")
def city(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(root, teacher) of a miniature of Cityscapes with coarse labels."""
    folder = tmp_path_factory.mktemp("city")
    root = make_cityscapes(
        folder / "data",
        {
            "train": {"aachen": 2},
            "val": {"lindau": 2},
            "train_extra": {"augsburg": 2, "bamberg": 1},
        },
    )
    return root, make_teacher(
        folder, configuration(folder, root, data={"dataset": "cityscapes", "classes": None})
    )


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Iterator[Run]:
    """`hmsa autolabel` in this process: (words) -> exit status."""
    threads = torch.get_num_threads()

    def start(*words: object) -> int:
        return autolabel_command([*map(str, words)])

    yield start
    torch.set_num_threads(threads)


def one_sentence(capsys: pytest.CaptureFixture[str], *words: str) -> None:
    """What was said on stderr since the last look is one error, and it holds these words."""
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, errors
    for word in words:
        assert word in errors[0], f"'{word}' not in: {errors[0]}"


def tree_of(folder: Path) -> dict[str, bytes]:
    """Every file of a tree but the locks and the page, which tells how long reading took."""
    paths = [
        path
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.startswith(".lock")
    ]
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in paths
        if path.name != "report.html"
    }


def pixels(path: Path) -> np.ndarray:
    found = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    assert found is not None and found.ndim == 2
    return found


@pytest.mark.parametrize("label_ids", ["raw", "train"])
def test_labels_are_what_evaluation_predicts_cut_at_the_threshold(
    city: tuple[Path, Path], tmp_path: Path, run: Run, label_ids: str
) -> None:
    root, teacher = city
    options = [
        "--split",
        "train_extra",
        "--threshold",
        0.3,
        "--flip",
        "--output",
        tmp_path / "out",
        "autolabel.confidence=true",
    ]
    assert run("--checkpoint", teacher, *options, f"autolabel.label_ids={label_ids}") == 0
    end, ignored = ("labelIds", 0) if label_ids == "raw" else ("labelTrainIds", 255)
    files = build_files(dataset="cityscapes", root=root, split="train_extra")
    how = InferenceOptions((0.5, 1.0), flip=True)
    loaded = build.load_model(teacher, config_file=None, overrides=[], device=torch.device("cpu"))
    kept = 0
    for index in range(len(files)):
        base = tmp_path / "out" / files.name(index).removesuffix("_leftImg8bit")
        image = normalise(torch.from_numpy(files.read_image(index))[None])
        label, confidence = (
            part[0].numpy()
            for part in label_and_confidence(predict(loaded.model, image, how).logits)
        )
        written, level = (
            pixels(Path(f"{base}_gtAuto_{end}.png")),
            pixels(Path(f"{base}_gtAuto_confidence.png")),
        )
        expected = np.where(confidence >= np.float32(0.3), label, 255)
        clear = np.abs(confidence - 0.3) > 1e-5
        table = CITYSCAPES.to_raw if label_ids == "raw" else np.arange(256)
        assert np.array_equal(written[clear], table[expected][clear])
        assert (np.abs(level - np.floor(confidence * 255)) <= 1).all()
        assert ((written == ignored) == (expected == 255))[clear].all()
        kept += int((written != ignored).sum())
    content = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert 0 < kept < content["pixels"] and content["kept_share"] == pytest.approx(
        kept / content["pixels"], abs=1e-6
    )
    assert (
        content["checkpoint_sha256"] == sha256_of(teacher)
        and content["flip"]
        and content["scales"] == [0.5, 1.0]
    )
    assert run("--verify", "--output", tmp_path / "out") == 0
    student = build_files(
        dataset="cityscapes",
        root=root,
        split="train_extra",
        labels="auto",
        label_root=tmp_path / "out",
    )
    assert len(student) == 3 and (student.read_label(0) != 255).sum() > 0


def test_the_split_may_name_its_data_set(
    city: tuple[Path, Path],
    images: Path,
    teacher: Path,
    tmp_path: Path,
    run: Run,
    capsys: pytest.CaptureFixture[str],
) -> None:
    root, own = city
    assert (
        run(
            "--checkpoint",
            own,
            "--split",
            "cityscapes:train_extra",
            "--output",
            tmp_path / "out",
            "data.root=" + str(root),
        )
        == 0
    )
    assert len(list((tmp_path / "out").rglob(LABELS))) == 3
    assert (
        run("--checkpoint", own, "--split", "cityscape:train_extra", "--output", tmp_path / "other")
        == 2
    )
    one_sentence(capsys, "cityscape", "did you mean 'cityscapes'")


def test_people_are_compared_with_and_listened_to(
    city: tuple[Path, Path], tmp_path: Path, run: Run
) -> None:
    root, teacher = city
    assert (
        run(
            "--checkpoint",
            teacher,
            "--split",
            "train_extra",
            "--threshold",
            0.2,
            "--output",
            tmp_path / "auto",
        )
        == 0
    )
    coarse = build_files(dataset="cityscapes", root=root, split="train_extra")
    automatic = build_files(
        dataset="cityscapes",
        root=root,
        split="train_extra",
        labels="auto",
        label_root=tmp_path / "auto",
    )
    matrix, drawn = np.zeros((19, 19), np.int64), np.zeros(19, np.int64)
    for index in range(3):
        human, label = coarse.read_label(index), automatic.read_label(index)
        both = (human != 255) & (label != 255)
        np.add.at(matrix, (human[both], label[both]), 1)
        drawn += np.bincount(human.reshape(-1), minlength=256)[:19]
    content = json.loads((tmp_path / "auto" / "manifest.json").read_text())
    assert content["human"]["agreement"] == matrix.tolist() and matrix.sum() > 0
    assert (
        list(content["human"]["labels"].values()) == drawn.tolist()
        and content["human"]["images"] == 3
    )
    page = (tmp_path / "auto" / "report.html").read_text()
    for words in (
        "drawn by people",
        "automatic label",
        "Before and after",
        "Agreement",
        "soft labels, float32 for each class",
        "page cache",
    ):
        assert words in page
    policy = {"road": "human", "car": "union", "sky": "drop"}
    assert (
        run(
            "--checkpoint",
            teacher,
            "--split",
            "train_extra",
            "--threshold",
            0.2,
            "--output",
            tmp_path / "joined",
            "autolabel.policy={road: human, car: union, sky: drop}",
        )
        == 0
    )
    joined = build_files(
        dataset="cityscapes",
        root=root,
        split="train_extra",
        labels="auto",
        label_root=tmp_path / "joined",
    )
    in_training = build_files(
        dataset="cityscapes",
        root=root,
        split="train_extra",
        labels="auto",
        label_root=tmp_path / "auto",
        policy=policy,
    )
    for index in range(3):
        assert np.array_equal(joined.read_label(index), in_training.read_label(index))
    assert any(
        (joined.read_label(index) != automatic.read_label(index)).any() for index in range(3)
    )
    after = json.loads((tmp_path / "joined" / "manifest.json").read_text())
    assert after["human"] == content["human"] and after["kept_share"] == content["kept_share"]
    assert run("--verify", "--output", tmp_path / "joined") == 0


def test_without_labels_of_people_there_is_no_comparison_and_no_policy(
    city: tuple[Path, Path], tmp_path: Path, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    root = shutil.copytree(city[0], tmp_path / "data")
    shutil.rmtree(root / "gtCoarse")
    place = [f"data.root={root}", "--split", "train_extra"]
    assert run("--checkpoint", city[1], *place, "--output", tmp_path / "out") == 0
    assert "human" not in json.loads((tmp_path / "out" / "manifest.json").read_text())
    capsys.readouterr()
    assert (
        run(
            "--checkpoint",
            city[1],
            *place,
            "--output",
            tmp_path / "more",
            "autolabel.policy={car: human}",
        )
        == 2
    )
    one_sentence(capsys, "coarse labels")
    assert (
        run(
            "--checkpoint",
            city[1],
            "--images",
            root / "leftImg8bit",
            "--output",
            tmp_path / "more",
            "autolabel.policy={car: human}",
        )
        == 2
    )
    one_sentence(capsys, "autolabel.policy", "--split")


def test_a_share_of_every_class_is_kept_where_asked(
    teacher: Path, images: Path, tmp_path: Path, run: Run
) -> None:
    source = ["--checkpoint", teacher, "--images", images / "images", "--threshold", 0.9]
    assert run(*source, "--output", tmp_path / "plain") == 0
    assert (
        run(
            *source,
            "--output",
            tmp_path / "share",
            "autolabel.keep_share=0.95",
            "autolabel.class_thresholds={pole: 1.0}",
        )
        == 0
    )
    plain, share = (
        json.loads((tmp_path / name / "manifest.json").read_text()) for name in ("plain", "share")
    )
    assert share["class_thresholds"]["pole"] == 1.0
    lowered = 0
    for name in ("sky", "road"):
        row, limit = share["per_class"][name], share["class_thresholds"][name]
        assert row["predicted"] == plain["per_class"][name]["predicted"]
        if limit < 0.9:
            lowered += 1
            assert plain["per_class"][name]["kept_share"] < 0.95 <= row["kept_share"] < 0.96
        else:
            assert limit == 0.9 and row == plain["per_class"][name]
    assert lowered > 0
    assert (
        run(
            *source,
            "--output",
            tmp_path / "few",
            "autolabel.keep_share=0.5",
            "autolabel.keep_share_images=2",
        )
        == 0
    )
    assert json.loads((tmp_path / "few" / "thresholds.json").read_text())["images"] == 2


def test_finished_labels_stay_and_damaged_or_outdated_ones_are_made_again(
    teacher: Path, tmp_path: Path, run: Run
) -> None:
    data = draw(tmp_path / "data", train=5, size=(32, 48))
    command = [
        "--checkpoint",
        teacher,
        "--images",
        data / "images" / "train",
        "--output",
        tmp_path / "out",
        "autolabel.confidence=true",
    ]
    assert run(*command) == 0
    before = tree_of(tmp_path / "out")
    out = tmp_path / "out"
    (out / "train_0.png").unlink()
    (out / "train_1.png").write_bytes(before["train_1.png"][:-5])
    (out / "train_2_confidence.png").write_bytes(b"damaged")
    shutil.copy(out / "train_4.png", out / "train_3.png")  # the label of another image
    (out / ".hmsa-1-2.tmp").write_bytes(b"half a label, of a job that was killed")
    untouched = (out / "train_4.png").stat().st_mtime_ns
    assert run(*command) == 0
    assert tree_of(out) == before and (out / "train_4.png").stat().st_mtime_ns == untouched
    image = data / "images" / "train" / "train_4.png"
    shutil.copy(data / "images" / "train" / "train_0.png", image)  # the image is replaced
    assert run(*command) == 0
    assert np.array_equal(pixels(out / "train_4.png"), pixels(out / "train_0.png"))


def test_an_unreadable_image_among_200(
    teacher: Path, tmp_path: Path, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    generator = np.random.default_rng(0)
    for number in range(200):
        cv2.imwrite(
            str(folder / f"{number:03d}.png"), generator.integers(0, 255, (8, 8, 3), dtype=np.uint8)
        )
    broken = folder / "123.png"
    whole = broken.read_bytes()
    broken.write_bytes(whole[:60])
    command = [
        "--checkpoint",
        teacher,
        "--images",
        folder,
        "--output",
        tmp_path / "out",
        "--scales",
        "1",
    ]
    assert run(*command) == 1
    said = capsys.readouterr()
    assert "123.png" in said.err + said.out and "Traceback" not in said.err
    content = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert content["labelled"] == 199 and not content["complete"]
    assert [failure["image"] for failure in content["failures"]] == [
        "123.png"
    ] and "truncated" in content["failures"][0]["why"]
    assert run("--verify", "--output", tmp_path / "out") == 1
    broken.write_bytes(whole)
    assert run(*command) == 0
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["complete"] and not list(
        (tmp_path / "out").glob("*.failed")
    )
    assert run("--verify", "--output", tmp_path / "out") == 0


def test_an_answer_that_is_no_number_is_a_failure_with_its_reason(
    teacher: Path,
    images: Path,
    tmp_path: Path,
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    content = torch.load(teacher, weights_only=True)
    weight = next(
        value for name, value in content["model"].items() if value.ndim == 4 and "decoder" in name
    )
    # Weights that are numbers, and too large for sums of them to be.
    weight[:] = 3e38
    torch.save(content, tmp_path / "broken.pt")
    words = ("--checkpoint", tmp_path / "broken.pt", "--images", images / "images" / "val")
    words += ("--output", tmp_path / "out")

    # Folding its batch norms finds it, before any image.
    assert run(*words) == 2
    one_sentence(capsys, "broken.pt", "NaN or infinite")

    # Where noise passes and an image does not, this image fails.
    monkeypatch.setattr(autolabel, "prepare_for_inference", lambda model, **_: model)
    assert run(*words) == 1
    failures = json.loads((tmp_path / "out" / "manifest.json").read_text())["failures"]
    assert len(failures) == 2 and "not a number" in failures[0]["why"]
    assert not list((tmp_path / "out").rglob("val_*.png"))


def test_weights_that_are_no_numbers_are_refused_with_their_name(
    teacher: Path, images: Path, tmp_path: Path, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    """Issue 14, C12: they are found where they arise, in the checkpoint."""
    content = torch.load(teacher, weights_only=True)
    name = next(key for key, value in content["model"].items() if value.ndim == 4)
    content["model"][name][:] = float("nan")
    torch.save(content, tmp_path / "broken.pt")
    words = ("--checkpoint", tmp_path / "broken.pt", "--images", images / "images" / "val")
    assert run(*words, "--output", tmp_path / "out") == 2
    one_sentence(capsys, "broken.pt", name)


def test_an_image_of_the_same_size_is_labelled_anew(
    teacher: Path, images: Path, tmp_path: Path, run: Run
) -> None:
    """Issue 14, A4: a label belongs to the bytes of its image, not to their number."""
    folder = tmp_path / "in"
    folder.mkdir()
    image = cv2.imread(str(images / "images" / "val" / "val_0.png"))
    cv2.imwrite(str(folder / "a.bmp"), image)
    words = ("--checkpoint", teacher, "--images", folder, "--output", tmp_path / "out")
    assert run(*words, "--threshold", "0.3") == 0
    before, state = pixels(tmp_path / "out" / "a.png"), (folder / "a.bmp").stat()
    cv2.imwrite(str(folder / "a.bmp"), image[::-1])
    assert run(*words, "--threshold", "0.3") == 0
    assert (folder / "a.bmp").stat().st_size == state.st_size
    assert not np.array_equal(before, pixels(tmp_path / "out" / "a.png"))


def test_labels_stay_inside_the_output_and_leave_drawn_ones_alone(
    teacher: Path, images: Path, tmp_path: Path, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    """Issue 14, A1: names from lists lead nowhere else, and a corrected label is not replaced."""
    shutil.copytree(images / "images" / "val", tmp_path / "far" / "val")
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "all.txt").write_text("../far/val/val_0.png\n")
    words = ("--checkpoint", teacher, "--list", tmp_path / "lists" / "all.txt")
    status = run(*words, "--output", tmp_path / "out" / "deep")
    written = {path.relative_to(tmp_path).parts[:2] for path in tmp_path.rglob("*.png")}
    assert written <= {("far", "val"), ("out", "deep")} and status in (0, 2)
    assert len(list((tmp_path / "far").rglob("*.png"))) == 2
    capsys.readouterr()

    words = ("--checkpoint", teacher, "--images", tmp_path / "far" / "val")
    assert run(*words, "--output", tmp_path / "labels") == 0
    drawn = tmp_path / "labels" / "val_1.png"
    cv2.imwrite(str(drawn), np.full((64, 96), 2, np.uint8))
    content = drawn.read_bytes()
    capsys.readouterr()
    assert run(*words, "--output", tmp_path / "labels") == 2
    one_sentence(capsys, "val_1.png", "was not made by autolabel.py")
    assert drawn.read_bytes() == content


def test_a_tree_of_another_checkpoint_is_left_alone(
    teacher: Path, images: Path, tmp_path: Path, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    source = ["--images", images / "images" / "val", "--output", tmp_path / "out"]
    assert run("--checkpoint", teacher, *source) == 0
    before = tree_of(tmp_path / "out")
    content = torch.load(teacher, weights_only=True)
    content["more"] = 1
    torch.save(content, tmp_path / "other.pt")
    capsys.readouterr()
    assert run("--checkpoint", tmp_path / "other.pt", *source) == 2
    one_sentence(capsys, "checkpoint_sha256", "--output")
    assert run("--checkpoint", teacher, *source, "--threshold", "0.8", "autolabel.overlap=0.5") == 2
    one_sentence(capsys, "overlap", "threshold")
    assert tree_of(tmp_path / "out") == before


def test_files_that_are_not_ours_are_left_alone(
    teacher: Path, images: Path, tmp_path: Path, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = shutil.copytree(images / "labels" / "val", tmp_path / "labels")
    before = tree_of(labels)
    assert (
        run("--checkpoint", teacher, "--images", images / "images" / "val", "--output", labels) == 2
    )
    one_sentence(capsys, "val_0.png", "was not made by autolabel.py")
    assert {
        name: data for name, data in tree_of(labels).items() if not name.startswith(".")
    } == before
    photos = shutil.copytree(images / "images" / "val", tmp_path / "photos")
    for output in (photos, photos / "labels"):
        assert run("--checkpoint", teacher, "--images", photos, "--output", output) == 2
        one_sentence(capsys, "--output", "share a folder")
    shutil.copy(photos / "val_0.png", photos / "val_0_confidence.png")
    assert (
        run(
            "--checkpoint",
            teacher,
            "--images",
            photos,
            "--output",
            tmp_path / "out",
            "autolabel.confidence=true",
        )
        == 0
    )
    # The label of that image must not be the confidence of the other: every file has one maker.
    written = sorted(path.name for path in tmp_path.glob("out/*.png"))
    assert len(written) == 2 * len(list(photos.glob("*.png"))) and "val_0_confidence.png" in written
    assert run("--verify", "--output", tmp_path / "out") == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--threshold", "1.5"], ["--threshold", "1.5"]),
        (["--shard", "3/3"], ["--shard", "3/3"]),
        (["autolabel.class_thresholds={pool: 0.5}"], ["pool", "did you mean 'pole'"]),
        (["autolabel.policy={pool: drop}"], ["pool", "did you mean 'pole'"]),
        (["autolabel.policy={pole: dropp}"], ["dropp", "did you mean 'drop'"]),
    ],
)
def test_wishes_that_cannot_be(
    teacher: Path,
    images: Path,
    tmp_path: Path,
    run: Run,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    said: list[str],
) -> None:
    assert (
        run(
            "--checkpoint",
            teacher,
            "--images",
            images / "images" / "val",
            "--output",
            tmp_path / "out",
            *words,
        )
        == 2
    )
    one_sentence(capsys, *said)


def test_the_command_line_says_what_it_lacks(
    tmp_path: Path, run: Run, capsys: pytest.CaptureFixture[str], teacher: Path
) -> None:
    for words, said in ((["--images", "x"], "--checkpoint"), (["--checkpoint", "x"], "--images")):
        with pytest.raises(SystemExit) as caught:
            parse_autolabel([*words, "--output", "out"])
        assert caught.value.code == 2 and said in capsys.readouterr().err
    (tmp_path / "list.csv").write_text("a.png\n")
    assert (
        run("--checkpoint", teacher, "--list", tmp_path / "list.csv", "--output", tmp_path / "out")
        == 2
    )
    one_sentence(capsys, "list.csv", ".txt")
    assert run("--verify", "--output", tmp_path) == 2
    one_sentence(capsys, "no finished tree")


def test_the_page_says_that_the_teachers_score_is_of_before_its_calibration(
    teacher: Path, images: Path, tmp_path: Path, run: Run
) -> None:
    content = {**load_checkpoint(teacher).content, "miou": 0.7}
    pages = []
    for name, biases in (("plain", []), ("calibrated", [[0.5, 1.0, 6.0]])):
        path = tmp_path / f"{name}.pt"
        save_checkpoint(path, {**content, "attention_bias": biases})
        output = tmp_path / name
        assert run("--checkpoint", path, "--images", images / "images", "--output", output) == 0
        pages.append((output / "report.html").read_text())
    assert ["mIoU % before calibration" in page for page in pages] == [False, True]


def test_a_list_of_images(teacher: Path, images: Path, tmp_path: Path, run: Run) -> None:
    shutil.copytree(images / "images", tmp_path / "in")
    (tmp_path / "in" / "some.txt").write_text("train/train_1.png\nval/val_0.png\n")
    assert (
        run(
            "--checkpoint",
            teacher,
            "--list",
            tmp_path / "in" / "some.txt",
            "--output",
            tmp_path / "out",
        )
        == 0
    )
    assert sorted(name for name in tree_of(tmp_path / "out") if name.endswith(".png")) == [
        "train/train_1.png",
        "val/val_0.png",
    ]


def test_shards_fill_one_tree_in_any_order(
    teacher: Path, images: Path, tmp_path: Path, run: Run
) -> None:
    command = ["--checkpoint", teacher, "--images", images / "images"]
    assert run(*command, "--output", tmp_path / "whole") == 0
    for shard in (2, 0, 1):
        assert run(*command, "--output", tmp_path / "parts", "--shard", f"{shard}/3") == 0
        complete = json.loads((tmp_path / "parts" / "manifest.json").read_text())["complete"]
        assert complete == (shard == 1)
    assert tree_of(tmp_path / "parts") == tree_of(tmp_path / "whole")


def test_a_full_disk(
    teacher: Path, images: Path, tmp_path: Path, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    """No file may pass a limit: the first write that does fails as on a full disk.

    A sentence says so.
    """
    command = [
        "--checkpoint",
        teacher,
        "--images",
        images / "images",
        "--output",
        tmp_path / "out",
        "--threshold",
        "0.4",
    ]
    assert (
        run(
            "--checkpoint",
            teacher,
            "--images",
            images / "images",
            "--output",
            tmp_path / "reference",
            "--threshold",
            "0.4",
        )
        == 0
    )
    largest = max(path.stat().st_size for path in (tmp_path / "reference").rglob("*_*.png"))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    capsys.readouterr()
    resource.setrlimit(resource.RLIMIT_FSIZE, (max(largest - 1, 1400), hard))
    try:
        status = run(*command)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert status == 2
    one_sentence(capsys, str(tmp_path / "out"), "cannot be written", "make room")
    reference = tree_of(tmp_path / "reference")
    assert (
        not list((tmp_path / "out").rglob(".hmsa-*"))
        and not (tmp_path / "out" / "manifest.json").exists()
    )
    assert all(reference[name] == data for name, data in tree_of(tmp_path / "out").items())
    assert run(*command) == 0
    assert tree_of(tmp_path / "out") == reference


def _job(words: list[str], environment: dict[str, str], quiet: str) -> None:
    """`hmsa autolabel` in a process that has its imports already, with the trunk of `jobs`."""
    os.environ.update(environment)
    TRUNKS["resnet18"] = lambda **_: Small()
    output = os.open(quiet, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(output, stream)
    status = autolabel_command(words)
    sys.stdout.flush()
    os._exit(status)


class Jobs:
    """Starts `hmsa autolabel` with several processes, without importing torch each time."""

    def __init__(self, log: Path) -> None:
        self.log = log

    def start(self, words: list[object], *, processes: int = 1) -> list[Any]:
        prepare_fork_server()
        port, started = free_port(), []
        for rank in range(processes):
            environment = {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(processes),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
                "OMP_NUM_THREADS": "1",
            }
            started.append(
                CONTEXT.Process(target=_job, args=([*map(str, words)], environment, str(self.log)))
            )
            started[-1].start()
        return started


@pytest.fixture
def jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Jobs:
    """Jobs whose network is a few convolutions, here and in their processes: it starts at once."""
    monkeypatch.setitem(TRUNKS, "resnet18", lambda **_: Small())
    return Jobs(tmp_path / "jobs.log")


@pytest.fixture
def small_teacher(jobs: Jobs, images: Path, tmp_path: Path) -> Path:
    """A teacher with the trunk of `jobs`."""
    return make_teacher(tmp_path, configuration(tmp_path, images))


def test_two_jobs_started_at_once_write_what_one_would(
    small_teacher: Path, images: Path, tmp_path: Path, jobs: Jobs, run: Run
) -> None:
    command = ["--checkpoint", small_teacher, "--images", images / "images"]
    assert run(*command, "--output", tmp_path / "reference") == 0
    both = [
        jobs.start([*command, "--output", tmp_path / "out"], processes=count) for count in (1, 2)
    ]
    other = jobs.start([*command, "--output", tmp_path / "out", "--threshold", "0.3"])
    for process in [process for started in (*both, other) for process in started]:
        process.join(300)
    said = jobs.log.read_text()
    assert "Traceback" not in said
    winners = {json.loads((tmp_path / "out" / "settings.json").read_text())["threshold"]}
    if winners == {0.9}:  # whichever settings came first, the others are refused in a sentence
        assert other[0].exitcode == 2 and "other settings" in said
        assert [started[0].exitcode for started in both].count(0) >= 1
        assert tree_of(tmp_path / "out") == tree_of(tmp_path / "reference")
    else:
        assert other[0].exitcode == 0 and [started[0].exitcode for started in both] == [2, 2]


def test_a_second_job_on_the_same_output_is_refused(
    teacher: Path, images: Path, tmp_path: Path, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    from hmsa.utils.labelling.work_tree import alone

    command = ["--checkpoint", teacher, "--images", images / "images" / "val", "--output", tmp_path]
    with alone(tmp_path, 1, 2):
        assert run(*command) == 2
        one_sentence(capsys, "another job is writing here")
        assert not list(tmp_path.rglob("val_*.png"))
        assert run(*command, "--shard", "0/2") == 0
    assert run(*command) == 0


@pytest.mark.slow
def test_killed_at_21_random_moments_with_1_2_and_3_processes(
    small_teacher: Path, tmp_path: Path, jobs: Jobs
) -> None:
    """Killed without warning and started again with another number of processes.

    The bytes are those of one uninterrupted run.
    """
    data = draw(tmp_path / "data", train=60, val=0, size=(32, 48))
    options = [
        "autolabel.confidence=true",
        "autolabel.keep_share=0.6",
        "autolabel.keep_share_images=10",
    ]
    command = ["--checkpoint", small_teacher, "--images", data / "images" / "train", *options]

    def finish(output: Path, processes: int) -> dict[str, bytes]:
        started = jobs.start([*command, "--output", output], processes=processes)
        for process in started:
            process.join(300)
        assert [process.exitcode for process in started] == [0] * processes, jobs.log.read_text()[
            -3000:
        ]
        return tree_of(output)

    reference = finish(tmp_path / "reference", 1)
    draws, kills, number = random.Random(0), 0, 0
    while kills < 21:
        output, processes = tmp_path / f"out{number}", 1 + kills % 3
        more = draws.randrange(
            24
        )  # so many new files, and a moment: however slow the machine is, kills fall into the work
        before = len(list(output.glob("*.png")))
        started = jobs.start([*command, "--output", output], processes=processes)
        while (
            any(process.is_alive() for process in started)
            and len(list(output.glob("*.png"))) < before + more
        ):
            time.sleep(0.002)
        time.sleep(draws.uniform(0, 0.02 if more else 0.5))
        if any(process.is_alive() for process in started):
            kills += 1
        for process in draws.sample(started, len(started)):
            process.kill()
            process.join()
        for name, data_found in (tree_of(output) if output.exists() else {}).items():
            whole = (
                name.endswith(".tmp")
                or name in ("manifest.json", "images.jsonl")
                or data_found == reference[name]
            )
            assert whole, f"{name} after {kills} kills"
        if (output / "manifest.json").exists() and json.loads(
            (output / "manifest.json").read_text()
        )["complete"]:
            number += 1  # it got to the end between two kills: begin anew
    assert finish(tmp_path / f"out{number}", 1 + kills % 3) == reference
    assert read_record(tmp_path / "reference" / "train_0.png") is not None
