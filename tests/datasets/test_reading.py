"""Photos and labels: what is sound is read exactly, and each fault has its own sentence with the
file's name.
"""

from __future__ import annotations

import contextlib
import pickle
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from hmsa.datasets import (
    CITYSCAPES,
    DataError,
    image_size,
    read_image,
    read_label,
    resize_long_edge,
)
from hmsa.datasets.reading.decoding import DEFAULT_MAX_PIXELS, decode_label
from hmsa.utils.config.models import DataSection
from tests.datasets.trees import encoded, label, photo, png_with_size, save, toy_spec


def refused(path: Path, said: str, *, as_label: bool = True, **options: object) -> DataError:
    with pytest.raises(DataError, match=said) as caught:
        if as_label:
            read_label(path, **{"spec": toy_spec(), **options})  # type: ignore[arg-type]
        else:
            read_image(path, **options)  # type: ignore[arg-type]
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    return caught.value


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "webp"])
def test_lossless_photos_come_out_as_rgb(tmp_path: Path, suffix: str) -> None:
    image = photo()
    path = save(tmp_path / f"a.{suffix}", image, **({"lossless": True} if suffix == "webp" else {}))
    assert np.array_equal(read_image(path), image)
    assert image_size(path) == (24, 32)


def test_jpeg_photo_equals_pillows_decoding_nearly(tmp_path: Path) -> None:
    smooth = np.linspace(0, 255, 24 * 32 * 3).reshape(24, 32, 3).astype(np.uint8)
    path = save(tmp_path / "a.jpg", smooth, quality=95)
    assert (
        np.abs(read_image(path).astype(int) - np.asarray(Image.open(path)).astype(int)).max() <= 3
    )


@pytest.mark.parametrize("mode", ["L", "RGBA", "P"])
def test_grey_alpha_and_palette_photos_become_rgb(tmp_path: Path, mode: str) -> None:
    path = save(tmp_path / "a.png", photo(), mode=mode)
    assert np.array_equal(read_image(path), np.asarray(Image.open(path).convert("RGB")))


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_exif_orientation_is_obeyed_by_size_and_pixels(
    tmp_path: Path, form: str, orientation: int
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = write(tmp_path / "a", encoded(photo(), form, exif=exif))
    image = read_image(path)
    assert image.shape[:2] == image_size(path) == ((32, 24) if orientation >= 5 else (24, 32))


def test_size_is_read_from_the_header_alone(tmp_path: Path) -> None:
    data = encoded(photo((480, 640)), "JPEG")
    assert image_size(write(tmp_path / "a.jpg", data[:1000])) == (480, 640)
    assert image_size(write(tmp_path / "b.png", png_with_size(60_000, 50_000))) == (60_000, 50_000)


@pytest.mark.parametrize("form", ["PNG", "JPEG"])
@pytest.mark.parametrize("kept", [0.3, 0.7, 0.999])
def test_truncated_photo(tmp_path: Path, form: str, kept: float) -> None:
    data = encoded(photo((64, 64)), form)
    refused(
        write(tmp_path / "a", data[: int(kept * len(data))]), "image is truncated", as_label=False
    )


def test_truncated_progressive_jpeg_with_a_whole_thumbnail_inside(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x9286] = b"\xff\xd8" + b"thumbnail" + b"\xff\xd9"
    whole = encoded(photo((64, 64)), "JPEG", progressive=True, exif=exif)
    assert read_image(
        write(tmp_path / "whole.jpg", whole + b"trailing bytes of some camera")
    ).shape == (64, 64, 3)
    for kept in (0.4, 0.6, 0.9):
        refused(
            write(tmp_path / "cut.jpg", whole[: int(kept * len(whole))]),
            "image is truncated",
            as_label=False,
        )


def test_damaged_png_photo(tmp_path: Path) -> None:
    data = bytearray(encoded(photo((64, 64)), "PNG"))
    data[len(data) // 2] ^= 0xFF
    refused(write(tmp_path / "a.png", bytes(data)), "cannot be decoded", as_label=False)


@pytest.mark.parametrize("as_label", [True, False])
def test_missing_empty_and_foreign_files(tmp_path: Path, as_label: bool) -> None:
    refused(tmp_path / "absent.png", "does not exist", as_label=as_label)
    refused(write(tmp_path / "empty.png", b""), r"is empty \(0 bytes\)", as_label=as_label)
    refused(
        write(tmp_path / "text.png", b"hello, this is no picture"),
        "is not an image",
        as_label=as_label,
    )
    (tmp_path / "folder.png").mkdir()
    refused(tmp_path / "folder.png", "is a folder, not a file", as_label=as_label)


@pytest.mark.parametrize("as_label", [True, False])
def test_a_header_of_60000_by_60000_is_refused_before_decoding(
    tmp_path: Path, as_label: bool
) -> None:
    path = write(tmp_path / "bomb.png", png_with_size(60_000, 60_000))
    assert "data.max_pixels" in str(
        refused(path, "declares 60000 x 60000 pixels", as_label=as_label)
    )
    assert DEFAULT_MAX_PIXELS < 60_000**2


def test_max_pixels_is_what_the_caller_says(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", photo((20, 30)))
    assert read_image(path, max_pixels=600).shape == (20, 30, 3)
    refused(path, "more than the limit of 599", as_label=False, max_pixels=599)


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_sixteen_bit_photo(tmp_path: Path, form: str) -> None:
    path = write(tmp_path / "a", encoded(label().astype(np.uint16) * 300, form))
    refused(path, "8 bits", as_label=False)


@pytest.mark.parametrize("form", ["JPEG", "TIFF"])
def test_cmyk_photo(tmp_path: Path, form: str) -> None:
    Image.fromarray(photo()).convert("CMYK").save(tmp_path / "a", form)
    refused(tmp_path / "a", "CMYK", as_label=False)


def test_label_maps_raw_ids_of_cityscapes(tmp_path: Path) -> None:
    raw = np.arange(34, dtype=np.uint8).reshape(2, 17)
    result = read_label(save(tmp_path / "a.png", raw), spec=CITYSCAPES)
    assert np.array_equal(result, CITYSCAPES.to_train[raw])
    assert set(np.unique(result)) == {*range(19), 255}
    assert (
        read_label(
            save(tmp_path / "b.png", np.full((2, 2), 255, np.uint8)), spec=CITYSCAPES
        ).tolist()
        == [[255, 255]] * 2
    )  # -1 in 8 bits
    refused(save(tmp_path / "c.png", np.full((2, 2), 34, np.uint8)), "value 34", spec=CITYSCAPES)


def test_label_of_train_ids(tmp_path: Path) -> None:
    values = np.array([[0, 18, 255]], dtype=np.uint8)
    assert np.array_equal(
        read_label(save(tmp_path / "a.png", values), spec=CITYSCAPES, label_ids="train"), values
    )
    refused(
        save(tmp_path / "b.png", values + np.uint8(8)),
        "raw ids where train ids were announced",
        spec=CITYSCAPES,
        label_ids="train",
    )


def test_palette_label_keeps_its_indices(tmp_path: Path) -> None:
    values = label()
    path = save(
        tmp_path / "a.png",
        values,
        palette=bytes(np.random.default_rng(0).integers(0, 256, 768, dtype=np.uint8)),
    )
    assert np.array_equal(read_label(path, spec=toy_spec()), values)


@pytest.mark.parametrize("bits", [1, 2, 4])
@pytest.mark.parametrize("palette", [False, True])
def test_labels_of_fewer_bits_keep_their_ids(tmp_path: Path, bits: int, palette: bool) -> None:
    values = label(values=tuple(range(2**bits)))
    path = tmp_path / "a.png"
    if palette:
        save(path, values, palette=bytes(range(256)) * 3, bits=bits)
    else:
        cv2 = pytest.importorskip("cv2")
        if bits == 1:
            Image.fromarray(values * 255).convert("1").save(path)
        else:
            path.write_bytes(_grey_png(values, bits))
            assert (
                cv2.imread(str(path), cv2.IMREAD_UNCHANGED).max() == 255
            )  # what a careless reader would take for an id
    assert np.array_equal(read_label(path, spec=toy_spec(2**bits)), values)


def _grey_png(values: np.ndarray, bits: int) -> bytes:
    """A greyscale PNG of 2 or 4 bits, which Pillow does not write."""
    import struct
    import zlib

    per_byte = 8 // bits
    weights = np.array(
        [2 ** (bits * (per_byte - 1 - place)) for place in range(per_byte)], dtype=np.uint8
    )
    packed = (values.reshape(values.shape[0], -1, per_byte) * weights).sum(axis=2).astype(np.uint8)
    rows = b"".join(b"\0" + row.tobytes() for row in packed)

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], bits, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def test_other_lossless_label_formats(tmp_path: Path) -> None:
    for suffix in ("tif", "bmp"):
        assert np.array_equal(
            read_label(save(tmp_path / f"a.{suffix}", label()), spec=toy_spec()), label()
        )


def test_label_of_another_size_names_both(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", label((24, 32)))
    assert read_label(path, spec=toy_spec(), image_size=(24, 32)).shape == (24, 32)
    refused(
        path,
        r"label has 24 x 32 pixels \(height x width\) but its image 48 x 64",
        image_size=(48, 64),
    )
    refused(path, "exchanged", image_size=(32, 24))


@pytest.mark.parametrize("kept", [0.5, 0.95])
def test_truncated_or_damaged_label(tmp_path: Path, kept: float) -> None:
    data = encoded(photo((64, 64))[..., 0], "PNG")
    refused(write(tmp_path / "cut.png", data[: int(kept * len(data))]), "label is truncated")
    damaged = bytearray(data)
    damaged[int(kept * len(data) / 2)] ^= 0xFF
    refused(write(tmp_path / "damaged.png", bytes(damaged)), "cannot be decoded")


def test_rgb_labels_and_their_likely_causes(tmp_path: Path) -> None:
    spec = toy_spec()
    refused(
        save(tmp_path / "palette.png", spec.palette[label()]),
        "colours of the classes, not their ids",
    )
    refused(save(tmp_path / "equal.png", np.dstack([label()] * 3)), "all equal: save one of them")
    refused(save(tmp_path / "photo.png", photo((64, 64))), "images and labels swapped")
    refused(
        save(tmp_path / "mask.png", np.dstack([label() * 50, label() * 20, label()])), "an RGB mask"
    )
    refused(save(tmp_path / "alpha.png", label(), mode="LA"), r"2 channels \(LA\)")
    refused(save(tmp_path / "photo.jpg", photo()), "JPEG of colours .are images and labels swapped")
    refused(save(tmp_path / "grey.jpg", label()), "lossy compression changes ids")
    Image.fromarray(photo()).convert("CMYK").save(tmp_path / "cmyk.tif")
    refused(tmp_path / "cmyk.tif", r"4 channels \(CMYK\)")


def test_sixteen_bit_labels(tmp_path: Path) -> None:
    refused(
        save(tmp_path / "instances.png", label().astype(np.uint16) + 24_000),
        r"largest value 24002.*labelIds",
    )
    refused(
        save(tmp_path / "wide.png", label().astype(np.uint16)), r"16 or more bits.*save it as 8-bit"
    )


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ((0, 255), r"value 255 \(\d+ of 768 pixels\).*a binary mask of 0 and 255"),
        ((1, 2, 3), "ids counted from 1 to 3 instead of from 0"),
        ((0, 1, 2, 3), "one class more than the 3 that the class list names"),
        ((0, 7, 8, 11, 26), "raw ids of Cityscapes"),
        (
            tuple(range(0, 254, 3)),
            "grey photograph, or a label that was resized with interpolation",
        ),
        ((0, 1, 2, 255), "255 for ignore"),
        ((0, 90), "a label of another data set"),
    ],
)
def test_values_outside_the_classes_and_their_likely_causes(
    tmp_path: Path, values: tuple[int, ...], said: str
) -> None:
    path = save(tmp_path / "a.png", label(values=values))
    error = refused(path, said, spec=toy_spec(3, raw_ignore=100, known_raw_ids=()))
    assert "ids 0-2; ignored: 100" in str(error)
    assert error.kind == "values"


def test_counts_name_every_pixel_of_a_faulty_value(tmp_path: Path) -> None:
    values = np.zeros((10, 10), np.uint8)
    values[0, :7] = 40
    refused(save(tmp_path / "a.png", values), r"value 40 \(7 of 100 pixels\)")


@given(
    form=st.sampled_from(["PNG", "JPEG", "TIFF", "WEBP", "BMP", "GIF"]),
    changes=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=4),
    kept=st.floats(0, 1),
)
@settings(max_examples=300)
@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, about the damage done
def test_whatever_is_damaged_ends_in_a_data_error_or_an_image(
    form: str, changes: list[tuple[float, int]], kept: float
) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = bytearray(
        encoded(
            label((12, 16)),
            form,
            **({"exif": exif} if form in ("PNG", "JPEG", "TIFF", "WEBP") else {}),
        )
    )
    for place, value in changes:
        data[int(place * len(data))] = value
    with tempfile.TemporaryDirectory() as folder:
        path = write(Path(folder) / "file", bytes(data[: round(kept * len(data))]))
        with contextlib.suppress(DataError):
            assert read_image(path, max_pixels=10_000).ndim == 3
        with contextlib.suppress(DataError):
            assert set(np.unique(read_label(path, spec=toy_spec(), max_pixels=10_000))) <= {
                0,
                1,
                2,
                255,
            }
        with contextlib.suppress(DataError):
            assert len(image_size(path)) == 2


def test_data_error_travels_between_processes() -> None:
    error = pickle.loads(pickle.dumps(DataError("a.png: said", kind="size")))
    assert (type(error), str(error), error.kind) == (DataError, "a.png: said", "size")


@pytest.mark.parametrize(
    ("size", "long_edge", "expected"),
    [
        ((30, 40), 20, (15, 20)),
        ((40, 30), 80, (80, 60)),
        ((7, 1000), 10, (1, 10)),
        ((5, 5), 5, (5, 5)),
    ],
)
def test_resize_long_edge(size: tuple[int, int], long_edge: int, expected: tuple[int, int]) -> None:
    values = label(size, values=(3, 200))
    image, resized = resize_long_edge(photo(size), values, long_edge)
    assert image.shape == (*expected, 3)
    assert resized is not None and resized.shape == expected and set(np.unique(resized)) <= {3, 200}
    assert resize_long_edge(photo(size), None, long_edge)[1] is None


def test_resized_label_stays_over_its_image() -> None:
    values = np.zeros((40, 60), np.uint8)
    values[:, 31:] = 1
    image, resized = resize_long_edge(np.dstack([values * 255] * 3), values, 30)
    assert resized is not None
    assert np.abs((image[..., 0] > 127).astype(int) - resized).mean() <= 1 / 30


def test_decode_label_gives_raw_ids(tmp_path: Path) -> None:
    raw = label(values=(7, 250))
    assert np.array_equal(decode_label(save(tmp_path / "a.png", raw)), raw)


def test_the_limit_on_pixels_is_the_configurations() -> None:
    """One default, wherever files are read."""
    assert DataSection.model_fields["max_pixels"].default == DEFAULT_MAX_PIXELS == 200_000_000
