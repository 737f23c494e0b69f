"""Videos as images: every frame once, under its number, whatever asks for them."""

from __future__ import annotations

import os
import pickle
import threading
from pathlib import Path

import cv2
import numpy as np
import pytest

from hmsa.datasets import ClassInfo, DataError, DatasetSpec, Files, build_eval_loader, image_files
from hmsa.datasets.layouts.video import KEPT_FRAMES
from tests.datasets.trees import subset

SPEC = DatasetSpec(
    name="two", classes=(ClassInfo("a", (0, 0, 0), (0,)), ClassInfo("b", (9, 9, 9), (1,)))
)
FRAMES, HEIGHT, WIDTH = 21, 48, 64


def write_video(path: Path, count: int = FRAMES) -> Path:
    """Frame n is grey of brightness 10 n + 5, but for a red corner."""
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 10, (WIDTH, HEIGHT))
    assert writer.isOpened()
    for number in range(count):
        frame = np.full((HEIGHT, WIDTH, 3), 10 * number + 5, np.uint8)
        frame[:16, :16] = (0, 0, 255)
        writer.write(frame)
    writer.release()
    return path


def number_of(image: np.ndarray) -> int:
    assert image.shape == (HEIGHT, WIDTH, 3)
    assert image[4, 4, 0] > 200 > 60 > image[4, 4, 2], "red comes first"
    return round((float(image[30:, 30:].mean()) - 5) / 10)


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return image_files([write_video(tmp_path / "clip.avi")], spec=SPEC)


def test_a_video_is_its_frames(files: Files) -> None:
    assert [files.name(index) for index in range(len(files))] == [
        f"clip/{number:06d}" for number in range(FRAMES)
    ]
    assert [number_of(files.read_image(index)) for index in range(len(files))] == list(
        range(FRAMES)
    )
    assert files.image_size(3) == (HEIGHT, WIDTH)
    assert [number_of(files.read_image(index)) for index in (20, 3, 4, 0, 19)] == [
        20,
        3,
        4,
        0,
        19,
    ], "any order"
    part = subset(pickle.loads(pickle.dumps(files)), [7, 2])
    assert [number_of(part.read_image(index)) for index in range(2)] == [7, 2]


@pytest.mark.parametrize("workers", [0, 2])
def test_loaders_of_several_ranks_read_every_frame_once(files: Files, workers: int) -> None:
    seen = []
    for rank in range(2):
        for batch in build_eval_loader(
            files, workers=workers, rank=rank, world_size=2, batch_size=3, with_label=False
        ):
            numbers = [number_of(image.permute(1, 2, 0).numpy()) for image in batch["image"]]
            assert numbers == batch["index"].tolist()
            seen += numbers
    assert sorted(seen) == list(range(FRAMES))


def test_threads_may_ask_in_a_little_disorder(files: Files) -> None:
    found: dict[int, int] = {}
    threads = [
        threading.Thread(
            target=lambda start=start: found.update(
                {n: number_of(files.read_image(n)) for n in range(start, FRAMES, 3)}
            )
        )
        for start in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {number: number for number in range(FRAMES)}
    assert KEPT_FRAMES >= 3


def test_videos_stand_beside_images_and_keep_their_names_apart(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "still.png"), np.zeros((10, 12, 3), np.uint8))
    one, two = (
        write_video(tmp_path / "a" / "clip.avi", 2),
        write_video(tmp_path / "b" / "clip.avi", 3),
    )
    files = image_files([tmp_path / "still.png", one, two], spec=SPEC)
    assert [files.name(index) for index in range(len(files))] == [
        "still",
        "a/clip/000000",
        "a/clip/000001",
        "b/clip/000000",
        "b/clip/000001",
        "clip/000002",
    ]
    assert files.read_image(0).shape == (10, 12, 3) and files.image_size(0) == (10, 12)
    assert [number_of(files.read_image(index)) for index in range(1, 6)] == [0, 1, 0, 1, 2]


def test_what_is_no_video_or_too_large_is_said(tmp_path: Path) -> None:
    (tmp_path / "broken.mp4").write_bytes(b"no video at all")
    with pytest.raises(DataError, match=r"broken\.mp4: opencv cannot open this video"):
        image_files([tmp_path / "broken.mp4"], spec=SPEC)
    files = image_files([write_video(tmp_path / "clip.avi", 1)], spec=SPEC, max_pixels=100)
    with pytest.raises(DataError, match=r"clip\.avi: frames have 48 x 64 pixels.*data\.max_pixels"):
        files.read_image(0)


@pytest.mark.parametrize("share", [0.7, 0.9, 0.95])
def test_a_video_that_ends_early_is_said_and_used_as_far_as_it_goes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], share: float
) -> None:
    whole = write_video(tmp_path / "whole.avi")
    files = image_files([whole], spec=SPEC)
    assert len(files) == FRAMES and capsys.readouterr().err == ""
    data = whole.read_bytes()
    (tmp_path / "cut.avi").write_bytes(data[: int(share * len(data))])
    files = image_files([tmp_path / "cut.avi"], spec=SPEC)
    said = capsys.readouterr().err
    assert 0 < len(files) < FRAMES
    assert f"cut.avi: this video ends early: {len(files)} frames" in said and f"{FRAMES}" in said
    assert number_of(files.read_image(0)) == 0


def test_a_pipe_is_no_video(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "live.mp4")
    with pytest.raises(DataError, match=r"no such image|a pipe"):
        image_files([tmp_path / "live.mp4"], spec=SPEC)


def test_frames_have_fingerprints_of_their_own(files: Files) -> None:
    found = {files.fingerprint(index) for index in range(len(files))}
    assert len(found) == FRAMES and files.read_image_and_fingerprint(3)[1] == files.fingerprint(3)
