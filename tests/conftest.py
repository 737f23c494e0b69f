"""What every test shares: one thread, arithmetic left alone, GPU tests only with a GPU."""

from __future__ import annotations

import os
import tempfile

os.environ.setdefault(
    "OMP_NUM_THREADS", "1"
)  # before torch and numpy are imported; subprocesses inherit it
os.environ.setdefault("MKL_NUM_THREADS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # tensorboard
# A training looks for pre-trained weights by itself: not on the network, and not in the cache of
# whoever runs the tests.
os.environ["HMSA_OFFLINE"] = "1"
os.environ["HMSA_CACHE"] = os.path.join(os.path.dirname(__file__), "no_cache")
# Code that tests train with is remembered as trusted, but not by whoever runs the tests.
os.environ["XDG_CONFIG_HOME"] = tempfile.mkdtemp(prefix="hmsa-tests-")

from pathlib import Path
from types import ModuleType

import cv2
import hypothesis
import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]

torch.set_num_threads(1)
cv2.setNumThreads(0)

# The same examples in every run, however slow the machine.
hypothesis.settings.register_profile("hmsa", deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("hmsa")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip GPU tests where there is no CUDA device."""
    if torch.cuda.is_available():
        return
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture(autouse=True)
def _global_state() -> None:
    """A test that changes torch's global switches must not change the next one."""
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float32)
    torch.use_deterministic_algorithms(False)


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout."""
    return ROOT


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """Small golden numbers that tests compare with."""
    return ROOT / "tests" / "data"


@pytest.fixture
def official(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The official evaluation of Cityscapes."""
    scripts = pytest.importorskip("cityscapesscripts.evaluation.evalPixelLevelSemanticLabeling")
    # cityscapesScripts 2.x calls a function that NumPy 2.4 no longer has.
    if not hasattr(np, "in1d"):
        monkeypatch.setattr(np, "in1d", np.isin, raising=False)
    monkeypatch.setattr(scripts.args, "quiet", True)
    monkeypatch.setattr(scripts.args, "JSONOutput", False)
    return scripts
