"""Finding files: each folder is scanned once, no file is opened, and what does not fit is named."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import DataError
from ..notices import notice
from ..spec import DatasetSpec

VIDEO_SUFFIXES = (".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg")
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".ppm")
# What else may be an image: not looked for, since few such files are meant to be trained on.
OTHER_IMAGE_SUFFIXES = (
    *(".gif", ".pgm", ".pbm", ".pnm", ".jfif", ".jpe", ".jp2", ".j2k", ".avif", ".heic", ".heif"),
    *(".tga", ".psd", ".dng", ".cr2", ".nef", ".arw", ".raw", ".exr", ".hdr", ".ico", ".pcx"),
    *(".sgi", ".svg", ".xpm", ".apng", ".jxl", ".eps", ".dds", ".ras", ".sr", ".pfm", ".npy"),
)
LABEL_SUFFIXES = (".png", ".bmp", ".tif", ".tiff")
LONGEST_SHOWN = 200  # characters of a name in a sentence
SHOWN = 3  # how many files a sentence names before it counts the rest


@dataclass
class ListedSplit:
    """The files of a split as a data set's lister found them.

    Attributes:
        spec: classes of the data set.
        images: paths of the images, relative to the root.
        labels: paths of their labels in the same order; None where there are none.
        names: unique names of the images.
    """

    spec: DatasetSpec
    images: list[str]
    labels: list[str] | None
    names: list[str]


def scan(folder: str | Path, *, accept: Callable[[str], bool]) -> list[str]:
    """Paths of the accepted files below `folder`, relative with "/", sorted.

    `accept` is asked with the file's name. Hidden files and folders are left out.

    Raises:
        DataError: a folder that cannot be read.
    """
    found: list[str] = []
    visited: set[tuple[int, int]] = set()
    pending = [(os.fspath(folder), "")]
    while pending:
        place, prefix = pending.pop()
        for entry in _visible_entries(place):
            if not _is_folder(entry):
                if accept(entry.name):
                    found.append(prefix + entry.name)
                continue

            # A link that leads back up would never end.
            if entry.is_symlink():
                status = entry.stat()
                if (status.st_dev, status.st_ino) in visited:
                    continue
                visited.add((status.st_dev, status.st_ino))
            pending.append((entry.path, f"{prefix}{entry.name}/"))
    return sorted(found)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link in a circle; what it stands for is said when it is read
        return False


def _visible_entries(folder: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return [entry for entry in entries if not entry.name.startswith(".")]
    except OSError as error:
        raise DataError(
            f"{folder}: folder cannot be read ({error.strerror})", kind="unreadable"
        ) from error


def scan_images(folder: str | Path, suffixes: Sequence[str] = IMAGE_SUFFIXES) -> list[str]:
    """`scan` for images; other files that look like some are left out and said."""
    found = scan(folder, accept=has_suffix((*suffixes, *OTHER_IMAGE_SUFFIXES, *VIDEO_SUFFIXES)))
    is_listed = has_suffix(suffixes)
    others = [path for path in found if not is_listed(path)]
    if others:
        notice(
            f"{folder}: {len(others)} files in formats that are not looked for in a folder are "
            f"left out ({some(others)}); convert images to {' '.join(suffixes)}, and name videos "
            "singly"
        )
    return [path for path in found if is_listed(path)]


def has_suffix(suffixes: Sequence[str]) -> Callable[[str], bool]:
    """Test of a file name for one of the suffixes, in any case."""
    wanted = tuple(suffixes)
    return lambda name: name.lower().endswith(wanted)


def stem(path: str) -> str:
    """Path without its last suffix."""
    return os.path.splitext(path)[0]


def require_folder(folder: Path, *, what: str, hint: str) -> None:
    """Refuse what is no folder.

    Raises:
        DataError: `folder` is no folder; what lies beside it, and `hint`, are said.
    """
    if os.path.isdir(folder):
        return
    if os.path.exists(folder):
        raise DataError(f"{what} {folder} is not a folder; {hint}", kind="missing")

    # The nearest folder that does exist shows where the path goes wrong.
    parent = folder
    while not os.path.isdir(parent) and parent != parent.parent:
        parent = parent.parent
    raise DataError(
        f"{what} {folder} does not exist ({parent} holds {first_entries(parent)}); {hint}",
        kind="missing",
    )


def first_entries(folder: Path) -> str:
    """The first entries of a folder in words, so that a wrong path shows itself."""
    names = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                suffix = "/" * _is_folder(entry)
                names.append(entry.name + suffix)
    except OSError as error:
        return f"nothing readable ({error.strerror})"
    return some(sorted(names)) or "nothing"


def shown_name(text: str) -> str:
    """Text from outside as a message shows it: of bounded length."""
    if len(text) <= LONGEST_SHOWN:
        return text
    return f"{text[: LONGEST_SHOWN - 3]}..."


def some(names: Sequence[str]) -> str:
    """The first few of many names, and how many more there are."""
    text = ", ".join(shown_name(name) for name in names[:SHOWN])
    if len(names) > SHOWN:
        text += f" and {len(names) - SHOWN} more"
    return text


def pair(
    images: dict[str, str], labels: dict[str, str], *, image_place: str, label_place: str
) -> list[str]:
    """Keys, sorted, under which both an image and a label were found.

    Raises:
        DataError: an image has no label, or a label no image; both places and the files are named.
    """
    without_label = sorted(images.keys() - labels.keys())
    if without_label:
        files = some([images[key] for key in without_label])
        raise DataError(
            f"{_count(without_label, 'image')} in {image_place} without label in {label_place}: "
            f"{files}",
            kind="pairs",
        )

    without_image = sorted(labels.keys() - images.keys())
    if without_image:
        files = some([labels[key] for key in without_image])
        raise DataError(
            f"{_count(without_image, 'label')} in {label_place} without image in {image_place}: "
            f"{files}",
            kind="pairs",
        )
    return sorted(images)


def _count(items: Sequence[str], noun: str) -> str:
    if len(items) == 1:
        return f"1 {noun}"
    return f"{len(items)} {noun}s"


def by_key(paths: Iterable[str], key: Callable[[str], str], *, place: str) -> dict[str, str]:
    """Paths under their keys.

    Raises:
        DataError: two paths share a key, such as a.jpg and a.png.
    """
    found: dict[str, str] = {}
    for path in paths:
        name = key(path)
        if name in found:
            raise DataError(
                f"{place}: {found[name]} and {path} share the name '{name}'; remove or rename one",
                kind="pairs",
            )
        found[name] = path
    return found


def glob_files(root: Path, pattern: str) -> dict[str, str]:
    """Files that match `pattern`, relative to `root`, under what the wildcards matched.

    `*` stands for characters within a folder, `**/` for any folders, `?` for one character.

    Raises:
        DataError: the wildcards match the same in two files.
    """
    # Only what lies below the folders that the pattern spells out is scanned.
    fixed, _, _ = re.split(r"[*?]", pattern, maxsplit=1)[0].rpartition("/")
    base = root / fixed
    if not os.path.isdir(base):
        return {}

    prefix = ""
    if fixed:
        prefix = f"{fixed}/"
    wanted = glob_to_regex(pattern)
    found: dict[str, str] = {}
    for below in scan(base, accept=lambda name: True):
        path = prefix + below
        match = wanted.fullmatch(path)
        if match is None:
            continue

        # What each wildcard matched becomes one part of the key, without empty parts.
        key = "/".join(part.rstrip("/") for part in match.groups() if part)
        if key in found:
            raise DataError(
                f"{pattern}: {found[key]} and {path} cannot be told apart by what the wildcards "
                f"match ('{key}')",
                kind="pairs",
            )
        found[key] = path
    return found


def glob_to_regex(pattern: str) -> re.Pattern[str]:
    """A glob as a regular expression with one group for each wildcard."""
    parts = {"**/": r"((?:[^/]+/)*)", "**": r"(.*)", "*": r"([^/]*)", "?": r"([^/])"}
    pieces = re.split(r"(\*\*/|\*\*|\*|\?)", pattern)
    return re.compile("".join(parts.get(piece) or re.escape(piece) for piece in pieces))
