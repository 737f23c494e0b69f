"""Look at every file of a configuration's splits before a training does: `hmsa check`.

Counts, sizes, pixels and images per class, absent classes, and one sentence for each kind of fault.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import yaml
from PIL import Image, ImageDraw

from hmsa.datasets import (
    DataError,
    Files,
    Verification,
    find_duplicates,
    suggest_data,
    verify_files,
)
from hmsa.utils.config import Config, load_config
from hmsa.utils.files.writing import written_whole

from . import build

LEAST_SHARE = 1e-6  # left end of the chart's logarithmic axis
SHOWN_SIZES = 5

# The chart, in pixels: height of a bar, space between classes, and where the bars begin and end.
BAR, GAP = 11, 6
TOP, LEFT, RIGHT = 58, 200, 760


def splits_of(config: Config) -> dict[str, str]:
    """What is to be checked: role -> name of its split."""
    splits = {"training": config.data.train_split, "validation": config.data.val_split}
    if config.data.extra is not None:
        splits["extra"] = config.data.extra.split or "images of the automatic labels"
    return splits


def list_split(config: Config, role: str) -> Files:
    """The files of a role, as a training would list them."""
    extra = None
    if role == "extra":
        extra = build.extra_files(config)
    if extra is not None:
        return extra
    return build.split_files(config, splits_of(config)[role])


def describe_dataset(verification: Verification) -> str:
    """Counts and sizes of a split in words."""
    text = f"{verification.split}: {verification.total} images"
    if verification.checked != verification.total:
        text += f", {verification.checked} of them looked at"

    sizes = sorted(verification.sizes.items(), key=lambda item: -item[1])
    named = [f"{height} x {width} ({count})" for (height, width), count in sizes[:SHOWN_SIZES]]
    text += f"; height x width: {', '.join(named) or 'none readable'}"
    if len(sizes) > SHOWN_SIZES:
        text += f" and {len(sizes) - SHOWN_SIZES} more sizes"
    return text


def class_table(found: Sequence[Verification]) -> str:
    """Share of the labelled pixels and number of images of each class, by split."""
    spec = found[0].spec
    width = max(len(name) for name in (*spec.names, "(ignored)"))
    header = f"{'id':>3}  {'class':<{width}}"
    for item in found:
        header += f"  {item.split[-16:]:>16} {'images':>8}"

    lines = [header]
    for index, name in enumerate(spec.names):
        line = f"{index:>3}  {name:<{width}}"
        for item in found:
            share = _percent(item.counts[index], item.counts.sum())
            line += f"  {share:>16} {item.images_with[index]:>8}"
        lines.append(line)

    # Ignored pixels are a share of all, those of the classes of the labelled ones.
    last = f"{'':>3}  {'(ignored)':<{width}}"
    for item in found:
        last += f"  {_percent(item.ignored, item.ignored + item.counts.sum()):>16} {'':>8}"
    return "\n".join([*lines, last.rstrip()])


def _percent(part: int | np.integer, whole: int | np.integer) -> str:
    if not whole:
        return "-"
    return f"{100 * part / whole:.4f} %"


def draw_chart(found: Sequence[Verification]) -> Image.Image:
    """Bar chart of the classes' shares of the pixels on a logarithmic axis.

    There is one bar for each split, in the class's colour.
    """
    spec = found[0].spec
    row = BAR * len(found) + GAP
    picture = Image.new("RGB", (RIGHT + 90, TOP + row * spec.num_classes + 16), "white")
    draw = ImageDraw.Draw(picture)
    draw.text((12, 10), f"{spec.name}: share of the labelled pixels, logarithmic", fill="black")
    splits = ", ".join(f"{item.split} ({item.checked} images)" for item in found)
    draw.text((12, 26), f"bars from top to bottom: {splits}", fill="black")

    # A line for each power of ten.
    decades = round(-np.log10(LEAST_SHARE))
    for decade in range(decades + 1):
        x = LEFT + (RIGHT - LEFT) * decade / decades
        draw.line([(x, TOP - 2), (x, picture.height - 12)], fill=(215, 215, 215))
        draw.text((x - 14, TOP - 16), f"{100 * LEAST_SHARE * 10**decade:g} %", fill=(110, 110, 110))

    for index, item in enumerate(spec.classes):
        y = TOP + index * row
        draw.text((12, y + (row - GAP) // 2 - 6), f"{index:>3} {item.name[:28]}", fill="black")
        for number, verification in enumerate(found):
            _draw_bar(draw, verification, index, y + number * BAR)
    return picture


def _draw_bar(draw: ImageDraw.ImageDraw, verification: Verification, index: int, top: int) -> None:
    """The bar of class `index` in one split."""
    share = verification.counts[index] / max(1, verification.counts.sum())
    if not share:
        draw.text((LEFT + 4, top - 1), "absent", fill=(200, 0, 0))
        return

    length = (RIGHT - LEFT) * max(0.0, 1 - np.log10(share) / np.log10(LEAST_SHARE))
    draw.rectangle(
        [LEFT, top, LEFT + max(1, length), top + BAR - 2],
        fill=verification.spec.classes[index].color,
        outline=(90, 90, 90),
    )
    draw.text((LEFT + length + 5, top - 1), f"{100 * share:.3g} %", fill=(70, 70, 70))


def main(arguments: argparse.Namespace) -> int:
    """Check every split of the configuration; status 2 where there is a fault."""
    config = load_config(arguments.config, arguments.overrides)

    # A split that cannot even be listed is one more fault; the others are checked all the same.
    listed: dict[str, Files] = {}
    problems: list[str] = []
    found: list[Verification] = []
    for role in splits_of(config):
        try:
            listed[role] = list_split(config, role)
        except DataError as error:
            problems.append(str(error))
            continue
        verification = verify_files(
            listed[role],
            sample=arguments.sample,
            workers=arguments.workers,
            progress=sys.stderr.isatty(),
        )
        found.append(verification)
        problems += verification.problems
        if role == "training" and listed[role].labels is None:
            problems.append(
                f"split '{listed[role].split}' is to be trained on and has no labels; list files "
                "hold 'image label' lines"
            )
        print(describe_dataset(verification))
        for note in verification.notes:
            print(f"  note: {note}")
    problems += _shared_images(listed, arguments.workers)

    labelled = [item for item in found if item.counts.sum()]
    if labelled:
        print(f"\n{class_table(labelled)}\n")
        _save(draw_chart(labelled), arguments.output)
    problems = list(dict.fromkeys(problems))
    names_crop = "crop" in config.data.model_fields_set
    if found and found[0].sizes and not problems and not names_crop:
        values = {"data": suggest_data(found[0])}
        print("a configuration to start from:")
        print(yaml.safe_dump(values, sort_keys=False, default_flow_style=None), end="")

    # A class list that cannot be read is the fault of every split; it is said once.
    problems = list(dict.fromkeys(problems))
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    if problems:
        kinds = "kinds of faults" if len(problems) > 1 else "kind of fault"
        print(f"{len(problems)} {kinds}", flush=True)
        return 2
    print("no faults", flush=True)
    return 0


def _shared_images(listed: dict[str, Files], workers: int) -> list[str]:
    """Sentence on images that training, in either role, shares with validation."""
    sentences: list[str] = []
    validation = listed.get("validation")
    for role in ("training", "extra"):
        files = listed.get(role)
        if validation is None or files is None or files.split == validation.split:
            continue
        pairs = find_duplicates(files, validation, workers=workers)
        if pairs:
            first, second = pairs[0]
            sentences.append(
                f"{len(pairs)} images are in both '{files.split}' and '{validation.split}', the "
                f"first: {first} and {second}; remove them from one"
            )
    return sentences


def _save(picture: Image.Image, folder: Path) -> None:
    path = folder / "classes.png"
    with written_whole(path, advice="set --output DIR") as temporary:
        picture.save(temporary, format="PNG")
    print(f"bar chart: {path}\n")
