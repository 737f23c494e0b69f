"""Counting the bytes of live tensors: what a computation needs at its peak, on any device, the meta device included."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class LiveMemory(TorchDispatchMode):
    """Within this context, `now` is the number of bytes of tensors made in it that still live, `peak` its largest value.

    Views share the storage they look at, and what autograd saved for the backward pass counts for as long as it is kept.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = 0
        self.peak = 0
        self._known: dict[int, int] = {}

    def __torch_dispatch__(
        self, function: Any, types: Iterable[type], args: Any = (), kwargs: Any = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in tensors_in(result):
            storage = tensor.untyped_storage()
            if storage._cdata not in self._known and all(
                storage._cdata != given.untyped_storage()._cdata
                for given in tensors_in((args, kwargs))
            ):
                self._count(storage)
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        address = storage._cdata
        self._known[address] = storage.nbytes()
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._free, address)

    def _free(self, address: int) -> None:
        self.now -= self._known.pop(address)


def tensors_in(values: Any) -> Iterator[Tensor]:
    """Tensors among the arguments or results of an operation, which nests lists at most."""
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, (list, tuple)):
        for value in values:
            yield from tensors_in(value)
    elif isinstance(values, dict):
        yield from tensors_in(tuple(values.values()))


def peak_bytes(work: Callable[[], object]) -> int:
    """The peak of one call."""
    with LiveMemory() as memory:
        work()
    return memory.peak
