"""`classes.yaml`: the short description of one's own data set, read strictly.

name: camvid
ignore: 255                      # or a list of values
classes:
  - {name: Sky, color: [128, 128, 128], id: 0}        # or ids: [0, 21]; without either, the position counts
layout: {images: "images/{split}", labels: "labels/{split}"}      # optional; folders, globs, or {list: "{split}.txt"}
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ..errors import DataError
from ..spec import ClassInfo, DatasetSpec, did_you_mean, spread_color


@dataclass(frozen=True)
class Layout:
    """Where a folder data set keeps its files, relative to its root; `{split}` stands for the split's name.

    `images` and `labels` are folders or globs that are paired by what their wildcards match; or `list` is a text file with "image label" lines.
    """

    images: str = "images/{split}"
    labels: str = "labels/{split}"
    list: str | None = None


def load_class_list(path: Path) -> tuple[DatasetSpec, Layout]:
    """Spec and layout of a `classes.yaml`; DataError names the file, the key and what to write instead."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{path}: class list cannot be read ({error}); set data.classes to a classes.yaml",
            kind="classes",
        ) from error
    try:
        content = yaml.load(text, Loader=_StrictLoader)  # noqa: S506 - a SafeLoader underneath
    except yaml.YAMLError as error:
        raise DataError(
            f"{path}: not valid YAML: {' '.join(str(error).split())}", kind="classes"
        ) from error
    except RecursionError as error:
        raise DataError(f"{path}: nested too deeply for a class list", kind="classes") from error
    try:
        return _spec(content, default_name=path.parent.name), _layout(content.get("layout"))
    except DataError as error:
        raise DataError(f"{path}: {error}", kind="classes") from None


class _StrictLoader(yaml.SafeLoader):
    """Safe loader that refuses doubled keys and aliases, of which a class list needs none."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError(
                f"line {self.peek_event().start_mark.line + 1}: aliases have no place in a class list"
            )
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise yaml.YAMLError(
                    f"line {key_node.start_mark.line + 1}: key {key!r} must be text"
                )
            if key in seen:
                raise yaml.YAMLError(
                    f"line {key_node.start_mark.line + 1}: key '{key}' is given twice"
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


def _spec(content: Any, *, default_name: str) -> DatasetSpec:
    values = _mapping(content, "the class list", ("name", "ignore", "classes", "layout"))
    name = values.get("name", default_name)
    if not isinstance(name, str):
        raise DataError(f"name: must be text, not {name!r}")
    entries = values.get("classes")
    if not isinstance(entries, list) or not entries:
        raise DataError(
            "classes: must be a list such as [{name: road, color: [128, 64, 128], id: 0}, ...]"
        )
    ignored = _ids(values.get("ignore", 255), "ignore", least=-1)
    classes = tuple(_class(entry, position) for position, entry in enumerate(entries))
    return DatasetSpec(name=name, classes=classes, raw_ignore=ignored[0], known_raw_ids=ignored)


def _class(entry: Any, position: int) -> ClassInfo:
    where = f"classes[{position}]"
    values = _mapping(entry, where, ("name", "color", "id", "ids", "category", "has_instances"))
    name = values.get("name")
    if not isinstance(name, str) or not name:
        raise DataError(
            f"{where}.name: must be text, not {name!r} (put words such as no or on, and numbers, in quotes)"
        )
    color = values.get("color", list(spread_color(position)))
    if not (isinstance(color, list) and len(color) == 3 and all(_is_id(part) for part in color)):
        raise DataError(f"{where}.color: must be [red, green, blue] from 0 to 255, not {color!r}")
    if "id" in values and "ids" in values:
        raise DataError(f"{where}: give id or ids, not both")
    category, has_instances = values.get("category"), values.get("has_instances", False)
    if not (category is None or isinstance(category, str)):
        raise DataError(f"{where}.category: must be text, not {category!r}")
    if not isinstance(has_instances, bool):
        raise DataError(f"{where}.has_instances: must be true or false, not {has_instances!r}")
    ids = _ids(
        values.get("ids", values.get("id", position)),
        f"{where}.{'ids' if 'ids' in values else 'id'}",
    )
    return ClassInfo(
        name=name,
        color=(color[0], color[1], color[2]),
        raw_ids=ids,
        category=category,
        has_instances=has_instances,
    )


def _layout(content: Any) -> Layout:
    if content is None:
        return Layout()
    values = _mapping(content, "layout", ("images", "labels", "list"))
    for key, value in values.items():
        if not isinstance(value, str) or not value:
            raise DataError(f"layout.{key}: must be text, not {value!r}")
    if "list" in values and len(values) > 1:
        raise DataError("layout: give either list, or images and labels")
    return Layout(**values)


def _mapping(content: Any, where: str, known: tuple[str, ...]) -> dict[str, Any]:
    if not isinstance(content, dict):
        raise DataError(
            f"{where}: must hold the keys {', '.join(known)}, not {type(content).__name__}"
        )
    for key in content:
        if key not in known:
            raise DataError(f"{where}: unknown key '{key}'{did_you_mean(key, known)}")
    return content


def _ids(value: Any, where: str, *, least: int = 0) -> tuple[int, ...]:
    values = value if isinstance(value, list) else [value]
    if not values or not all(_is_id(item, least) for item in values):
        raise DataError(
            f"{where}: must be an id from {least} to 255 or a list of them, not {value!r}"
        )
    return tuple(values)


def _is_id(value: Any, least: int = 0) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= 255
