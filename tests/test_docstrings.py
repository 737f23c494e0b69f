"""The examples in docstrings give what they say."""

from __future__ import annotations

import doctest
import importlib

import pytest

MODULES = (
    "hmsa.engine.segmenter",
    "hmsa.loss.dice",
    "hmsa.loss.focal",
    "hmsa.loss.lovasz",
    "hmsa.network.build",
    "hmsa.network.prediction",
)


@pytest.mark.parametrize("name", MODULES)
def test_examples(name: str) -> None:
    found = doctest.testmod(importlib.import_module(name))
    assert found.attempted and not found.failed
