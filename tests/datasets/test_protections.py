"""What protects one reader or list protects all: bits, channels, orientation, odd files, names."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from hmsa.datasets import DataError, image_size, read_image, read_label
from hmsa.datasets.reading.decoding import read_confidence
from tests.datasets.trees import label, photo, toy_spec

SUFFIXES = ("png", "tif", "bmp", "webp", "ppm")
LOSSLESS = {"webp": {"lossless": True}}


def saved(path: Path, picture: Image.Image, **options: Any) -> Path:
    picture.save(path, **LOSSLESS.get(path.suffix[1:], {}), **options)
    return path


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
def test_every_reader_gives_the_colours_of_every_kind(
    tmp_path: Path, suffix: str, mode: str
) -> None:
    """Grey is repeated, alpha dropped, a palette looked up, whatever the format."""
    picture = Image.fromarray(photo()).convert(mode)
    try:
        path = saved(tmp_path / f"a.{suffix}", picture)
    except (OSError, ValueError):
        pytest.skip(f"Pillow writes no {mode} as {suffix}")
    assert np.array_equal(read_image(path), np.asarray(picture.convert("RGB")))


DEEP = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint16)


@pytest.mark.parametrize("used", [257, 16], ids=["16 bits used", "12 bits used"])
@pytest.mark.parametrize("name", ["a.png", "a.tif", "grey.png", "grey.tif", "a.ppm", "grey.pgm"])
def test_more_than_8_bits_are_refused_in_every_format(tmp_path: Path, name: str, used: int) -> None:
    """Never read by their high bytes alone: 12 bits of a camera would come out black."""
    values = DEEP * np.uint16(used)
    if name.startswith("grey"):
        values = np.ascontiguousarray(values[..., 0])
    if name.endswith("m"):
        magic = b"P5" if values.ndim == 2 else b"P6"
        content = magic + b"\n50 40\n65535\n" + values.astype(">u2").tobytes()
        (tmp_path / name).write_bytes(content)
    else:
        assert cv2.imwrite(str(tmp_path / name), values)
    with pytest.raises(DataError, match=r"bits per channel; convert it to 8 bits") as caught:
        read_image(tmp_path / name)
    assert caught.value.kind == "depth" and name in str(caught.value)


STORED = {  # how a picture is stored so that the tag shows it upright
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("mode", ["L", "P"])
def test_labels_obey_their_orientation_as_images_do(
    tmp_path: Path, orientation: int, suffix: str, mode: str
) -> None:
    """The same tool turned and tagged both: they fit, and so does what is read of them."""
    values = label()
    exif = Image.Exif()
    exif[0x0112] = orientation
    pictures = {"image": Image.fromarray(photo()), "label": Image.fromarray(values)}
    if mode == "P":
        pictures["label"].putpalette(bytes(range(256)) * 3)
    for name, picture in pictures.items():
        method = STORED[orientation]
        stored = picture if method is None else picture.transpose(method)
        stored.save(tmp_path / f"{name}.{suffix}", exif=exif)
    image_path, label_path = (tmp_path / f"{name}.{suffix}" for name in pictures)
    image = read_image(image_path)
    assert np.array_equal(image, photo()) and image_size(image_path) == (24, 32)
    read = read_label(label_path, spec=toy_spec(), image_size=(24, 32))
    assert np.array_equal(read, values) and image_size(label_path) == (24, 32)
    assert np.array_equal(read_confidence(label_path, size=(24, 32)), values)


@pytest.mark.parametrize("what", ["pipe", "device", "folder"])
def test_what_is_no_file_is_refused_at_once(tmp_path: Path, what: str) -> None:
    """A pipe without a writer and a device without an end would be waited for for ever."""
    path = tmp_path / "a.png"
    if what == "pipe":
        os.mkfifo(path)
    elif what == "device":
        path.symlink_to("/dev/zero")
    else:
        path.mkdir()
    readers = (read_image, image_size, lambda path: read_label(path, spec=toy_spec()))
    for reader in readers:
        with pytest.raises(DataError, match=rf"a\.png: \w+ is a {what}, not a file|a directory"):
            reader(path)


def test_a_file_of_more_bytes_than_its_limit_allows_is_not_read_whole(tmp_path: Path) -> None:
    with open(tmp_path / "a.png", "wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(DataError, match=r"a\.png: image has more than \d+ bytes.*max_pixels"):
        read_image(tmp_path / "a.png", max_pixels=1000)


@pytest.mark.parametrize("name", ["n" * 300 + ".png", "a\0b.png"])
def test_impossible_names_are_a_sentence(tmp_path: Path, name: str) -> None:
    for reader in (read_image, image_size):
        with pytest.raises(DataError, match="cannot be read|impossible name"):
            reader(f"{tmp_path}/{name}")
