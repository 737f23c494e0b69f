"""`classes.yaml`: the short description of one's own data set, read strictly.

Example:

    name: camvid
    ignore: 255          # or a list of values
    classes:
      - {name: Sky, color: [128, 128, 128], id: 0}
      - {name: Building, ids: [1, 21]}      # without id or ids, the position in the list counts
    layout: {images: "images/{split}", labels: "labels/{split}"}

`layout` is optional. Its values are folders, globs, or `{list: "{split}.txt"}`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hmsa.utils.files.yaml_loader import read_yaml
from hmsa.utils.words import UserError, did_you_mean

from ..errors import DataError
from ..spec import ClassInfo, DatasetSpec, spread_color

_DEFAULT_IGNORE = 255


@dataclass(frozen=True)
class Layout:
    """Where a folder data set keeps its files; `{split}` stands for the split's name.

    Attributes:
        images: folder or glob of the images, relative to the root.
        labels: folder or glob of the labels; they pair by what the wildcards match.
        list: a text file with "image label" lines, in the place of both.
    """

    images: str = "images/{split}"
    labels: str = "labels/{split}"
    list: str | None = None


def load_class_list(path: Path) -> tuple[DatasetSpec, Layout]:
    """Spec and layout of a `classes.yaml`.

    Raises:
        DataError: the file cannot be read or used; file, key and what to write are named.
    """
    try:
        document = read_yaml(path)
    except UserError as error:
        raise DataError(
            f"class list cannot be read: {' '.join(str(error).split())}; set data.classes to a "
            "classes.yaml",
            kind="classes",
        ) from error
    if document.mistakes:
        raise DataError(f"class list: {document.mistakes[0]}", kind="classes")

    try:
        spec = _spec(document.value, default_name=path.parent.name)
        return spec, _layout(document.value.get("layout"))
    except DataError as error:
        raise DataError(f"{path}: {error}", kind="classes") from None


def _spec(content: Any, *, default_name: str) -> DatasetSpec:
    values = _mapping(content, "the class list", ("name", "ignore", "classes", "layout"))
    name = values.get("name", default_name)
    if not isinstance(name, str):
        raise DataError(f"name: must be text, not {_shown(name)}")
    entries = values.get("classes")
    if not isinstance(entries, list) or not entries:
        raise DataError(
            "classes: must be a list such as [{name: road, color: [128, 64, 128], id: 0}, ...]"
        )

    classes = tuple(_class(entry, position) for position, entry in enumerate(entries))
    used = {value for item in classes for value in item.raw_ids}
    ignored = _ignored(values.get("ignore", _DEFAULT_IGNORE), used, given="ignore" in values)
    # The first ignored value is the one that this project writes.
    return DatasetSpec(name=name, classes=classes, raw_ignore=ignored[0], known_raw_ids=ignored)


def _ignored(value: Any, used: set[int], *, given: bool) -> tuple[int, ...]:
    """The file values that mean ignore.

    Where none does (`ignore: []`, or no `ignore` while a class has the usual value), one that no
    class has stands for it in files that this project writes.
    """
    if value is None or value == [] or (not given and _DEFAULT_IGNORE in used):
        free = [unused for unused in range(255, -1, -1) if unused not in used]
        if not free:
            raise DataError("ignore: the classes have all 256 ids, so that none is left to ignore")
        return (free[0],)

    ignored = _ids(value, "ignore", least=-1)
    clash = sorted(used & {item % 256 for item in ignored})
    if clash:
        raise DataError(
            f"ignore: id {clash[0]} is both a class and ignore; name another value, or write "
            "'ignore: []' where nothing is ignored"
        )
    return ignored


def _class(entry: Any, position: int) -> ClassInfo:
    where = f"classes[{position}]"
    values = _mapping(entry, where, ("name", "color", "id", "ids", "category", "has_instances"))

    name = values.get("name")
    if not isinstance(name, str) or not name:
        raise DataError(
            f"{where}.name: must be text, not {_shown(name)} (put numbers, true and false in "
            "quotes)"
        )
    color = values.get("color", list(spread_color(position)))
    if not (isinstance(color, list) and len(color) == 3 and all(_is_id(part) for part in color)):
        raise DataError(
            f"{where}.color: must be [red, green, blue] from 0 to 255, not {_shown(color)}"
        )
    category = values.get("category")
    if not (category is None or isinstance(category, str)):
        raise DataError(f"{where}.category: must be text, not {_shown(category)}")
    has_instances = values.get("has_instances", False)
    if not isinstance(has_instances, bool):
        raise DataError(
            f"{where}.has_instances: must be true or false, not {_shown(has_instances)}"
        )

    if "id" in values and "ids" in values:
        raise DataError(f"{where}: give id or ids, not both")
    if "ids" in values:
        raw_ids = _ids(values["ids"], f"{where}.ids")
    else:
        raw_ids = _ids(values.get("id", position), f"{where}.id")

    return ClassInfo(
        name=name,
        color=(color[0], color[1], color[2]),
        raw_ids=raw_ids,
        category=category,
        has_instances=has_instances,
    )


def _layout(content: Any) -> Layout:
    if content is None:
        return Layout()

    values = _mapping(content, "layout", ("images", "labels", "list"))
    for key, value in values.items():
        if not isinstance(value, str) or not value:
            raise DataError(f"layout.{key}: must be text, not {_shown(value)}")
    if "list" in values and len(values) > 1:
        raise DataError("layout: give either list, or images and labels")
    return Layout(**values)


def _mapping(content: Any, where: str, known: tuple[str, ...]) -> dict[str, Any]:
    """`content`, if it is a mapping whose keys are all `known`."""
    if not isinstance(content, dict):
        raise DataError(
            f"{where}: must hold the keys {', '.join(known)}, not {type(content).__name__}"
        )
    for key in content:
        if key not in known:
            near = did_you_mean(str(key), known) or f" (choose from {', '.join(known)})"
            raise DataError(f"{where}: unknown key '{key}'{near}")
    return content


def _ids(value: Any, where: str, *, least: int = 0) -> tuple[int, ...]:
    values = value
    if not isinstance(value, list):
        values = [value]
    if not values or not all(_is_id(item, least) for item in values):
        raise DataError(
            f"{where}: must be an id from {least} to 255 or a list of them, not {_shown(value)}"
        )
    return tuple(values)


def _is_id(value: Any, least: int = 0) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= 255


def _shown(value: Any) -> str:
    """A value as a message shows it: not longer than a line."""
    try:
        text = repr(value)
    except ValueError:  # an integer of more digits than Python prints
        return "a number of thousands of digits"
    if len(text) <= 60:
        return text
    return f"{text[:57]}..."
