"""Hierarchical multi-scale attention for semantic segmentation: train, evaluate, auto-label.

import hmsa
model = hmsa.load("runs/mine")
label, confidence = model.predict("photo.jpg")
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hmsa.engine.segmentation import Segmentation as Segmentation
    from hmsa.engine.segmenter import Segmenter as Segmenter
    from hmsa.engine.segmenter import load as load

__version__ = "0.2.0"

# Imported when they are first used: torch takes seconds, and `hmsa --help` needs none of it.
_LAZY = {
    "Segmentation": "hmsa.engine.segmentation",
    "Segmenter": "hmsa.engine.segmenter",
    "load": "hmsa.engine.segmenter",
}
__all__ = ["Segmentation", "Segmenter", "__version__", "load"]

# In a checkout the packages lie beside this folder; installed, they lie in it. Either way each has
# one name, `hmsa.network` and so on, and none stands at the top level of anybody's `sys.path`.
_ROOT = Path(__file__).resolve().parents[1]
if (_ROOT / "engine" / "train.py").is_file() and (_ROOT / "setup.py").is_file():
    __path__.append(str(_ROOT))


def __getattr__(name: str) -> Any:
    """What the package offers, imported at its first use."""
    if name not in _LAZY:
        raise AttributeError(f"module 'hmsa' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
