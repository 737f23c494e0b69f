"""Label images with a trained network (paper, section 4): `python autolabel.py --help`."""

import sys

if __name__ == "__main__":
    from hmsa.__main__ import main

    sys.exit(main(["autolabel", *sys.argv[1:]], program="autolabel.py"))
