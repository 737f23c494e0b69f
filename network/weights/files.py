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

WRAPPERS = ("state_dict", "model", "model_dict", "model_state_dict")


@contextlib.contextmanager
def numpy_scalars() -> Iterator[None]:
    """Allow the NumPy numbers (mean_iu, metric) that the authors' files carry, under the names of NumPy 1 and 2."""
    rebuild = np.float64(0).__reduce__()[0]
    kinds = [type(np.dtype(name)) for name in ("float64", "float32", "int64", "int32", "bool")]
    names = [(rebuild, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]
    with torch.serialization.safe_globals([*names, np.dtype, *kinds]):  # type: ignore[list-item]
        yield


def read_file(path: str | Path) -> Mapping[str, object]:
    """The contents of a torch or safetensors file on the CPU; ModelError when it is absent, broken or unsafe."""
    path = Path(path)
    if not path.is_file():
        raise ModelError(f"{path} is not a file: give the path of a checkpoint.")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    try:
        with numpy_scalars(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickle protocols, beside the one sentence below
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # bytes that are no pickle raise whatever they happen to spell
        raise ModelError(_refusal(path, error)) from error
    if not isinstance(content, Mapping):
        raise ModelError(
            f"{path} holds a {type(content).__name__} and no state dict: save model.state_dict() instead."
        )
    return content


def _refusal(path: Path, error: Exception) -> str:
    if not isinstance(error, pickle.UnpicklingError) or not _is_pickle(path):
        return f"{path} is damaged or is no checkpoint of PyTorch: fetch it again."
    found = re.search(r"GLOBAL ([\w.]+)", str(error))
    what = f" ({found[1]})" if found else ""
    return f"{path} is refused, because opening it would run code{what}: use a file that holds only tensors and plain values."


def _is_pickle(path: Path) -> bool:
    """Whether the file begins like a pickle or like a zip archive with one inside."""
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


def read_tensors(source: str | Path | Mapping[str, object]) -> dict[str, Tensor]:
    """The tensors of a file or mapping, by name, out of the wrappers (`state_dict`, `model` ...) around them."""
    name = "the state dict" if isinstance(source, Mapping) else str(source)
    content = source if isinstance(source, Mapping) else read_file(source)
    inside = True
    while inside:
        inside = False
        for key in WRAPPERS:
            inner = content.get(key)
            if isinstance(inner, Mapping):
                content, inside = inner, True
                break
    tensors = {str(key): value for key, value in content.items() if isinstance(value, Tensor)}
    if not tensors:
        raise ModelError(f"{name} holds no tensors: give a checkpoint or a state dict.")
    return tensors
