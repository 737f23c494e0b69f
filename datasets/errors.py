"""The one error of this package that a user can mend, and those that it is made from."""

from __future__ import annotations

import re

from hmsa.utils.words import UserError

# What reading a JSON file of another form than expected may raise.
UNEXPECTED_FORM = (
    OSError,
    ValueError,
    KeyError,
    TypeError,
    IndexError,
    AttributeError,
    RecursionError,
)
_CONTROL = re.compile(r"[\x00-\x1f\x7f\x85\u2028\u2029]")


class DataError(UserError, ValueError):
    """A fault in the data, or in what was asked of it.

    The message is one sentence that names the file or key, the value, and what to do. `kind` groups
    the faults of many files ("size", "values", "truncated", ...), so that a report can say one
    sentence for each kind.
    """

    def __init__(self, message: str, *, kind: str = "data") -> None:
        # Names from outside may hold bytes that no terminal shows, or control it.
        printable = _CONTROL.sub("?", message).encode("utf-8", "backslashreplace").decode()
        super().__init__(printable)
        self.kind = kind

    def __reduce__(self) -> tuple[object, ...]:
        # Loader and verification workers send these errors to the main process by pickle, whose
        # default for exceptions would lose `kind`.
        return (_rebuild, (type(self), str(self), self.kind))


def _rebuild(cls: type[DataError], message: str, kind: str) -> DataError:
    return cls(message, kind=kind)
