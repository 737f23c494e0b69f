"""`classes.yaml`: the short description of one's own data set, read strictly.

Example:

    name: camvid
    ignore: 255          # or a list of values
    classes:
      - {name: Sky, color: [128, 128, 128], id: 0}
      - {name: Building, ids: [1, 21]}      # without id or ids, the position in the list counts
      - {name: Tree, colors: [[128, 128, 0], [192, 192, 0]]}
    layout: {images: "images/{split}", labels: "labels/{split}"}

All but `classes` is optional. Labels of three channels are read by the colours of the classes;
`labels: colors` reads palette pictures by their colours too. `ignore` names colours beside ids, and
`unknown: ignore` ignores whatever stands for nothing. The values of `layout` are folders, globs, or
`{list: "{split}.txt"}`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hmsa.utils.files.yaml_loader import read_yaml
from hmsa.utils.words import UserError, did_you_mean, shortened

from ..errors import DataError
from ..spec import ClassInfo, Color, DatasetSpec, LabelForm, spread_color

_DEFAULT_IGNORE = 255
_KEYS = ("name", "ignore", "classes", "layout", "labels", "unknown")
_FORMS: tuple[LabelForm, ...] = ("auto", "ids", "colors")
_UNKNOWN = ("error", "ignore")


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
    values = _mapping(content, "the class list", _KEYS)
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
    ids, colors = _ids_and_colors(values.get("ignore", _DEFAULT_IGNORE))
    ignored = _ignored(ids, used, given="ignore" in values)

    # The first ignored value is the one that this project writes.
    return DatasetSpec(
        name=name,
        classes=classes,
        raw_ignore=ignored[0],
        known_raw_ids=ignored,
        ignored_colors=colors,
        label_form=_choice(values, "labels", _FORMS),
        ignore_unknown=_choice(values, "unknown", _UNKNOWN) == "ignore",
    )


def _ids_and_colors(value: Any) -> tuple[Any, tuple[Color, ...]]:
    """What `ignore` names: ids as they were given, and the colours among them."""
    if not isinstance(value, list):
        return value, ()
    colors = tuple(_color(item, "ignore") for item in value if isinstance(item, list))
    return [item for item in value if not isinstance(item, list)], colors


def _choice(values: dict[str, Any], key: str, choices: tuple[Any, ...]) -> Any:
    """The value of `key`, which must be one of `choices`; the first where it is left out."""
    value = values.get(key, choices[0])
    if value not in choices:
        near = did_you_mean(str(value), choices)
        raise DataError(f"{key}: {_shown(value)} is none of {', '.join(choices)}{near}")
    return value


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
    known = ("name", "color", "colors", "id", "ids", "category", "has_instances")
    values = _mapping(entry, where, known)

    name = values.get("name")
    if not isinstance(name, str) or not name:
        raise DataError(
            f"{where}.name: must be text, not {_shown(name)} (put numbers, true and false in "
            "quotes)"
        )
    colors = _colors(values, where, position)
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
        color=colors[0],
        raw_ids=raw_ids,
        category=category,
        has_instances=has_instances,
        other_colors=colors[1:],
    )


def _colors(values: dict[str, Any], where: str, position: int) -> tuple[Color, ...]:
    """The colours of a class: the first is drawn, all are read."""
    if "color" in values and "colors" in values:
        raise DataError(f"{where}: give color or colors, not both")
    if "colors" not in values:
        return (_color(values.get("color", list(spread_color(position))), f"{where}.color"),)

    several = values["colors"]
    if not isinstance(several, list) or not several:
        raise DataError(
            f"{where}.colors: must be a list of [red, green, blue], not {_shown(several)}"
        )
    return tuple(_color(item, f"{where}.colors") for item in several)


def _color(value: Any, where: str) -> Color:
    if not (isinstance(value, list) and len(value) == 3 and all(_is_id(part) for part in value)):
        raise DataError(f"{where}: must be [red, green, blue] from 0 to 255, not {_shown(value)}")
    return value[0], value[1], value[2]


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
    return shortened(text, 60)
