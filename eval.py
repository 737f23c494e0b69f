"""Evaluate a checkpoint on a split, hand a split in to a benchmark, or predict any images with a checkpoint alone. See `python eval.py --help`."""

import sys

from hmsa.engine.evaluate import command

if __name__ == "__main__":
    sys.exit(command())
