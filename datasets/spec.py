"""What a data set's classes are: the one fact from which head size, loss, metrics, palette and remapping follow."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np

from .errors import DataError

LabelIds = Literal["raw", "train"]


@dataclass(frozen=True)
class ClassInfo:
    """One class: its name, RGB colour, the ids that stand for it in label files (the first is the one written), and its group."""

    name: str
    color: tuple[int, int, int]
    raw_ids: tuple[int, ...]
    category: str | None = None
    has_instances: bool = False


@dataclass(frozen=True)
class DatasetSpec:
    """Classes in the order of their train ids 0 .. C-1, and what stands for "ignore" in memory and in files.

    `ignore_label` is the value of ignored pixels in memory; `raw_ignore` is what a label file written by us holds there (Cityscapes: 0);
    `known_raw_ids` are the file values that legally mean ignore (-1, which an 8-bit file holds as 255, included). Any other value is a fault.
    """

    name: str
    classes: tuple[ClassInfo, ...]
    ignore_label: int = 255
    raw_ignore: int = 255
    known_raw_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not 1 <= len(self.classes) <= 255:
            raise DataError(
                f"{self.name}: {len(self.classes)} classes; 8-bit labels hold 1 to 255 beside the ignore value"
            )
        if not len(self.classes) <= self.ignore_label <= 255:
            raise DataError(
                f"{self.name}: ignore label {self.ignore_label} must lie above the {len(self.classes)} train ids and below 256"
            )
        _require_unique(self.name, "name", [item.name for item in self.classes])
        _require_unique(self.name, "id", [value for item in self.classes for value in item.raw_ids])
        for item in self.classes:
            if not item.raw_ids or not all(0 <= value <= 255 for value in item.raw_ids):
                raise DataError(
                    f"{self.name}: class '{item.name}' needs ids from 0 to 255, not {list(item.raw_ids)}"
                )
            if len(item.color) != 3 or not all(0 <= value <= 255 for value in item.color):
                raise DataError(
                    f"{self.name}: class '{item.name}' needs a colour [red, green, blue] from 0 to 255, not {list(item.color)}"
                )
        used = {value for item in self.classes for value in item.raw_ids}
        if not all(-1 <= value <= 255 for value in self.ignored_raw_ids):
            raise DataError(
                f"{self.name}: ignore ids must lie between -1 and 255, not {list(self.ignored_raw_ids)}"
            )
        clash = sorted(used & {value % 256 for value in self.ignored_raw_ids})
        if clash:
            raise DataError(f"{self.name}: id {clash[0]} is both a class and ignore")

    @property
    def num_classes(self) -> int:
        """How many classes are predicted and scored."""
        return len(self.classes)

    @property
    def names(self) -> tuple[str, ...]:
        """Class names in train-id order."""
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
        return _frozen(table)

    @cached_property
    def to_train(self) -> np.ndarray:
        """Train id of each raw id, uint8 [256]; the ignore label where there is none. Any permutation works: it is one table look-up."""
        table = np.full(256, self.ignore_label, dtype=np.uint8)
        for train_id, item in enumerate(self.classes):
            table[list(item.raw_ids)] = train_id
        return _frozen(table)

    @cached_property
    def to_raw(self) -> np.ndarray:
        """Raw id of each train id, uint8 [256]; `raw_ignore` for all else."""
        table = np.full(256, self.raw_ignore % 256, dtype=np.uint8)
        table[: self.num_classes] = [item.raw_ids[0] for item in self.classes]
        return _frozen(table)

    @cached_property
    def _tables(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        unknown = np.ones(256, dtype=np.uint8)
        for item in self.classes:
            unknown[list(item.raw_ids)] = 0
        unknown[[value % 256 for value in self.ignored_raw_ids]] = 0
        identity = np.full(256, self.ignore_label, dtype=np.uint8)
        identity[: self.num_classes] = np.arange(self.num_classes)
        beyond = np.ones(256, dtype=np.uint8)
        beyond[: self.num_classes] = 0
        beyond[self.ignore_label] = 0
        return {
            "raw": (self.to_train, _frozen(unknown)),
            "train": (_frozen(identity), _frozen(beyond)),
        }

    def tables(self, label_ids: LabelIds) -> tuple[np.ndarray, np.ndarray]:
        """For files that hold raw or train ids: (value -> train id uint8 [256], value -> 1 where it is a fault uint8 [256])."""
        return self._tables[label_ids]

    def index_of(self, name: str) -> int:
        """Train id of the class called `name`; DataError names the nearest class otherwise."""
        if name not in self.names:
            raise DataError(
                f"'{name}' is not a class of {self.name}{did_you_mean(name, self.names)}"
            )
        return self.names.index(name)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as checkpoints and manifests carry them."""
        classes = [
            {
                "name": c.name,
                "color": list(c.color),
                "raw_ids": list(c.raw_ids),
                "category": c.category,
                "has_instances": c.has_instances,
            }
            for c in self.classes
        ]
        return {
            "name": self.name,
            "classes": classes,
            "ignore_label": self.ignore_label,
            "raw_ignore": self.raw_ignore,
            "known_raw_ids": list(self.known_raw_ids),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> DatasetSpec:
        """Inverse of `to_dict`."""
        classes = tuple(
            ClassInfo(
                name=item["name"],
                color=(int(item["color"][0]), int(item["color"][1]), int(item["color"][2])),
                raw_ids=tuple(int(value) for value in item["raw_ids"]),
                category=item.get("category"),
                has_instances=bool(item.get("has_instances", False)),
            )
            for item in values["classes"]
        )
        return cls(
            name=values["name"],
            classes=classes,
            ignore_label=int(values["ignore_label"]),
            raw_ignore=int(values["raw_ignore"]),
            known_raw_ids=tuple(int(value) for value in values["known_raw_ids"]),
        )


def did_you_mean(word: str, choices: Mapping[str, Any] | tuple[str, ...] | list[str]) -> str:
    """ " (did you mean 'x'?)" for the nearest choice; the list of choices where none is near and the list is short."""
    from difflib import get_close_matches

    lowered = {choice.lower(): choice for choice in choices}
    near = get_close_matches(word.lower(), list(lowered), n=1, cutoff=0.5)
    if near:
        return f" (did you mean '{lowered[near[0]]}'?)"
    return f" (choose from {', '.join(lowered.values())})" if len(lowered) <= 40 else ""


def spread_color(index: int) -> tuple[int, int, int]:
    """A colour for class `index` of a list without colours: hues by the golden angle, so that neighbours differ, at three brightnesses."""
    from colorsys import hsv_to_rgb

    red, green, blue = hsv_to_rgb(
        (index * 0.61803398875) % 1.0, 0.55 + 0.4 * (index % 2), (0.95, 0.75, 0.55)[index % 3]
    )
    return round(255 * red), round(255 * green), round(255 * blue)


def _require_unique(where: str, what: str, values: list[Any]) -> None:
    doubled = sorted({value for value in values if values.count(value) > 1})
    if doubled:
        raise DataError(f"{where}: {what} {doubled[0]!r} occurs more than once among the classes")


def _frozen(table: np.ndarray) -> np.ndarray:
    table.setflags(write=False)
    return table
