"""From the name and root of a data set to the files of a split."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from glob import glob
from pathlib import Path

import numpy as np

from hmsa.utils.files.image_places import ImagePlaces
from hmsa.utils.words import did_you_mean

from .errors import DataError
from .files import STILL, Files, pack
from .layouts.autolabels import (
    AutoLabels,
    find_auto_labels,
    known_images,
    require_images,
)
from .layouts.cityscapes import CITYSCAPES, find_cityscapes
from .layouts.class_list import Layout
from .layouts.folder import find_folder, folder_spec, read_list
from .layouts.listing import (
    IMAGE_SUFFIXES,
    ListedSplit,
    first_entries,
    require_folder,
    scan_images,
    stem,
)
from .layouts.mapillary import find_mapillary, has_configuration, mapillary_spec
from .layouts.mapillary_classes import MAPILLARY
from .layouts.video import count_frames, is_video
from .policy import LabelPolicy
from .reading.decoding import DEFAULT_MAX_PIXELS
from .spec import DatasetSpec

DATASETS = ("folder", "cityscapes", "mapillary")
EXTRA_SPLIT = "train_extra"  # Cityscapes' images without fine labels
LABEL_KINDS = ("fine", "coarse", "auto", "none")


def build_files(
    *,
    dataset: str,
    root: str | Path,
    split: str | None,
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

    Args:
        dataset: one of `DATASETS`.
        root: folder of the data set.
        split: name of the split, such as "train". None is for automatic labels: the images are
            those that they were made from, or, where they do not say which or the policy needs
            labels drawn by people, the split "train_extra".
        classes: class list of a folder data set, or the config JSON of Mapillary Vistas; by default
            what lies in the root.
        cv: cross-validation split by city, Cityscapes only.
        labels: one of `LABEL_KINDS`; by default what the split comes with.
        label_root: folder or manifest of automatic labels.
        policy: choice for each class, as in `LabelPolicy`, for automatic labels.
        confidence_threshold: as in `LabelPolicy`, for automatic labels.
        mask_border: as in `LabelPolicy`.
        layout: where a folder data set keeps its files; by default as its class list says.
        max_pixels: limit on the size of an image or label, in pixels.

    Raises:
        DataError: a missing root, an empty split, an image without label or a label without image;
            each names folders and files.
    """
    _require_known(dataset, labels, cv)
    # Absolute, since workers and later steps may run in another working folder.
    root = Path(root).expanduser().absolute()
    require_folder(root, what="data root", hint="set data.root")
    chosen = LabelPolicy(
        classes=dict(policy or {}),
        confidence_threshold=confidence_threshold,
        mask_border=mask_border,
    )

    lister = _Lister(
        dataset, root, split or EXTRA_SPLIT, classes=_expanded(classes), cv=cv, layout=layout
    )

    if labels != "auto":
        if confidence_threshold is not None or chosen.classes:
            raise DataError(
                "a confidence threshold or policy joins automatic labels with others: set the "
                "labels to auto, or drop it",
                kind="policy",
            )
        found = lister.find(labels)
        return Files(
            spec=found.spec,
            split=lister.split,
            root=root,
            images=pack(found.images),
            labels=_packed(found.labels),
            names=pack(found.names),
            policy=_unless_neutral(chosen),
            max_pixels=max_pixels,
        )

    if label_root is None:
        raise DataError(
            "automatic labels need a folder or a manifest: set data.extra.root", kind="dataset"
        )
    place = Path(label_root).expanduser().absolute()

    # Automatic labels that know their images need no split.
    known = None
    if split is None and not chosen.needs_human:
        known = known_images(place)
    if known is not None and not known.missing:
        return _own_images(lister, place, known, policy=chosen, max_pixels=max_pixels)

    # With automatic labels the images are listed alone, since their own labels may not exist.
    try:
        found = lister.find("none")
        for name in chosen.classes:
            found.spec.index_of(name)
        automatic = find_auto_labels(place, split=lister.split, names=found.names, spec=found.spec)
    except DataError:
        # They were looked for in a split only because they are gone from where they were.
        if known is not None:
            require_images(place, known)
        raise

    # Labels drawn by people are paired with the images by name.
    human = None
    if chosen.needs_human:
        coarse = lister.find("coarse")
        human = dict(zip(coarse.names, coarse.labels or (), strict=True))
    return _join_automatic(
        found,
        automatic,
        human,
        split=lister.split,
        root=root,
        policy=chosen,
        max_pixels=max_pixels,
    )


def known_classes(
    *, dataset: str, root: str | Path, classes: str | Path | None = None
) -> DatasetSpec:
    """The classes of a data set of which no file needs to be on this machine, but its class list.

    Cityscapes' come with the package. So do those of Mapillary Vistas v1.2, which stand for it
    where neither the root nor `classes` has a configuration of it.

    Raises:
        DataError: a class list or configuration is missing or cannot be read.
    """
    _require_known(dataset, None, None)
    root, listed = Path(root).expanduser().absolute(), _expanded(classes)
    if dataset == "mapillary" and listed is None and not has_configuration(root):
        return MAPILLARY
    return _Lister(dataset, root, "", classes=listed, cv=None, layout=None).spec()


def _require_known(dataset: str, labels: str | None, cv: int | None) -> None:
    if dataset not in DATASETS:
        raise DataError(
            f"'{dataset}' is no data set{did_you_mean(dataset, DATASETS)}; "
            f"choose from {', '.join(DATASETS)}",
            kind="dataset",
        )
    if labels is not None and labels not in LABEL_KINDS:
        raise DataError(
            f"'{labels}' is no kind of labels{did_you_mean(labels, LABEL_KINDS)}; "
            f"choose from {', '.join(LABEL_KINDS)}",
            kind="dataset",
        )
    if cv is not None and dataset != "cityscapes":
        raise DataError(
            f"cross-validation by city (cv={cv}) is for cityscapes, not for {dataset}",
            kind="dataset",
        )


def _expanded(path: str | Path | None) -> Path | None:
    """A path with `~` replaced by the user's folder."""
    if path is None:
        return None
    return Path(path).expanduser()


def _packed(texts: Sequence[str] | None) -> np.ndarray | None:
    if texts is None:
        return None
    return pack(texts)


def _unless_neutral(policy: LabelPolicy) -> LabelPolicy | None:
    """The policy, or None where it changes nothing: labels are then read as they are."""
    if policy.is_neutral:
        return None
    return policy


@dataclass(frozen=True)
class _Lister:
    """What every way of listing one split has in common."""

    dataset: str
    root: Path
    split: str
    classes: Path | None
    cv: int | None
    layout: Layout | None

    def spec(self) -> DatasetSpec:
        """The classes of the data set, of which no split needs to be there."""
        if self.dataset == "cityscapes":
            return CITYSCAPES
        if self.dataset == "mapillary":
            return mapillary_spec(self.root, self.classes)
        return folder_spec(self.root, self.classes)

    def find(self, labels: str | None) -> ListedSplit:
        """The split with labels of the given kind ("none": images only)."""
        if self.dataset == "cityscapes":
            return find_cityscapes(self.root, self.split, labels=labels, cv=self.cv)
        if self.dataset == "mapillary":
            return find_mapillary(
                self.root, self.split, config=self.classes, with_labels=labels != "none"
            )
        return find_folder(
            self.root,
            self.split,
            classes=self.classes,
            layout=self.layout,
            with_labels=labels != "none",
        )


def _own_images(
    lister: _Lister, place: Path, known: ImagePlaces, *, policy: LabelPolicy, max_pixels: int
) -> Files:
    """The images that automatic labels were made from, with these labels."""
    spec = lister.spec()
    for name in policy.classes:
        spec.index_of(name)

    images = list(known.places.values())
    found = ListedSplit(
        spec,
        images=[str(image.path) for image in images],
        labels=None,
        names=[stem(name) for name in known.places],
    )
    automatic = find_auto_labels(place, split=EXTRA_SPLIT, names=found.names, spec=spec)
    files = _join_automatic(
        found,
        automatic,
        None,
        split=str(automatic.place),
        root=lister.root,
        policy=policy,
        max_pixels=max_pixels,
    )

    # Frames of videos are read by their numbers.
    frames = [images[index].frame for index in automatic.indices]
    if set(frames) == {STILL}:
        return files
    return replace(files, frames=np.array(frames, dtype=np.int32))


def _join_automatic(
    found: ListedSplit,
    automatic: AutoLabels,
    human: Mapping[str, str] | None,
    *,
    split: str,
    root: Path,
    policy: LabelPolicy,
    max_pixels: int,
) -> Files:
    """Files of the images that have automatic labels; `human` are coarse labels by image name."""
    if policy.confidence_threshold is not None and automatic.confidence is None:
        raise DataError(
            f"{automatic.place}: a confidence threshold is set, but there are no confidence images "
            "beside the labels",
            kind="missing",
        )

    names = [found.names[index] for index in automatic.indices]
    human_paths = None
    if human is not None:
        human_paths = pack(human[name] for name in names)

    return Files(
        spec=found.spec,
        split=split,
        root=root,
        images=pack(found.images[index] for index in automatic.indices),
        labels=pack(automatic.labels),
        names=pack(names),
        human=human_paths,
        confidence=_packed(automatic.confidence),
        label_ids=automatic.label_ids,
        policy=_unless_neutral(policy),
        max_pixels=max_pixels,
    )


def _called(inputs: Sequence[str | Path]) -> str:
    """What to call images by: the name of the folder or file that was given, and how many more."""
    first = Path(os.path.abspath(os.path.expanduser(os.fspath(inputs[0])))).name or "images"
    if len(inputs) == 1:
        return first
    return f"{first} and {len(inputs) - 1} more"


@dataclass(frozen=True)
class _InputImage:
    """An image or video that an input stands for."""

    path: str  # absolute
    name: str  # relative to the input
    folder: str  # name of a folder that tells equal names apart


def image_files(
    inputs: Sequence[str | Path], *, spec: DatasetSpec, max_pixels: int = DEFAULT_MAX_PIXELS
) -> Files:
    """Images without labels from folders, files, globs and .txt lists, in that order, none twice.

    Names keep the path below the input folder. A video file stands for its frames, which are called
    VIDEO/000000 and so on.

    Raises:
        DataError: an input that does not exist, or no image in it.
    """
    images: list[_InputImage] = []
    frames: list[int] = []
    seen: set[str] = set()
    for entry in inputs:
        for image in _expand(os.path.expanduser(os.fspath(entry))):
            # The same file may be reached by two inputs, or by a link.
            real = os.path.realpath(image.path)
            if real in seen:
                continue
            seen.add(real)

            if not is_video(image.path):
                images.append(image)
                frames.append(STILL)
                continue
            for frame in range(count_frames(image.path)):
                name = f"{stem(image.name)}/{frame:06d}"
                images.append(_InputImage(image.path, name, image.folder))
                frames.append(frame)

    if not images:
        raise DataError("no image was given", kind="empty split")

    frame_numbers = None
    if set(frames) != {STILL}:
        frame_numbers = np.array(frames, dtype=np.int32)
    return Files(
        spec=spec,
        split=_called(inputs),
        root=Path("/"),
        images=pack(image.path for image in images),
        labels=None,
        names=pack(_unique_names(images)),
        max_pixels=max_pixels,
        frames=frame_numbers,
    )


def _expand(entry: str) -> list[_InputImage]:
    """Every image that an input stands for."""
    path = os.path.abspath(entry)
    if "\0" in path:
        raise DataError(f"{entry}: a name of a file cannot hold NUL", kind="missing")
    if os.path.isdir(path):
        return _in_folder(entry, path)

    if os.path.isfile(path):
        if not path.endswith(".txt"):
            return [_single(path, os.path.basename(path))]
        folder = os.path.dirname(path)
        listed, _ = read_list(Path(path), root=Path(folder))
        return [_single(os.path.join(folder, name), name) for name in listed]

    # Names keep what lies below the folders that the pattern spells out.
    if any(sign in entry for sign in "*?["):
        matches = sorted(name for name in glob(path, recursive=True) if os.path.isfile(name))
        if not matches:
            raise DataError(f"{entry}: no file matches this pattern", kind="missing")
        folder = os.path.dirname(re.split(r"[*?\[]", path, maxsplit=1)[0])
        return [_single(name, os.path.relpath(name, folder)) for name in matches]

    raise DataError(f"{entry}: no such image, folder or list", kind="missing")


def _in_folder(entry: str, path: str) -> list[_InputImage]:
    found = scan_images(path)
    if not found:
        raise DataError(
            f"{entry}: no image ({' '.join(IMAGE_SUFFIXES)}) in this folder, "
            f"which holds {first_entries(Path(path))}",
            kind="empty split",
        )
    folder = os.path.basename(path)
    return [_InputImage(os.path.join(path, name), name, folder) for name in found]


def _single(path: str, name: str) -> _InputImage:
    # A name that is absolute or climbs out of the input's folder would do so below an output, too.
    if os.path.isabs(name) or ".." in name.split("/"):
        name = os.path.basename(name)
    # The folder by its true name, for a path may end in `..` before the file.
    return _InputImage(path, name, os.path.basename(os.path.realpath(os.path.dirname(path))))


def _unique_names(images: Sequence[_InputImage]) -> list[str]:
    """A name for each image that no other has.

    Without suffix where that keeps them apart, else with it, else below the folder of the input,
    else numbered.
    """
    forms = (
        [stem(image.name) for image in images],
        [image.name for image in images],
        [f"{image.folder}/{image.name}" for image in images],
    )
    result = [""] * len(images)
    taken: set[str] = set()
    unnamed = list(range(len(images)))

    # Each image takes the shortest form of its name that no other image has.
    for form in forms:
        counts = Counter(form[index] for index in unnamed)
        ambiguous = []
        for index in unnamed:
            name = form[index]
            if counts[name] > 1 or name in taken:
                ambiguous.append(index)
                continue
            result[index] = name
            taken.add(name)
        unnamed = ambiguous

    # What no form could tell apart is numbered.
    for index in unnamed:
        base, number = forms[-1][index], 1
        while f"{base}.{number}" in taken:
            number += 1
        result[index] = f"{base}.{number}"
        taken.add(result[index])
    return result
