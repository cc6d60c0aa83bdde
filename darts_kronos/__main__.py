"""``python -m darts_kronos``: the command line."""

import sys

from darts_kronos.cli import main

if __name__ == "__main__":
    sys.exit(main())
