"""What tests of scripts share: inputs made by the real commands, and measuring without a start."""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path

import pytest

from scripts.fuzzing import material
from scripts.measuring import harness
from tests.programs import Program


@pytest.fixture(scope="session")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny data set and runs, by the real commands; not to be changed."""
    folder = tmp_path_factory.mktemp("sound") / "material"

    def command(folder: Path, program: str, *words: str) -> None:
        variables = {**os.environ, **material.environment(folder)}
        words_of_python = [material.ROOT / program, *words]
        done = Program(words_of_python, environment=variables, cwd=folder).finish(timeout=300)
        assert done.returncode == 0, done.stderr

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(material, "command", command)
        material.make_material(folder)
    return folder


@pytest.fixture
def forked_measuring(monkeypatch: pytest.MonkeyPatch) -> None:
    """Peak memory is measured in forks: here the rows matter, and not what they say."""
    context = multiprocessing.get_context("fork")
    monkeypatch.setattr(harness.multiprocessing, "get_context", lambda method: context)
