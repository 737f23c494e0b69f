"""Finding files: each folder is scanned once, no file is opened, and what does not fit is named."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import DataError
from ..spec import DatasetSpec

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".ppm")
LABEL_SUFFIXES = (".png", ".bmp", ".tif", ".tiff")
SHOWN = 3  # how many files a sentence names before it counts the rest


@dataclass
class Found:
    """A split as a data set's lister found it: paths relative to the root, in the same order; labels None where there are none."""

    spec: DatasetSpec
    images: list[str]
    labels: list[str] | None
    names: list[str]


def scan(folder: str | Path, *, accept: Callable[[str], bool]) -> list[str]:
    """Paths of the accepted files below `folder`, relative with "/", sorted; hidden files and folders are left out."""
    found: list[str] = []
    visited: set[tuple[int, int]] = set()
    pending = [(os.fspath(folder), "")]
    while pending:
        place, prefix = pending.pop()
        with os.scandir(place) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.is_dir():
                    if entry.is_symlink():  # a link that leads back up would never end
                        status = entry.stat()
                        if (status.st_dev, status.st_ino) in visited:
                            continue
                        visited.add((status.st_dev, status.st_ino))
                    pending.append((entry.path, f"{prefix}{entry.name}/"))
                elif accept(entry.name):
                    found.append(prefix + entry.name)
    return sorted(found)


def has_suffix(suffixes: Sequence[str]) -> Callable[[str], bool]:
    """Test of a file name for one of the suffixes, in any case."""
    wanted = tuple(suffixes)
    return lambda name: name.lower().endswith(wanted)


def stem(path: str) -> str:
    """Path without its last suffix."""
    return path[: len(path) - len(os.path.splitext(path)[1])]


def require_folder(folder: Path, *, what: str, hint: str) -> None:
    """DataError unless `folder` is a folder; names what lies beside it."""
    if folder.is_dir():
        return
    if folder.exists():
        raise DataError(f"{what} {folder} is not a folder; {hint}", kind="missing")
    parent = folder
    while not parent.is_dir() and parent != parent.parent:
        parent = parent.parent
    raise DataError(
        f"{what} {folder} does not exist ({parent} holds {first_entries(parent)}); {hint}",
        kind="missing",
    )


def first_entries(folder: Path) -> str:
    """The first entries of a folder in words, so that a wrong path shows itself."""
    try:
        with os.scandir(folder) as entries:
            names = sorted(entry.name + ("/" if entry.is_dir() else "") for entry in entries)
    except OSError as error:
        return f"nothing readable ({error.strerror})"
    return some(names) if names else "nothing"


def some(names: Sequence[str]) -> str:
    """The first few of many names, and how many more there are."""
    rest = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {rest} more" if rest > 0 else "")


def pair(
    images: dict[str, str], labels: dict[str, str], *, image_place: str, label_place: str
) -> list[str]:
    """Keys, sorted, under which both an image and a label were found; DataError names those without partner."""
    alone = sorted(images.keys() - labels.keys())
    if alone:
        files = some([images[key] for key in alone])
        raise DataError(
            f"{_count(alone, 'image')} in {image_place} without label in {label_place}: {files}",
            kind="pairs",
        )
    alone = sorted(labels.keys() - images.keys())
    if alone:
        files = some([labels[key] for key in alone])
        raise DataError(
            f"{_count(alone, 'label')} in {label_place} without image in {image_place}: {files}",
            kind="pairs",
        )
    return sorted(images)


def _count(items: Sequence[str], noun: str) -> str:
    return f"1 {noun}" if len(items) == 1 else f"{len(items)} {noun}s"


def by_key(paths: Iterable[str], key: Callable[[str], str], *, place: str) -> dict[str, str]:
    """Paths under their keys; DataError where two share one (a.jpg beside a.png)."""
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
    """
    fixed, _, _ = re.split(r"[*?]", pattern, maxsplit=1)[0].rpartition("/")
    base = root / fixed
    if not base.is_dir():
        return {}
    wanted = glob_to_regex(pattern)
    prefix = f"{fixed}/" if fixed else ""
    matches = (
        (prefix + path, wanted.fullmatch(prefix + path))
        for path in scan(base, accept=lambda name: True)
    )
    found: dict[str, str] = {}
    for path, match in matches:
        if match is None:
            continue
        key = "".join(
            part if part.endswith("/") else part + "/" for part in match.groups() if part
        ).rstrip("/")
        if key in found:
            raise DataError(
                f"{pattern}: {found[key]} and {path} cannot be told apart by what the wildcards match ('{key}')",
                kind="pairs",
            )
        found[key] = path
    return found


def glob_to_regex(pattern: str) -> re.Pattern[str]:
    """A glob as a regular expression with one group for each wildcard."""
    parts = {"**/": r"((?:[^/]+/)*)", "**": r"(.*)", "*": r"([^/]*)", "?": r"([^/])"}
    pieces = re.split(r"(\*\*/|\*\*|\*|\?)", pattern)
    return re.compile("".join(parts.get(piece) or re.escape(piece) for piece in pieces))
