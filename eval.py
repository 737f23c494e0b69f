"""Evaluate a checkpoint on a split, or predict any images: `python eval.py --help`."""

import sys

if __name__ == "__main__":
    from hmsa.__main__ import main

    sys.exit(main(["eval", *sys.argv[1:]], program="eval.py"))
