"""`hmsa init`: look at a folder, write a class list and a configuration, say what was found."""

from __future__ import annotations

import argparse
import os
import re
from dataclasses import dataclass
from pathlib import Path

from hmsa.datasets import DataError, DatasetSpec, image_size
from hmsa.datasets.layouts.class_list import load_class_list
from hmsa.utils.config import load_config
from hmsa.utils.files.writing import write_file

from ..recipe import LOOKED_AT, DataFacts, Recipe, recipe_for, this_machine
from .classes import FoundClasses, LabelValues, classes_from, look_at_labels
from .pairing import LABEL_WORDS, FoundImages, LabelledImage, find_pairs
from .polygons import FOLDER as POLYGON_FOLDER
from .polygons import class_names, draw_labels, find_drawn
from .splitting import split_off
from .writing import class_list_text, configuration_text, list_text

CLASS_LIST = "classes.yaml"
LISTS = ("split_train.txt", "split_val.txt")
SHOWN_CLASSES = 8


@dataclass(frozen=True)
class Splits:
    """What is trained on and what is validated on, and a phrase that says how they were chosen."""

    train: list[LabelledImage]
    val: list[LabelledImage]
    how: str


def main(arguments: argparse.Namespace) -> int:
    """Write what suits the folder; returns the exit status."""
    folder = Path(arguments.folder).expanduser()
    if not folder.is_dir():
        raise DataError(f"{arguments.folder}: no such folder; name one with images and labels")
    root = folder.resolve()
    name = re.sub(r"\W+", "_", root.name).strip("_") or "data"
    output = arguments.output or Path(f"{name}.yaml")
    _require_free(output, arguments.force)
    place = root if os.access(root, os.W_OK) else output.resolve().parent

    # What is there: images, labels and their classes.
    found = find_pairs(root)
    drawn_names: list[str] = []
    if not found.pairs:
        drawn_names = _draw_polygons(root, place, found)
    if not found.pairs:
        raise _no_labels(arguments.folder, found)
    machine = this_machine()
    paths = [root / pair.label for pair in found.pairs]
    values = look_at_labels(paths, workers=machine.cores)
    class_file = place / CLASS_LIST
    own_list = class_file.exists() and not arguments.force
    classes = _classes(arguments, values, drawn_names, own=class_file if own_list else None)

    # What becomes of it.
    splits = _splits(found, arguments.val)
    train, val = "train", "val"
    texts: dict[Path, str] = {}
    command = f"hmsa init {arguments.folder}"
    if not (found.is_standard and {"train", "val"} <= found.splits.keys()):
        train, val = _lists(splits, root, place, command, texts)
    facts = DataFacts(len(splits.train), _sizes(root, splits.train), _has_rare(classes))
    recipe = recipe_for(facts, machine, epochs=arguments.epochs)
    if isinstance(classes, FoundClasses):
        texts[class_file] = class_list_text(classes, name=name, command=command)
    texts[output] = configuration_text(
        recipe,
        name=name,
        root=root,
        classes=class_file,
        splits=(train, val),
        machine=machine.words,
        command=command,
    )

    # All of it or nothing: what is in the way is said before the first file is written.
    for path in texts:
        _require_free(path, arguments.force)
    for path, text in texts.items():
        write_file(path, text.encode())
    load_config(output)

    _tell(arguments.folder, found, facts, values, classes, splits)
    _tell_next(list(texts), output, recipe, machine.words)
    return 0


def _require_free(path: Path, force: bool) -> None:
    if path.exists() and not force:
        raise DataError(
            f"{path}: is there already and stays as it is; use --force to write it anew, or "
            "--output FILE.yaml for another place"
        )


def _draw_polygons(root: Path, place: Path, found: FoundImages) -> list[str]:
    """Make labels of polygons, where there are some; returns the names of their classes."""
    drawn, how = find_drawn(root)
    if not drawn:
        return []
    names = class_names(drawn)
    labels = draw_labels(drawn, names, place)
    found.how = f"{how}, drawn into {place / POLYGON_FOLDER}"
    found.pairs = [
        LabelledImage(item.image, os.path.relpath(place / label, root))
        for item, label in zip(drawn, labels, strict=True)
    ]
    labelled = {pair.image for pair in found.pairs}
    found.unlabelled = [path for path in found.unlabelled if path not in labelled]
    return names


def _no_labels(folder: str, found: FoundImages) -> DataError:
    jpegs = [
        path
        for path in found.unlabelled
        if path.lower().endswith((".jpg", ".jpeg"))
        and any(part.lower() in LABEL_WORDS for part in path.split("/")[:-1])
    ]
    if jpegs:
        return DataError(
            f"{folder}: labels such as {jpegs[0]} are JPEG, whose compression changes ids and "
            "colours; export them as PNG from where they were drawn"
        )
    return DataError(
        f"{folder}: {len(found.unlabelled)} images and no labels; labels are PNG pictures in "
        "labels/ beside images/, called NAME_mask.png beside NAME.jpg, or polygons of labelme or "
        "CVAT"
    )


def _classes(
    arguments: argparse.Namespace, values: LabelValues, drawn_names: list[str], *, own: Path | None
) -> FoundClasses | DatasetSpec:
    """The classes: those of the user's own list, or what the labels show."""
    if own is not None:
        if arguments.classes or arguments.ignore:
            raise DataError(
                f"{own}: is there already, so that --classes and --ignore have no effect; change "
                "it, or use --force to write it anew"
            )
        return load_class_list(own)[0]

    names = list(arguments.classes or ())
    if drawn_names and not names:
        names = [drawn_names[value] for value in sorted(values.pixels)]
    return classes_from(values, names=names, ignore=arguments.ignore or ())


def _has_rare(classes: FoundClasses | DatasetSpec) -> bool | None:
    return classes.has_rare if isinstance(classes, FoundClasses) else None


def _splits(found: FoundImages, share: float) -> Splits:
    """Training and validation images; where no split is for validation, a share of the others."""
    named = {split: [p for p in found.pairs if p.split == split] for split in found.splits}
    val = named.get("val") or []
    train = named.get("train") or [
        pair for pair in found.pairs if pair.split not in ("val", "test")
    ]
    if val and train:
        return Splits(train, val, "as their folders or lists say")

    pool = train or found.pairs
    if len(pool) < 2:
        raise DataError("one image with a label is too few: one is needed to train, one to score")
    chosen, by_recording = split_off([pair.image for pair in pool], share)
    how = f"a share of {share:g} of the images"
    if by_recording:
        how += ", whole recordings as names tell"
    inside = set(chosen)
    return Splits(
        [pair for index, pair in enumerate(pool) if index not in inside],
        [pool[index] for index in chosen],
        how,
    )


def _lists(
    splits: Splits, root: Path, place: Path, command: str, texts: dict[Path, str]
) -> tuple[str, str]:
    """Add a list file for each split to `texts`; returns what the configuration calls them."""
    names = []
    for file, pairs in zip(LISTS, (splits.train, splits.val), strict=True):
        rows = [(pair.image, pair.label) for pair in pairs]
        texts[place / file] = list_text(rows, command=command)
        names.append(file if place == root else str(place / file))
    return names[0], names[1]


def _sizes(root: Path, pairs: list[LabelledImage]) -> list[tuple[int, int]]:
    step = max(1, len(pairs) // LOOKED_AT)
    return [image_size(root / pair.image) for pair in pairs[::step]]


# --- what is said ---


def _tell(
    folder: str,
    found: FoundImages,
    facts: DataFacts,
    values: LabelValues,
    classes: FoundClasses | DatasetSpec,
    splits: Splits,
) -> None:
    heights, widths = zip(*facts.sizes, strict=True)
    sizes = f"{min(heights)} x {min(widths)}"
    if len(set(facts.sizes)) > 1:
        sizes += f" to {max(heights)} x {max(widths)}"
    without = f", {len(found.unlabelled)} without" if found.unlabelled else ""
    print(f"{folder}: {len(found.pairs)} images with labels{without}; height x width {sizes}")
    print(f"labels: {found.how}")

    if isinstance(classes, DatasetSpec):
        print(f"classes: the {classes.num_classes} of the {CLASS_LIST} that is there")
    else:
        shown = [f"{c.name} {100 * c.share:.2g} %" for c in classes.classes[:SHOWN_CLASSES]]
        more = len(classes.classes) - SHOWN_CLASSES
        if more > 0:
            shown.append(f"and {more} more")
        what = "colours" if classes.by_colors else "ids"
        print(f"classes: {len(classes.classes)}, by {what}: {', '.join(shown)}")
        for note in classes.notes:
            print(f"  note: {note}")
    print(f"training on {len(splits.train)}, validation on {len(splits.val)}: {splits.how}")


def _tell_next(written: list[Path], output: Path, recipe: Recipe, machine: str) -> None:
    print(f"wrote {', '.join(_from_here(path) for path in written)}")
    print(f"a training takes about {recipe.duration} on {machine}; start it with:")
    print(f"  hmsa train {output}")


def _from_here(path: Path) -> str:
    """A path as it is shortest from the working folder."""
    absolute, here = path.absolute(), Path.cwd()
    if absolute.is_relative_to(here):
        return str(absolute.relative_to(here))
    return str(path)
