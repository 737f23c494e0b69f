"""Where configuration files are looked for: as they are named, then among the shipped ones."""

from __future__ import annotations

import os
from pathlib import Path

from ..files.yaml_loader import Mistake
from ..words import nearest
from .errors import ConfigError

# In a checkout this is ROOT/configs, beside ROOT/utils; installed it is hmsa/configs.
SHIPPED = Path(__file__).resolve().parents[2] / "configs"


def find_config(path: str | Path) -> Path:
    """The file that is meant by `path`, from whichever folder a command is started.

    A path that exists is used as it is. Otherwise it is looked for below the package's own configs
    folder: `configs/demo.yaml`, `demo.yaml` and `demo` all name the same shipped file.

    Raises:
        ConfigError: When there is no such file; it names the nearest one.
    """
    given = Path(path)
    if _exists(given) and not os.path.isdir(given):
        return given
    shipped = find_shipped(given)
    if shipped is not None:
        return shipped
    if _exists(given):
        return given  # a folder: reading it says what is wrong

    hint = ""
    near = _nearest_file(given)
    if near is not None:
        hint = f" (did you mean '{near}'?)"
    raise ConfigError([Mistake(f"no such file{hint}", file=str(path))])


def find_base(name: str, folder: Path) -> Path | None:
    """The file that a configuration in `folder` inherits as `name`.

    The folder of the configuration comes first: what a file inherits must not depend on where a
    command is started.
    """
    for candidate in (folder / name, Path(name)):
        if _exists(candidate):
            return candidate
    return find_shipped(Path(name))


def find_class_list(name: str, folder: Path | None) -> Path | None:
    """The file that `data.classes` names: as seen from here, then from `folder`, then shipped."""
    if _exists(Path(name)):
        return Path(name)
    if folder is not None and _exists(folder / name):
        return folder / name
    return find_shipped(Path(name))


def find_shipped(path: Path) -> Path | None:
    """The shipped file called `path`, with or without `configs/` and `.yaml`; None without one."""
    if path.is_absolute() or ".." in path.parts or not path.name:
        return None

    relative_paths = [path]
    if path.parts[0] == SHIPPED.name and len(path.parts) > 1:
        relative_paths.append(Path(*path.parts[1:]))
    for relative in relative_paths:
        beside = SHIPPED / relative.parent
        for name in (relative.name, f"{relative.name}.yaml"):
            if os.path.isfile(beside / name):
                return beside / name
    return None


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # no permission, a name too long or with a NUL character
        return True  # reading it says what is wrong


def _nearest_file(path: Path) -> str | None:
    """The file whose name is most like `path`: one beside it, or a shipped one."""
    words: dict[str, str] = {}
    for file in sorted(SHIPPED.rglob("*.yaml")):
        relative = file.relative_to(SHIPPED)
        name = f"configs/{relative.as_posix()}"
        words |= {name: name, relative.as_posix(): name, relative.with_suffix("").as_posix(): name}

    if os.path.isdir(path.parent):
        words |= {str(file): str(file) for file in sorted(path.parent.glob("*.yaml"))}
    near = nearest(str(path), words)
    if near is None:
        return None
    return words[near]
