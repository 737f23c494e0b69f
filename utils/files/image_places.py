"""Where the images of a folder of automatic labels lie, for trainings on them and for checks.

Format: `image-paths.json` in the folder of the labels, an object with

- `folder`, the absolute path of the folder that holds all images;
- `relative`, the same as seen from the folder of the labels;
- `images`, for each image of images.jsonl its path below that folder, or [path, number] for a
  frame of a video.

Images are found where they were, or, where both folders were moved together, as they lie to each
other. Somebody who moved the images alone may write their new place into `folder`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from .regular import read_regular
from .writing import write_file

IMAGE_PLACES = "image-paths.json"
STILL_IMAGE = -1  # in the place of a frame's number


@dataclass(frozen=True)
class ImagePlace:
    """The file of an image, and the number of the frame where it is a video."""

    path: Path
    frame: int = STILL_IMAGE


@dataclass(frozen=True)
class ImagePlaces:
    """Where images are, by the names that images.jsonl gives them."""

    folder: Path
    """The folder that holds all of them."""
    places: Mapping[str, ImagePlace]
    missing: tuple[Path, ...]
    """Those of their files that are not there."""


def write_image_places(labels: Path, places: Mapping[str, ImagePlace]) -> None:
    """Note in the folder `labels` where its images lie.

    Raises:
        WriteError: the file cannot be written.
    """
    paths = {name: os.path.abspath(place.path) for name, place in places.items()}
    folder = os.path.commonpath({os.path.dirname(path) for path in paths.values()} or {"/"})

    images: dict[str, str | list[str | int]] = {}
    for name, place in places.items():
        below = os.path.relpath(paths[name], folder)
        images[name] = below
        if place.frame != STILL_IMAGE:
            images[name] = [below, place.frame]

    relative = os.path.relpath(folder, os.path.abspath(labels))
    content = {"folder": folder, "relative": relative, "images": images}
    write_file(labels / IMAGE_PLACES, json.dumps(content, indent=0) + "\n")


def read_image_places(labels: Path) -> ImagePlaces | None:
    """Where the images of the folder `labels` lie; None where it does not say so.

    Of the two places where they may be, the one is taken that lacks fewer of them.
    """
    try:
        content = json.loads(read_regular(labels / IMAGE_PLACES))
        named = {name: _entry(entry) for name, entry in content["images"].items()}
        folders = [Path(content["folder"]), labels / content["relative"]]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None

    best: ImagePlaces | None = None
    for folder in folders:
        absolute = Path(os.path.abspath(folder))
        places = {
            name: ImagePlace(absolute / below, frame) for name, (below, frame) in named.items()
        }
        # A video is asked for once, however many of its frames are listed.
        files = dict.fromkeys(place.path for place in places.values())
        missing = tuple(path for path in files if not os.path.isfile(path))
        if best is None or len(missing) < len(best.missing):
            best = ImagePlaces(absolute, places, missing)
        if not missing:
            break
    return best


def _entry(entry: object) -> tuple[str, int]:
    """Path below the folder, and number of the frame.

    Raises:
        ValueError: the entry is neither a path nor a path with a number.
    """
    if isinstance(entry, str):
        return entry, STILL_IMAGE
    if isinstance(entry, list) and len(entry) == 2:
        below, frame = entry
        if isinstance(below, str) and type(frame) is int and frame >= 0:
            return below, frame
    raise ValueError("an entry is neither a path nor [path, number of the frame]")
