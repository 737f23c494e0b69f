"""One's own images and labels below one root, with classes from a `classes.yaml`.

Format: images in any of `IMAGE_SUFFIXES`, labels as pictures of class ids or of the colours of the
classes in any of `LABEL_SUFFIXES`. They lie in split folders, are matched by globs, or are named by
list files: "image label" lines, or names alone as Pascal VOC lists them.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from ..errors import DataError
from ..output_names import inside_parts
from ..reading.regular import read_text
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
    scan_images,
    shown_name,
    some,
    stem,
)

# Folders of images and labels that a list of names alone may mean: ours, and those of Pascal VOC.
NAME_FOLDERS = (("images", "labels"), ("JPEGImages", "SegmentationClass"))


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
        return _from_list(spec, root, list_file, layout, with_labels)

    images = _listed(root, place, scan_images)
    if not images:
        raise _no_images(root, place, split)

    # A split without a label folder can still be predicted.
    label_place = layout.labels.replace("{split}", split)
    labels = None
    if with_labels:
        labels = _listed(root, label_place, _scan_labels)
    if labels is None:
        keys = sorted(images)
        return ListedSplit(spec, [images[key] for key in keys], None, keys)

    try:
        keys = pair(
            images, labels, image_place=str(root / place), label_place=str(root / label_place)
        )
    except DataError as error:
        hint = _pairing_hint(images, root, label_place, template=layout.labels)
        raise DataError(f"{error}{hint}", kind=error.kind) from None
    return ListedSplit(spec, [images[key] for key in keys], [labels[key] for key in keys], keys)


def folder_spec(root: Path, classes: Path | None) -> DatasetSpec:
    """The classes of a folder data set.

    Raises:
        DataError: it has no class list, or one that cannot be read.
    """
    spec, _ = load_class_list(_class_file(root, classes))
    return spec


def _list_file(root: Path, split: str, layout: Layout, image_place: str) -> Path | None:
    """The list file that names the files of a split; None where folders or globs do."""
    if split.endswith(".txt"):
        return root / split
    if layout.list is not None:
        return root / layout.list.replace("{split}", split)

    # `<split>.txt` in the root needs no layout, as long as there is no folder for the split.
    default = root / f"{split}.txt"
    if layout == Layout() and not os.path.isdir(root / image_place) and os.path.isfile(default):
        return default
    return None


def _class_file(root: Path, classes: Path | None) -> Path:
    if classes is not None:
        if not os.path.exists(classes) and os.path.exists(root / classes):
            return root / classes
        return classes

    default = root / "classes.yaml"
    if not os.path.isfile(default):
        raise DataError(
            f"data.classes is not set and {default} does not exist; write a class list, e.g. "
            "'classes: [{name: road, color: [128, 64, 128], id: 0}, ...]', and name it in "
            "data.classes",
            kind="classes",
        )
    return default


def _scan_labels(folder: Path) -> list[str]:
    return scan(folder, accept=has_suffix(LABEL_SUFFIXES))


def _listed(
    root: Path, place: str, scan_folder: Callable[[Path], list[str]]
) -> dict[str, str] | None:
    """Files of a folder or glob under their keys, relative to root.

    None where the folder does not exist or the glob matches nothing.
    """
    if _is_glob(place):
        return glob_files(root, place) or None
    if not os.path.isdir(root / place):
        return None
    found = by_key(scan_folder(root / place), stem, place=str(root / place))
    return {key: f"{place}/{path}" for key, path in found.items()}


def _pairing_hint(images: dict[str, str], root: Path, label_place: str, *, template: str) -> str:
    """What to do about images and labels that do not pair; empty where nothing tells."""
    if _is_glob(label_place):
        return ""
    files = scan(root / label_place, accept=has_suffix((*LABEL_SUFFIXES, ".jpg", ".jpeg")))

    # A JPEG of the image's name is a label in a format that cannot hold ids.
    jpegs = [path for path in files if path.lower().endswith((".jpg", ".jpeg"))]
    if any(stem(path) in images for path in jpegs):
        return (
            f"; {jpegs[0]} there is a JPEG, whose compression changes ids: export labels as PNG "
            "from where they were drawn"
        )

    # NAME_mask.png and the like: the ending that most labels have behind an image's name.
    endings: Counter[str] = Counter()
    for path in files:
        name, suffix = os.path.splitext(path)
        for length in range(len(name) - 1, 0, -1):
            if name[:length] in images:
                endings[name[length:] + suffix] += 1
                break
    if not endings:
        return ""
    ending, _ = endings.most_common(1)[0]
    return (
        f"; labels there end in {ending}: write 'layout: {{labels: \"{template}/*{ending}\"}}' "
        "into the class list, or let `hmsa init` write it"
    )


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


def _from_list(
    spec: DatasetSpec, root: Path, path: Path, layout: Layout, with_labels: bool
) -> ListedSplit:
    # A list of names alone is of files in the folders of the layout, or in the usual ones.
    folders: tuple[tuple[str, str], ...] = NAME_FOLDERS
    if not (_is_glob(layout.images) or "{split}" in layout.images):
        folders = ((layout.images, layout.labels), *folders)
    images, labels = read_list(path, root=root, folders=folders)
    if not images:
        raise DataError(f"{path}: list file names no image", kind="empty split")
    if not with_labels:
        labels = None
    return ListedSplit(spec, images, labels, relative_names(images))


def read_list(
    path: Path, *, root: Path, folders: Sequence[tuple[str, str]] = ()
) -> tuple[list[str], list[str] | None]:
    """Images and labels of a list file: lines "image label" or "image", relative to `root`.

    Lines may also be names alone, without suffix: of files in the first of `folders`, pairs of one
    for images and one for labels, that holds the first of them.

    Spaces, a tab or a comma separate; `#` starts a line of comment. A byte-order mark is left out,
    `~/` is the user's folder, and names that are not UTF-8 are those of the file system.

    Raises:
        DataError: a line of another form, or a file that is missing or listed twice.
    """
    # Not splitlines(), which would cut names at rare characters that they may hold.
    lines = read_text(path, "list file").replace("\r\n", "\n").replace("\r", "\n").split("\n")

    rows: list[list[str]] = []
    for number, line in enumerate(lines, start=1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        row = [_at_home(name) for name in _cut(line, root)]
        expected = None
        if len(row) not in (1, 2) or "" in row:
            expected = "'image label' or 'image'"
        elif rows and len(row) != len(rows[0]):
            expected = "as many files as the lines above"
        if expected is not None:
            raise DataError(
                f"{path}, line {number}: '{shown_name(line)}' does not name {expected} "
                "(separate paths that hold spaces by a tab)",
                kind="pairs",
            )
        rows.append(row)

    rows = _by_name(rows, root, folders)
    missing = [name for row in rows for name in row if not os.path.exists(root / name)]
    if missing:
        hint = ""
        if not any(os.path.splitext(name)[1] for name in missing):
            hint = (
                "; lines are 'image label' with the paths of two files, or names of files in "
                "images and labels, or in JPEGImages and SegmentationClass"
            )
        raise DataError(
            f"{path}: {len(missing)} of the files listed do not exist below {root}: "
            f"{some(missing)}{hint}",
            kind="missing",
        )
    images = [row[0] for row in rows]
    doubled = sorted(name for name, count in Counter(images).items() if count > 1)
    if doubled:
        raise DataError(f"{path}: listed more than once: {some(doubled)}", kind="pairs")

    if not rows or len(rows[0]) == 1:
        return images, None
    return images, [row[1] for row in rows]


def _by_name(
    rows: list[list[str]], root: Path, folders: Sequence[tuple[str, str]]
) -> list[list[str]]:
    """Rows of a single name without suffix as rows of files; other rows stay as they are."""
    if not rows or len(rows[0]) != 1 or os.path.exists(root / rows[0][0]):
        return rows

    for image_folder, label_folder in folders:
        images = _suffixes_of(root / image_folder, IMAGE_SUFFIXES)
        labels = _suffixes_of(root / label_folder, LABEL_SUFFIXES)
        if rows[0][0] not in images:
            continue
        found = []
        for (name,) in rows:
            row = [f"{image_folder}/{name}{images.get(name, '')}"]
            if rows[0][0] in labels:
                row.append(f"{label_folder}/{name}{labels.get(name, '.png')}")
            found.append(row)
        return found
    return rows


def _suffixes_of(folder: Path, suffixes: Sequence[str]) -> dict[str, str]:
    """Name without suffix of each file in a folder, and its suffix; empty where there is none."""
    if not os.path.isdir(folder):
        return {}
    return dict(os.path.splitext(path) for path in scan(folder, accept=has_suffix(suffixes)))


def _at_home(name: str) -> str:
    if name.startswith("~/"):
        return os.path.expanduser(name)
    return name


def _cut(line: str, root: Path) -> list[str]:
    """The paths that a line names."""
    for separator in ("\t", ","):
        if separator in line:
            return [part.strip() for part in line.split(separator)]

    # A path may hold spaces, where it stands alone.
    if os.path.exists(root / _at_home(line)):
        return [line]
    return line.split()


def relative_names(images: Sequence[str]) -> list[str]:
    """Unique names of images from anywhere.

    Below the folder they share, without suffix; with it where two would be equal. No name is
    absolute or leads to a folder above, whatever the list says.
    """
    folder = ""
    if len({os.path.isabs(path) for path in images}) == 1:
        folder = os.path.commonpath([os.path.dirname(path) for path in images])
    relative = list(images)
    if folder:
        relative = [os.path.relpath(path, folder) for path in images]
    relative = ["/".join(inside_parts(path)) for path in relative]

    # Images that differ in their suffix alone keep it.
    names = [stem(path) for path in relative]
    counts = Counter(names)
    for index, path in enumerate(relative):
        if counts[names[index]] > 1:
            names[index] = path

    # What was told apart by the folders above only is numbered.
    taken: set[str] = set()
    for index, name in enumerate(names):
        number = 1
        while names[index] in taken:
            number += 1
            names[index] = f"{name}.{number}"
        taken.add(names[index])
    return names
