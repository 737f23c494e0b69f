"""Files written in the background: right, whole or not at all, with failures for the caller."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from hmsa.utils.files import writing
from hmsa.utils.files.image_writer import ImageWriter
from hmsa.utils.files.png import encode_png, write_png
from hmsa.utils.files.writing import WriteError, write_file


def decoded(data: bytes, way: int = cv2.IMREAD_UNCHANGED) -> np.ndarray:
    array = cv2.imdecode(np.frombuffer(data, dtype=np.uint8), way)
    assert array is not None
    return array


@given(st.integers(1, 40), st.integers(1, 40), st.sampled_from([1, 6]), st.integers(0, 2**32 - 1))
def test_every_kind_of_png_reads_back(
    tmp_path_factory: Any, height: int, width: int, level: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    path = tmp_path_factory.getbasetemp() / "picture.png"

    def by_pillow() -> np.ndarray:
        with Image.open(path) as picture:
            picture.verify()
        return np.array(Image.open(path))

    grey = rng.integers(0, 256, (height, width)).astype(np.uint8)
    deep = rng.integers(0, 65536, (height, width)).astype(np.uint16)
    colour = rng.integers(0, 256, (height, width, 3)).astype(np.uint8)
    for array in (grey, deep, colour, colour[:, ::-1], grey[::-1].T):
        write_png(path, array, level=level)
        np.testing.assert_array_equal(by_pillow(), array)
        by_opencv = decoded(path.read_bytes())
        np.testing.assert_array_equal(by_opencv[..., ::-1] if array.ndim == 3 else by_opencv, array)


def test_palette_png_keeps_ids_and_shows_colours(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    ids, palette = (
        rng.integers(0, 256, (20, 30)).astype(np.uint8),
        rng.integers(0, 256, (256, 3)).astype(np.uint8),
    )
    write_png(tmp_path / "ids.png", ids, palette=palette)
    with Image.open(tmp_path / "ids.png") as picture:
        assert picture.mode == "P"
        np.testing.assert_array_equal(np.array(picture), ids)
        np.testing.assert_array_equal(np.array(picture.convert("RGB")), palette[ids])
    write_png(tmp_path / "few.png", ids % 5, palette=palette[:5])
    with Image.open(tmp_path / "few.png") as picture:
        np.testing.assert_array_equal(np.array(picture.convert("RGB")), palette[ids % 5])


def test_what_is_no_picture_is_refused() -> None:
    for wrong in (
        np.zeros((2, 2)),
        np.zeros((2, 2, 4), dtype=np.uint8),
        np.zeros((0, 2), dtype=np.uint8),
    ):
        with pytest.raises(AssertionError):
            encode_png(wrong)
    with pytest.raises(AssertionError):
        encode_png(np.full((2, 2), 9, dtype=np.uint8), palette=np.zeros((3, 3), dtype=np.uint8))
    with pytest.raises(AssertionError):
        encode_png(np.zeros((2, 2, 3), dtype=np.uint16))


def test_label_maps_are_smaller_than_opencv_makes_them() -> None:
    label = np.kron(
        np.random.default_rng(0).integers(0, 19, (16, 32)), np.ones((16, 16), dtype=np.uint8)
    )
    label = label.astype(np.uint8)
    done, theirs = cv2.imencode(".png", label, [cv2.IMWRITE_PNG_COMPRESSION, 1])
    assert done and len(encode_png(label)) <= len(theirs)


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_everything_submitted_is_written(tmp_path: Path, workers: int) -> None:
    arrays = [np.full((5, 7), number, dtype=np.uint8) for number in range(40)]
    with ImageWriter(workers, 2) as writer:
        for number, array in enumerate(arrays):
            writer.submit(tmp_path / f"deep/{number % 3}/{number}.png", array)
    for number, array in enumerate(arrays):
        np.testing.assert_array_equal(
            np.array(Image.open(tmp_path / f"deep/{number % 3}/{number}.png")), array
        )
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_full_queue_makes_the_caller_wait(tmp_path: Path) -> None:
    gate, started = threading.Event(), threading.Event()
    done: list[int] = []

    def job(number: int) -> None:
        started.set()
        gate.wait(20)
        done.append(number)

    writer = ImageWriter(1, 2)
    writer.call(job, 0)
    assert started.wait(20)
    writer.call(job, 1)
    writer.call(job, 2)  # one at work, two waiting: the next must wait
    late = threading.Thread(target=writer.call, args=(job, 3))
    late.start()
    late.join(0.2)
    assert late.is_alive() and not done
    gate.set()
    late.join(20)
    writer.close()
    assert done == [0, 1, 2, 3]


@pytest.mark.parametrize("workers", [0, 2])
def test_the_first_failure_reaches_the_caller_and_stops_the_writing(
    tmp_path: Path, workers: int
) -> None:
    (tmp_path / "file").write_text("not a folder")
    writer = ImageWriter(workers, 1)
    with pytest.raises(
        WriteError, match=r"a\.png: cannot be written \((Not a directory|File exists)\)"
    ):
        for _ in range(200):
            writer.submit(tmp_path / "file" / "a.png", np.zeros((2, 2), dtype=np.uint8))
        writer.close()
    with pytest.raises(WriteError):
        writer.submit(tmp_path / "later.png", np.zeros((2, 2), dtype=np.uint8))
    with pytest.raises(WriteError):
        writer.close()
    assert not (tmp_path / "later.png").exists()


def test_a_failure_at_the_very_end_is_raised_by_close(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(WriteError), ImageWriter(1) as writer:
        writer.submit(tmp_path / "file" / "a.png", np.zeros((2, 2), dtype=np.uint8))


def test_the_callers_own_error_is_not_hidden(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(KeyError, match="mine"), ImageWriter(1) as writer:
        writer.submit(tmp_path / "file" / "a.png", np.zeros((2, 2), dtype=np.uint8))
        raise KeyError("mine")


def test_a_full_disk_is_one_sentence_and_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "label.png"
    write_png(target, np.ones((3, 3), dtype=np.uint8))
    before = target.read_bytes()

    def half_written(path: Path, data: bytes) -> int:
        with open(path, "wb") as file:
            file.write(data[: len(data) // 2])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", half_written)
    with pytest.raises(WriteError) as caught:
        write_png(target, np.zeros((3, 3), dtype=np.uint8))
    reason = "cannot be written (No space left on device); make room or choose another folder"
    assert str(caught.value) == f"{target}: {reason}" and isinstance(caught.value, OSError)
    assert target.read_bytes() == before and [file.name for file in tmp_path.iterdir()] == [
        "label.png"
    ]


def test_text_that_utf8_cannot_hold_is_written_all_the_same(tmp_path: Path) -> None:
    """Kind: a file name that is not UTF-8 must not lose the work of hours when it is listed."""
    name = os.fsdecode(b"caf\xe9.jpg")
    write_file(tmp_path / "list.txt", f"Straße {name}\n")
    assert (tmp_path / "list.txt").read_text(encoding="utf-8") == "Straße caf\\udce9.jpg\n"


def test_a_name_with_a_null_byte_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(WriteError, match="no file can be called so"):
        write_file(tmp_path / "a\0b", b"x")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_device_that_is_really_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing.threading, "get_ident", lambda: 7)
    writing.temporary_beside(tmp_path / "a.png").symlink_to("/dev/full")
    with pytest.raises(WriteError, match="No space left on device"):
        write_file(tmp_path / "label.png", b"x" * 100_000)
    assert not list(tmp_path.iterdir())


def test_a_killed_process_leaves_whole_files_only(tmp_path: Path, root: Path) -> None:
    code = (
        "import sys, numpy as np\n"
        "from hmsa.utils.files.image_writer import ImageWriter\n"
        "noise = np.random.default_rng(0).integers(0, 256, (300, 400)).astype(np.uint8)\n"
        "writer = ImageWriter(2)\n"
        "print('ready', flush=True)\n"
        "for number in range(100000):\n"
        f"    writer.submit({str(tmp_path)!r} + f'/{{number}}.png', noise)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], cwd=root, stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline() == b"ready\n"
    while not list(tmp_path.glob("*.png")):
        assert process.poll() is None
    process.kill()
    process.wait()
    process.stdout.close()
    expected = np.random.default_rng(0).integers(0, 256, (300, 400)).astype(np.uint8)
    files = list(tmp_path.glob("*.png"))
    for file in files:
        np.testing.assert_array_equal(np.array(Image.open(file)), expected)
