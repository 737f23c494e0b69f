"""Objects of the user's own modules, named in a configuration as `module:name`.

A module is looked for where Python looks, and then in the working directory: the installed `hmsa`
command would not find a file beside the user's configuration otherwise.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import pkgutil
import re
import sys
import traceback
from collections.abc import Callable, Iterator
from typing import Any

from .words import UserError, did_you_mean, echoed, reason_of

# A dotted module, a colon, and a name in it, which may be an attribute of a class: a.b:Name.make
_REFERENCE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")


class ImportedError(UserError):
    """A `module:name` of a configuration cannot be imported or called, or gives the wrong thing."""


def is_reference(text: str) -> bool:
    """Whether `text` has the form `module:name`; `timm:NAME` names a network of timm instead."""
    return _REFERENCE.fullmatch(text) is not None and not text.startswith("timm:")


def imported(reference: str, *, key: str) -> Any:
    """The object that `module:name` names.

    The working directory is added at the end of `sys.path` for good, so that loader processes and
    the module's own imports find what stands there, and no installed package is hidden by it.

    Args:
        reference: `module:name`, for example `my_parts.losses:tversky`.
        key: the key of the configuration it was written at, for the sentences.

    Raises:
        ImportedError: it has another form, or there is no such module or name, or the module fails
            when it is imported.
    """
    if not is_reference(reference):
        raise ImportedError(
            f"{key}: {echoed(reference)} is not of the form module:name, such as my_parts:make"
        )
    _add_working_directory()
    module_name, _, name = reference.partition(":")
    found = _import_module(module_name, reference=reference, key=key)

    for step in name.split("."):
        try:
            found = getattr(found, step)
        except AttributeError as error:
            hint = did_you_mean(step, _public_names(found))
            origin = getattr(sys.modules[module_name], "__file__", None) or module_name
            raise ImportedError(
                f"{key}: {echoed(reference)}: there is no {echoed(step)} in {origin}{hint}"
            ) from error
    return found


def imported_callable(reference: str, *, key: str) -> Callable[..., Any]:
    """The function or class that `module:name` names.

    Raises:
        ImportedError: as for `imported`, or it cannot be called.
    """
    found = imported(reference, key=key)
    if not callable(found):
        raise ImportedError(
            f"{key}: {echoed(reference)} is of type {type(found).__name__} and cannot be called; "
            "name a function or a class"
        )
    return found


def file_of(reference: str) -> str:
    """The file of the package or module in which `module:name` lies, found without importing it.

    "" where there is none. The file is looked for as `imported` does.
    """
    _add_working_directory()
    package = reference.partition(":")[0].partition(".")[0]
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        return ""
    if spec is None:
        return ""
    # A folder without __init__.py has a place, but no file.
    places = [spec.origin] if spec.has_location else list(spec.submodule_search_locations or [])
    return os.pathsep.join(os.path.realpath(place) for place in places if place)


def called(
    function: Callable[..., Any], *args: Any, key: str, reference: str, **options: Any
) -> Any:
    """What a function that was named in a configuration returns.

    Raises:
        ImportedError: it failed; the sentence says with what, and in which line of which file.
    """
    try:
        return function(*args, **options)
    except UserError:
        raise
    except Exception as error:
        raise ImportedError(f"{key}: {echoed(reference)} failed: {_described(error)}") from error


def _add_working_directory() -> None:
    folder = os.getcwd()
    if folder not in sys.path and "" not in sys.path:
        sys.path.append(folder)
        importlib.invalidate_caches()


def _import_module(module: str, *, reference: str, key: str) -> Any:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        missing = error.name or module
        # Of a dotted name any package on the way may be what is missing.
        if not f"{module}.".startswith(f"{missing}."):
            raise ImportedError(
                f"{key}: {echoed(reference)}: {module} needs the module {echoed(missing)}, which "
                "is not installed; install it"
            ) from error
        hint = did_you_mean(missing.rpartition(".")[2], _neighbours(missing))
        raise ImportedError(
            f"{key}: {echoed(reference)}: there is no module {echoed(missing)}{hint}, neither "
            f"installed nor in {os.getcwd()}; install its package, start from its folder, or put "
            "this folder on PYTHONPATH"
        ) from error
    except UserError:
        raise
    except Exception as error:
        raise ImportedError(
            f"{key}: {echoed(reference)}: {module} cannot be imported: {_described(error)}"
        ) from error


def _described(error: Exception) -> str:
    """An exception with the place where it was raised, in one line."""
    place = ""
    frames = traceback.extract_tb(error.__traceback__)
    if not isinstance(error, SyntaxError) and frames:
        place = f" ({frames[-1].filename}, line {frames[-1].lineno})"
    return f"{type(error).__name__}: {reason_of(error)}{place}"


def _neighbours(module: str) -> Iterator[str]:
    """Names of modules beside a missing one: of its package, else of the working directory."""
    package = sys.modules.get(module.rpartition(".")[0])
    folders = getattr(package, "__path__", None)
    if folders is None:
        folders = [os.getcwd()]
    return (found.name for found in pkgutil.iter_modules(list(folders)))


def _public_names(holder: Any) -> list[str]:
    return [name for name in dir(holder) if not name.startswith("_")]
