"""Train a network as a YAML configuration says. See `python train.py --help`."""

import sys

from hmsa.engine.train import command

if __name__ == "__main__":
    sys.exit(command())
