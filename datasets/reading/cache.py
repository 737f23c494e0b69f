"""Decoded images and labels kept on disk: decoding a PNG costs more than all that follows it."""

from __future__ import annotations

import importlib
import shutil
import zlib
from collections.abc import Callable
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from hmsa.utils.files.writing import remove

from ..errors import DataError
from ..files import Files
from ..notices import notice
from .builders import spread
from .decoding import image_size, resize_long_edge
from .stored import built_whole, cache_folder, identity, sole_builder

_VERSION = 1  # raise it when the same sources would be stored otherwise
_JPEG_QUALITY = 95
_TRIED_IMAGES = 8  # from which the size of a compressed cache is estimated

KINDS = ("none", "memmap", "zstd", "zlib", "jpeg")

# One image: height and width as stored and as in its file, where its pixels and its label begin in
# data.bin, and how many bytes they take.
ROW = np.dtype(
    [("height", np.int32), ("width", np.int32), ("file_height", np.int32), ("file_width", np.int32)]
    + [(name, np.int64) for name in ("image_begin", "image_bytes", "label_begin", "label_bytes")]
)


class DecodedCache:
    """Images and labels of one set of files, as stored in a folder.

    It is opened anew in each process; any number of processes may read.
    """

    def __init__(self, folder: Path, kind: str) -> None:
        self.folder = folder
        self.kind = kind

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder, "kind": self.kind}

    @cached_property
    def table(self) -> np.ndarray:
        """ROW [N]."""
        return np.load(self.folder / "table.npy", allow_pickle=False)

    @cached_property
    def _bytes(self) -> np.ndarray:
        return np.memmap(self.folder / "data.bin", dtype=np.uint8, mode="r")

    def read(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Image uint8 [H, W, 3] and label uint8 [H, W], read-only.

        With `memmap` only the pixels that are looked at are fetched from the disk.
        """
        row = self.table[index]
        size = (int(row["height"]), int(row["width"]))
        image = self._bytes[row["image_begin"] : row["image_begin"] + row["image_bytes"]]
        label = self._bytes[row["label_begin"] : row["label_begin"] + row["label_bytes"]]

        if self.kind == "memmap":
            return np.asarray(image).reshape(*size, 3), np.asarray(label).reshape(size)

        if self.kind == "jpeg":
            decoded = cv2.imdecode(np.asarray(image), cv2.IMREAD_COLOR_RGB)
            assert decoded is not None, (
                f"{self.folder}: stored image {index} cannot be decoded; delete the folder"
            )
            return decoded, _unpack(zlib.decompress, label, size)

        decompress = _codec(self.kind)[1]
        return _unpack(decompress, image, (*size, 3)), _unpack(decompress, label, size)

    def locate(self, index: int, point: tuple[int, int]) -> tuple[int, int]:
        """Where pixel (row, column) of the label file lies in the stored label.

        That is elsewhere only if the label was stored smaller.
        """
        row = self.table[index]
        return (
            (2 * point[0] + 1) * int(row["height"]) // (2 * int(row["file_height"])),
            (2 * point[1] + 1) * int(row["width"]) // (2 * int(row["file_width"])),
        )

    def is_whole(self, count: int) -> bool:
        """Whether table and data of `count` images are there and fit each other."""
        try:
            table, size = self.table, (self.folder / "data.bin").stat().st_size
        except (OSError, ValueError, EOFError):
            return False
        return (
            table.dtype == ROW
            and len(table) == count
            and size == int(table["image_bytes"].sum() + table["label_bytes"].sum())
        )


def build_cache(
    files: Files,
    *,
    kind: str,
    cache_dir: str | Path | None = None,
    long_edge: int | None = None,
    workers: int = 1,
    announce: Callable[[str], None] | None = None,
) -> DecodedCache | None:
    """The decoded cache of `files`, built if `cache_dir` has none of just these sources.

    "memmap" holds raw pixels, of which a crop reads only its own. "zstd" (needs the package
    zstandard) and "zlib" are compressed without loss and read whole: at 1024 x 2048 in 8 and 27 ms
    where a PNG takes 30, so zlib serves formats slower than PNG. These three give the very arrays
    that decoding gives. "jpeg" holds images shrunk to `long_edge` as JPEG of quality 95, and labels
    shrunk by nearest neighbour: lossy, for data whose images are far larger than what is trained
    on.

    Args:
        files: images and labels to store.
        kind: one of `KINDS`.
        cache_dir: where the cache lies; by default as in `cache_folder`.
        long_edge: pixels of the longer side of stored images; "jpeg" only.
        workers: processes that decode and compress.
        announce: is told the size before anything is written; by default it goes to stderr.

    Returns:
        The cache, None for "none".

    Raises:
        DataError: unknown kind, no room on the disk, faulty image or label.
    """
    if kind == "none":
        return None
    if kind not in KINDS:
        raise DataError(f"data.cache must be one of {', '.join(KINDS)}, not '{kind}'")
    if kind in ("zstd", "zlib"):
        _codec(kind)  # a missing package is said before anything is done
    files.require_labels()
    if kind != "jpeg":
        long_edge = None

    # The name holds all that the content depends on, so a cache is never stale.
    settings = {"version": _VERSION, "kind": kind, "long_edge": long_edge}
    name = f"decoded-{kind}-{identity(files, images=True, settings=settings)}"
    folder = cache_folder(cache_dir, root=files.root) / name
    cache = DecodedCache(folder, kind)
    with sole_builder(folder):
        if not cache.is_whole(len(files)):
            remove(folder)
            _build(
                files,
                folder,
                kind=kind,
                long_edge=long_edge,
                workers=workers,
                announce=announce or notice,
            )
            cache = DecodedCache(folder, kind)
    return cache


def _build(
    files: Files,
    folder: Path,
    *,
    kind: str,
    long_edge: int | None,
    workers: int,
    announce: Callable[[str], None],
) -> None:
    """Write the cache to `folder`, after saying how large it will be."""
    expected = _expected_bytes(files, kind=kind, long_edge=long_edge)
    free = shutil.disk_usage(folder.parent).free
    size = f"{expected / 1e9:.2f} GB"
    if kind != "memmap":
        size = f"about {size}"
    announce(
        f"decoded cache of {len(files)} images ({kind}): {size} in {folder} "
        f"({free / 1e9:.0f} GB free)"
    )
    if expected > free:
        raise DataError(
            f"the decoded cache needs {size} but {folder.parent} has {free / 1e9:.2f} GB free; set "
            "data.cache_dir to another disk, or data.cache to jpeg or none"
        )

    # All images lie one after the other in one file, and the table says where.
    table = np.zeros(len(files), dtype=ROW)
    with built_whole(folder) as temporary:
        temporary.mkdir()
        with open(temporary / "data.bin", "wb") as data:
            encoded = spread(
                partial(_encode, files, kind, long_edge),
                range(len(files)),
                workers=workers,
                title=f"decoded cache ({kind})",
            )
            for row, (sizes, image, label) in zip(table, encoded, strict=True):
                row["height"], row["width"], row["file_height"], row["file_width"] = sizes
                for name, blob in (("image", image), ("label", label)):
                    row[f"{name}_begin"], row[f"{name}_bytes"] = data.tell(), len(blob)
                    data.write(blob)
        np.save(temporary / "table.npy", table)


def _expected_bytes(files: Files, *, kind: str, long_edge: int | None) -> int:
    """Bytes of the cache: exact for raw pixels, else estimated from a few images of the set."""
    if kind == "memmap":
        sizes = (image_size(files.image_path(index)) for index in range(len(files)))
        return sum(4 * height * width for height, width in sizes)

    chosen = sorted({round(at) for at in np.linspace(0, len(files) - 1, _TRIED_IMAGES)})
    total = 0
    for index in chosen:
        _, image, label = _encode(files, kind, long_edge, index)
        total += len(image) + len(label)
    return round(total / len(chosen) * len(files))


def _encode(
    files: Files, kind: str, long_edge: int | None, index: int
) -> tuple[tuple[int, int, int, int], bytes, bytes]:
    """Stored size and file's size (height, width) of one image, its pixels and its label."""
    image = files.read_image(index)
    file_size = (image.shape[0], image.shape[1])
    label = files.read_label(index, image_size=file_size)
    if kind == "memmap":
        return (*file_size, *file_size), image.tobytes(), label.tobytes()

    if kind == "jpeg":
        if long_edge is not None and long_edge < max(file_size):
            image, shrunk = resize_long_edge(image, label, long_edge=long_edge)
            assert shrunk is not None
            label = shrunk
        options = [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY]
        coded = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), options)[1]
        return (*image.shape[:2], *file_size), coded.tobytes(), zlib.compress(label.tobytes(), 1)

    compress = _codec(kind)[0]
    return (*file_size, *file_size), compress(image.tobytes()), compress(label.tobytes())


def _codec(kind: str) -> tuple[Callable[[bytes], bytes], Callable[[bytes], bytes]]:
    """Compression and decompression of "zlib" or "zstd"."""
    if kind == "zlib":
        return partial(zlib.compress, level=1), zlib.decompress
    try:
        zstandard = importlib.import_module("zstandard")
    except ImportError as error:
        raise DataError(
            "data.cache zstd needs the package zstandard; pip install zstandard, or set data.cache "
            "to memmap or zlib"
        ) from error
    return zstandard.ZstdCompressor(level=1).compress, zstandard.ZstdDecompressor().decompress


def _unpack(
    decompress: Callable[[bytes], bytes], blob: np.ndarray, shape: tuple[int, ...]
) -> np.ndarray:
    return np.frombuffer(decompress(blob.tobytes()), dtype=np.uint8).reshape(shape)
