"""Label images with a trained network: hard labels where it is sure enough, ignore elsewhere (paper, section 4). See `python autolabel.py --help`."""

import sys

from hmsa.engine.autolabel import command

if __name__ == "__main__":
    sys.exit(command())
