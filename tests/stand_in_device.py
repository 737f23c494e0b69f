"""A device that is not there: its tensors say that they are elsewhere and are held by the host.

Every operation runs for real, with its autograd, on a machine without a GPU. `StandInDevice` sees
each of them and notes those that would make the host wait for a GPU: a value that is read, and a
copy between host and device that is not asynchronous. To torch the tensors are on "meta", which has
an autograd everywhere; Python code sees them on "meta" or, on request, on "mps". Code that asks for
CUDA takes the other way; what only CUDA does must be tested beside this.
"""

from __future__ import annotations

import collections
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from hmsa.network.inference.interpolation import interpolation_matrix, neighbouring_rows

DEVICE = torch.device("meta")
ROOT = str(Path(__file__).resolve().parents[1])

# Operations of which the host must know a result, such as a size, before it can go on.
WAITING = {
    "_local_scalar_dense": 1,
    "is_nonzero": 1,
    "equal": 1,
    "nonzero": 1,
    "masked_select": 1,
    "_unique2": 1,
    "unique_dim": 1,
    "bincount": 2,  # CUDA's reads the smallest and the largest value
}


class OnDevice(Tensor):
    """A tensor of the device; `held` has its numbers."""

    held: Tensor
    reported = DEVICE

    @staticmethod
    def __new__(cls, held: Tensor) -> OnDevice:
        made = Tensor._make_wrapper_subclass(
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=DEVICE,
        )
        made.held = held
        return made

    @classmethod
    def __torch_function__(
        cls, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        with torch._C.DisableTorchFunctionSubclass():
            # torch gives lists of its own tensors only.
            if function is Tensor.tolist:
                return args[0].cpu().tolist()
            if getattr(function, "__self__", None) is Tensor.device:
                return cls.reported
            return function(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(
        cls, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        return _run(function, args, kwargs or {})


class StandInDevice(TorchDispatchMode):
    """Runs operations on the device's tensors on the host, and notes what would wait."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []
        self.operations: collections.Counter[str] = collections.Counter()
        self.created: collections.Counter[torch.dtype] = collections.Counter()

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        # In inference mode operations come that are made of others.
        if torch.is_inference_mode_enabled():
            with self:
                result = function.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result

        name = str(function).split(".")[1]
        self.operations[name] += 1
        self.waits += [f"{name} {_caller()}"] * _waits(name, args, kwargs)
        result = _run(function, args, kwargs)
        for leaf in tree_leaves(result):
            if isinstance(leaf, OnDevice):
                self.created[leaf.dtype] += 1
        return result


class _Calls(TorchFunctionMode):
    """Names the device as torch knows it in every call.

    Tensors of Python's numbers are made on the host and copied, where it can be seen.
    """

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        args, kwargs = tree_map(_as_torch_knows, (tuple(args), dict(kwargs or {})))
        if function is Tensor.new_tensor:
            own = {"device": args[0].device, "dtype": args[0].dtype}
            function, args, kwargs = torch.tensor, args[1:], own | kwargs
        makes = function is torch.tensor or (
            function is torch.as_tensor and not isinstance(args[0], Tensor)
        )
        if makes and _is_device(kwargs.get("device")):
            return function(*args, **{**kwargs, "device": "cpu"}).to(kwargs["device"])
        return function(*args, **kwargs)


@contextmanager
def stand_in_device(reported: str = "meta") -> Iterator[StandInDevice]:
    """Within the block a device of that type computes, `DEVICE` if none is named."""
    OnDevice.reported = torch.device(reported)
    # Tables of a true meta device, which other tests leave, hold no numbers.
    neighbouring_rows.cache_clear()
    interpolation_matrix.cache_clear()
    try:
        with _Calls(), StandInDevice() as seen:
            yield seen
    finally:
        OnDevice.reported = DEVICE
        neighbouring_rows.cache_clear()
        interpolation_matrix.cache_clear()


def _as_torch_knows(value: Any) -> Any:
    if isinstance(value, (str, torch.device)) and str(value) == str(OnDevice.reported):
        return DEVICE
    return value


def _is_device(value: Any) -> bool:
    return value is not None and torch.device(value).type == DEVICE.type


def _waits(name: str, args: Any, kwargs: Any) -> int:
    """How often the host would wait for an operation."""
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    on_device = any(isinstance(tensor, OnDevice) for tensor in tensors)
    if name == "_to_copy":
        target = kwargs.get("device")
        crosses = target is not None and _is_device(target) != on_device
        return int(crosses and not kwargs.get("non_blocking"))
    if name == "copy_":
        crosses = isinstance(args[0], OnDevice) != isinstance(args[1], OnDevice)
        non_blocking = kwargs.get("non_blocking") or (len(args) > 2 and args[2])
        return int(crosses and not non_blocking)
    if not on_device:
        return 0
    if name in ("index", "index_put", "index_put_", "_index_put_impl_"):
        masks = [leaf for leaf in tree_leaves(args[1]) if isinstance(leaf, Tensor)]
        return int(any(mask.dtype in (torch.bool, torch.uint8) for mask in masks))
    return WAITING.get(name, 0)


def _run(function: Any, args: Any, kwargs: Any) -> Any:
    """The operation on the numbers; results are of the device where an argument is."""
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    on_device = any(isinstance(tensor, OnDevice) for tensor in tensors)
    if kwargs.get("device") is not None:
        on_device = _is_device(kwargs["device"])
        kwargs = {**kwargs, "device": torch.device("cpu")}
    elif "copy_" in str(function) and "foreach" not in str(function):
        on_device = isinstance(args[0], OnDevice)

    def held(value: Any) -> Any:
        return value.held if isinstance(value, OnDevice) else value

    own_args, own_kwargs = tree_map(held, (args, kwargs))
    result = function(*own_args, **own_kwargs)
    if not on_device:
        return result

    def wrapped(value: Any) -> Any:
        return OnDevice(value) if isinstance(value, Tensor) else value

    # An operation in place gives back the tensor that it was given.
    written = [item for item in function._schema.returns if item.alias_info is not None]
    if any(item.alias_info.is_write for item in written):
        return kwargs.get("out", args[0])

    # A view is a tensor of inference mode only if that is what it views.
    if written and isinstance(args[0], Tensor):
        with torch.inference_mode(args[0].is_inference()):
            return tree_map(wrapped, result)
    return tree_map(wrapped, result)


def _caller() -> str:
    """Where in this tree the operation was asked for."""
    for frame in reversed(traceback.extract_stack()):
        # torch itself may lie in the checkout, in an environment of its own.
        is_torchs = "site-packages" in frame.filename or "stand_in_device" in frame.filename
        if frame.filename.startswith(ROOT) and not is_torchs:
            return f"{frame.filename.removeprefix(ROOT)}:{frame.lineno} {frame.name}"
    return "?"
