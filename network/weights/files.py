"""Reading files of weights as tensors and plain values, never as code."""

from __future__ import annotations

import contextlib
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


def read_tensors(source: str | Path | Mapping[str, object]) -> dict[str, Tensor]:
    """The tensors of a file or mapping by name, without the wrappers around them.

    Args:
        source: path of a torch or safetensors file, or what such a file holds.

    Raises:
        ModelError: the file cannot be read, or holds no tensors.
    """
    name, content = "the state dict", source
    if not isinstance(source, Mapping):
        name, content = str(source), read_file(source)
    assert isinstance(content, Mapping)

    inner = _unwrapped(content)
    while inner is not None:
        content, inner = inner, _unwrapped(inner)

    tensors = {str(key): value for key, value in content.items() if isinstance(value, Tensor)}
    if not tensors:
        raise ModelError(f"{name} holds no tensors: give a checkpoint or a state dict.")
    return tensors


def read_file(path: str | Path) -> Mapping[str, object]:
    """The contents of a torch or safetensors file, on the CPU.

    Raises:
        ModelError: the file is absent, damaged, or would run code.
    """
    path = Path(path)
    if not path.is_file():
        raise ModelError(f"{path} is not a file: give the path of a checkpoint.")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)

    # Bytes that are no pickle raise whatever they happen to spell, so every exception is caught.
    # Warnings are about pickle protocols, of which the error says all that a user needs.
    try:
        with numpy_scalars(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ModelError(_reason(path, error)) from error

    if not isinstance(content, Mapping):
        raise ModelError(
            f"{path} holds a {type(content).__name__} and no state dict: save "
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


def _reason(path: Path, error: Exception) -> str:
    """Why torch did not read a file, as a sentence."""
    if not isinstance(error, pickle.UnpicklingError) or not _is_pickle(path):
        return f"{path} is damaged or is no checkpoint of PyTorch: fetch it again."

    found = re.search(r"GLOBAL ([\w.]+)", str(error))
    what = ""
    if found is not None:
        what = f" ({found[1]})"
    return (
        f"{path} is refused, because opening it would run code{what}: use a file that holds only "
        "tensors and plain values."
    )


def _is_pickle(path: Path) -> bool:
    """Whether the file begins like a pickle, or like a zip archive with one inside."""
    with open(path, "rb") as file:
        return file.read(1) in (b"\x80", b"P")


def _read_safetensors(path: Path) -> Mapping[str, object]:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError as error:
        raise ModelError(
            f"{path} needs the safetensors library: pip install safetensors."
        ) from error

    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise ModelError(f"{path} is damaged or is no safetensors file: fetch it again.") from error
