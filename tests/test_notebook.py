"""docs/notebook.ipynb runs from top to bottom, and shows what it says."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest

from scripts.documentation.mkdocs_hooks import notebook_page

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOK = ROOT / "docs" / "notebook.ipynb"


def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    nbformat = pytest.importorskip("nbformat")

    # The kernel is a process of its own: it finds the checkout, and runs in another folder.
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    resources = {"metadata": {"path": str(tmp_path)}}
    client = nbclient.NotebookClient(notebook, timeout=600, resources=resources)
    client.execute()

    text = notebook_page(notebook)
    assert text.count("![") == 2
    check_scores(text)


def check_scores(text: str) -> None:
    """All scales together are better than one alone is on average, on whatever machine."""
    scores = [float(score) for score in re.findall(r"mIoU ([\d.]+) %", text)]
    assert len(scores) == 7
    trained, attached = scores[:3], scores[3:]
    assert trained[-1] > sum(trained[:-1]) / 2
    assert attached[-1] > sum(attached[:-1]) / 3


def test_the_committed_notebook_is_small_and_complete() -> None:
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert NOTEBOOK.stat().st_size < 250_000
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    assert all(output["output_type"] != "error" for cell in cells for output in cell["outputs"])
    check_scores(notebook_page(notebook))
