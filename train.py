"""Train a network as a YAML configuration says: `python train.py --help`."""

import sys

if __name__ == "__main__":
    from hmsa.__main__ import main

    sys.exit(main(["train", *sys.argv[1:]], program="train.py"))
