"""What a command writes stays inside its output folder and never replaces what it did not make.

How a command uses it:

    require_apart(output, [*inputs_as_given, *files_that_are_read])
    with output_folder(output, command="eval", process=processes.rank) as folder:
        # Before hours of work: no two results in one file, nothing of the user's in their place.
        folder.require_free((f"labels/{name}.png", name) for name in names)
        ...
        folder.write("metrics.json", text)
        with folder.written("maps/a.npy") as temporary:
            fill(temporary)

Every file that is written is noted in a record, `.hmsa-made-COMMAND-PROCESS.jsonl` in the folder: a
line of its name, size, time and hash. A later run of the same command replaces a file only if it is
still the one that was noted. A file that somebody put there, or corrected by hand, is not, and so
the run is refused before it begins.

The line is appended before the file takes its name. Whenever a run is killed, each of its files is
therefore noted or not there; a line about a file that never came does no harm, because it fits no
other file. Noting costs an append and a hash of bytes that are in memory, checking costs a look at
size and time; only files whose time differs, as after copying the folder, are read and hashed.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import stat
import threading
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from ..words import UserError, shortened
from .locking import locked
from .regular import open_regular
from .writing import WriteError, write_file, written_whole

_RECORD = ".hmsa-made-"
_LONGEST_NAME = 255  # bytes, of the usual file systems
_LONGEST_PATH = 4095
_SUPERSEDED_LINES = 1000  # a record with more lines that no longer count is written anew


class OutputError(UserError, ValueError):
    """Something cannot be written where it was asked for; the message says why and what to do."""


def printable(text: str, encoding: str | None = "utf-8") -> str:
    r"""`text` with everything escaped that `encoding` cannot hold: \udce9, \u4e2d.

    Names of files need not be text: Python holds the bytes of such names as lone surrogates, which
    no encoding can write. Nothing that is printed or written may fail because of them.

    Args:
        encoding: of the file or terminal, such as `sys.stdout.encoding`; None stands for ASCII.
    """
    try:
        return text.encode(encoding or "ascii", "backslashreplace").decode(encoding or "ascii")
    except LookupError:  # a name that is no encoding
        return text.encode("ascii", "backslashreplace").decode("ascii")


def inside(folder: Path, name: str) -> Path:
    """The path of the file `name` in `folder`, which is surely inside it.

    Args:
        name: a relative path with slashes, from a list, a manifest or a file system.

    Raises:
        OutputError: the path would lead out of the folder (by `..`, as an absolute path, or by a
            link), or no file can be called so.
    """
    path = folder / _checked(name)
    real_folder = os.path.realpath(folder)
    real_parent = os.path.realpath(path.parent)
    _require_below(real_folder, real_parent, folder, name)
    return path


def _checked(name: str) -> PurePosixPath:
    """A name that can be a file's, and says nothing of folders above."""
    shown = printable(name)
    parts = PurePosixPath(name)
    if "\0" in name or not parts.name:
        raise OutputError(f"{shown!r}: is no name of a file; rename it")
    if parts.is_absolute() or ".." in parts.parts:
        raise OutputError(
            f"'{shown}': would lead out of the folder it belongs to; name files below it, without "
            "'..' and without a leading '/'"
        )

    try:
        lengths = [len(os.fsencode(part)) for part in parts.parts]
    except UnicodeEncodeError as error:
        raise OutputError(f"'{shown}': no file can be called so; rename it") from error
    if max(lengths) > _LONGEST_NAME or sum(lengths) + len(lengths) > _LONGEST_PATH:
        raise OutputError(
            f"'{shortened(shown)}': the name is too long for a file, which may have "
            f"{_LONGEST_NAME} bytes; rename what it was made of"
        )
    return parts


def _require_below(real_folder: str, real_parent: str, folder: Path, name: str) -> None:
    if Path(real_parent).is_relative_to(real_folder):
        return
    raise OutputError(
        f"'{printable(name)}': a link in {folder} leads out of it, to {printable(real_parent)}; "
        "remove the link"
    )


def require_apart(output: Path, inputs: Iterable[Path], *, setting: str = "--output") -> None:
    """Refuse an output folder that shares a folder with what is read.

    Otherwise results would take the place of what was read, or would be read the next time.

    Args:
        output: the folder that is written to.
        inputs: what is read: folders, in which everything below is taken, and single files.
        setting: what the user gave the output with.

    Raises:
        OutputError: an input lies inside the output folder, or the output folder inside an input.
    """
    place = Path(os.path.realpath(output))
    real_folders: dict[Path, Path] = {}
    for item in inputs:
        # Of thousands of files only their few folders are resolved, unless a file is a link.
        if item.is_symlink() or item.is_dir():
            found = Path(os.path.realpath(item))
        else:
            if item.parent not in real_folders:
                real_folders[item.parent] = Path(os.path.realpath(item.parent))
            found = real_folders[item.parent] / item.name

        output_is_read = found.is_dir() and place.is_relative_to(found)
        if output_is_read or found.is_relative_to(place):
            raise OutputError(
                f"{setting}: {output} and {printable(str(item))}, which is read, share a folder: "
                f"results would be taken for inputs, or replace them; choose another {setting}"
            )


def is_output_folder(folder: Path) -> bool:
    """Whether a command that keeps a record wrote into this folder, so that it holds results."""
    return any(folder.glob(f"{_RECORD}*.jsonl"))


@dataclass(frozen=True)
class _Stamp:
    """What tells a file from another one under the same name."""

    size: int
    time: int
    """Of its last change, in nanoseconds."""
    sha256: str

    @classmethod
    def of(cls, path: Path) -> _Stamp:
        with open_regular(path) as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            state = os.fstat(file.fileno())
        return cls(state.st_size, state.st_mtime_ns, digest)


class OutputFolder:
    """A folder that a command writes into; `output_folder` makes one."""

    def __init__(self, folder: Path, *, command: str, process: int | str, setting: str) -> None:
        self.folder = folder
        self._command = command
        self._setting = setting
        self._record = folder / f"{_RECORD}{command}-{process}.jsonl"
        self._lock = threading.Lock()
        self._real_folder = os.path.realpath(folder)
        self._real_parents: set[str] = set()
        self._stamps = self._load()

    def path(self, name: str) -> Path:
        """The path of a file in this folder; see `inside`, whose checks cost less here."""
        path = self.folder / _checked(name)
        parent = os.path.dirname(path)
        if parent not in self._real_parents:
            _require_below(self._real_folder, os.path.realpath(parent), self.folder, name)
            self._real_parents.add(parent)
        return path

    def require_free(self, targets: Iterable[tuple[str, str]]) -> None:
        """Refuse to go on where a result would replace something else.

        Args:
            targets: (name of a file to write, what it is made of), all that will be written.

        Raises:
            OutputError: two results would be one file, a name leads out of the folder, or a file is
                there that this command did not make, or that was changed since.
        """
        sources: dict[str, str] = {}
        present: list[str] = []
        for name, source in targets:
            path = self.path(name)
            other = sources.setdefault(str(path), source)
            if other != source:
                raise OutputError(
                    f"{printable(source)}: its result and that of {printable(other)} would both be "
                    f"called {printable(_key(name))}; rename one of them, or write them to two "
                    "folders"
                )
            if os.path.lexists(path):
                present.append(name)
        self._require_made(present)

    def made(self, name: str) -> bool:
        """Whether there is a file of this name that this command wrote, unchanged since."""
        return self._fits(name)

    @contextlib.contextmanager
    def written(self, name: str, *, durable: bool = False) -> Iterator[Path]:
        """A temporary path to write a file to, which becomes `name` at the end.

        See `written_whole`.

        Raises:
            OutputError: see `require_free`.
            WriteError: the file cannot be written.
        """
        path = self.path(name)
        if os.path.lexists(path):
            self._require_made([name])
        with written_whole(path, durable=durable) as temporary:
            yield temporary
            # Noted before the rename, so that at no moment a file of ours is there without a line.
            self._note(name, _Stamp.of(temporary))

    def write(self, name: str, data: bytes | str, *, durable: bool = False) -> None:
        """Write `data` (text as UTF-8) to the file `name`; see `written`."""
        content = data
        if isinstance(content, str):
            content = printable(content).encode()
        with self.written(name, durable=durable) as temporary:
            temporary.write_bytes(content)

    def _require_made(self, names: list[str]) -> None:
        """Refuse files that are there and were not made by this command."""
        foreign = [name for name in names if not self._fits(name)]
        if foreign:
            # Another process of this run may have written them since the records were read.
            with self._lock:
                self._stamps = self._load()
            foreign = [name for name in foreign if not self._fits(name)]
        if not foreign:
            return

        more = ""
        if len(foreign) > 1:
            more = f" (and {len(foreign) - 1} more)"
        raise OutputError(
            f"{printable(str(self.path(foreign[0])))}{more}: is there already and was not made by "
            f"{self._command}, or was changed since; move it away, or choose another "
            f"{self._setting}"
        )

    def _fits(self, name: str) -> bool:
        """Whether the file `name` is one that was noted."""
        path = self.path(name)
        stamps = self._stamps.get(_key(name), set())
        return any(_is_of(stamp, path) for stamp in stamps)

    def _note(self, name: str, stamp: _Stamp) -> None:
        line = json.dumps({"name": _key(name), **asdict(stamp)})
        # A run may have ended within the last line: the new one begins on a line of its own.
        data = f"\n{line}\n".encode("ascii")
        with self._lock:
            descriptor = os.open(self._record, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
            try:
                if os.write(descriptor, data) != len(data):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            finally:
                os.close(descriptor)
            self._stamps.setdefault(_key(name), set()).add(stamp)

    def _load(self) -> dict[str, set[_Stamp]]:
        """What all processes of earlier and present runs of the command have noted."""
        stamps: dict[str, set[_Stamp]] = {}
        for record in self.folder.glob(f"{_RECORD}{self._command}-*.jsonl"):
            for name, stamp in _lines_of(record):
                stamps.setdefault(name, set()).add(stamp)
        return stamps

    def _shorten_record(self) -> None:
        """Leave out of this process's record what is no longer true, when that is much."""
        noted = list(_lines_of(self._record))
        newest = dict(noted)
        if len(noted) - len(newest) <= _SUPERSEDED_LINES:
            return

        # Of a run that was killed just before a file took its name, an older line is the true one.
        kept = []
        for name, stamp in dict.fromkeys(noted):
            if _is_of(stamp, self.folder / name):
                kept.append(json.dumps({"name": name, **asdict(stamp)}) + "\n")
        write_file(self._record, "".join(kept))


def _key(name: str) -> str:
    """One spelling for each file: a//b and ./a/b are a/b."""
    return str(PurePosixPath(name))


def _is_of(stamp: _Stamp, path: Path) -> bool:
    """Whether the file at `path` is the one that got this stamp."""
    try:
        state = os.lstat(path)
        if not stat.S_ISREG(state.st_mode) or state.st_size != stamp.size:
            return False
        # Copies have another time; only for them the bytes are read.
        return state.st_mtime_ns == stamp.time or _Stamp.of(path).sha256 == stamp.sha256
    except OSError:
        return False


def _lines_of(record: Path) -> Iterator[tuple[str, _Stamp]]:
    """(name, stamp) of each line of a record; what is damaged or cut off counts for nothing."""
    try:
        text = record.read_text(encoding="ascii", errors="replace")
    except OSError:
        return
    for line in text.splitlines():
        try:
            content: Any = json.loads(line)
            name = content.pop("name")
            stamp = _Stamp(**content)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            continue
        if isinstance(name, str) and type(stamp.size) is int and type(stamp.time) is int:
            yield name, stamp


@contextlib.contextmanager
def output_folder(
    folder: Path, *, command: str, process: int | str = 0, setting: str = "--output"
) -> Iterator[OutputFolder]:
    """Open a folder to write into, for as long as the block lasts.

    Args:
        command: the name of the command, without spaces and slashes, such as "eval".
        process: what tells the processes of one run apart, such as the rank: each has a record of
            its own, and two runs cannot be the same process of one folder at the same time.
        setting: what the user gave the folder with.

    Raises:
        OutputError: another run is writing into the folder.
        WriteError: the folder cannot be made or written to.
    """
    lock = folder / f"{_RECORD}{command}-{process}.lock"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        open(lock, "a").close()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise WriteError(
            f"{printable(str(folder))}: cannot be written to ({reason}); choose another {setting}"
        ) from error

    with locked(lock, wait=False) as held:
        if not held:
            raise OutputError(
                f"{folder}: another {command} is writing here right now; wait for it, or choose "
                f"another {setting}"
            )
        opened = OutputFolder(folder, command=command, process=process, setting=setting)
        opened._shorten_record()
        yield opened
