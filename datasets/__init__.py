"""Files -> (image, label): how data sets are found, read, checked, augmented and loaded.

Names are imported when first used, so that a command that only lists files does not wait for torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .augment.augmentation import Augmentation as Augmentation
    from .augment.augmentation import sample_generator as sample_generator
    from .augment.device_augment import augment_on_device as augment_on_device
    from .augment.normalisation import normalise as normalise
    from .build import build_files as build_files
    from .build import image_files as image_files
    from .build import known_classes as known_classes
    from .checks.suggest import suggest_data as suggest_data
    from .checks.verify import Verification as Verification
    from .checks.verify import count_pixels as count_pixels
    from .checks.verify import find_duplicates as find_duplicates
    from .checks.verify import verify_files as verify_files
    from .errors import DataError as DataError
    from .files import Files as Files
    from .layouts.cityscapes import CITYSCAPES as CITYSCAPES
    from .layouts.mapillary_classes import MAPILLARY as MAPILLARY
    from .loading.eval_loader import EvalLoader as EvalLoader
    from .loading.eval_loader import build_eval_loader as build_eval_loader
    from .loading.loader import ClassUniform as ClassUniform
    from .loading.loader import ExtraSource as ExtraSource
    from .loading.loader import TrainLoader as TrainLoader
    from .loading.loader import build_train_loader as build_train_loader
    from .loading.workers import explain_lost_worker as explain_lost_worker
    from .policy import LabelPolicy as LabelPolicy
    from .reading.cache import DecodedCache as DecodedCache
    from .reading.cache import build_cache as build_cache
    from .reading.decoding import image_size as image_size
    from .reading.decoding import read_image as read_image
    from .reading.decoding import read_label as read_label
    from .reading.decoding import resize_long_edge as resize_long_edge
    from .sampling.class_uniform import ClassIndex as ClassIndex
    from .sampling.class_uniform import build_class_index as build_class_index
    from .sampling.plan import EpochPlan as EpochPlan
    from .sampling.plan import ExtraPlan as ExtraPlan
    from .spec import ClassInfo as ClassInfo
    from .spec import DatasetSpec as DatasetSpec

_MODULE_OF = {
    "Augmentation": "augment.augmentation",
    "CITYSCAPES": "layouts.cityscapes",
    "ClassIndex": "sampling.class_uniform",
    "ClassInfo": "spec",
    "ClassUniform": "loading.loader",
    "DataError": "errors",
    "DatasetSpec": "spec",
    "DecodedCache": "reading.cache",
    "EpochPlan": "sampling.plan",
    "EvalLoader": "loading.eval_loader",
    "ExtraPlan": "sampling.plan",
    "ExtraSource": "loading.loader",
    "Files": "files",
    "LabelPolicy": "policy",
    "MAPILLARY": "layouts.mapillary_classes",
    "TrainLoader": "loading.loader",
    "Verification": "checks.verify",
    "augment_on_device": "augment.device_augment",
    "build_cache": "reading.cache",
    "build_class_index": "sampling.class_uniform",
    "build_eval_loader": "loading.eval_loader",
    "build_files": "build",
    "build_train_loader": "loading.loader",
    "count_pixels": "checks.verify",
    "explain_lost_worker": "loading.workers",
    "find_duplicates": "checks.verify",
    "image_files": "build",
    "image_size": "reading.decoding",
    "known_classes": "build",
    "normalise": "augment.normalisation",
    "read_image": "reading.decoding",
    "read_label": "reading.decoding",
    "resize_long_edge": "reading.decoding",
    "sample_generator": "augment.augmentation",
    "suggest_data": "checks.suggest",
    "verify_files": "checks.verify",
}

__all__ = sorted(_MODULE_OF)  # noqa: PLE0605


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    # Kept in the module's own names, so that this function is asked once for each of them.
    value = getattr(import_module(f".{_MODULE_OF[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
