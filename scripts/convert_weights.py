"""Convert weights to files by our names: `hmsa convert` from a checkout."""

from __future__ import annotations

import sys
from pathlib import Path

# A script runs from any folder: the checkout it lies in comes before what may be installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from hmsa.engine.arguments import convert_command

if __name__ == "__main__":
    sys.exit(convert_command(program="convert_weights.py"))
