"""From a data set's name and root to the files of a split."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from .errors import DataError
from .files import STILL, Files, pack
from .layouts.autolabels import AutoLabels, find_auto_labels
from .layouts.cityscapes import find_cityscapes
from .layouts.class_list import Layout
from .layouts.folder import find_folder, read_list
from .layouts.listing import (
    IMAGE_SUFFIXES,
    Found,
    first_entries,
    has_suffix,
    require_folder,
    scan,
    stem,
)
from .layouts.mapillary import find_mapillary
from .layouts.video import count_frames, is_video
from .policy import LabelPolicy
from .reading.decoding import DEFAULT_MAX_PIXELS
from .spec import DatasetSpec, did_you_mean

DATASETS = ("folder", "cityscapes", "mapillary")
LABEL_KINDS = ("fine", "coarse", "auto", "none")


def build_files(
    *,
    dataset: str,
    root: str | Path,
    split: str,
    classes: str | Path | None = None,
    cv: int | None = None,
    labels: str | None = None,
    label_root: str | Path | None = None,
    policy: Mapping[str, str] | None = None,
    confidence_threshold: float | None = None,
    mask_border: bool = False,
    layout: Layout | None = None,
    max_pixels: int = DEFAULT_MAX_PIXELS,
) -> Files:
    """List the files of a split; no image is opened.

    `classes`: the class list of a folder data set, or the config JSON of Mapillary (default: found in the root). `labels`: "fine", "coarse",
    "auto" or "none" (images only); by default what the split comes with. `label_root`: folder or manifest of automatic labels. `policy`,
    `confidence_threshold` and `mask_border` as in LabelPolicy, for automatic labels. `layout`: folder data sets only.
    DataError: a missing root, an empty split, an image without label or a label without image, each naming places and files.
    """
    if dataset not in DATASETS:
        raise DataError(
            f"'{dataset}' is no data set{did_you_mean(dataset, DATASETS)}", kind="dataset"
        )
    if labels is not None and labels not in LABEL_KINDS:
        raise DataError(
            f"'{labels}' is no kind of labels{did_you_mean(labels, LABEL_KINDS)}", kind="dataset"
        )
    if cv is not None and dataset != "cityscapes":
        raise DataError(
            f"cross-validation by city (cv={cv}) is for cityscapes, not for {dataset}",
            kind="dataset",
        )
    root = Path(root).expanduser().absolute()
    require_folder(root, what="data root", hint="set data.root")
    chosen = LabelPolicy(
        classes=dict(policy or {}),
        confidence_threshold=confidence_threshold,
        mask_border=mask_border,
    )
    own_labels = "none" if labels == "auto" else labels
    found = _find(
        dataset,
        root,
        split,
        own_labels,
        classes=None if classes is None else Path(classes).expanduser(),
        cv=cv,
        layout=layout,
    )
    if labels != "auto":
        if confidence_threshold is not None or chosen.classes:
            raise DataError(
                "a confidence threshold or policy joins automatic labels with others: set the labels to auto, or drop it",
                kind="policy",
            )
        return _files(
            found, split, root, max_pixels=max_pixels, policy=None if chosen.is_neutral else chosen
        )
    for name in chosen.classes:
        found.spec.index_of(name)
    if label_root is None:
        raise DataError(
            "automatic labels need a folder or a manifest: set data.extra.root", kind="dataset"
        )
    auto = find_auto_labels(
        Path(label_root).expanduser().absolute(), split=split, names=found.names, spec=found.spec
    )
    human = None
    if chosen.needs_human:
        coarse = _find(
            dataset,
            root,
            split,
            "coarse",
            classes=None if classes is None else Path(classes).expanduser(),
            cv=cv,
            layout=layout,
        )
        human = dict(zip(coarse.names, coarse.labels or (), strict=True))
    return _automatic(
        found,
        auto,
        human,
        split,
        root,
        policy=None if chosen.is_neutral else chosen,
        max_pixels=max_pixels,
    )


def _find(
    dataset: str,
    root: Path,
    split: str,
    labels: str | None,
    *,
    classes: Path | None,
    cv: int | None,
    layout: Layout | None,
) -> Found:
    if dataset == "cityscapes":
        return find_cityscapes(root, split, labels=labels, cv=cv)
    if dataset == "mapillary":
        return find_mapillary(root, split, config=classes, with_labels=labels != "none")
    return find_folder(root, split, classes=classes, layout=layout, with_labels=labels != "none")


def _files(
    found: Found, split: str, root: Path, *, max_pixels: int, policy: LabelPolicy | None
) -> Files:
    labels = None if found.labels is None else pack(found.labels)
    return Files(
        spec=found.spec,
        split=split,
        root=root,
        images=pack(found.images),
        labels=labels,
        names=pack(found.names),
        policy=policy,
        max_pixels=max_pixels,
    )


def _automatic(
    found: Found,
    auto: AutoLabels,
    human: Mapping[str, str] | None,
    split: str,
    root: Path,
    *,
    policy: LabelPolicy | None,
    max_pixels: int,
) -> Files:
    images = [found.images[index] for index in auto.indices]
    names = [found.names[index] for index in auto.indices]
    if policy is not None and policy.confidence_threshold is not None and auto.confidence is None:
        raise DataError(
            f"{auto.place}: a confidence threshold is set, but there are no confidence images beside the labels",
            kind="missing",
        )
    return Files(
        spec=found.spec,
        split=split,
        root=root,
        images=pack(images),
        labels=pack(auto.labels),
        names=pack(names),
        human=None if human is None else pack(human[name] for name in names),
        confidence=None if auto.confidence is None else pack(auto.confidence),
        label_ids=auto.label_ids,
        policy=policy,
        max_pixels=max_pixels,
    )


def image_files(
    inputs: Sequence[str | Path], *, spec: DatasetSpec, max_pixels: int = DEFAULT_MAX_PIXELS
) -> Files:
    """Images without labels from folders, files, globs and .txt lists, in that order, none twice; names keep the path below the input folder.

    A video file stands for its frames, called VIDEO/000000 and so on. DataError: an input that does not exist, or no image in it.
    """
    images: list[str] = []
    frames: list[int] = []
    names: list[tuple[str, str]] = []
    seen: set[str] = set()
    for entry in inputs:
        for path, name, parent in _expand(os.path.expanduser(os.fspath(entry))):
            real = os.path.realpath(path)
            if real not in seen:
                seen.add(real)
                for frame in range(count_frames(path)) if is_video(path) else (STILL,):
                    images.append(path)
                    frames.append(frame)
                    names.append((name if frame == STILL else f"{stem(name)}/{frame:06d}", parent))
    if not images:
        raise DataError("no image was given", kind="empty split")
    return Files(
        spec=spec,
        split="images",
        root=Path("/"),
        images=pack(images),
        labels=None,
        names=pack(_unique(names)),
        max_pixels=max_pixels,
        frames=None if set(frames) == {STILL} else np.array(frames, dtype=np.int32),
    )


def _expand(entry: str) -> list[tuple[str, str, str]]:
    """(absolute path, name relative to the input, folder that tells equal names apart) of every image an input stands for."""
    path = os.path.abspath(entry)
    if os.path.isdir(path):
        found = scan(path, accept=has_suffix(IMAGE_SUFFIXES))
        if not found:
            kinds = " ".join(IMAGE_SUFFIXES)
            raise DataError(
                f"{entry}: no image ({kinds}) in this folder, which holds {first_entries(Path(path))}",
                kind="empty split",
            )
        return [(os.path.join(path, name), name, os.path.basename(path)) for name in found]
    if os.path.isfile(path):
        if path.endswith(".txt"):
            listed, _ = read_list(Path(path), root=Path(os.path.dirname(path)))
            return [_single(os.path.join(os.path.dirname(path), name), name) for name in listed]
        return [_single(path, os.path.basename(path))]
    if any(sign in entry for sign in "*?["):
        from glob import glob

        matches = sorted(name for name in glob(path, recursive=True) if os.path.isfile(name))
        if matches:
            folder = os.path.dirname(re.split(r"[*?\[]", path, maxsplit=1)[0])
            return [_single(name, os.path.relpath(name, folder)) for name in matches]
        raise DataError(f"{entry}: no file matches this pattern", kind="missing")
    raise DataError(f"{entry}: no such image, folder or list", kind="missing")


def _single(path: str, name: str) -> tuple[str, str, str]:
    name = os.path.basename(name) if os.path.isabs(name) or ".." in name.split("/") else name
    return path, name, os.path.basename(os.path.dirname(path))


def _unique(names: Sequence[tuple[str, str]]) -> list[str]:
    """Names without suffix where that keeps them apart, else with it, else below the input's folder, else numbered."""
    forms: tuple[Literal[0, 1, 2], ...] = (0, 1, 2)
    result = [""] * len(names)
    open_ones = list(range(len(names)))
    taken: set[str] = set()
    for form in forms:
        made = [
            (stem(names[i][0]), names[i][0], f"{names[i][1]}/{names[i][0]}")[form]
            for i in open_ones
        ]
        counts: dict[str, int] = {}
        for name in made:
            counts[name] = counts.get(name, 0) + 1
        left: list[int] = []
        for i, name in zip(open_ones, made, strict=True):
            if counts[name] == 1 and name not in taken:
                result[i] = name
                taken.add(name)
            else:
                left.append(i)
        open_ones = left
    for i in open_ones:
        base, number = f"{names[i][1]}/{names[i][0]}", 1
        while f"{base}.{number}" in taken:
            number += 1
        result[i] = f"{base}.{number}"
        taken.add(result[i])
    return result
