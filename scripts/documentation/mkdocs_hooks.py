"""What `make docs` adds to mkdocs: files of the repository that the pages link to.

On GitHub a page of docs/ reaches them by `../CONTRIBUTING.md`. The site knows only its own folder,
so each such file is brought in under its own path, and the links are shortened.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[2]
BROUGHT_IN = ("CONTRIBUTING.md", "CHANGELOG.md", "configs/README.md", "results/**/*.svg")

# A Markdown link to a file above docs/, and one from the root into docs/.
_OUT_OF_DOCS = re.compile(r"\]\(\.\./")
_INTO_DOCS = re.compile(r"\]\(docs/")


def on_files(files: Any, config: Any) -> Any:
    """Add the files to those of the site."""
    for pattern in BROUGHT_IN:
        for path in sorted(ROOT.glob(pattern)):
            name = path.relative_to(ROOT).as_posix()
            files.append(File.generated(config, name, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Make the links of a page those of the site."""
    if "/" not in page.file.src_uri:
        markdown = _OUT_OF_DOCS.sub("](", markdown)
    return _INTO_DOCS.sub("](", markdown)
