"""Options that several commands have, and how their words are read."""

from __future__ import annotations

import argparse
import math
from typing import Any

from hmsa.utils.words import words_of_list

from ..command_line import CommandParser, at_least

SAVES = (
    *("labels", "colour", "overlay", "video"),
    *("attention", "confidence", "probabilities", "scales"),
)
SAVED_BY_DEFAULT = ("labels", "colour", "overlay")
COMBINE = ("average", "max")
OVER = ("logits", "probabilities")
LARGEST_SCALE = 16.0


def new_parser(command: str, description: str, program: str | None) -> argparse.ArgumentParser:
    """The parser of a command; `program` is shown in its usage instead of `hmsa COMMAND`."""
    return CommandParser(
        prog=program or f"hmsa {command}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def add_scales(parser: argparse.ArgumentParser, *, default: str) -> None:
    """Add --scales; `default` is what its help says they are when it is left out."""
    parser.add_argument(
        "--scales",
        nargs="+",
        action=ScalesAction,
        metavar="S",
        help=f"scales of inference (default: {default})",
    )


def add_scales_and_flip(parser: argparse.ArgumentParser, *, section: str) -> None:
    """Add --scales, --flip and --refine, whose defaults `section` of the configuration gives."""
    add_scales(parser, default=f"{section}.scales")
    parser.add_argument(
        "--flip",
        action=argparse.BooleanOptionalAction,
        default=None,
        help=f"average with the mirrored image (default: {section}.flip)",
    )
    parser.add_argument(
        "--refine",
        type=read_refine,
        metavar="SHARE",
        help="compute scales above 1 only on this share of each image, 0 to 1, where the attention "
        f"leaves most to them; auto: as much as it asks for (default: {section}.refine)",
    )


def add_processes(parser: argparse.ArgumentParser) -> None:
    """Add --processes."""
    parser.add_argument(
        "--processes",
        type=at_least(1),
        default=1,
        metavar="N",
        help="run as N processes of this machine, one for each GPU (torchrun, too, starts it)",
    )


def add_overrides(parser: argparse.ArgumentParser, *, example: str) -> None:
    """Add the words section.key=value at the end of a command line."""
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="section.key=value",
        help=f"change the configuration, e.g. {example}",
    )


def read_scale(text: str) -> float:
    """An argparse type: a scale of inference, above 0 and at most 16 as in a configuration."""
    try:
        scale = float(text)
    except ValueError:
        scale = math.nan

    # Not a number is neither above 0 nor at most 16.
    if not 0 < scale <= LARGEST_SCALE:
        raise argparse.ArgumentTypeError(
            f"'{text}' is not a scale; give numbers above 0 and up to {LARGEST_SCALE:g}, "
            "e.g. 0.5 1 2"
        )
    return scale


def read_scales(text: str) -> tuple[float, ...]:
    """A list of scales: 0.5,1,2 or [0.5,1,2] or, in quotes, 0.5 1 2.

    Raises:
        ArgumentTypeError: a word of it is not a scale, or there is none.
    """
    scales = tuple(read_scale(word) for word in words_of_list(text))
    if not scales:
        raise argparse.ArgumentTypeError(f"'{text}' names no scale; write e.g. 0.5,1,2")
    return scales


class ScalesAction(argparse.Action):
    """Takes the words of an option with `nargs="+"` together as one list of scales."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        try:
            scales = list(read_scales(" ".join(values)))
        except argparse.ArgumentTypeError as error:
            raise argparse.ArgumentError(self, str(error)) from error
        setattr(namespace, self.dest, scales)


def read_refine(text: str) -> float | str:
    """An argparse type: a share of the image from 0 to 1, or auto."""
    if text == "auto":
        return text
    try:
        share = float(text)
    except ValueError:
        share = math.nan

    if not 0 <= share <= 1:
        raise argparse.ArgumentTypeError(
            f"'{text}' is no share of the image; give a number from 0 to 1, e.g. 0.3, or auto"
        )
    return share
