"""`python -m manybeam`: the same as the command `manybeam`."""

import sys

from manybeam.cli import main

if __name__ == "__main__":
    sys.exit(main())
