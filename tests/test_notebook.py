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

    # Both scales together are better than what the two have on average: whatever the machine.
    text = notebook_page(notebook)
    scores = {
        line.split(":")[0]: float(found[1])
        for line in text.splitlines()
        if (found := re.search(r"mIoU ([\d.]+) %", line))
    }
    assert scores["(0.5, 1.0)"] > (scores["(0.5,)"] + scores["(1.0,)"]) / 2
    assert scores["(0.25, 0.5, 1.0)"] > 60
    assert text.count("![") == 2


def test_the_committed_notebook_is_small_and_complete() -> None:
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert NOTEBOOK.stat().st_size < 250_000
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    assert all(output["output_type"] != "error" for cell in cells for output in cell["outputs"])
