"""Reading photos and labels: whatever is wrong with a file ends in one sentence that names it, and never reaches the network."""

from __future__ import annotations

import warnings
from io import BytesIO
from pathlib import Path
from typing import IO, TYPE_CHECKING

import cv2
import numpy as np
from PIL import ExifTags, Image, ImageOps
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile

from ..errors import DataError
from .causes import explain_channels, explain_values
from .headers import HEAD_BYTES, Header, HeaderError, parse_header, require_complete

if TYPE_CHECKING:
    from ..spec import DatasetSpec, LabelIds

DEFAULT_MAX_PIXELS = 64_000_000


def read_image(path: str | Path, *, max_pixels: int = DEFAULT_MAX_PIXELS) -> np.ndarray:
    """A photo as uint8 RGB [H, W, 3], Exif orientation applied, alpha dropped, grey repeated.

    DataError: missing, empty, more than `max_pixels` declared, truncated, 16-bit, CMYK, or not an image.
    """
    data = _read_bytes(path, "image")
    header = _checked_header(path, data, "image", max_pixels)
    if header is None:
        return _read_other(path, data)
    if header.bit_depth > 8:
        raise DataError(
            f"{path}: image has {header.bit_depth} bits per channel; convert it to 8 bits",
            kind="depth",
        )
    if header.format == "jpeg" and header.channels == 4:
        raise DataError(f"{path}: image has four CMYK channels; convert it to RGB", kind="channels")
    try:
        image = cv2.imdecode(np.frombuffer(data, dtype=np.uint8), cv2.IMREAD_COLOR)
    except cv2.error:
        image = None
    if image is None:
        raise DataError(
            f"{path}: image cannot be decoded; it is damaged, fetch or export it again",
            kind="unreadable",
        )
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def _read_other(path: str | Path, data: bytes) -> np.ndarray:
    """Formats without a header parser of ours (TIFF, WebP, BMP ...) by Pillow, whose modes tell 16-bit and CMYK images apart."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            picture = ImageOps.exif_transpose(Image.open(BytesIO(data)))
    except Exception as error:  # over broken files Pillow's readers raise errors of every kind
        raise DataError(
            f"{path}: image cannot be decoded ({error}); it is damaged, fetch or export it again",
            kind="unreadable",
        ) from error
    if picture.mode == "CMYK":
        raise DataError(f"{path}: image has four CMYK channels; convert it to RGB", kind="channels")
    if picture.mode.startswith("I") or picture.mode == "F":
        raise DataError(
            f"{path}: image has more than 8 bits per channel; convert it to 8 bits", kind="depth"
        )
    return np.asarray(picture.convert("RGB")).copy()


def read_label(
    path: str | Path,
    *,
    spec: DatasetSpec,
    image_size: tuple[int, int] | None = None,
    max_pixels: int = DEFAULT_MAX_PIXELS,
    label_ids: LabelIds = "raw",
) -> np.ndarray:
    """A label file as train ids, uint8 [H, W], `spec.ignore_label` where ignored.

    `label_ids` says whether the file holds raw or train ids. `image_size` (height, width) makes another size an error.
    DataError: every fault of `decode_label`, another size, or a value that is neither a class nor a known ignore id.
    """
    raw = decode_label(path, spec=spec, max_pixels=max_pixels)
    require_same_size(path, raw.shape, image_size)
    to_train, unknown = spec.tables(label_ids)
    if cv2.countNonZero(cv2.LUT(raw, unknown)):
        counts = np.bincount(raw.reshape(-1), minlength=256)
        raise DataError(
            f"{path}: {explain_values(counts, spec=spec, label_ids=label_ids)}", kind="values"
        )
    return cv2.LUT(raw, to_train)


def require_same_size(
    path: str | Path, label_size: tuple[int, ...], image_size: tuple[int, int] | None
) -> None:
    """DataError if a label of size (height, width) does not cover its image exactly."""
    if image_size is None or tuple(label_size) == tuple(image_size):
        return
    turned = (
        " (height and width are exchanged: does the image carry an Exif orientation?)"
        if label_size == tuple(image_size)[::-1]
        else ""
    )
    sizes = f"{label_size[0]} x {label_size[1]} pixels (height x width) but its image {image_size[0]} x {image_size[1]}"
    raise DataError(
        f"{path}: label has {sizes}{turned}; resize the label by nearest neighbour, or pair the right files",
        kind="size",
    )


def decode_label(
    path: str | Path, *, spec: DatasetSpec | None = None, max_pixels: int = DEFAULT_MAX_PIXELS
) -> np.ndarray:
    """The ids of a label file as stored, uint8 [H, W]: grey values, or palette indices (which opencv would lose).

    DataError: missing, empty, too large, truncated, JPEG, more than 8 bits, or several channels. `spec` sharpens the likely cause named.
    """
    data = _read_bytes(path, "label")
    header = _checked_header(path, data, "label", max_pixels)
    if header is not None and header.format == "jpeg":
        what = (
            "of colours (are images and labels swapped?)"
            if header.channels > 1
            else "whose lossy compression changes ids"
        )
        raise DataError(
            f"{path}: label is a JPEG {what}; labels are single-channel PNG files of class ids",
            kind="format",
        )
    try:
        # PngImageFile spares Image.open's own limit on pixels, which warns and raises at sizes that are not ours; ours was checked above.
        picture: Image.Image = (
            PngImageFile(BytesIO(data)) if header is not None else Image.open(BytesIO(data))
        )
        picture.load()
    except Exception as error:  # over broken files Pillow's readers raise errors of every kind
        raise DataError(
            f"{path}: label cannot be decoded ({error}); it is damaged or not a PNG file",
            kind="unreadable",
        ) from error
    return _label_values(path, picture, header, spec)


def _label_values(
    path: str | Path, picture: Image.Image, header: Header | None, spec: DatasetSpec | None
) -> np.ndarray:
    if picture.mode == "1":
        return np.array(picture, dtype=np.uint8)
    if picture.mode in ("L", "P"):
        values = np.array(picture)
        if header is not None and not header.palette and header.bit_depth in (2, 4):
            values //= 255 // (
                2**header.bit_depth - 1
            )  # Pillow stretches 2- and 4-bit grey values to 0..255
        return values
    if picture.mode.startswith("I") or picture.mode == "F":
        largest = np.asarray(picture).max()
        hint = (
            "instance ids? take the labelIds files instead"
            if largest > 255
            else "save it as 8-bit grey or palette PNG"
        )
        raise DataError(
            f"{path}: label has 16 or more bits per pixel (largest value {largest:g}); {hint}",
            kind="depth",
        )
    raise DataError(f"{path}: label {explain_channels(picture, spec=spec)}", kind="channels")


def read_confidence(
    path: str | Path, *, size: tuple[int, int], max_pixels: int = DEFAULT_MAX_PIXELS
) -> np.ndarray:
    """Confidence of automatic labels, uint8 [H, W] = floor(255 x probability) of the class chosen."""
    values = decode_label(path, max_pixels=max_pixels)
    if values.shape != size:
        raise DataError(
            f"{path}: confidence has {values.shape[0]} x {values.shape[1]} pixels but its label {size[0]} x {size[1]}",
            kind="size",
        )
    return values


def image_size(path: str | Path) -> tuple[int, int]:
    """(height, width) of an image or label as displayed, from the first bytes of the file; DataError where there is none."""
    try:
        with open(path, "rb") as file:
            head = file.read(HEAD_BYTES)
            if not head:
                raise DataError(f"{path}: file is empty (0 bytes)", kind="empty")
            header = parse_header(head)
            if header is not None:
                return header.height, header.width
            return _size_by_pillow(path, file, "file")
    except HeaderError as error:
        raise DataError(
            f"{path}: file is truncated: {error}; fetch or export it again", kind="truncated"
        ) from error
    except FileNotFoundError as error:
        raise DataError(f"{path}: file does not exist", kind="missing") from error
    except OSError as error:
        raise DataError(
            f"{path}: file cannot be read ({error.strerror})", kind="unreadable"
        ) from error


def resize_long_edge(
    image: np.ndarray, label: np.ndarray | None, long_edge: int
) -> tuple[np.ndarray, np.ndarray | None]:
    """Image uint8 [H, W, 3] and label uint8 [H, W] scaled so that the longer side is `long_edge` pixels; the label by nearest neighbour."""
    height, width = image.shape[:2]
    scale = long_edge / max(height, width)
    if scale == 1:
        return image, label
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    # Averaging over areas is what keeps thin things when shrinking; the release uses Pillow's antialiased bilinear filter there.
    image = cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    return image, None if label is None else cv2.resize(
        label, size, interpolation=cv2.INTER_NEAREST_EXACT
    )


def _read_bytes(path: str | Path, what: str) -> bytes:
    try:
        with open(path, "rb") as file:
            data = file.read()
    except FileNotFoundError as error:
        raise DataError(f"{path}: {what} does not exist", kind="missing") from error
    except OSError as error:
        raise DataError(
            f"{path}: {what} cannot be read ({error.strerror})", kind="unreadable"
        ) from error
    if not data:
        raise DataError(f"{path}: {what} is empty (0 bytes)", kind="empty")
    return data


def _checked_header(path: str | Path, data: bytes, what: str, max_pixels: int) -> Header | None:
    """Size within bounds, then completeness, both before decoding; None for formats other than PNG and JPEG, whose size Pillow tells."""
    try:
        header = parse_header(data)
        height, width = (
            (header.height, header.width)
            if header is not None
            else _size_by_pillow(path, BytesIO(data), what)
        )
        if height * width > max_pixels:
            size = f"{height} x {width} pixels (height x width)"
            raise DataError(
                f"{path}: {what} declares {size}, more than the limit of {max_pixels} (data.max_pixels)",
                kind="too large",
            )
        if not height * width:
            raise DataError(f"{path}: {what} declares {height} x {width} pixels", kind="unreadable")
        require_complete(data)
    except HeaderError as error:
        raise DataError(
            f"{path}: {what} is truncated: {error}; fetch or export it again", kind="truncated"
        ) from error
    return header


def _size_by_pillow(path: str | Path, file: IO[bytes], what: str) -> tuple[int, int]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            picture = Image.open(file)
            # Pillow's size of a TIFF obeys the orientation in some versions and not in others; the tags are what is stored.
            width, height = (
                (picture.tag_v2[256], picture.tag_v2[257])
                if isinstance(picture, TiffImageFile)
                else picture.size
            )
            turned = picture.getexif().get(ExifTags.Base.Orientation, 1) >= 5
    except Image.DecompressionBombError as error:
        raise DataError(f"{path}: {what} is too large ({error})", kind="too large") from error
    except Exception as error:  # over broken files Pillow's readers raise errors of every kind
        raise DataError(
            f"{path}: {what} is not an image that can be read", kind="unreadable"
        ) from error
    return (width, height) if turned else (height, width)
