"""What the classes of a data set are.

Head size, loss, metrics, palette and the mapping of label files all follow from this one
description.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from colorsys import hsv_to_rgb
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np

from hmsa.utils.words import did_you_mean

from .errors import DataError

LabelIds = Literal["raw", "train"]
LabelForm = Literal["auto", "ids", "colors"]
Color = tuple[int, int, int]


@dataclass(frozen=True)
class ClassInfo:
    """One class.

    Attributes:
        name: how the class is called in tables and pages.
        color: red, green and blue from 0 to 255, for pictures.
        raw_ids: the ids that stand for the class in label files; the first is the one written.
        category: the group of classes it belongs to, if any.
        has_instances: whether single objects of the class can be counted.
        other_colors: further colours that stand for the class in labels of colours.
    """

    name: str
    color: Color
    raw_ids: tuple[int, ...]
    category: str | None = None
    has_instances: bool = False
    other_colors: tuple[Color, ...] = ()


@dataclass(frozen=True)
class DatasetSpec:
    """Classes in the order of their train ids 0 .. C-1, and what stands for "ignore".

    Attributes:
        name: the data set's name.
        classes: the classes in the order of their train ids.
        ignore_label: value of ignored pixels in memory.
        raw_ignore: what a label file written by this project holds there (Cityscapes: 0).
        known_raw_ids: the file values that legally mean ignore. -1 counts as 255, which is how an
            8-bit file holds it. Any value that is neither here nor an id of a class is a fault.
        ignored_colors: the colours that mean ignore in labels of colours.
        label_form: how labels are read: "auto" takes grey values and palette indices for ids, and
            pictures of three channels for the colours of the classes; "colors" reads palette
            pictures by their colours, too; "ids" reads no colours.
        ignore_unknown: whether a value or colour that stands for nothing is ignored instead of
            being a fault.

    Raises:
        DataError: two classes share a name or an id, a value does not fit into 8 bits, or an id is
            both a class and ignored.
    """

    name: str
    classes: tuple[ClassInfo, ...]
    ignore_label: int = 255
    raw_ignore: int = 255
    known_raw_ids: tuple[int, ...] = ()
    ignored_colors: tuple[Color, ...] = ()
    label_form: LabelForm = "auto"
    ignore_unknown: bool = False

    def __post_init__(self) -> None:
        count = len(self.classes)
        if not 1 <= count <= 255:
            raise DataError(
                f"{self.name}: {count} classes; 8-bit labels hold 1 to 255 beside the ignore value"
            )
        if not count <= self.ignore_label <= 255:
            raise DataError(
                f"{self.name}: ignore label {self.ignore_label} must lie above the {count} train "
                "ids and below 256"
            )

        # Two classes of one name or id could not be told apart in tables and label files.
        used = [value for item in self.classes for value in item.raw_ids]
        _require_unique(self.name, "name", [item.name for item in self.classes])
        _require_unique(self.name, "id", used)
        for item in self.classes:
            _require_8_bits(self.name, item)

        if not all(-1 <= value <= 255 for value in self.ignored_raw_ids):
            raise DataError(
                f"{self.name}: ignore ids must lie between -1 and 255, "
                f"not {list(self.ignored_raw_ids)}"
            )
        # Compared as an 8-bit file holds them, in which -1 is 255.
        clash = sorted(set(used) & {value % 256 for value in self.ignored_raw_ids})
        if clash:
            raise DataError(f"{self.name}: id {clash[0]} is both a class and ignore")

    @property
    def num_classes(self) -> int:
        """How many classes are predicted and scored."""
        return len(self.classes)

    @property
    def names(self) -> tuple[str, ...]:
        """Class names in the order of the train ids."""
        return tuple(item.name for item in self.classes)

    @property
    def ignored_raw_ids(self) -> tuple[int, ...]:
        """Every file value that means ignore, ascending."""
        return tuple(sorted({self.raw_ignore, *self.known_raw_ids}))

    @cached_property
    def palette(self) -> np.ndarray:
        """RGB colour of each train id, uint8 [256, 3]; black for all else."""
        table = np.zeros((256, 3), dtype=np.uint8)
        table[: self.num_classes] = [item.color for item in self.classes]
        return _read_only(table)

    @cached_property
    def to_train(self) -> np.ndarray:
        """Train id of each raw id, uint8 [256]; the ignore label where there is none."""
        table = np.full(256, self.ignore_label, dtype=np.uint8)
        for train_id, item in enumerate(self.classes):
            table[list(item.raw_ids)] = train_id
        return _read_only(table)

    @cached_property
    def to_raw(self) -> np.ndarray:
        """Raw id of each train id, uint8 [256]; `raw_ignore` for all else."""
        table = np.full(256, self.raw_ignore % 256, dtype=np.uint8)
        table[: self.num_classes] = [item.raw_ids[0] for item in self.classes]
        return _read_only(table)

    @cached_property
    def _tables(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        # Files of raw ids: every id of a class and every ignored value is known.
        unknown_raw = np.ones(256, dtype=np.uint8)
        for item in self.classes:
            unknown_raw[list(item.raw_ids)] = 0
        unknown_raw[[value % 256 for value in self.ignored_raw_ids]] = 0

        # Files of train ids: the classes are themselves, and the ignore label is the only other.
        identity = np.full(256, self.ignore_label, dtype=np.uint8)
        identity[: self.num_classes] = np.arange(self.num_classes)
        unknown_train = np.ones(256, dtype=np.uint8)
        unknown_train[: self.num_classes] = 0
        unknown_train[self.ignore_label] = 0

        if self.ignore_unknown:
            unknown_raw[:] = 0
        return {
            "raw": (self.to_train, _read_only(unknown_raw)),
            "train": (_read_only(identity), _read_only(unknown_train)),
        }

    def tables(self, label_ids: LabelIds) -> tuple[np.ndarray, np.ndarray]:
        """Look-up tables for files that hold raw or train ids.

        Returns:
            The train id of each file value, uint8 [256], and 1 where a file value is a fault, uint8
            [256].
        """
        return self._tables[label_ids]

    @cached_property
    def color_table(self) -> tuple[np.ndarray, np.ndarray]:
        """What each colour of a label of colours stands for.

        Returns:
            The colours that have a meaning, each as 65536 red + 256 green + blue, ascending, int32
            [K], and the train id or ignore label of each, uint8 [K].

        Raises:
            DataError: a colour stands for two classes.
        """
        meanings: dict[Color, int] = {color: self.ignore_label for color in self.ignored_colors}
        for train_id, item in enumerate(self.classes):
            for color in (item.color, *item.other_colors):
                other = meanings.setdefault(color, train_id)
                if other != train_id:
                    both = f"'{self.names[other]}'" if other < self.num_classes else "ignore"
                    raise DataError(
                        f"{self.name}: the colour {list(color)} stands for both {both} and "
                        f"'{item.name}', so that labels of colours cannot be read; give each its "
                        "own in the class list",
                        kind="classes",
                    )

        rows = sorted((color_number(color), train_id) for color, train_id in meanings.items())
        codes = np.array([code for code, _ in rows], dtype=np.int32)
        train_ids = np.array([train_id for _, train_id in rows], dtype=np.uint8)
        return _read_only(codes), _read_only(train_ids)

    def reading(self) -> dict[str, Any]:
        """Plain values that decide how label files are read beside their ids, for cache keys."""
        codes, train_ids = [], []
        # Without a table labels of colours cannot be read, and those of ids do not need it.
        with suppress(DataError):
            codes, train_ids = (values.tolist() for values in self.color_table)
        return {
            "colors": codes,
            "color_ids": train_ids,
            "form": self.label_form,
            "ignore_unknown": self.ignore_unknown,
        }

    def index_of(self, name: str) -> int:
        """Train id of the class called `name`.

        Raises:
            DataError: there is none; the nearest class, or a short list of all, is named.
        """
        if name not in self.names:
            # A list of all classes helps where no name is near, unless it is too long to read.
            near = did_you_mean(name, self.names)
            if not near and self.num_classes <= 40:
                near = f" (choose from {', '.join(self.names)})"
            raise DataError(f"'{name}' is not a class of {self.name}{near}")
        return self.names.index(name)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as checkpoints and manifests carry them."""
        classes: list[dict[str, Any]] = []
        for item in self.classes:
            entry: dict[str, Any] = {
                "name": item.name,
                "color": list(item.color),
                "raw_ids": list(item.raw_ids),
                "category": item.category,
                "has_instances": item.has_instances,
            }
            if item.other_colors:
                entry["other_colors"] = [list(color) for color in item.other_colors]
            classes.append(entry)

        values: dict[str, Any] = {
            "name": self.name,
            "classes": classes,
            "ignore_label": self.ignore_label,
            "raw_ignore": self.raw_ignore,
            "known_raw_ids": list(self.known_raw_ids),
        }
        # What few data sets have is left out where it says nothing, so that the records of the
        # others are what they always were.
        if self.ignored_colors:
            values["ignored_colors"] = [list(color) for color in self.ignored_colors]
        if self.label_form != "auto":
            values["label_form"] = self.label_form
        if self.ignore_unknown:
            values["ignore_unknown"] = True
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> DatasetSpec:
        """Inverse of `to_dict`."""
        classes = tuple(
            ClassInfo(
                name=item["name"],
                color=_color(item["color"]),
                raw_ids=tuple(int(value) for value in item["raw_ids"]),
                category=item.get("category"),
                has_instances=bool(item.get("has_instances", False)),
                other_colors=tuple(_color(color) for color in item.get("other_colors", ())),
            )
            for item in values["classes"]
        )
        return cls(
            name=values["name"],
            classes=classes,
            ignore_label=int(values["ignore_label"]),
            raw_ignore=int(values["raw_ignore"]),
            known_raw_ids=tuple(int(value) for value in values["known_raw_ids"]),
            ignored_colors=tuple(_color(color) for color in values.get("ignored_colors", ())),
            label_form=values.get("label_form", "auto"),
            ignore_unknown=bool(values.get("ignore_unknown", False)),
        )


def color_number(color: Sequence[int]) -> int:
    """A colour as one number: 65536 red + 256 green + blue."""
    red, green, blue = color
    return 65536 * red + 256 * green + blue


def _color(values: Sequence[Any]) -> Color:
    return int(values[0]), int(values[1]), int(values[2])


def spread_color(index: int) -> tuple[int, int, int]:
    """A colour for class `index` of a list without colours: red, green, blue from 0 to 255."""
    # Hues that advance by the golden angle keep neighbours apart however many classes there are.
    hue = (index * 0.61803398875) % 1.0
    saturation = 0.55 + 0.4 * (index % 2)
    brightness = (0.95, 0.75, 0.55)[index % 3]
    red, green, blue = hsv_to_rgb(hue, saturation, brightness)
    return round(255 * red), round(255 * green), round(255 * blue)


def _require_unique(spec_name: str, what: str, values: Sequence[Any]) -> None:
    doubled = sorted(value for value, count in Counter(values).items() if count > 1)
    if doubled:
        raise DataError(
            f"{spec_name}: {what} {doubled[0]!r} occurs more than once among the classes"
        )


def _require_8_bits(spec_name: str, item: ClassInfo) -> None:
    if not item.raw_ids or not all(0 <= value <= 255 for value in item.raw_ids):
        raise DataError(
            f"{spec_name}: class '{item.name}' needs ids from 0 to 255, not {list(item.raw_ids)}"
        )
    colors = (item.color, *item.other_colors)
    if not all(len(color) == 3 and 0 <= min(color) <= max(color) <= 255 for color in colors):
        raise DataError(
            f"{spec_name}: class '{item.name}' needs a colour [red, green, blue] from 0 to 255, "
            f"not {list(item.color)}"
        )


def _read_only(table: np.ndarray) -> np.ndarray:
    table.setflags(write=False)
    return table
