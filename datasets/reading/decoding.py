"""Reading photos and labels.

Whatever is wrong with a file ends in one sentence that names it, and never reaches the network.
"""

from __future__ import annotations

import os
import warnings
from io import BytesIO
from pathlib import Path
from typing import IO, TYPE_CHECKING

import cv2
import numpy as np
from PIL import ExifTags, Image, ImageOps
from PIL.PngImagePlugin import PngImageFile
from PIL.PpmImagePlugin import PpmImageFile
from PIL.TiffImagePlugin import TiffImageFile

from ..errors import DataError
from .causes import explain_channels, explain_values
from .colors import holds_colors, is_grey, train_ids_of_colors
from .headers import HEAD_BYTES, Header, HeaderError, parse_header, require_complete
from .regular import open_data_file, unreadable

if TYPE_CHECKING:
    from ..spec import DatasetSpec, LabelIds

DEFAULT_MAX_PIXELS = 200_000_000
_TRANSPOSES = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_BITS_PER_SAMPLE = 258  # tag of a TIFF
_BYTES_PER_PIXEL = 16  # four channels of 32 bits, uncompressed
_BYTES_BESIDE = 1 << 26  # colour profiles, previews and the like


def read_image(path: str | Path, *, max_pixels: int = DEFAULT_MAX_PIXELS) -> np.ndarray:
    """A photo as uint8 RGB [H, W, 3]: Exif orientation applied, alpha dropped, grey repeated.

    Raises:
        DataError: missing, empty, more than `max_pixels` declared, truncated, 16-bit, CMYK, or not
            an image.
    """
    return decode_image(path, read_image_bytes(path, max_pixels=max_pixels), max_pixels=max_pixels)


def read_image_bytes(path: str | Path, *, max_pixels: int = DEFAULT_MAX_PIXELS) -> bytes:
    """The bytes of an image file, for `decode_image`.

    Raises:
        DataError: missing, empty, no file, or far too large for `max_pixels`.
    """
    return _read_bytes(path, "image", max_pixels)


def decode_image(
    path: str | Path, data: bytes, *, max_pixels: int = DEFAULT_MAX_PIXELS
) -> np.ndarray:
    """`read_image` from the bytes of the file; `path` is for messages."""
    header = _checked_header(path, data, "image", max_pixels)
    if header is None:
        return _read_by_pillow(path, data)

    # What opencv would decode without a word, though not to the colours meant.
    if header.bit_depth > 8:
        raise DataError(
            f"{path}: image has {header.bit_depth} bits per channel; convert it to 8 bits",
            kind="depth",
        )
    if header.format == "jpeg" and header.channels == 4:
        raise _four_inks(path)
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


def _read_by_pillow(path: str | Path, data: bytes) -> np.ndarray:
    """Formats other than PNG and JPEG: TIFF, WebP, BMP and others, uint8 RGB [H, W, 3]."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            picture: Image.Image = Image.open(BytesIO(data))
            is_deep = _bits_per_channel(picture) > 8
            picture = ImageOps.exif_transpose(picture)
    except Exception as error:  # over broken files Pillow's readers raise errors of every kind
        raise _undecodable(path, error) from error

    if picture.mode == "CMYK":
        raise _four_inks(path)
    if is_deep:
        raise DataError(
            f"{path}: image has more than 8 bits per channel; convert it to 8 bits", kind="depth"
        )
    try:
        return np.asarray(picture.convert("RGB")).copy()
    except Exception as error:  # colour spaces that Pillow cannot convert
        raise _undecodable(path, error) from error


def _bits_per_channel(picture: Image.Image) -> int:
    """What an opened file holds, of which Pillow drops the lower bits in some formats."""
    if picture.mode.startswith("I") or picture.mode == "F":
        return 16
    if isinstance(picture, TiffImageFile):
        return int(max(picture.tag_v2.get(_BITS_PER_SAMPLE, (1,))))
    if isinstance(picture, PpmImageFile):
        # The decoder is told the largest value, where that is not 255.
        largest = 255
        for tile in picture.tile:
            if isinstance(tile.args, tuple):
                largest = max([largest, *(item for item in tile.args if isinstance(item, int))])
        return largest.bit_length()
    return 8


def _undecodable(path: str | Path, error: Exception) -> DataError:
    return DataError(
        f"{path}: image cannot be decoded ({error}); it is damaged, fetch or export it again",
        kind="unreadable",
    )


def _four_inks(path: str | Path) -> DataError:
    return DataError(f"{path}: image has four CMYK channels; convert it to RGB", kind="channels")


def read_label(
    path: str | Path,
    *,
    spec: DatasetSpec,
    image_size: tuple[int, int] | None = None,
    max_pixels: int = DEFAULT_MAX_PIXELS,
    label_ids: LabelIds = "raw",
) -> np.ndarray:
    """A label file as train ids, uint8 [H, W], `spec.ignore_label` where ignored.

    The file holds ids, or the colours of the classes (`DatasetSpec.label_form`).

    Args:
        path: the file.
        spec: classes of the data set.
        image_size: (height, width) that the label must have.
        max_pixels: limit on its size, in pixels.
        label_ids: whether the file holds raw or train ids.

    Raises:
        DataError: every fault of `decode_label`, another size, or a value or colour that is neither
            a class nor known to be ignored.
    """
    picture, header = _open_label(path, max_pixels)
    if label_ids == "raw" and holds_colors(path, picture, spec):
        require_same_size(path, (picture.height, picture.width), image_size)
        return train_ids_of_colors(path, picture, spec)

    raw = _label_values(path, picture, header, spec)
    require_same_size(path, (raw.shape[0], raw.shape[1]), image_size)

    # One look-up finds faulty values, a second maps the others.
    to_train, unknown = spec.tables(label_ids)
    if cv2.countNonZero(cv2.LUT(raw, unknown)):
        counts = np.bincount(raw.reshape(-1), minlength=256)
        raise DataError(
            f"{path}: {explain_values(counts, spec=spec, label_ids=label_ids)}", kind="values"
        )
    return cv2.LUT(raw, to_train)


def require_same_size(
    path: str | Path, label_size: tuple[int, int], image_size: tuple[int, int] | None
) -> None:
    """Refuse a label that does not cover its image exactly; both sizes are (height, width).

    Raises:
        DataError: the sizes differ.
    """
    if image_size is None or label_size == tuple(image_size):
        return

    turned = ""
    if label_size == tuple(image_size)[::-1]:
        turned = " (height and width are exchanged: does the image carry an Exif orientation?)"
    raise DataError(
        f"{path}: label has {label_size[0]} x {label_size[1]} pixels (height x width) but its "
        f"image {image_size[0]} x {image_size[1]}{turned}; resize the label by nearest neighbour, "
        "or pair the right files",
        kind="size",
    )


def decode_label(
    path: str | Path, *, spec: DatasetSpec | None = None, max_pixels: int = DEFAULT_MAX_PIXELS
) -> np.ndarray:
    """The ids of a label file, uint8 [H, W], turned upright as its Exif orientation says.

    These are grey values, or palette indices, which opencv would lose. `spec` sharpens the likely
    cause that an error names.

    Raises:
        DataError: missing, empty, too large, truncated, JPEG, a value above 255, or several
            channels.
    """
    picture, header = _open_label(path, max_pixels)
    return _label_values(path, picture, header, spec)


def open_label(
    path: str | Path, *, max_pixels: int = DEFAULT_MAX_PIXELS
) -> tuple[Image.Image, np.ndarray | None]:
    """A label file as a picture, and its ids, uint8 [H, W]; None where it holds colours.

    Raises:
        DataError: every fault of `decode_label` but colours.
    """
    picture, header = _open_label(path, max_pixels)
    if picture.mode in ("RGB", "RGBA") and not is_grey(picture):
        return picture, None
    return picture, _label_values(path, picture, header, None)


def _open_label(path: str | Path, max_pixels: int) -> tuple[Image.Image, Header | None]:
    """A label file decoded and turned upright, and the header of a PNG.

    Raises:
        DataError: missing, empty, too large, truncated, or JPEG.
    """
    data = _read_bytes(path, "label", max_pixels)
    header = _checked_header(path, data, "label", max_pixels)
    if header is not None and header.format == "jpeg":
        what = "whose lossy compression changes ids"
        if header.channels > 1:
            what = "of colours (are images and labels swapped?)"
        raise DataError(
            f"{path}: label is a JPEG {what}; labels are PNG files of class ids or of the colours "
            "of the classes: export them as PNG from where they were drawn",
            kind="format",
        )

    try:
        picture: Image.Image
        if header is None:
            picture = Image.open(BytesIO(data))
        else:
            # PngImageFile spares Image.open's own limit on pixels, which warns and raises at sizes
            # that are not ours; ours was checked above.
            picture = PngImageFile(BytesIO(data))
        picture.load()
        # What turned and tagged an image may have done so with its label: both are obeyed.
        if header is None:
            picture = ImageOps.exif_transpose(picture)
        else:
            picture = _upright(picture, header.orientation)
    except Exception as error:  # over broken files Pillow's readers raise errors of every kind
        raise DataError(
            f"{path}: label cannot be decoded ({error}); it is damaged or not a PNG file",
            kind="unreadable",
        ) from error
    return picture, header


def _upright(picture: Image.Image, orientation: int) -> Image.Image:
    """A picture as its Exif orientation, 1 to 8, says that it is displayed."""
    method = _TRANSPOSES.get(orientation)
    if method is None:
        return picture
    return picture.transpose(method)


def _label_values(
    path: str | Path, picture: Image.Image, header: Header | None, spec: DatasetSpec | None
) -> np.ndarray:
    """The ids in a decoded label, uint8 [H, W]."""
    if picture.mode == "1":
        return np.array(picture, dtype=np.uint8)

    if picture.mode in ("L", "P"):
        values = np.array(picture)
        # Pillow stretches grey values of 2 and 4 bits to 0 .. 255.
        if header is not None and not header.palette and header.bit_depth in (2, 4):
            values //= 255 // (2**header.bit_depth - 1)
        return values

    # Ids fit into 8 bits, however many a file has for them. Larger values are most often instance
    # ids, which are class * 1000 + number.
    if picture.mode.startswith("I") or picture.mode == "F":
        wide = np.asarray(picture)
        ids = wide.clip(0, 255).astype(np.uint8)
        if (ids == wide).all():
            return ids
        odd = wide[ids != wide]
        raise DataError(
            f"{path}: label has 16 or more bits per pixel and the value {odd.max():g}, where ids "
            "are whole numbers from 0 to 255; instance ids? take the labelIds files instead",
            kind="depth",
        )

    # Grey that was saved three times: each channel holds the ids.
    if picture.mode in ("RGB", "RGBA") and is_grey(picture):
        return np.asarray(picture)[..., 0].copy()
    raise DataError(f"{path}: label {explain_channels(picture, spec=spec)}", kind="channels")


def read_confidence(
    path: str | Path, *, size: tuple[int, int], max_pixels: int = DEFAULT_MAX_PIXELS
) -> np.ndarray:
    """Confidence of automatic labels, uint8 [H, W] = floor(255 x probability) of the class chosen.

    Raises:
        DataError: every fault of `decode_label`, or another size than `size` (height, width).
    """
    values = decode_label(path, max_pixels=max_pixels)
    if values.shape != size:
        raise DataError(
            f"{path}: confidence has {values.shape[0]} x {values.shape[1]} pixels but its label "
            f"{size[0]} x {size[1]}",
            kind="size",
        )
    return values


def image_size(path: str | Path) -> tuple[int, int]:
    """(height, width) of an image or label as displayed, from the first bytes of the file.

    Raises:
        DataError: the file is missing, empty, cut off, or no image.
    """
    try:
        with open_data_file(path, "file") as file:
            head = file.read(HEAD_BYTES)
            if not head:
                raise DataError(f"{path}: file is empty (0 bytes)", kind="empty")
            header = parse_header(head)
            if header is None:
                return _size_by_pillow(path, file, "file")
            return header.height, header.width
    except HeaderError as error:
        raise _truncated(path, "file", error) from error
    except OSError as error:
        raise unreadable(path, "file", error) from error


def resize_long_edge(
    image: np.ndarray, label: np.ndarray | None, long_edge: int
) -> tuple[np.ndarray, np.ndarray | None]:
    """Image and label scaled so that the longer side has `long_edge` pixels.

    Args:
        image: uint8 [H, W, 3].
        label: uint8 [H, W], which is scaled by nearest neighbour.
        long_edge: pixels of the longer side.
    """
    height, width = image.shape[:2]
    scale = long_edge / max(height, width)
    if scale == 1:
        return image, label

    # Averaging over areas is what keeps thin things when shrinking; the authors' code uses Pillow's
    # antialiased bilinear filter there.
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    method = cv2.INTER_LINEAR
    if scale < 1:
        method = cv2.INTER_AREA
    resized = cv2.resize(image, size, interpolation=method)
    if label is None:
        return resized, None
    return resized, cv2.resize(label, size, interpolation=cv2.INTER_NEAREST_EXACT)


def _read_bytes(path: str | Path, what: str, max_pixels: int) -> bytes:
    try:
        with open_data_file(path, what) as file:
            # No picture within the limit on pixels has as many bytes as this.
            largest = max_pixels * _BYTES_PER_PIXEL + _BYTES_BESIDE
            if os.fstat(file.fileno()).st_size > largest:
                raise DataError(
                    f"{path}: {what} has more than {largest} bytes, too many for {max_pixels} "
                    "pixels (data.max_pixels)",
                    kind="too large",
                )
            data = file.read()
    except OSError as error:
        raise unreadable(path, what, error) from error
    if not data:
        raise DataError(f"{path}: {what} is empty (0 bytes)", kind="empty")
    return data


def _truncated(path: str | Path, what: str, error: HeaderError) -> DataError:
    return DataError(
        f"{path}: {what} is truncated: {error}; fetch or export it again", kind="truncated"
    )


def _checked_header(path: str | Path, data: bytes, what: str, max_pixels: int) -> Header | None:
    """Header of PNG and JPEG files, None for other formats, whose size Pillow tells.

    Size and completeness are checked before anything is decoded.
    """
    try:
        header = parse_header(data)
        if header is None:
            height, width = _size_by_pillow(path, BytesIO(data), what)
        else:
            height, width = header.height, header.width

        if height * width > max_pixels:
            raise DataError(
                f"{path}: {what} declares {height} x {width} pixels (height x width), more than "
                f"the limit of {max_pixels} (data.max_pixels)",
                kind="too large",
            )
        if not height * width:
            raise DataError(f"{path}: {what} declares {height} x {width} pixels", kind="unreadable")
        require_complete(data)
    except HeaderError as error:
        raise _truncated(path, what, error) from error
    return header


def _size_by_pillow(path: str | Path, file: IO[bytes], what: str) -> tuple[int, int]:
    """(height, width) as displayed."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            picture = Image.open(file)
            width, height = picture.size
            # Pillow's size of a TIFF obeys the orientation in some versions and not in others; the
            # tags are what is stored.
            if isinstance(picture, TiffImageFile):
                width, height = picture.tag_v2[256], picture.tag_v2[257]
            orientation = picture.getexif().get(ExifTags.Base.Orientation, 1)
    except Image.DecompressionBombError as error:
        raise DataError(f"{path}: {what} is too large ({error})", kind="too large") from error
    except Exception as error:  # over broken files Pillow's readers raise errors of every kind
        raise DataError(
            f"{path}: {what} is not an image that can be read", kind="unreadable"
        ) from error

    if orientation >= 5:
        return width, height
    return height, width
