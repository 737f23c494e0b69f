"""Sentences for users: the base of every error that they can mend, and the nearest word."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


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
