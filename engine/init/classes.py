"""What classes the labels of a folder hold, from their values or colours."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from hmsa.datasets import CITYSCAPES, MAPILLARY, DataError
from hmsa.datasets.layouts.class_list import load_class_list
from hmsa.datasets.reading.decoding import open_label
from hmsa.datasets.spec import Color, DatasetSpec, color_number, spread_color
from hmsa.utils.config.lookup import find_shipped

MOST_LABELS = 4000  # labels that are looked at, evenly spread
MOST_CLASSES = 100  # more values or colours than this are no classes
LEAST_SHARE = 2e-4  # a colour of fewer pixels than this, among many, is a smoothed border
MANY_COLORS = 64
WHITE = 255


@dataclass
class LabelValues:
    """What labels hold: pixels of each value or colour, and the images that show it.

    Attributes:
        form: "grey" and "palette" labels hold ids, "color" labels colours.
        pixels: pixels of each value; colours are numbers as of `color_number`.
        images: images that show it.
        looked_at: how many labels were read.
        palette: colours of palette indices that mean the same in every label.
    """

    form: str
    pixels: Counter[int] = field(default_factory=Counter)
    images: Counter[int] = field(default_factory=Counter)
    looked_at: int = 0
    palette: dict[int, Color] = field(default_factory=dict)


@dataclass(frozen=True)
class FoundClass:
    """A class for the class list: its name, what stands for it, and its share of the pixels."""

    name: str
    color: Color
    id: int | None
    share: float


@dataclass
class FoundClasses:
    """The class list that labels suggest.

    Attributes:
        classes: in the order of their ids.
        ignore: values or colours that are no class.
        by_colors: whether labels are read by their colours.
        ignores_unknown: whether odd colours are left out.
        has_rare: whether a class is in fewer than half of the images.
        notes: what a person should look at.
    """

    classes: list[FoundClass]
    ignore: list[int | list[int]] = field(default_factory=list)
    by_colors: bool = False
    ignores_unknown: bool = False
    has_rare: bool = False
    notes: list[str] = field(default_factory=list)


def look_at_labels(paths: Sequence[Path], *, workers: int) -> LabelValues:
    """Count the values or colours of labels.

    Raises:
        DataError: a label cannot be read, or labels are of several forms.
    """
    chosen = paths[:: max(1, len(paths) // MOST_LABELS)]
    with ThreadPoolExecutor(max_workers=workers) as pool:
        looks = list(pool.map(_look, chosen))

    forms: dict[str, Path] = {}
    for path, (form, _, _) in zip(chosen, looks, strict=True):
        forms.setdefault(form, path)
    # A label of three channels that is grey shows black or white classes, among labels of colours.
    if "color" in forms and "grey in three channels" in forms:
        looks = [(form, _in_three(form, counts), palette) for form, counts, palette in looks]
        del forms["grey in three channels"]
    if "color" in forms and len(forms) > 1:
        other = next(path for form, path in forms.items() if form != "color")
        raise DataError(
            f"{forms['color']}: label of colours, while {other} holds ids; keep labels of one kind "
            "in the folder"
        )

    # Grey and palette labels both hold ids, unless their palettes differ.
    palettes: dict[int, set[int]] = defaultdict(set)
    for _, _, palette in looks:
        for index, color in palette.items():
            palettes[index].add(color)
    shuffled = any(len(colors) > 1 for colors in palettes.values())

    values = LabelValues("color" if "color" in forms else "grey", looked_at=len(chosen))
    for _, counts, palette in looks:
        if shuffled:
            counts = {palette[value]: count for value, count in counts.items()}
        values.pixels.update(counts)
        values.images.update(dict.fromkeys(counts, 1))
    if "palette" in forms:
        colors = {index: next(iter(found)) for index, found in palettes.items()}
        values.palette = {index: _as_color(number) for index, number in colors.items()}
        values.form = "shuffled palette" if shuffled else "palette"
    return values


def _look(path: Path) -> tuple[str, dict[int, int], dict[int, int]]:
    """Form, pixels of each value and colours of the palette indices that one label uses."""
    picture, ids = open_label(path)
    if ids is None:
        rgb = np.asarray(picture.convert("RGB")).astype(np.int32)
        codes = rgb[..., 0] << 16 | rgb[..., 1] << 8 | rgb[..., 2]
        return "color", _counted(codes), {}
    counts = _counted(ids)
    if picture.mode in ("RGB", "RGBA"):
        return "grey in three channels", counts, {}
    if picture.mode != "P":
        return "grey", counts, {}
    return "palette", counts, _palette_of(picture, counts)


def _in_three(form: str, counts: dict[int, int]) -> dict[int, int]:
    """Grey values as numbers of colours; colours stay as they are."""
    if form == "color":
        return counts
    return {0x010101 * value: count for value, count in counts.items()}


def _counted(values: np.ndarray) -> dict[int, int]:
    found, counts = np.unique(values, return_counts=True)
    return dict(zip(found.tolist(), counts.tolist(), strict=True))


def _palette_of(picture: Image.Image, used: dict[int, int]) -> dict[int, int]:
    table = np.zeros((256, 3), dtype=np.uint8)
    palette = np.array(picture.getpalette("RGB"), dtype=np.uint8).reshape(-1, 3)[:256]
    table[: len(palette)] = palette
    return {index: color_number(table[index].tolist()) for index in used}


def _as_color(number: int) -> Color:
    return number >> 16, number >> 8 & 255, number & 255


# --- from values to classes ---


def classes_from(
    values: LabelValues, *, names: Sequence[str], ignore: Sequence[int | Color]
) -> FoundClasses:
    """The class list for what labels hold.

    Args:
        values: what they hold.
        names: names of the classes in the order of their ids, or for colours in the order that
            this function lists without names; may be empty.
        ignore: ids and colours that are no class.

    Raises:
        DataError: the values cannot be classes, or `names` are of another number.
    """
    if values.form in ("grey", "palette"):
        found = _of_ids(values, ignore)
    else:
        found = _of_colors(values, ignore)
    if not found.classes:
        raise DataError("the labels hold no class beside what is ignored; name fewer with --ignore")

    _name(found, names)
    shown = [values.images[_number(values, item)] for item in found.classes if item.share > 0]
    found.has_rare = len(shown) > 1 and min(shown) < 0.5 * values.looked_at
    return found


def _number(values: LabelValues, item: FoundClass) -> int:
    if values.form in ("grey", "palette"):
        assert item.id is not None
        return item.id
    return color_number(item.color)


def _of_ids(values: LabelValues, ignore: Sequence[int | Color]) -> FoundClasses:
    present = sorted(values.pixels)
    if len(present) > MOST_CLASSES:
        raise DataError(
            f"the labels hold {len(present)} different values, too many for classes: photographs, "
            "or labels that were resized with interpolation?"
        )

    # 255 beside 0 alone is the class of a binary mask; beside others it is the usual ignore.
    notes, ignored = [], {value for value in ignore if isinstance(value, int)}
    is_binary = set(present) == {0, WHITE} and WHITE not in ignored
    if is_binary:
        notes.append("the labels hold 0 and 255 alone: binary masks, whose 255 is the class")
    elif WHITE in present:
        ignored.add(WHITE)
    total = sum(count for value, count in values.pixels.items() if value not in ignored)

    classes = [
        FoundClass(
            "",
            values.palette.get(value, _usual_color(position, value, is_binary)),
            value,
            values.pixels[value] / max(1, total),
        )
        for position, value in enumerate(value for value in present if value not in ignored)
    ]
    return FoundClasses(classes, ignore=sorted(ignored), notes=notes)


def _usual_color(position: int, value: int, is_binary: bool) -> Color:
    if is_binary:
        return (0, 0, 0) if value == 0 else (255, 255, 255)
    return spread_color(position)


def _of_colors(values: LabelValues, ignore: Sequence[int | Color]) -> FoundClasses:
    total = max(1, sum(values.pixels.values()))
    ignored = {color_number(color) for color in ignore if not isinstance(color, int)}
    kept = [number for number, _ in values.pixels.most_common() if number not in ignored]

    # Among very many colours the rare ones are mixtures at borders that were drawn smoothly.
    notes, odd = [], 0
    if len(kept) > MANY_COLORS:
        real = [number for number in kept if values.pixels[number] >= LEAST_SHARE * total]
        odd = sum(values.pixels[number] for number in kept) - sum(
            values.pixels[number] for number in real
        )
        if len(real) > MOST_CLASSES or odd > 0.2 * total:
            raise DataError(
                f"the labels hold {len(kept)} different colours, too many for classes: "
                "photographs, or labels that were saved as JPEG?"
            )
        notes.append(
            f"{100 * odd / total:.2g} % of the label pixels have odd colours, as smoothed borders "
            "do: they are ignored"
        )
        kept = real
    known = _known_names([_as_color(number) for number in kept])
    if 0 in kept and known and _as_color(0) not in known:
        ignored.add(0)
        kept.remove(0)
        notes.append("black is ignored, since it is no class of the data set with these colours")
    elif 0 in kept:
        notes.append(
            "black is taken for a class; where it means 'not labelled', run again with "
            "--ignore 0,0,0 --force"
        )

    labelled = max(1, sum(values.pixels[number] for number in kept))
    classes = [
        FoundClass("", _as_color(number), position, values.pixels[number] / labelled)
        for position, number in enumerate(kept)
    ]
    return FoundClasses(
        classes,
        ignore=[list(_as_color(number)) for number in sorted(ignored)],
        by_colors=True,
        ignores_unknown=odd > 0,
        notes=notes,
    )


def _name(found: FoundClasses, names: Sequence[str]) -> None:
    """Give the classes the names of the user, of a published data set of these colours, or numbers.

    Raises:
        DataError: the user gave another number of names.
    """
    count = len(found.classes)
    if names and len(names) != count:
        listed = ", ".join(
            str(list(item.color)) if item.id is None else f"{item.id}" for item in found.classes
        )
        raise DataError(
            f"--classes names {len(names)} classes and the labels hold {count} ({listed}); give a "
            "name for each"
        )

    known = {} if names else _known_names([item.color for item in found.classes])
    if known:
        found.notes.append("names are those of a published data set with these colours")
    binary = [item.id for item in found.classes] == [0, WHITE]
    for position, item in enumerate(found.classes):
        if names:
            name = names[position]
        elif item.color in known:
            name = known[item.color]
        elif binary:
            name = ("background", "foreground")[position]
        else:
            name = f"class_{position if item.id is None else item.id}"
        found.classes[position] = FoundClass(name, item.color, item.id, item.share)


def _known_names(colors: Sequence[Color]) -> dict[Color, str]:
    """Names by colour of a published data set that has most of these colours; empty without one."""
    camvid = find_shipped(Path("camvid/classes.yaml"))
    published: list[DatasetSpec] = [CITYSCAPES, MAPILLARY]
    if camvid is not None:
        published.append(load_class_list(camvid)[0])

    best: dict[Color, str] = {}
    for spec in published:
        by_color = {item.color: item.name for item in spec.classes}
        found = {color: by_color[color] for color in colors if color in by_color}
        if len(found) > len(best):
            best = found
    return best if len(best) >= max(3, 0.6 * len(colors)) else {}
