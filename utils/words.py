"""Sentences for users: the base of every error that they can mend, and the nearest word."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path

_LAUNCHERS = ("train.py", "eval.py", "autolabel.py")


class UserError(Exception):
    """A mistake that a user can mend.

    The message is one clear sentence that names the file, key or value and says what to do. Every
    command prints it without a traceback and ends with status 2.
    """

    silent = False  # True where another process prints the sentence


def nearest(word: str, choices: Iterable[str]) -> str | None:
    """The choice most like `word`, whatever the case; None when none is near."""
    lowered = {choice.lower(): choice for choice in choices}
    found = get_close_matches(word.lower(), list(lowered), n=1, cutoff=0.6)
    return lowered[found[0]] if found else None


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """`" (did you mean 'x'?)"` for the nearest choice, or nothing."""
    found = nearest(word, choices)
    return f" (did you mean '{found}'?)" if found is not None else ""


def shortened(text: str, longest: int = 80) -> str:
    """`text` as a sentence repeats it: cut where it has more than `longest` characters."""
    if len(text) <= longest:
        return text
    return f"{text[: longest - 3]}..."


def echoed(text: str) -> str:
    """`text` in quotation marks, shortened."""
    return shortened(repr(text))


def reason_of(error: BaseException) -> str:
    """What an exception of another library says, in one line; its class where it says nothing."""
    text = " ".join(str(error).split()) or type(error).__name__
    return shortened(text, 200)


def words_of_list(text: str) -> list[str]:
    """The words of a list as people write it: "0.5 1 2", "0.5,1,2" and "[0.5, 1, 2]" are alike."""
    return text.strip().removeprefix("[").removesuffix("]").replace(",", " ").split()


def duration(seconds: float) -> str:
    """A time in the two largest units that it fills: "35 s", "4 min 10 s", "2 h 5 min"."""
    whole = max(0, round(seconds))
    units = (("d", 86400), ("h", 3600), ("min", 60), ("s", 1))
    for (name, size), (lower_name, lower) in zip(units, units[1:], strict=False):
        if whole < size:
            continue
        # Rounded to the lower unit, which may fill up the larger one.
        whole = round(whole / lower) * lower
        rest = whole % size // lower
        text = f"{whole // size} {name}"
        return f"{text} {rest} {lower_name}" if rest else text
    return f"{whole} s"


def counted(number: int, noun: str) -> str:
    """A number with its noun, in the plural where that is due: "1 step", "2 steps"."""
    if number == 1:
        return f"1 {noun}"
    return f"{number} {noun}s"


def invocation(name: str) -> str:
    """How to start the command `name` of hmsa, in the way in which this program was started."""
    launcher = f"{name}.py"
    if Path(sys.argv[0]).name in _LAUNCHERS and launcher in _LAUNCHERS:
        return f"python {launcher}"
    return f"hmsa {name}"
