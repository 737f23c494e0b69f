"""What a network saw in a whole image, for parts of it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor, nn

from .strips import eager_modules


class ImageContext:
    """What methods that `layers.over_image` marks gave for whole images, for parts of them.

    OCR gathers what is typical of each class over the image, and DeepLab's image pooling is a mean
    over it: a part of the image would have another one.
    """

    def __init__(self, model: nn.Module) -> None:
        self.methods = [
            (module, name)
            for module in eager_modules(model)
            for name in _marked_methods(type(module))  # type: ignore[arg-type]
        ]
        self.known: dict[tuple[int, str], Tensor] = {}

    @contextmanager
    def recorded(self) -> Iterator[None]:
        """Inside, results of the marked methods are kept."""

        def keep(key: tuple[int, str], method: Callable, *inputs: Tensor) -> Tensor:
            self.known[key] = method(*inputs)
            return self.known[key]

        with self._replaced(keep):
            yield

    @contextmanager
    def lent(self, images: Sequence[int]) -> Iterator[None]:
        """Inside, the marked methods give what was kept for these images of the batch."""

        def give(key: tuple[int, str], method: Callable, *inputs: Tensor) -> Tensor:
            known = self.known.get(key)
            if known is None:
                return method(*inputs)
            return known[list(images)]

        with self._replaced(give):
            yield

    @contextmanager
    def _replaced(self, function: Callable) -> Iterator[None]:
        # Set on the object, they hide the methods of its class; deleted, these show again.
        for module, name in self.methods:
            method = getattr(module, name)
            setattr(module, name, functools.partial(function, (id(module), name), method))
        try:
            yield
        finally:
            for module, name in self.methods:
                delattr(module, name)


@functools.cache
def _marked_methods(kind: type) -> list[str]:
    """Names of the methods that `layers.over_image` marks."""
    return [name for name in dir(kind) if getattr(getattr(kind, name, None), "over_image", False)]
