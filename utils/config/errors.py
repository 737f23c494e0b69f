"""What is wrong with a configuration: mistakes with their place, and the one error that carries all of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches


@dataclass(frozen=True)
class Mistake:
    """One mistake: what is wrong, the dotted path it concerns ("" for the whole file), and the file and line (1-based) it stands in."""

    message: str
    path: str = ""
    file: str = ""
    line: int | None = None

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.line is not None else self.file
        return ": ".join(part for part in (place, self.path, self.message) if part)


class ConfigError(ValueError):
    """A configuration that cannot be used; `mistakes` holds every mistake, the text has one line for each."""

    def __init__(self, mistakes: Sequence[Mistake]) -> None:
        assert mistakes, "an error without a mistake"
        self.mistakes = tuple(mistakes)
        lines = [str(mistake) for mistake in self.mistakes]
        if len(lines) > 1:
            lines = [f"{len(lines)} mistakes in the configuration", *lines]
        super().__init__("\n  ".join(lines))


def nearest(word: str, choices: Iterable[str]) -> str | None:
    """The choice most like `word`, whatever the case; None when none is near."""
    lowered = {choice.lower(): choice for choice in choices}
    found = get_close_matches(word.lower(), list(lowered), n=1, cutoff=0.6)
    return lowered[found[0]] if found else None


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """ " (did you mean 'x'?)" for the nearest choice, or nothing."""
    found = nearest(word, choices)
    return f" (did you mean '{found}'?)" if found is not None else ""
