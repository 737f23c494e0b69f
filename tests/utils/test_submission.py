"""What is handed in is what the official script accepts, and nothing faulty gets into a zip."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hmsa.utils.files.outputs import OutputError
from hmsa.utils.files.png import write_png
from hmsa.utils.labelling.submission import Submission, SubmissionError, require_replaceable

RAW = [7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33]
TO_RAW = np.zeros(256, dtype=np.uint8)
TO_RAW[:19] = RAW
SIZE = (20, 30)
NAMES = [
    f"{city}/{city}_{number:06d}_000019_leftImg8bit"
    for city in ("berlin", "bad-honnef")
    for number in range(3)
]


def submission(folder: Path, benchmark: str = "cityscapes", split: str = "test") -> Submission:
    return Submission(folder, benchmark, split, to_raw=TO_RAW, raw_ids=RAW)


def written(folder: Path) -> dict[str, tuple[int, int]]:
    """A complete submission; returns the images it is for."""
    rng = np.random.default_rng(0)
    mine = submission(folder)
    for name in NAMES:
        write_png(mine.path(name), mine.encode(rng.integers(0, 19, SIZE).astype(np.uint8)))
    return dict.fromkeys(NAMES, SIZE)


def test_names_of_the_benchmarks(tmp_path: Path) -> None:
    name = "berlin/berlin_000543_000019_leftImg8bit"
    assert submission(tmp_path).file_name(name) == "berlin_000543_000019_labelIds.png"
    assert submission(tmp_path, "mapillary").file_name("images/0A_bc-d") == "0A_bc-d.png"
    assert submission(tmp_path, "folder").file_name("night/0001") == "night/0001.png"
    with pytest.raises(SubmissionError, match="holiday/IMG_1: is no Cityscapes name"):
        submission(tmp_path).file_name("holiday/IMG_1")


def test_a_complete_submission_is_zipped_with_the_same_bytes_each_time(tmp_path: Path) -> None:
    images = written(tmp_path / "labels")
    mine = submission(tmp_path / "labels")
    (tmp_path / "labels" / ".hmsa-12-34.tmp").write_bytes(b"left by a killed process")
    assert mine.problems(images) == []
    note = mine.zip(tmp_path / "a.zip", images)
    assert note == "6 images, where the official cityscapes test split has 1525"
    mine.zip(tmp_path / "labels" / "b.zip", images)
    mine.zip(tmp_path / "labels" / "b.zip", images)
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "labels" / "b.zip").read_bytes()
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        assert archive.testzip() is None
        assert sorted(archive.namelist()) == sorted(mine.file_name(name) for name in NAMES)
        for name in NAMES:
            assert archive.read(mine.file_name(name)) == mine.path(name).read_bytes()


def test_the_whole_split_needs_no_note(tmp_path: Path) -> None:
    assert (
        submission(tmp_path).note(1525) is None
        and submission(tmp_path, split="val").note(500) is None
    )
    assert (
        submission(tmp_path, split="val").note(499) is not None
        and submission(tmp_path, "folder").note(3) is None
    )


def test_train_ids_become_raw_ids(tmp_path: Path) -> None:
    raw = submission(tmp_path).encode(np.arange(19, dtype=np.uint8)[None])
    assert raw.tolist() == [RAW] and raw.dtype == np.uint8


def test_every_fault_is_named(tmp_path: Path) -> None:
    images = written(tmp_path)
    mine = submission(tmp_path)
    files = [mine.path(name) for name in NAMES]
    rng = np.random.default_rng(1)
    files[0].unlink()
    write_png(files[1], np.zeros((*SIZE, 3), dtype=np.uint8))
    write_png(files[2], np.full((SIZE[1], SIZE[0]), 7, dtype=np.uint8))
    write_png(files[3], rng.integers(0, 19, SIZE).astype(np.uint8))  # train ids, the usual mistake
    files[4].write_bytes(files[4].read_bytes()[:60])
    write_png(
        files[5], np.full(SIZE, 7, dtype=np.uint8), palette=np.zeros((256, 3), dtype=np.uint8)
    )
    (tmp_path / "notes.txt").write_text("hello")
    problems = {
        problem.split(": ")[0]: problem.split(": ", 1)[1] for problem in mine.problems(images)
    }
    assert problems[files[0].name] == f"is missing (image '{NAMES[0]}')"
    assert problems[files[1].name] == "is PNG of mode RGB where 8-bit grey PNG is wanted"
    assert problems[files[2].name] == "is 30 x 20 where the image is 20 x 30 (height x width)"
    assert problems[files[3].name].startswith(
        "holds the value 0, 1, 2, 3, 4, which is the raw id of no scored class"
    )
    assert problems[files[4].name].startswith("cannot be read")
    assert problems[files[5].name] == "is PNG of mode P where 8-bit grey PNG is wanted"
    assert (
        problems["notes.txt"] == "is not the prediction of any of the 6 images"
        and len(problems) == 7
    )
    with pytest.raises(SubmissionError, match="cannot be handed in: .*is missing"):
        mine.zip(tmp_path / "new.zip", images)
    assert not (tmp_path / "new.zip").exists()


def test_the_old_zip_stays_until_the_new_one_is_whole_and_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kind: something good is removed before something better is there."""
    images = written(tmp_path / "labels")
    mine = submission(tmp_path / "labels")
    target = tmp_path / "old.zip"
    mine.zip(target, images)
    old = target.read_bytes()

    prediction = mine.path(NAMES[0])
    good = prediction.read_bytes()
    prediction.write_bytes(good[:50])
    with pytest.raises(SubmissionError, match=r"old\.zip is still that of an earlier run"):
        mine.zip(target, images)
    assert target.read_bytes() == old

    write_png(prediction, np.full(SIZE, 7, dtype=np.uint8))
    with monkeypatch.context() as patch:
        patch.setattr(zipfile.ZipFile, "testzip", lambda self: "a damaged entry")
        with pytest.raises(SubmissionError, match="cannot be read back"):
            mine.zip(target, images)
    assert target.read_bytes() == old and not list(tmp_path.glob(".hmsa-*"))

    mine.zip(target, images)
    assert target.read_bytes() != old


def test_a_file_that_is_no_submission_is_not_written_over(tmp_path: Path) -> None:
    """Kind: writing over what the command did not make."""
    images = written(tmp_path / "labels")
    data = tmp_path / "data.zip"
    with zipfile.ZipFile(data, "w") as archive:
        archive.writestr("images/a.png", b"a photograph")
    (tmp_path / "notes.zip").write_bytes(b"no zip at all")
    (tmp_path / "folder.zip").mkdir()
    for target in (data, tmp_path / "notes.zip", tmp_path / "folder.zip"):
        before = target.read_bytes() if target.is_file() else b""
        for check in (require_replaceable, lambda one: submission(tmp_path).zip(one, images)):
            with pytest.raises(SubmissionError, match="is there already and is no submission"):
                check(target)
        assert not target.is_file() or target.read_bytes() == before

    (tmp_path / "empty.zip").touch()
    submission(tmp_path / "labels").zip(tmp_path / "empty.zip", images)


def test_names_that_lead_out_of_the_folder(tmp_path: Path) -> None:
    """Kind: names from outside joined to an output path."""
    for name in ("../a", "/tmp/a", "a/../../b"):
        with pytest.raises(OutputError, match="would lead out of the folder"):
            submission(tmp_path, "folder").path(name)


def test_two_images_of_one_official_name(tmp_path: Path) -> None:
    mine = submission(tmp_path)
    write_png(mine.path(NAMES[0]), np.full(SIZE, 7, dtype=np.uint8))
    problems = mine.problems({NAMES[0]: SIZE, "other/berlin_000000_000019_again": SIZE})
    assert problems == [
        f"berlin_000000_000019_labelIds.png: stands for both '{NAMES[0]}' and "
        "'other/berlin_000000_000019_again'"
    ]


def test_sizes_come_from_the_images(tmp_path: Path) -> None:
    mine = submission(tmp_path / "labels")
    Image.new("RGB", (SIZE[1], SIZE[0])).save(tmp_path / "image.jpg")
    write_png(mine.path(NAMES[0]), np.full(SIZE, 7, dtype=np.uint8))
    assert mine.problems({NAMES[0]: tmp_path / "image.jpg"}) == []
    (tmp_path / "image.jpg").write_text("no image")
    with pytest.raises(SubmissionError, match="image.jpg: cannot be read"):
        mine.problems({NAMES[0]: tmp_path / "image.jpg"})


def test_a_full_disk_leaves_no_zip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = written(tmp_path / "labels")

    def full(self: zipfile.ZipFile, *arguments: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(zipfile.ZipFile, "writestr", full)
    with pytest.raises(
        SubmissionError, match=r"out\.zip: cannot be written \(No space left on device\)"
    ):
        submission(tmp_path / "labels").zip(tmp_path / "out.zip", images)
    assert [file.name for file in tmp_path.iterdir()] == ["labels"]


def test_the_official_script_takes_the_names_unchanged(tmp_path: Path) -> None:
    """It finds predictions by name alone.

    Perfect predictions on made-up labels must score 1 in its own output.
    """
    pytest.importorskip("cityscapesscripts")
    rng = np.random.default_rng(0)
    mine = submission(tmp_path / "results", split="val")
    for name in NAMES[:3]:
        label = np.kron(rng.integers(0, 19, (4, 6)), np.ones((5, 5), dtype=int)).astype(np.uint8)
        write_png(mine.path(name), mine.encode(label))
        stem = Path(name).name.removesuffix("_leftImg8bit")
        write_png(tmp_path / f"gtFine/val/berlin/{stem}_gtFine_labelIds.png", TO_RAW[label])
        write_png(
            tmp_path / f"gtFine/val/berlin/{stem}_gtFine_instanceIds.png",
            TO_RAW[label].astype(np.uint16),
        )
    code = (
        "import numpy as np\n"
        # Gone from NumPy 2.4; cityscapesScripts 2.x still calls it.
        "if not hasattr(np, 'in1d'): np.in1d = np.isin\n"
        "from cityscapesscripts.evaluation import evalPixelLevelSemanticLabeling as script\n"
        "script.main()\n"
    )
    roots = {"CITYSCAPES_DATASET": str(tmp_path), "CITYSCAPES_RESULTS": str(tmp_path / "results")}
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **roots}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "Images Processed: 3" in done.stdout
    assert (
        "Score Average" in done.stdout
        and "1.000" in done.stdout.split("Score Average")[1].splitlines()[0]
    )
