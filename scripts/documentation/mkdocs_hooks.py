"""What `make docs` adds to mkdocs: files of the repository that the pages link to, and notebooks.

On GitHub a page of docs/ reaches the files by `../CONTRIBUTING.md`. The site knows only its own
folder, so each such file is brought in under its own path, and the links are shortened. GitHub
shows `notebook.ipynb` itself; on the site it becomes a page with its committed outputs.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
BROUGHT_IN = ("CONTRIBUTING.md", "CHANGELOG.md", "configs/README.md", "results/**/*.svg")

# A Markdown link to a file above docs/, and one from the root into docs/.
_OUT_OF_DOCS = re.compile(r"\]\(\.\./")
_INTO_DOCS = re.compile(r"\]\(docs/")
_NOTEBOOK = re.compile(r"\]\((\w+)\.ipynb\)")


def on_files(files: Any, config: Any) -> Any:
    """Add the files to those of the site."""
    from mkdocs.structure.files import File

    for pattern in BROUGHT_IN:
        for path in sorted(ROOT.glob(pattern)):
            name = path.relative_to(ROOT).as_posix()
            files.append(File.generated(config, name, abs_src_path=str(path)))
    for path in sorted((ROOT / "docs").glob("*.ipynb")):
        text = notebook_page(json.loads(path.read_text(encoding="utf-8")))
        files.append(File.generated(config, f"{path.stem}.md", content=text))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Make the links of a page those of the site."""
    if "/" not in page.file.src_uri:
        markdown = _OUT_OF_DOCS.sub("](", markdown)
    markdown = _NOTEBOOK.sub(r"](\1.md)", markdown)
    return _INTO_DOCS.sub("](", markdown)


def notebook_page(notebook: dict[str, Any]) -> str:
    """A notebook as Markdown: its text, its code, and the text and pictures that it printed."""
    parts = []
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
            continue
        parts.append(f"```python\n{source}\n```")

        # Text is printed as a stream; the value of a cell's last line may be a picture.
        for output in cell["outputs"]:
            data = output.get("data", {})
            if "image/png" in data:
                picture = "".join(data["image/png"]).replace("\n", "")
                parts.append(f"![what the cell shows](data:image/png;base64,{picture})")
            elif "text" in output:
                parts.append("```\n" + "".join(output["text"]).rstrip() + "\n```")
    return "\n\n".join(parts) + "\n"
