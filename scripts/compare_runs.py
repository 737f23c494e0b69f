"""Put several evaluations side by side: `hmsa compare` from a checkout."""

from __future__ import annotations

import sys
from pathlib import Path

# A script runs from any folder: the checkout it lies in comes before what may be installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from hmsa.engine.arguments import compare_command

if __name__ == "__main__":
    sys.exit(compare_command(program="compare_runs.py"))
