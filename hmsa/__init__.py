"""Hierarchical multi-scale attention for semantic segmentation: train, evaluate, auto-label."""

from pathlib import Path

__version__ = "0.2.0"

# In a checkout the packages lie beside this folder; installed, they lie in it. Either way each has
# one name, `hmsa.network` and so on, and none stands at the top level of anybody's `sys.path`.
_ROOT = Path(__file__).resolve().parents[1]
if (_ROOT / "engine" / "train.py").is_file() and (_ROOT / "setup.py").is_file():
    __path__.append(str(_ROOT))
