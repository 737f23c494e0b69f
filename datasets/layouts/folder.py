"""One's own images and labels: split folders, globs or list files below one root, classes from a `classes.yaml`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from ..errors import DataError
from ..spec import DatasetSpec
from .class_list import Layout, load_class_list
from .listing import (
    IMAGE_SUFFIXES,
    LABEL_SUFFIXES,
    Found,
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
) -> Found:
    """List a split of a folder data set; `classes` defaults to `<root>/classes.yaml`, `layout` to the one written there."""
    spec, own_layout = load_class_list(_class_file(root, classes))
    layout = layout or own_layout
    if split.endswith(".txt"):
        return _found_in_list(spec, root, root / split, with_labels)
    if layout.list is not None:
        return _found_in_list(spec, root, root / layout.list.replace("{split}", split), with_labels)
    place = layout.images.replace("{split}", split)
    default_list = root / f"{split}.txt"
    if layout == Layout() and not (root / place).is_dir() and default_list.is_file():
        return _found_in_list(spec, root, default_list, with_labels)
    images = _listed(root, place, IMAGE_SUFFIXES)
    if not images:
        raise _no_images(root, place, split)
    label_place = layout.labels.replace("{split}", split)
    labels = _listed(root, label_place, LABEL_SUFFIXES) if with_labels else None
    if labels is None:
        keys = sorted(images)
        return Found(spec, [images[key] for key in keys], None, keys)
    keys = pair(images, labels, image_place=str(root / place), label_place=str(root / label_place))
    return Found(spec, [images[key] for key in keys], [labels[key] for key in keys], keys)


def _class_file(root: Path, classes: Path | None) -> Path:
    if classes is None:
        if not (root / "classes.yaml").is_file():
            raise DataError(
                f"data.classes is not set and {root / 'classes.yaml'} does not exist; write a class list, e.g. 'classes: [{{name: road, color: "
                "[128, 64, 128], id: 0}, ...]', and name it in data.classes",
                kind="classes",
            )
        return root / "classes.yaml"
    return root / classes if not classes.exists() and (root / classes).exists() else classes


def _listed(root: Path, place: str, suffixes: Sequence[str]) -> dict[str, str] | None:
    """Files of a folder or glob under their keys, relative to root; None where the folder does not exist or the glob matches nothing."""
    if any(sign in place for sign in "*?"):
        return glob_files(root, place) or None
    if not (root / place).is_dir():
        return None
    found = by_key(scan(root / place, accept=has_suffix(suffixes)), stem, place=str(root / place))
    return {key: f"{place}/{path}" for key, path in found.items()}


def _no_images(root: Path, place: str, split: str) -> DataError:
    if any(sign in place for sign in "*?"):
        return DataError(
            f"split '{split}' is empty: no file matches {root / place} ({root} holds {first_entries(root)})",
            kind="empty split",
        )
    hint = "check data.root and the split's name, or give the class list a layout"
    require_folder(root / place, what=f"image folder of split '{split}'", hint=hint)
    kinds, inside = " ".join(IMAGE_SUFFIXES), first_entries(root / place)
    return DataError(
        f"split '{split}' is empty: no image ({kinds}) below {root / place}, which holds {inside}",
        kind="empty split",
    )


def _found_in_list(spec: DatasetSpec, root: Path, path: Path, with_labels: bool) -> Found:
    images, labels = read_list(path, root=root)
    if not images:
        raise DataError(f"{path}: list file names no image", kind="empty split")
    names = relative_names(images)
    return Found(spec, images, labels if with_labels else None, names)


def read_list(path: Path, *, root: Path) -> tuple[list[str], list[str] | None]:
    """Images and labels of a list file: lines "image label" or "image", relative to `root`.

    Spaces, a tab or a comma separate; `#` starts a line of comment. DataError: a line of another form, a file that is missing or listed twice.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: list file cannot be read ({error})", kind="missing") from error
    rows: list[list[str]] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        row = _cut(line.strip(), root)
        if len(row) not in (1, 2) or (rows and len(row) != len(rows[0])):
            expected = (
                "as many files as the lines above"
                if rows and len(row) in (1, 2)
                else "'image label' or 'image'"
            )
            hint = "separate paths that hold spaces by a tab"
            raise DataError(
                f"{path}, line {number}: '{line.strip()}' does not name {expected} ({hint})",
                kind="pairs",
            )
        rows.append(row)
    missing = [name for row in rows for name in row if not os.path.exists(root / name)]
    if missing:
        raise DataError(
            f"{path}: {len(missing)} of the files listed do not exist below {root}: {some(missing)}",
            kind="missing",
        )
    images = [row[0] for row in rows]
    doubled = (
        sorted({name for name in images if images.count(name) > 1})
        if len(set(images)) < len(images)
        else []
    )
    if doubled:
        raise DataError(f"{path}: listed more than once: {some(doubled)}", kind="pairs")
    return images, [row[1] for row in rows] if rows and len(rows[0]) == 2 else None


def _cut(line: str, root: Path) -> list[str]:
    for separator in ("\t", ","):
        if separator in line:
            return [part.strip() for part in line.split(separator)]
    return [line] if os.path.exists(root / line) else line.split()


def relative_names(images: Sequence[str]) -> list[str]:
    """Unique names of images from anywhere: below the folder they share, without suffix; with it where two would be equal."""
    folder = (
        os.path.commonpath([os.path.dirname(path) for path in images])
        if len({os.path.isabs(path) for path in images}) == 1
        else ""
    )
    relative = [os.path.relpath(path, folder) if folder else path.lstrip("/") for path in images]
    names = [stem(path) for path in relative]
    if len(set(names)) == len(names):
        return names
    doubled = {name for name in names if names.count(name) > 1}
    return [path if name in doubled else name for path, name in zip(relative, names, strict=True)]
