"""Draw what a network sees in one image: `hmsa panel` from a checkout."""

from __future__ import annotations

import sys
from pathlib import Path

# A script runs from any folder: the checkout it lies in comes before what may be installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from hmsa.engine.arguments import panel_command

if __name__ == "__main__":
    sys.exit(panel_command(program="panel.py"))
