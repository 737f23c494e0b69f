"""Miniature data sets in the true folder layouts, and broken files to put into them."""

from __future__ import annotations

import io
import json
import struct
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from hmsa.datasets import CITYSCAPES, ClassInfo, DatasetSpec, Files

# Cities of Cityscapes with their numbers of fine images (the official file lists).
VAL_CITIES = {"frankfurt": 267, "lindau": 59, "munster": 174}
TRAIN_CITIES = {
    "aachen": 174,
    "bochum": 96,
    "bremen": 316,
    "cologne": 154,
    "darmstadt": 85,
    "dusseldorf": 221,
    "erfurt": 109,
    "hamburg": 248,
    "hanover": 196,
    "jena": 119,
    "krefeld": 99,
    "monchengladbach": 94,
    "strasbourg": 365,
    "stuttgart": 196,
    "tubingen": 144,
    "ulm": 95,
    "weimar": 142,
    "zurich": 122,
}

OFFICIAL = {
    "image": "leftImg8bit",
    "image_extra": "leftImg8bit",
    "fine": "gtFine",
    "coarse": "gtCoarse",
}
RELEASE = {
    "image": "leftImg8bit_trainvaltest/leftImg8bit",
    "image_extra": "leftImg8bit_trainextra/leftImg8bit",
    "fine": "gtFine_trainvaltest/gtFine",
    "coarse": "gtCoarse/gtCoarse",
}


def toy_spec(count: int = 3, **options: Any) -> DatasetSpec:
    """`count` classes a, b, c ... with ids 0, 1, 2 ... and ignore 255."""
    classes = tuple(
        ClassInfo(chr(97 + index), (10 * index, 100, 200), (index,)) for index in range(count)
    )
    return DatasetSpec(name="toy", classes=classes, **{"known_raw_ids": (255,), **options})


def subset(files: Files, indices: Sequence[int]) -> Files:
    """The chosen images of a split in the given order, without what only automatic labels have."""
    chosen = np.asarray(indices, dtype=np.int64)
    given = {"labels": files.labels, "frames": files.frames}
    kept = {name: values[chosen] for name, values in given.items() if values is not None}
    return replace(files, images=files.images[chosen], names=files.names[chosen], **kept)


def photo(size: tuple[int, int] = (24, 32), seed: int = 0) -> np.ndarray:
    """A picture with structure, uint8 RGB."""
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


def label(
    size: tuple[int, int] = (24, 32), values: Sequence[int] = (0, 1, 2), seed: int = 0
) -> np.ndarray:
    """Blocks of the given values, each of which occurs."""
    rng = np.random.default_rng(seed)
    blocks = rng.choice(np.array(values, dtype=np.uint8), ((size[0] + 3) // 4, (size[1] + 3) // 4))
    blocks.reshape(-1)[: len(values)] = values[: blocks.size]
    return np.repeat(np.repeat(blocks, 4, axis=0), 4, axis=1)[: size[0], : size[1]].copy()


def save(
    path: Path,
    array: np.ndarray,
    *,
    mode: str | None = None,
    palette: bytes | None = None,
    **options: Any,
) -> Path:
    """Write an array by Pillow, making folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(array) if mode is None else Image.fromarray(array).convert(mode)
    if palette is not None:
        picture = Image.fromarray(array)
        picture.putpalette(palette)
    picture.save(path, **options)
    return path


def touch(path: Path) -> Path:
    """An empty file: what must not be opened may well be empty."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


def png_with_size(height: int, width: int) -> bytes:
    """A PNG that declares a size without holding its pixels."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    chunk = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk
        + struct.pack(">I", 0)
        + b"IEND"
        + struct.pack(">I", zlib.crc32(b"IEND"))
    )


def encoded(array: np.ndarray, form: str, **options: Any) -> bytes:
    """An array as file bytes."""
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, form, **options)
    return buffer.getvalue()


def write_class_list(path: Path, names: Sequence[str] = ("a", "b", "c"), **extra: Any) -> Path:
    """A classes.yaml with ids 0, 1, 2 ..."""
    classes = [
        {"name": name, "color": [10 * index, 100, 200], "id": index}
        for index, name in enumerate(names)
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump({"name": "toy", "ignore": 255, "classes": classes, **extra}))
    return path


def make_folder(
    root: Path,
    splits: Mapping[str, Iterable[str]],
    *,
    suffix: str = ".jpg",
    classes: Sequence[str] = ("a", "b", "c"),
) -> Path:
    """images/<split>/NAME.jpg with labels/<split>/NAME.png and classes.yaml."""
    write_class_list(root / "classes.yaml", classes)
    for split, names in splits.items():
        for number, name in enumerate(names):
            seed = 1000 * len(split) + number
            save(root / "images" / split / f"{name}{suffix}", photo(seed=seed))
            save(
                root / "labels" / split / f"{name}.png",
                label(seed=seed, values=tuple(range(len(classes)))),
            )
    return root


def make_cityscapes(
    root: Path,
    cities: Mapping[str, Mapping[str, int]],
    *,
    layout: Mapping[str, str] = OFFICIAL,
    empty: bool = False,
    coarse: Iterable[str] = ("train_extra",),
    size: tuple[int, int] = (24, 48),
) -> Path:
    """leftImg8bit, gtFine and gtCoarse with `cities` {split: {city: number of images}}; `empty`
    files carry names only.
    """
    raw = [7, 8, 11, 26, 0, 3]
    for split, counts in cities.items():
        extra = split == "train_extra"
        for city, count in counts.items():
            for number in range(count):
                stem = f"{split}/{city}/{city}_{number:06d}_000019"
                image = (
                    root / layout["image_extra" if extra else "image"] / f"{stem}_leftImg8bit.png"
                )
                kinds = [
                    kind
                    for kind, wanted in (("fine", not extra), ("coarse", split in coarse))
                    if wanted
                ]
                names = {"fine": "gtFine", "coarse": "gtCoarse"}
                labels = [
                    root / layout[kind] / f"{stem}_{names[kind]}_labelIds.png" for kind in kinds
                ]
                if empty:
                    for path in (image, *labels):
                        touch(path)
                    continue
                save(image, photo(size, seed=number))
                for kind, path in zip(kinds, labels, strict=True):
                    values = raw if kind == "fine" else raw[:3] + [0, 0, 0]
                    save(path, label(size, values=values, seed=number))
                    save(path.with_name(path.name.replace("labelIds", "color")), photo(size))
                    save(
                        path.with_name(path.name.replace("labelIds", "instanceIds")),
                        label(size).astype(np.uint16),
                    )
    return root


def mapillary_config(version: str | None, count: int) -> dict[str, Any]:
    """A configuration JSON of Mapillary Vistas with `count` entries, the last unlabeled."""
    labels = [
        {
            "color": [k, 255 - k, 7],
            "evaluate": True,
            "instances": k % 2 == 0,
            "name": f"object--kind-{k}",
            "readable": f"Kind {k}",
        }
        for k in range(count - 1)
    ]
    labels.append(
        {
            "color": [0, 0, 0],
            "evaluate": False,
            "instances": False,
            "name": "void--unlabeled",
            "readable": "Unlabeled",
        }
    )
    return {
        "labels": labels,
        "mapping": "public",
        **({} if version is None else {"version": version}),
    }


def make_mapillary(
    root: Path, *, version: str, splits: Mapping[str, int], size: tuple[int, int] = (30, 40)
) -> Path:
    """The v1.2 package (config.json, labels below the split) or the v2.0 package (both versions
    below v1.2/ and v2.0/).
    """
    root.mkdir(parents=True, exist_ok=True)
    packages = {
        "1.2": {"config.json": ("1.2", 66, "labels")},
        "2.0": {
            "config_v1.2.json": ("1.2", 66, "v1.2/labels"),
            "config_v2.0.json": ("2.0", 124, "v2.0/labels"),
        },
    }[version]
    palette = bytes(range(256)) * 3
    for name, (own_version, count, _) in packages.items():
        (root / name).write_text(json.dumps(mapillary_config(own_version, count)))
    for folder, images in splits.items():
        for number in range(images):
            save(
                root / folder / "images" / f"img{number:03d}.jpg",
                photo((size[0] + number, size[1]), seed=number),
            )
            if folder == "testing":
                continue
            for _, count, place in packages.values():
                values = (0, 1, count - 2, count - 1)
                own = label((size[0] + number, size[1]), values=values, seed=number)
                save(root / folder / place / f"img{number:03d}.png", own, palette=palette)
    return root


def make_auto_labels(
    root: Path,
    names: Iterable[str],
    *,
    form: str,
    manifest: bool = False,
    confidence: bool = True,
    **extra: Any,
) -> Path:
    """Automatic labels of images `names` ("city/stem_leftImg8bit"): form "ids", "train" or
    "release"; `extra` goes into the manifest.
    """
    lines = []
    for number, name in enumerate(names):
        short = name.removesuffix("_leftImg8bit")
        target = {
            "ids": f"{short}_gtAuto_labelIds",
            "train": f"{short}_gtAuto_labelTrainIds",
            "release": name,
        }[form]
        train = label((24, 48), values=(0, 2, 13, 255), seed=number)
        values = train if form == "train" else CITYSCAPES.to_raw[train]
        save(root / f"{target}.png", values)
        beside = f"{name}_prob.png" if form == "release" else f"{short}_gtAuto_confidence.png"
        if confidence:
            save(root / beside, label((24, 48), values=(120, 240), seed=number))
        lines.append(
            {
                "image": f"/elsewhere/images/{name}.png",
                "label": f"{target}.png",
                "confidence": beside if confidence else None,
                "kept": 0.9,
            }
        )
    if manifest:
        content = {
            "format": "hmsa-autolabel",
            "version": 1,
            "label_ids": "train" if form == "train" else "raw",
            "classes": CITYSCAPES.to_dict(),
            "failures": [],
            **extra,
        }
        (root / "manifest.json").write_text(json.dumps(content))
        (root / "images.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return root
