"""The decoded cache: the same pixels as without it, never stale, never half written, its size said
first.
"""

from __future__ import annotations

import errno
import os
import pickle
import shutil
import sys
from collections import namedtuple
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from hmsa.datasets import (
    Augmentation,
    DataError,
    Files,
    LabelPolicy,
    build_cache,
    build_train_loader,
)
from hmsa.datasets.reading import cache as cache_module

MakeFiles = Callable[..., Files]


@pytest.fixture
def files(make_files: MakeFiles) -> Files:
    """Five pairs of different sizes, smooth enough for JPEG."""
    rng = np.random.default_rng(0)
    sizes = [(24, 32), (25, 31), (24, 32), (40, 20), (16, 16)]
    images = [
        cv2.resize(
            rng.integers(0, 256, (4, 4, 3), dtype=np.uint8),
            size[::-1],
            interpolation=cv2.INTER_CUBIC,
        )
        for size in sizes
    ]
    return make_files([rng.integers(0, 4, size, dtype=np.uint8) for size in sizes], images)


def build(
    files: Files, folder: Path, kind: str = "memmap", **options: object
) -> cache_module.DecodedCache:
    """A cache, silently."""
    cache = build_cache(files, kind=kind, cache_dir=folder, announce=lambda text: None, **options)  # type: ignore[arg-type]
    assert cache is not None
    return cache


@pytest.mark.parametrize("kind", ["memmap", "zlib", "zstd"])
def test_lossless_kinds_give_what_decoding_gives(files: Files, tmp_path: Path, kind: str) -> None:
    """Bit for bit, from this process and from a pickled copy as spawned workers get it; labels with
    the policy applied.
    """
    if kind == "zstd":
        pytest.importorskip("zstandard")
    files = replace(files, policy=LabelPolicy(classes={"class 1": "drop"}))
    cache = build(files, tmp_path / "cache", kind)
    for copy in (cache, pickle.loads(pickle.dumps(cache))):
        for index in range(len(files)):
            image, label = copy.read(index)
            assert np.array_equal(image, files.read_image(index)) and np.array_equal(
                label, files.read_label(index)
            )
            assert copy.locate(index, (3, 5)) == (3, 5)
    assert 255 in cache.read(0)[1]


def test_jpeg_kind_is_small_near_and_its_labels_are_ids(files: Files, tmp_path: Path) -> None:
    """Shrunk to the long edge, never enlarged; labels are nearest, so no id comes up that was not
    there; points move along.
    """
    cache = build(files, tmp_path / "cache", "jpeg", long_edge=20)
    for index in range(len(files)):
        image, label = cache.read(index)
        original = files.read_image(index)
        assert image.shape[:2] == label.shape and max(label.shape) == min(20, max(original.shape))
        shrunk = cv2.resize(original, image.shape[1::-1], interpolation=cv2.INTER_AREA)
        assert abs(image.astype(int) - shrunk.astype(int)).mean() < 9 and label.max() <= 3
    assert (
        cache.read(3)[1].shape == (20, 10)
        and cache.locate(3, (39, 0)) == (19, 0)
        and cache.locate(3, (20, 10)) == (10, 5)
    )
    assert cache.locate(4, (7, 9)) == (7, 9)


def test_batches_are_those_without_a_cache(files: Files, tmp_path: Path) -> None:
    """Through the loader, with every augmentation on."""
    augmentation = Augmentation(crop=(20, 24), blur="gaussian")
    options = {
        "augmentation": augmentation,
        "batch_size": 2,
        "seed": 1,
        "cache_dir": tmp_path / "cache",
    }
    loaders = [build_train_loader(files, cache=kind, **options) for kind in ("none", "memmap")]
    for plain, cached in zip(*(loader.epoch(3) for loader in loaders), strict=True):
        assert (
            all((plain[key] == cached[key]).all() for key in ("image", "label", "index", "region"))
            and plain["names"] == cached["names"]
        )


def test_several_processes_write_what_one_writes(make_files: MakeFiles, tmp_path: Path) -> None:
    """The very same bytes."""
    files = make_files([np.full((6, 6), index % 4, dtype=np.uint8) for index in range(40)])
    caches = [build(files, tmp_path / str(workers), "zlib", workers=workers) for workers in (1, 2)]
    assert (caches[0].folder / "data.bin").read_bytes() == (
        caches[1].folder / "data.bin"
    ).read_bytes()


def test_built_once_and_again_when_a_source_changes(
    files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keyed by the identity of images and labels, by kind and, where it matters, by long edge."""
    built: list[str] = []
    original = cache_module._build
    monkeypatch.setattr(
        cache_module,
        "_build",
        lambda *args, **kwargs: (built.append(kwargs["kind"]), original(*args, **kwargs)),
    )
    folder = tmp_path / "cache"
    for _ in range(2):
        build(files, folder)
        build(files, folder, long_edge=12)  # only jpeg shrinks
    assert built == ["memmap"]
    build(files, folder, "jpeg", long_edge=20)
    build(files, folder, "jpeg", long_edge=12)
    build(replace(files, policy=LabelPolicy(mask_border=True)), folder)
    assert built == ["memmap", "jpeg", "jpeg", "memmap"]
    changed = np.zeros((24, 32, 3), dtype=np.uint8)
    Image.fromarray(changed).save(files.image_path(2))
    assert np.array_equal(build(files, folder).read(2)[0], changed) and len(built) == 5


def test_damaged_caches_are_built_again(files: Files, tmp_path: Path) -> None:
    """Truncated data, a lost or broken table; leftovers of a killed build are not taken for a
    cache.
    """
    cache = build(files, tmp_path)
    whole = (cache.folder / "data.bin").read_bytes()
    for name, content in (
        ("data.bin", whole[:100]),
        ("table.npy", b""),
        ("table.npy", None),
        ("data.bin", None),
    ):
        target = cache.folder / name
        target.unlink()
        if content is not None:
            target.write_bytes(content)
        rebuilt = build(files, tmp_path)
        assert (
            rebuilt.folder == cache.folder and (rebuilt.folder / "data.bin").read_bytes() == whole
        )
        assert np.array_equal(rebuilt.read(1)[0], files.read_image(1))


def test_a_failing_build_leaves_nothing_behind(files: Files, tmp_path: Path) -> None:
    """A faulty label in the middle: its sentence, and no folder that a later run could take for a
    cache.
    """
    Image.fromarray(np.full((24, 32), 77, dtype=np.uint8)).save(files.root / "002.label.png")
    with pytest.raises(DataError, match=r"002\.label\.png.*77"):
        build(files, tmp_path / "cache")
    assert not [path for path in (tmp_path / "cache").iterdir() if path.is_dir()]


def test_a_full_disk_is_one_sentence_and_leftovers_go(
    files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing half written stays, neither from this build nor from one that was killed."""
    killed = build(files, tmp_path).folder
    killed.rename(killed.with_name(f"{killed.name}.tmp"))

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(
        DataError, match=r"cannot be written \(No space left on device\); free some space"
    ):
        build(files, tmp_path)
    assert not [path for path in tmp_path.iterdir() if path.is_dir() and path != files.root]


def test_size_is_said_first_and_must_fit(
    files: Files,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Exact for raw pixels; a disk without room is an error before anything is written."""
    said: list[str] = []
    cache = build_cache(files, kind="memmap", cache_dir=tmp_path / "a", announce=said.append)
    assert (
        cache is not None
        and len(said) == 1
        and "5 images (memmap): 0.00 GB" in said[0]
        and str(cache.folder) in said[0]
    )
    pixels = sum(
        height * width for height, width in ((24, 32), (25, 31), (24, 32), (40, 20), (16, 16))
    )
    assert (
        (cache.folder / "data.bin").stat().st_size
        == 4 * pixels
        == cache_module._expected_bytes(files, kind="memmap", long_edge=None)
    )
    build_cache(files, kind="zlib", cache_dir=tmp_path / "a")
    assert "about" in capsys.readouterr().err
    monkeypatch.setattr(
        shutil, "disk_usage", lambda path: namedtuple("usage", "total used free")(10, 10, 1000)
    )
    with pytest.raises(
        DataError, match=r"needs 0\.00 GB but .* has 0\.00 GB free; set data\.cache_dir"
    ):
        build(files, tmp_path / "b")
    assert not [path for path in (tmp_path / "b").iterdir() if path.is_dir()]


def test_kinds_that_are_not_there(
    files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """none is no cache; unknown names, and zstd without its package, are refused in a sentence."""
    assert build_cache(files, kind="none", cache_dir=tmp_path) is None
    with pytest.raises(
        DataError, match=r"data\.cache must be one of none, memmap, zstd, zlib, jpeg, not 'ram'"
    ):
        build(files, tmp_path, "ram")
    monkeypatch.setitem(sys.modules, "zstandard", None)
    with pytest.raises(DataError, match="pip install zstandard"):
        build(files, tmp_path, "zstd")
