"""Reading files of weights as tensors and plain values, never as code."""

from __future__ import annotations

import contextlib
import os
import pickle
import re
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..layers import ModelError

# Keys under which training programs put the state dict beside other things.
WRAPPERS = ("state_dict", "model", "model_dict", "model_state_dict")


def read_tensors(
    source: str | Path | Mapping[str, object], *, name: str | None = None
) -> dict[str, Tensor]:
    """The tensors of a file or mapping by name, without the wrappers around them.

    Args:
        source: path of a torch or safetensors file, or what such a file holds.
        name: what errors call it; default: its path.

    Raises:
        ModelError: the file cannot be read, or holds no tensors.
    """
    if isinstance(source, Mapping):
        name, content = name or "the state dict", source
    else:
        name = name or str(source)
        content = read_file(source, name=name)

    # A file may hold a dict that holds itself, so those that were seen are remembered.
    seen = {id(content)}
    inner = _unwrapped(content)
    while inner is not None:
        if id(inner) in seen:
            raise ModelError(f"{name} holds a dict that holds itself: give a plain state dict.")
        seen.add(id(inner))
        content, inner = inner, _unwrapped(inner)

    tensors = {str(key): value for key, value in content.items() if isinstance(value, Tensor)}
    if not tensors:
        raise ModelError(f"{name} holds no tensors: give a checkpoint or a state dict.")
    return tensors


def read_file(path: str | Path, *, name: str | None = None) -> Mapping[str, object]:
    """The contents of a torch or safetensors file, on the CPU.

    Args:
        path: the file; its contents say of which kind it is, not its name.
        name: what errors call it; default: its path.

    Raises:
        ModelError: the file is absent, damaged, no file of weights, or would run code.
    """
    path = Path(path)
    name = name or str(path)
    if os.path.isdir(path):
        raise ModelError(f"{name} is a folder: give the path of a checkpoint in it.")
    if not os.path.isfile(path):
        raise ModelError(f"{name} is not a file: give the path of a checkpoint.")
    try:
        with open(path, "rb") as file:
            beginning = file.read(512)
    except OSError as error:
        raise ModelError(f"{name} cannot be read ({error.strerror}).") from error

    kind = _kind(beginning)
    if kind != "weights":
        raise ModelError(f"{name} {kind} and no file of weights: fetch it again.")
    if _is_safetensors(beginning):
        return _read_safetensors(path, name)

    # Bytes that are no pickle raise whatever they happen to spell, so every exception is caught.
    # Warnings are about pickle protocols, of which the error says all that a user needs. The file
    # is handed over open, since torch takes its name for what is in it.
    try:
        with open(path, "rb") as file, numpy_scalars(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ModelError(_reason(beginning, error, name)) from error

    if not isinstance(content, Mapping):
        raise ModelError(
            f"{name} holds a {type(content).__name__} and no state dict: save "
            "model.state_dict() instead."
        )
    return content


@contextlib.contextmanager
def numpy_scalars() -> Iterator[None]:
    """Let torch read NumPy numbers in the block, by their names in NumPy 1 and 2.

    The authors' files carry some (mean_iu, metric); torch refuses them by default.
    """
    rebuild = np.float64(0).__reduce__()[0]
    kinds = [type(np.dtype(name)) for name in ("float64", "float32", "int64", "int32", "bool")]
    names = [(rebuild, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]
    with torch.serialization.safe_globals([*names, np.dtype, *kinds]):  # type: ignore[list-item]
        yield


def _unwrapped(content: Mapping[str, object]) -> Mapping[str, object] | None:
    """What the first wrapper in `content` holds, or None when there is none."""
    for key in WRAPPERS:
        inner = content.get(key)
        if isinstance(inner, Mapping):
            return inner
    return None


def _kind(beginning: bytes) -> str:
    """What a file is that begins so: "weights" where it can be that, else as in `it is ...`."""
    if not beginning:
        return "is empty"
    if beginning.startswith(b"version https://git-lfs"):
        return "is a pointer of Git LFS (git lfs pull fetches the file)"

    # What a server sends in place of a file that needs a login, or that is not there.
    text = beginning.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if text.startswith((b"<!doctype", b"<html", b"<head", b"<?xml", b"<!--")):
        return "is a web page (HTML)"

    # Pickles, zip archives and the header of safetensors have bytes that no text has.
    if all(byte >= 32 or byte in b"\t\n\r\f" for byte in beginning):
        return "is text"
    return "weights"


def _is_safetensors(beginning: bytes) -> bool:
    """Whether a file begins with the length of a header, eight bytes, and a header in JSON."""
    return beginning[8:9] == b"{" and int.from_bytes(beginning[:8], "little") < 2**32


def _reason(beginning: bytes, error: Exception, name: str) -> str:
    """Why torch did not read a file that begins so, as a sentence."""
    # A pickle, or a zip archive with one inside
    is_pickle = beginning[:1] in (b"\x80", b"P")
    if not isinstance(error, pickle.UnpicklingError) or not is_pickle:
        return f"{name} is damaged or is neither a file of PyTorch nor safetensors: fetch it again."

    found = re.search(r"GLOBAL ([\w.]+)", str(error))
    cause = "it is damaged or opening it would run code"
    if found is not None:
        cause = f"opening it would run code ({found[1]})"
    return (
        f"{name} is refused, because {cause}: use a file that holds only tensors and plain values."
    )


def _read_safetensors(path: Path, name: str) -> Mapping[str, object]:
    try:
        from safetensors.torch import load_file
    except ImportError as error:
        raise ModelError(
            f"{name} needs the safetensors library: pip install safetensors."
        ) from error

    # A header may name dtypes, sizes and places that do not exist, each with its own exception.
    try:
        return load_file(path)
    except Exception as error:
        raise ModelError(f"{name} is damaged or is no safetensors file: fetch it again.") from error
