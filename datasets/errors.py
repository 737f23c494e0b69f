"""The one error of this room that a user can mend."""

from __future__ import annotations


class DataError(ValueError):
    """A fault in the data or in what was asked of it: one sentence that names the file or key, the value and what to do.

    `kind` groups faults of many files ("size", "values", "truncated", ...) so that a report can say one sentence for each kind.
    """

    def __init__(self, message: str, *, kind: str = "data") -> None:
        super().__init__(message)
        self.kind = kind

    def __reduce__(self) -> tuple[object, ...]:
        # Loader and verification workers send these to the main process; the default would lose `kind`.
        return (_rebuild, (type(self), str(self), self.kind))


def _rebuild(cls: type[DataError], message: str, kind: str) -> DataError:
    return cls(message, kind=kind)
