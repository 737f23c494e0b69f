"""Files -> (image, label): what data sets are, how their files are found, read, checked, augmented and fed.

Names are imported when first used, so that a door that only lists files does not wait for torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .build import build_files as build_files
    from .build import image_files as image_files
    from .cityscapes import CITYSCAPES as CITYSCAPES
    from .errors import DataError as DataError
    from .files import Files as Files
    from .policy import LabelPolicy as LabelPolicy
    from .reading import image_size as image_size
    from .reading import read_image as read_image
    from .reading import read_label as read_label
    from .reading import resize_long_edge as resize_long_edge
    from .spec import ClassInfo as ClassInfo
    from .spec import DatasetSpec as DatasetSpec
    from .suggest import suggest_data as suggest_data
    from .verify import Verification as Verification
    from .verify import find_duplicates as find_duplicates
    from .verify import verify_files as verify_files

_HOME = {
    "CITYSCAPES": "cityscapes",
    "ClassInfo": "spec",
    "DataError": "errors",
    "DatasetSpec": "spec",
    "Files": "files",
    "LabelPolicy": "policy",
    "Verification": "verify",
    "build_files": "build",
    "find_duplicates": "verify",
    "image_files": "build",
    "image_size": "reading",
    "read_image": "reading",
    "read_label": "reading",
    "resize_long_edge": "reading",
    "suggest_data": "suggest",
    "verify_files": "verify",
}

__all__ = sorted(_HOME)  # noqa: PLE0605


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_HOME[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
