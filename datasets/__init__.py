"""Files -> (image, label): what data sets are, how their files are found, read, checked, augmented and fed.

Names are imported when first used, so that a door that only lists files does not wait for torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .augmentation import Augmentation as Augmentation
    from .augmentation import augment as augment
    from .augmentation import augmentation_preset as augmentation_preset
    from .augmentation import sample_generator as sample_generator
    from .build import build_files as build_files
    from .build import image_files as image_files
    from .cache import DecodedCache as DecodedCache
    from .cache import build_cache as build_cache
    from .cityscapes import CITYSCAPES as CITYSCAPES
    from .class_uniform import ClassIndex as ClassIndex
    from .class_uniform import build_class_index as build_class_index
    from .device_augment import augment_on_device as augment_on_device
    from .errors import DataError as DataError
    from .eval_loader import EvalLoader as EvalLoader
    from .eval_loader import build_eval_loader as build_eval_loader
    from .files import Files as Files
    from .loader import ClassUniform as ClassUniform
    from .loader import ExtraSource as ExtraSource
    from .loader import TrainLoader as TrainLoader
    from .loader import build_train_loader as build_train_loader
    from .normalisation import normalise as normalise
    from .plan import EpochPlan as EpochPlan
    from .plan import ExtraPlan as ExtraPlan
    from .policy import LabelPolicy as LabelPolicy
    from .reading import image_size as image_size
    from .reading import read_image as read_image
    from .reading import read_label as read_label
    from .reading import resize_long_edge as resize_long_edge
    from .spec import ClassInfo as ClassInfo
    from .spec import DatasetSpec as DatasetSpec
    from .suggest import suggest_data as suggest_data
    from .verify import Verification as Verification
    from .verify import count_pixels as count_pixels
    from .verify import find_duplicates as find_duplicates
    from .verify import verify_files as verify_files
    from .workers import explain_lost_worker as explain_lost_worker

_HOME = {
    "Augmentation": "augmentation",
    "CITYSCAPES": "cityscapes",
    "ClassIndex": "class_uniform",
    "ClassInfo": "spec",
    "ClassUniform": "loader",
    "DataError": "errors",
    "DatasetSpec": "spec",
    "DecodedCache": "cache",
    "EpochPlan": "plan",
    "EvalLoader": "eval_loader",
    "ExtraPlan": "plan",
    "ExtraSource": "loader",
    "Files": "files",
    "LabelPolicy": "policy",
    "TrainLoader": "loader",
    "Verification": "verify",
    "augment": "augmentation",
    "augment_on_device": "device_augment",
    "augmentation_preset": "augmentation",
    "build_cache": "cache",
    "build_class_index": "class_uniform",
    "build_eval_loader": "eval_loader",
    "build_files": "build",
    "build_train_loader": "loader",
    "count_pixels": "verify",
    "explain_lost_worker": "workers",
    "find_duplicates": "verify",
    "image_files": "build",
    "image_size": "reading",
    "normalise": "normalisation",
    "read_image": "reading",
    "read_label": "reading",
    "resize_long_edge": "reading",
    "sample_generator": "augmentation",
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
