"""Photos and labels: what is sound is read exactly, and each fault has its own sentence with the
file's name.
"""

from __future__ import annotations

import contextlib
import pickle
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from hmsa.datasets import (
    CITYSCAPES,
    ClassInfo,
    DataError,
    DatasetSpec,
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


def test_labels_of_colours_are_read_as_they_are(tmp_path: Path) -> None:
    """RGB, RGBA and, where the class list says so, palette pictures whose indices mean nothing."""
    spec = toy_spec()
    rgb = spec.palette[label()]
    assert np.array_equal(read_label(save(tmp_path / "rgb.png", rgb), spec=spec), label())
    opaque = save(tmp_path / "rgba.png", rgb, mode="RGBA")
    assert np.array_equal(read_label(opaque, spec=spec, image_size=(24, 32)), label())
    refused(opaque, "label has 24 x 32 pixels", image_size=(48, 64))

    # The colours of classes 0, 1 and 2 at the indices 7, 3 and 5.
    palette = np.zeros((256, 3), np.uint8)
    palette[[7, 3, 5]] = spec.palette[:3]
    indices = np.array([7, 3, 5], np.uint8)[label()]
    path = save(tmp_path / "palette.png", indices, palette=palette.tobytes())
    refused(path, "label values 3 .* 5 .* 7")
    by_color = replace(spec, label_form="colors")
    assert np.array_equal(read_label(path, spec=by_color), label())
    # Grey pictures, such as automatic labels, hold ids all the same.
    assert np.array_equal(read_label(save(tmp_path / "l.png", label()), spec=by_color), label())


def test_colours_that_are_ignored_unknown_or_shared(tmp_path: Path) -> None:
    spec = toy_spec()
    rgb = spec.palette[label()]
    rgb[0, :5] = (9, 9, 8)
    path = save(tmp_path / "a.png", rgb)
    refused(path, r"label colour \[9, 9, 8\] \(5 of 768 pixels\) .* add it to its class")

    expected = label()
    expected[0, :5] = 255
    for changes in ({"ignored_colors": ((9, 9, 8),)}, {"ignore_unknown": True}):
        assert np.array_equal(read_label(path, spec=replace(spec, **changes)), expected)
    first = replace(spec.classes[0], other_colors=((9, 9, 8),))
    expected[0, :5] = 0
    several = replace(spec, classes=(first, *spec.classes[1:]))
    assert np.array_equal(read_label(path, spec=several), expected)

    second = replace(spec.classes[1], color=spec.classes[0].color)
    shared = replace(spec, classes=(spec.classes[0], second, spec.classes[2]))
    refused(path, "stands for both 'a' and 'b'", spec=shared)
    assert np.array_equal(read_label(save(tmp_path / "l.png", label()), spec=shared), label())


def test_values_that_stand_for_nothing_can_be_ignored(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", label(values=(0, 90)))
    expected = np.where(label(values=(0, 90)) == 90, 255, 0)
    assert np.array_equal(read_label(path, spec=replace(toy_spec(), ignore_unknown=True)), expected)


def test_grey_in_three_channels_is_ids_or_colours(tmp_path: Path) -> None:
    equal = save(tmp_path / "equal.png", np.dstack([label()] * 3))
    assert np.array_equal(read_label(equal, spec=toy_spec()), label())

    # Colours of classes that are grey, as binary masks saved as RGB have them.
    black, white = ClassInfo("no", (0, 0, 0), (0,)), ClassInfo("yes", (255, 255, 255), (1,))
    binary = DatasetSpec("binary", (black, white), raw_ignore=9)
    path = save(tmp_path / "binary.png", np.dstack([label(values=(0, 1)) * 255] * 3))
    assert np.array_equal(read_label(path, spec=binary), label(values=(0, 1)))

    # Where ids and colours would both fit and differ, neither is taken.
    classes = (replace(black, raw_ids=(255,)), replace(white, raw_ids=(0,)))
    turned = DatasetSpec("t", classes, raw_ignore=9)
    with pytest.raises(DataError, match="write 'labels: ids' or 'labels: colors'"):
        read_label(path, spec=turned)
    by_color = replace(turned, label_form="colors")
    assert np.array_equal(read_label(path, spec=by_color), label(values=(0, 1)))


def test_pictures_that_are_no_labels_and_their_likely_causes(tmp_path: Path) -> None:
    refused(save(tmp_path / "photo.png", photo((64, 64))), "images and labels swapped")
    smooth = toy_spec().palette[label()]
    smooth[0, :, 0] = np.arange(32)
    refused(save(tmp_path / "smooth.png", smooth), "and 26 more colours .* without anti-aliasing")
    refused(save(tmp_path / "alpha.png", label(), mode="LA"), r"2 channels \(LA\)")
    refused(save(tmp_path / "photo.jpg", photo()), "JPEG of colours .are images and labels swapped")
    refused(save(tmp_path / "grey.jpg", label()), "lossy compression changes ids.*export them")
    only_ids = replace(toy_spec(), label_form="ids")
    refused(tmp_path / "smooth.png", "write 'labels: colors'", spec=only_ids)
    Image.fromarray(photo()).convert("CMYK").save(tmp_path / "cmyk.tif")
    refused(tmp_path / "cmyk.tif", r"4 channels \(CMYK\)")


def test_sixteen_bit_labels(tmp_path: Path) -> None:
    refused(
        save(tmp_path / "instances.png", label().astype(np.uint16) + 24_000),
        r"the value 24002.*labelIds",
    )
    wide = save(tmp_path / "wide.png", label().astype(np.uint16))
    assert np.array_equal(read_label(wide, spec=toy_spec()), label())


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ((0, 255), r"value 255 \(\d+ of 768 pixels\).*a binary mask of 0 and 255.*id: 255"),
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
