"""Look at every file of a configuration's splits before a training does.

    python scripts/check_dataset.py configs/camvid/deeplabv3plus_r18_hierarchical.yaml data.root=/path/to/camvid [--sample 200] [--output DIR]

Prints counts, sizes, pixels and images per class, absent classes and, one sentence for each kind, every fault: unreadable or mismatched files, values
outside the classes, images that two splits share. Draws the class table as a bar chart and prints a configuration that suits the data. Exit status
2 where there is a fault.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import yaml
from PIL import Image, ImageDraw

from hmsa.datasets import (
    DataError,
    Files,
    Verification,
    build_files,
    find_duplicates,
    suggest_data,
    verify_files,
)
from hmsa.engine.command_line import parse_with_overrides, run_door
from hmsa.utils.config import Config, ConfigError, load_config

LEAST_SHARE = 1e-6  # left end of the chart's logarithmic axis
SHOWN_SIZES = 5


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", help="YAML configuration whose data section is checked")
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="section.key=value",
        help="change the configuration, e.g. data.root=/data/cityscapes",
    )
    parser.add_argument(
        "--sample",
        type=_at_least_one,
        metavar="N",
        help="look at N files of each split (default: all; small splits always whole)",
    )
    parser.add_argument(
        "--workers",
        type=_at_least_one,
        default=4,
        metavar="N",
        help="threads that decode (default 4)",
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("runs/check_dataset"),
        metavar="DIR",
        help="where classes.png goes (default %(default)s)",
    )
    return parse_with_overrides(parser, argv)


def _at_least_one(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is no number from 1 on")
    return int(text)


def splits_of(config: Config) -> dict[str, str]:
    """What is to be checked: role -> name of its split."""
    data = config.data
    return {
        "training": data.train_split,
        "validation": data.val_split,
        **({} if data.extra is None else {"extra": data.extra.split}),
    }


def list_split(config: Config, role: str) -> Files:
    """The files of a role, as a training would list them."""
    data, extra = config.data, config.data.extra
    if role != "extra" or extra is None:
        return build_files(
            dataset=data.dataset,
            root=data.root,
            split=splits_of(config)[role],
            classes=data.classes,
            cv=data.cv,
            max_pixels=data.max_pixels,
        )
    return build_files(
        dataset=data.dataset,
        root=data.root,
        split=extra.split,
        classes=data.classes,
        labels=extra.labels,
        label_root=extra.root,
        policy=extra.policy,
        confidence_threshold=extra.confidence_threshold,
        mask_border=extra.mask_border,
        max_pixels=data.max_pixels,
    )


def describe(verification: Verification) -> str:
    """Counts and sizes of a split in words."""
    sizes = sorted(verification.sizes.items(), key=lambda item: -item[1])
    named = ", ".join(
        f"{height} x {width} ({count})" for (height, width), count in sizes[:SHOWN_SIZES]
    )
    rest = f" and {len(sizes) - SHOWN_SIZES} more sizes" if len(sizes) > SHOWN_SIZES else ""
    looked = (
        ""
        if verification.checked == verification.total
        else f", {verification.checked} of them looked at"
    )
    return f"{verification.split}: {verification.total} images{looked}; height x width: {named or 'none readable'}{rest}"


def class_table(found: Sequence[Verification]) -> str:
    """Share of the labelled pixels and number of images of each class, by split."""
    spec = found[0].spec
    width = max(len(name) for name in (*spec.names, "(ignored)"))
    header = f"{'id':>3}  {'class':<{width}}" + "".join(
        f"  {item.split[-16:]:>16} {'images':>8}" for item in found
    )
    lines = [header]
    for index, name in enumerate(spec.names):
        cells = "".join(
            f"  {_percent(item.counts[index], item.counts.sum()):>16} {item.images_with[index]:>8}"
            for item in found
        )
        lines.append(f"{index:>3}  {name:<{width}}{cells}")
    cells = "".join(
        f"  {_percent(item.ignored, item.ignored + item.counts.sum()):>16} {'':>8}"
        for item in found
    )
    return "\n".join([*lines, f"{'':>3}  {'(ignored)':<{width}}{cells}".rstrip()])


def _percent(part: int | np.integer, whole: int | np.integer) -> str:
    return f"{100 * part / whole:.4f} %" if whole else "-"


def draw_chart(found: Sequence[Verification]) -> Image.Image:
    """Bar chart of the classes' shares of the pixels on a logarithmic axis, one bar for each split in the class's colour."""
    spec = found[0].spec
    bar, gap, top, left, right = 11, 6, 58, 200, 760
    row = bar * len(found) + gap
    picture = Image.new("RGB", (right + 90, top + row * spec.num_classes + 16), "white")
    draw = ImageDraw.Draw(picture)
    draw.text((12, 10), f"{spec.name}: share of the labelled pixels, logarithmic", fill="black")
    draw.text(
        (12, 26),
        "bars from top to bottom: "
        + ", ".join(f"{item.split} ({item.checked} images)" for item in found),
        fill="black",
    )
    decades = round(-np.log10(LEAST_SHARE))
    for decade in range(decades + 1):
        x = left + (right - left) * decade / decades
        draw.line([(x, top - 2), (x, picture.height - 12)], fill=(215, 215, 215))
        draw.text((x - 14, top - 16), f"{100 * LEAST_SHARE * 10**decade:g} %", fill=(110, 110, 110))
    for index, item in enumerate(spec.classes):
        y = top + index * row
        draw.text((12, y + (row - gap) // 2 - 6), f"{index:>3} {item.name[:28]}", fill="black")
        for number, verification in enumerate(found):
            _draw_bar(draw, verification, index, (left, right), y + number * bar, bar)
    return picture


def _draw_bar(
    draw: ImageDraw.ImageDraw,
    verification: Verification,
    index: int,
    ends: tuple[int, int],
    y: int,
    height: int,
) -> None:
    share = verification.counts[index] / max(1, verification.counts.sum())
    left, right = ends
    if not share:
        draw.text((left + 4, y - 1), "absent", fill=(200, 0, 0))
        return
    length = (right - left) * max(0.0, 1 - np.log10(share) / np.log10(LEAST_SHARE))
    draw.rectangle(
        [left, y, left + max(1, length), y + height - 2],
        fill=verification.spec.classes[index].color,
        outline=(90, 90, 90),
    )
    draw.text((left + length + 5, y - 1), f"{100 * share:.3g} %", fill=(70, 70, 70))


def check(arguments: argparse.Namespace) -> int:
    """Check every split of the configuration; 2 where there is a fault."""
    config = load_config(arguments.config, arguments.overrides)
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
        print(describe(verification))
        print("".join(f"  note: {note}\n" for note in verification.notes), end="")
    problems += _shared(listed, arguments.workers)
    labelled = [item for item in found if item.counts.sum()]
    if labelled:
        print(f"\n{class_table(labelled)}\n")
        _save(draw_chart(labelled), arguments.output)
    if found and found[0].sizes:
        print(
            "a configuration to start from:\n"
            + yaml.safe_dump(
                {"data": suggest_data(found[0])}, sort_keys=False, default_flow_style=None
            ),
            end="",
        )
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    print(f"{len(problems)} kinds of faults" if problems else "no faults", flush=True)
    return 2 if problems else 0


def _shared(listed: dict[str, Files], workers: int) -> list[str]:
    """Sentence on images that training, in either role, shares with validation."""
    sentences = []
    for role in ("training", "extra"):
        if (
            role in listed
            and "validation" in listed
            and listed[role].split != listed["validation"].split
        ):
            pairs = find_duplicates(listed[role], listed["validation"], workers=workers)
            if pairs:
                first, second = pairs[0]
                splits = f"'{listed[role].split}' and '{listed['validation'].split}'"
                sentences.append(
                    f"{len(pairs)} images are in both {splits}, the first: {first} and {second}; remove them from one"
                )
    return sentences


def _save(picture: Image.Image, folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        picture.save(folder / "classes.png")
    except OSError as error:
        raise DataError(
            f"{folder}: the chart cannot be written there ({error.strerror or error}); set --output DIR"
        ) from error
    print(f"bar chart: {folder / 'classes.png'}\n")


if __name__ == "__main__":
    ARGUMENTS = parse_arguments()
    sys.exit(run_door(lambda: check(ARGUMENTS), user_errors=lambda: (ConfigError, DataError)))
