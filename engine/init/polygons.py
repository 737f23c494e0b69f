"""Polygons that people drew, as pictures of class ids: labelme's JSON and CVAT's XML.

Format: labelme keeps a JSON file per image with `shapes`, each with `label`, `shape_type` and
`points` (https://github.com/wkentaro/labelme). CVAT exports one `annotations.xml` for all images,
with `polygon`, `box` and `mask`-free shapes (https://docs.cvat.ai/docs/manual/advanced/formats/).
What no shape covers is background. Later shapes lie above earlier ones.
"""

from __future__ import annotations

import json
import os
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from hmsa.datasets import DataError
from hmsa.datasets.layouts.listing import IMAGE_SUFFIXES, has_suffix, scan
from hmsa.utils.files.png import write_png
from hmsa.utils.files.regular import read_regular

BACKGROUND = "background"
FOLDER = "polygon_labels"
Points = list[tuple[float, float]]


@dataclass(frozen=True)
class Shape:
    """One polygon of a class."""

    name: str
    points: Points


@dataclass(frozen=True)
class DrawnImage:
    """An image with its polygons; its path is relative to the folder, its size (height, width)."""

    image: str
    size: tuple[int, int]
    shapes: tuple[Shape, ...]


def find_drawn(folder: Path) -> tuple[list[DrawnImage], str]:
    """The images of a folder that have polygons, and how they were found.

    Raises:
        DataError: a file of polygons is damaged.
    """
    images = {
        os.path.splitext(path)[0]: path for path in scan(folder, accept=has_suffix(IMAGE_SUFFIXES))
    }
    drawn = []
    for path in scan(folder, accept=has_suffix((".json",))):
        found = _of_labelme(folder, path, images)
        if found is not None:
            drawn.append(found)
    if drawn:
        return drawn, "polygons of labelme"

    for path in scan(folder, accept=has_suffix((".xml",))):
        drawn = _of_cvat(folder / path, images)
        if drawn:
            return drawn, f"polygons of CVAT in {path}"
    return [], ""


def _of_labelme(folder: Path, path: str, images: dict[str, str]) -> DrawnImage | None:
    """The polygons of one JSON file of labelme; None for JSON of another kind."""
    try:
        content = json.loads(read_regular(folder / path))
        if not isinstance(content, dict) or "shapes" not in content:
            return None
        shapes = tuple(
            Shape(str(item["label"]), points)
            for item in content["shapes"]
            if (points := _points(item)) is not None
        )
        size = int(content["imageHeight"]), int(content["imageWidth"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(
            f"{folder / path}: polygons cannot be read ({type(error).__name__}: {error}); save the "
            "file again in labelme, or move it away"
        ) from error

    # The image lies beside the file, or elsewhere below the folder under the same name.
    stem = os.path.splitext(path)[0]
    base = os.path.basename(stem)
    others = [image for name, image in images.items() if os.path.basename(name) == base]
    image = images.get(stem) or (others[0] if len(others) == 1 else None)
    if image is None:
        return None
    return DrawnImage(image, size, shapes)


def _points(item: dict[str, Any]) -> Points | None:
    """The outline of a shape of labelme; None for lines and points, which cover nothing."""
    points = [(float(x), float(y)) for x, y in item["points"]]
    kind = item.get("shape_type", "polygon")
    if kind == "rectangle" and len(points) == 2:
        (left, top), (right, bottom) = points
        return [(left, top), (right, top), (right, bottom), (left, bottom)]
    if kind == "circle" and len(points) == 2:
        (x, y), edge = points
        radius = float(np.hypot(edge[0] - x, edge[1] - y))
        angles = np.linspace(0, 2 * np.pi, 64, endpoint=False)
        return [(x + radius * np.cos(angle), y + radius * np.sin(angle)) for angle in angles]
    if kind == "polygon" and len(points) >= 3:
        return points
    return None


def _of_cvat(path: Path, images: dict[str, str]) -> list[DrawnImage]:
    """The polygons and boxes of an XML file of CVAT; none for XML of another kind."""
    try:
        text = read_regular(path)
        # Entities could make a small file endless; CVAT writes none.
        if b"<!ENTITY" in text:
            return []
        root = ElementTree.fromstring(text)
        if root.tag != "annotations":
            return []
        by_name = {os.path.basename(image): image for image in images.values()}
        drawn = []
        for node in root.iter("image"):
            name = node.attrib["name"]
            image = next((found for found in images.values() if found.endswith(name)), None)
            image = image or by_name.get(os.path.basename(name))
            if image is None:
                continue
            size = int(node.attrib["height"]), int(node.attrib["width"])
            ordered = sorted(node, key=lambda shape: int(shape.get("z_order", 0)))
            shapes = [_shape_of_cvat(shape) for shape in ordered]
            drawn.append(DrawnImage(image, size, tuple(item for item in shapes if item)))
    except (OSError, ValueError, KeyError, ElementTree.ParseError) as error:
        raise DataError(
            f"{path}: polygons cannot be read ({type(error).__name__}: {error}); export them again "
            "from CVAT (CVAT for images 1.1), or move the file away"
        ) from error
    return drawn


def _shape_of_cvat(node: ElementTree.Element) -> Shape | None:
    values = node.attrib
    if node.tag == "polygon":
        pairs = [point.split(",") for point in values["points"].split(";")]
        return Shape(values["label"], [(float(x), float(y)) for x, y in pairs])
    if node.tag == "box":
        left, top, right, bottom = (float(values[key]) for key in ("xtl", "ytl", "xbr", "ybr"))
        corners = [(left, top), (right, top), (right, bottom), (left, bottom)]
        return Shape(values["label"], corners)
    return None


def class_names(drawn: Sequence[DrawnImage]) -> list[str]:
    """Background, then the names of the shapes in the order of the alphabet."""
    named = {shape.name for item in drawn for shape in item.shapes} - {BACKGROUND}
    return [BACKGROUND, *sorted(named)]


def draw_labels(drawn: Sequence[DrawnImage], names: Sequence[str], folder: Path) -> list[str]:
    """Write a label of class ids for each image below `folder`; returns their relative paths.

    The ids are the positions in `names`.
    """
    written = []
    for item in drawn:
        picture = Image.new("L", (item.size[1], item.size[0]), 0)
        draw = ImageDraw.Draw(picture)
        for shape in item.shapes:
            draw.polygon(shape.points, fill=names.index(shape.name))
        path = f"{FOLDER}/{os.path.splitext(item.image)[0]}.png"
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        write_png(folder / path, np.asarray(picture))
        written.append(path)
    return written
