"""Labels of one's own photographs: trained on by their folder alone, cut anew without inference."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from hmsa.datasets import DataError, build_files
from hmsa.engine import autolabel, build
from hmsa.engine.arguments import autolabel_command
from hmsa.utils.config import load_config
from hmsa.utils.files.image_places import ImagePlace, read_image_places, write_image_places
from hmsa.utils.processes import join
from hmsa.utils.training.checkpoint import save_checkpoint
from tests.engine.conftest import configuration, draw
from tests.engine.test_autolabel import make_teacher, one_sentence, tree_of


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a data set `mine`, a teacher, and `photos` that are no part of the data set."""
    folder = tmp_path_factory.mktemp("own")
    root = draw(folder / "mine", train=4, val=2, size=(32, 48))
    teacher = make_teacher(folder, configuration(folder, root))
    teacher.rename(folder / "teacher.pt")
    shutil.copytree(
        draw(folder / "drawn", train=5, val=0, size=(32, 48), seed=7) / "images" / "train",
        folder / "photos" / "summer",
    )
    return folder


def label(own: Path, output: Path, *words: object, photos: Path | None = None) -> int:
    """`hmsa autolabel` of the photographs."""
    images = photos or own / "photos"
    given = ["--checkpoint", own / "teacher.pt", "--images", images, "--output", output, *words]
    threads = torch.get_num_threads()
    try:
        return autolabel_command([str(word) for word in given])
    finally:
        torch.set_num_threads(threads)


def batches_of(own: Path, labels: Path) -> list[str]:
    """The images of an epoch of a training on the data set and on `labels`, named by their root."""
    overrides = [f"data.extra.root={labels}", "data.extra.probability=0.0", "data.crop=[32, 48]"]
    config = load_config(own / "config.yaml", overrides)
    files = build.split_files(config, config.data.train_split)
    build.verify(config, files)
    loader = build.train_loader(config, files, join(device="cpu"))
    return [name for batch in loader.epoch(0, start_step=0) for name in batch["names"]]


def test_labels_of_photographs_are_trained_on_by_their_folder_alone(
    own: Path, tmp_path: Path
) -> None:
    assert label(own, tmp_path / "labels", "--threshold", "0.3") == 0
    names = batches_of(own, tmp_path / "labels")
    assert len(names) == 4 and all("summer/train_" in name for name in names)
    assert batches_of(own, tmp_path / "labels" / "manifest.json") == names


def test_images_and_labels_may_move_together_and_are_missed_in_a_sentence(
    own: Path, tmp_path: Path
) -> None:
    photos, labels = tmp_path / "a" / "photos", tmp_path / "a" / "labels"
    shutil.copytree(own / "photos", photos)
    assert label(own, labels, "--threshold", "0.3", photos=photos) == 0
    (tmp_path / "a").rename(tmp_path / "b")
    names = batches_of(own, tmp_path / "b" / "labels")
    assert len(names) == 4

    # Of the images alone the place can be told.
    (tmp_path / "b" / "photos").rename(tmp_path / "elsewhere")
    with pytest.raises(DataError, match="5 of its images are gone.*image-paths.json") as caught:
        batches_of(own, tmp_path / "b" / "labels")
    assert "data.extra.split" in str(caught.value)
    note = tmp_path / "b" / "labels" / "image-paths.json"
    content = json.loads(note.read_text())
    note.write_text(json.dumps({**content, "folder": str(tmp_path / "elsewhere" / "summer")}))
    assert batches_of(own, tmp_path / "b" / "labels") == names


def test_without_knowledge_of_images_the_split_is_looked_for_as_before(
    own: Path, tmp_path: Path
) -> None:
    assert label(own, tmp_path / "labels", "--threshold", "0.3") == 0
    (tmp_path / "labels" / "image-paths.json").write_text("[")
    with pytest.raises(DataError, match="train_extra"):
        batches_of(own, tmp_path / "labels")


def test_frames_of_a_video_keep_their_numbers(tmp_path: Path) -> None:
    places = {
        "clip/000002.mp4": ImagePlace(tmp_path / "in" / "clip.mp4", 2),
        "a.jpg": ImagePlace(tmp_path / "in" / "deep" / "a.jpg"),
    }
    (tmp_path / "in" / "deep").mkdir(parents=True)
    for place in places.values():
        place.path.touch()
    (tmp_path / "out").mkdir()
    write_image_places(tmp_path / "out", places)
    known = read_image_places(tmp_path / "out")
    assert known is not None and known.places == places and known.missing == ()


@pytest.mark.parametrize("entry", [3, ["a.jpg"], ["a.jpg", -2], ["a.jpg", True], None])
def test_a_damaged_note_says_nothing(tmp_path: Path, entry: object) -> None:
    content = {"folder": "/", "relative": "..", "images": {"a.jpg": entry}}
    (tmp_path / "image-paths.json").write_text(json.dumps(content))
    assert read_image_places(tmp_path) is None


def without_answers(tree: dict[str, bytes]) -> dict[str, bytes]:
    return {name: data for name, data in tree.items() if not name.startswith(".answers/")}


def test_another_threshold_needs_no_inference_where_answers_were_kept(
    own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    share = ("autolabel.keep_share=0.6", "autolabel.class_thresholds={pole: 0.4}")
    assert label(own, tmp_path / "lower", "--threshold", "0.35") == 0
    assert label(own, tmp_path / "share", *share) == 0
    assert label(own, tmp_path / "out", "autolabel.keep_answers=true") == 0
    first = tree_of(tmp_path / "out")
    assert len([name for name in first if name.startswith(".answers/")]) == 5

    def infer(*arguments: object, **options: object) -> None:
        raise AssertionError("the network was asked again")

    predict = autolabel.predict_label
    monkeypatch.setattr(autolabel, "predict_label", infer)
    assert label(own, tmp_path / "out", "--threshold", "0.35") == 0
    assert without_answers(tree_of(tmp_path / "out")) == tree_of(tmp_path / "lower")
    assert label(own, tmp_path / "out", *share) == 0
    assert without_answers(tree_of(tmp_path / "out")) == tree_of(tmp_path / "share")
    assert label(own, tmp_path / "out") == 0
    assert tree_of(tmp_path / "out") == first
    assert autolabel_command(["--verify", "--output", str(tmp_path / "out")]) == 0

    # A damaged answer, and one of another image, are made again; nothing else is.
    monkeypatch.setattr(autolabel, "predict_label", predict)
    answers = sorted((tmp_path / "out" / ".answers").rglob("*.png"))
    answers[0].write_bytes(answers[0].read_bytes()[:-9])
    shutil.copy(answers[2], answers[1])
    assert label(own, tmp_path / "out", "--threshold", "0.35") == 0
    assert without_answers(tree_of(tmp_path / "out")) == tree_of(tmp_path / "lower")
    assert {name for name in first if name.startswith(".answers/")} <= tree_of(
        tmp_path / "out"
    ).keys()

    # What the answers depend on cannot change in place.
    capsys.readouterr()
    assert label(own, tmp_path / "out", "--scales", "1") == 2
    one_sentence(capsys, "other settings", "scales")


def test_while_another_job_writes_its_threshold_cannot_be_changed(
    own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from hmsa.utils.labelling.work_tree import alone

    assert label(own, tmp_path / "out", "autolabel.keep_answers=true") == 0
    before = tree_of(tmp_path / "out")
    capsys.readouterr()
    with alone(tmp_path / "out", 1, 3):
        assert label(own, tmp_path / "out", "--threshold", "0.5") == 2
    one_sentence(capsys, "another job is writing here")
    assert tree_of(tmp_path / "out") == before


def test_the_job_ends_with_the_training_that_comes_next(
    own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert label(own, tmp_path / "out", "autolabel.keep_share=0.1", "--threshold", "1") == 0
    printed = capsys.readouterr()
    said = printed.out + printed.err
    assert f"hmsa train CONFIG.yaml data.extra.root={tmp_path / 'out'}" in said


def test_a_class_of_which_almost_nothing_is_kept_is_named_with_the_remedy(
    own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The threshold of one class is put just below the surest of its pixels."""
    # The teacher of the other tests is certain of many pixels; of none with smaller logits.
    content = torch.load(own / "teacher.pt", weights_only=True)
    for key, value in content["model"].items():
        if key.startswith("decoder.") and value.ndim == 4 and len(value) == 3:
            value *= 0.01
    save_checkpoint(tmp_path / "soft.pt", content, sidecar=False)
    output = tmp_path / "out"
    given = ("--checkpoint", tmp_path / "soft.pt", "--threshold", "0")
    assert label(own, output, *given, "autolabel.keep_answers=true") == 0
    said = capsys.readouterr()
    assert "little is kept" not in said.out + said.err

    # What the teacher said before any threshold: the class it is least sure of, and how sure.
    answers = [cv2.imread(str(path), -1) for path in (output / ".answers").rglob("*.png")]
    planes = np.stack([answer.reshape(5, 32, 48) for answer in answers], axis=1)
    octets = np.ascontiguousarray(np.moveaxis(planes[1:], 0, -1))
    confidence = octets.view(np.float32)[..., 0]
    found = [confidence[planes[0] == index] for index in range(3)]
    unsure = min((one.mean(), index) for index, one in enumerate(found) if one.size > 200)[1]
    surest = np.sort(found[unsure])[-5]
    assert surest < 1

    name = ("sky", "road", "pole")[unsure]
    cut = f"autolabel.class_thresholds={{{name}: {surest:.9f}}}"
    assert label(own, output, *given, cut) == 0
    said = capsys.readouterr()
    lines = (said.out + said.err).splitlines()
    (sentence,) = [line for line in lines if "little is kept of" in line]
    row = json.loads((output / "manifest.json").read_text())["per_class"][name]
    assert 0 < row["kept"] <= 10 and row["kept_share"] < 0.05
    assert f"of {name} ({100 * row['kept_share']:.1f} %)" in sentence
    assert "autolabel.keep_share=0.5" in sentence
    (half,) = re.findall(rf'"autolabel.class_thresholds={{{name}: ([\d.]+)}}"', sentence)
    assert (
        np.mean(found[unsure] >= float(half)) >= 0.5 > np.mean(found[unsure] > float(half) + 0.01)
    )
    assert f"Starved: of {name} (" in (output / "report.html").read_text()

    # The remedy is one.
    cut = f"autolabel.class_thresholds={{{name}: 0.0}}"
    assert label(own, output, *given, cut) == 0
    said = capsys.readouterr()
    assert "little is kept" not in said.out + said.err and "Do not train" not in said.err

    # Where a training would do harm, the terminal says what the page says first.
    assert label(own, output, *given, "--threshold", "1") == 0
    said = capsys.readouterr()
    assert "Do not train on these yet. No pixel has a label" in said.out + said.err


def test_frames_are_trained_on(own: Path, tmp_path: Path) -> None:
    clip = tmp_path / "clip.mp4"
    writer = cv2.VideoWriter(str(clip), cv2.VideoWriter.fourcc(*"mp4v"), 5, (48, 32))
    for shade in (0, 120, 240):
        writer.write(np.full((32, 48, 3), shade, np.uint8))
    writer.release()
    assert label(own, tmp_path / "labels", "--threshold", "0", photos=clip) == 0
    files = build_files(
        dataset="folder",
        root=own / "mine",
        split=None,
        labels="auto",
        label_root=tmp_path / "labels",
    )
    shades = [files.read_image(index).mean() for index in range(3)]
    assert shades == sorted(shades) and shades[0] < 20 and shades[2] > 220
