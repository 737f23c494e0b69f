"""One's own images and labels below one root, with classes from a `classes.yaml`.

Format: images in any of `IMAGE_SUFFIXES`, labels as single-channel pictures of class ids in any of
`LABEL_SUFFIXES`. They lie in split folders, are matched by globs, or are named by list files.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from ..errors import DataError
from ..spec import DatasetSpec
from .class_list import Layout, load_class_list
from .listing import (
    IMAGE_SUFFIXES,
    LABEL_SUFFIXES,
    ListedSplit,
    by_key,
    first_entries,
    glob_files,
    has_suffix,
    pair,
    require_folder,
    scan,
    some,
    stem,
)


def find_folder(
    root: Path,
    split: str,
    *,
    classes: Path | None,
    layout: Layout | None = None,
    with_labels: bool = True,
) -> ListedSplit:
    """List a split of a folder data set.

    Args:
        root: folder of the data set.
        split: name of the split, or a list file (*.txt) below the root.
        classes: class list; by default `<root>/classes.yaml`.
        layout: where the files lie; by default as the class list says.
        with_labels: whether labels are looked for.

    Raises:
        DataError: no class list, an empty split, or images and labels that do not pair.
    """
    spec, own_layout = load_class_list(_class_file(root, classes))
    layout = layout or own_layout
    place = layout.images.replace("{split}", split)

    list_file = _list_file(root, split, layout, place)
    if list_file is not None:
        return _from_list(spec, root, list_file, with_labels)

    images = _listed(root, place, IMAGE_SUFFIXES)
    if not images:
        raise _no_images(root, place, split)

    # A split without a label folder can still be predicted.
    label_place = layout.labels.replace("{split}", split)
    labels = None
    if with_labels:
        labels = _listed(root, label_place, LABEL_SUFFIXES)
    if labels is None:
        keys = sorted(images)
        return ListedSplit(spec, [images[key] for key in keys], None, keys)

    keys = pair(images, labels, image_place=str(root / place), label_place=str(root / label_place))
    return ListedSplit(spec, [images[key] for key in keys], [labels[key] for key in keys], keys)


def _list_file(root: Path, split: str, layout: Layout, image_place: str) -> Path | None:
    """The list file that names the files of a split; None where folders or globs do."""
    if split.endswith(".txt"):
        return root / split
    if layout.list is not None:
        return root / layout.list.replace("{split}", split)

    # `<split>.txt` in the root needs no layout, as long as there is no folder for the split.
    default = root / f"{split}.txt"
    if layout == Layout() and not (root / image_place).is_dir() and default.is_file():
        return default
    return None


def _class_file(root: Path, classes: Path | None) -> Path:
    if classes is not None:
        if not classes.exists() and (root / classes).exists():
            return root / classes
        return classes

    default = root / "classes.yaml"
    if not default.is_file():
        raise DataError(
            f"data.classes is not set and {default} does not exist; write a class list, e.g. "
            "'classes: [{name: road, color: [128, 64, 128], id: 0}, ...]', and name it in "
            "data.classes",
            kind="classes",
        )
    return default


def _listed(root: Path, place: str, suffixes: Sequence[str]) -> dict[str, str] | None:
    """Files of a folder or glob under their keys, relative to root.

    None where the folder does not exist or the glob matches nothing.
    """
    if _is_glob(place):
        return glob_files(root, place) or None
    if not (root / place).is_dir():
        return None
    found = by_key(scan(root / place, accept=has_suffix(suffixes)), stem, place=str(root / place))
    return {key: f"{place}/{path}" for key, path in found.items()}


def _is_glob(place: str) -> bool:
    return any(sign in place for sign in "*?")


def _no_images(root: Path, place: str, split: str) -> DataError:
    """The error that says why a split is empty."""
    if _is_glob(place):
        return DataError(
            f"split '{split}' is empty: no file matches {root / place} "
            f"({root} holds {first_entries(root)})",
            kind="empty split",
        )
    require_folder(
        root / place,
        what=f"image folder of split '{split}'",
        hint="check data.root and the split's name, or give the class list a layout",
    )
    return DataError(
        f"split '{split}' is empty: no image ({' '.join(IMAGE_SUFFIXES)}) below {root / place}, "
        f"which holds {first_entries(root / place)}",
        kind="empty split",
    )


def _from_list(spec: DatasetSpec, root: Path, path: Path, with_labels: bool) -> ListedSplit:
    images, labels = read_list(path, root=root)
    if not images:
        raise DataError(f"{path}: list file names no image", kind="empty split")
    if not with_labels:
        labels = None
    return ListedSplit(spec, images, labels, relative_names(images))


def read_list(path: Path, *, root: Path) -> tuple[list[str], list[str] | None]:
    """Images and labels of a list file: lines "image label" or "image", relative to `root`.

    Spaces, a tab or a comma separate; `#` starts a line of comment.

    Raises:
        DataError: a line of another form, or a file that is missing or listed twice.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: list file cannot be read ({error})", kind="missing") from error

    rows: list[list[str]] = []
    for number, line in enumerate(lines, start=1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        row = _cut(line, root)
        expected = None
        if len(row) not in (1, 2):
            expected = "'image label' or 'image'"
        elif rows and len(row) != len(rows[0]):
            expected = "as many files as the lines above"
        if expected is not None:
            raise DataError(
                f"{path}, line {number}: '{line}' does not name {expected} "
                "(separate paths that hold spaces by a tab)",
                kind="pairs",
            )
        rows.append(row)

    missing = [name for row in rows for name in row if not os.path.exists(root / name)]
    if missing:
        raise DataError(
            f"{path}: {len(missing)} of the files listed do not exist below {root}: "
            f"{some(missing)}",
            kind="missing",
        )
    images = [row[0] for row in rows]
    doubled = sorted(name for name, count in Counter(images).items() if count > 1)
    if doubled:
        raise DataError(f"{path}: listed more than once: {some(doubled)}", kind="pairs")

    if not rows or len(rows[0]) == 1:
        return images, None
    return images, [row[1] for row in rows]


def _cut(line: str, root: Path) -> list[str]:
    """The paths that a line names."""
    for separator in ("\t", ","):
        if separator in line:
            return [part.strip() for part in line.split(separator)]

    # A path may hold spaces, where it stands alone.
    if os.path.exists(root / line):
        return [line]
    return line.split()


def relative_names(images: Sequence[str]) -> list[str]:
    """Unique names of images from anywhere.

    Below the folder they share, without suffix; with it where two would be equal.
    """
    folder = ""
    if len({os.path.isabs(path) for path in images}) == 1:
        folder = os.path.commonpath([os.path.dirname(path) for path in images])
    relative = [path.lstrip("/") for path in images]
    if folder:
        relative = [os.path.relpath(path, folder) for path in images]

    # Images that differ in their suffix alone keep it.
    names = [stem(path) for path in relative]
    counts = Counter(names)
    for index, path in enumerate(relative):
        if counts[names[index]] > 1:
            names[index] = path
    return names
