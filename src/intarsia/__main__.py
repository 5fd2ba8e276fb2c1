"""`python -m intarsia`, for where the command is not on the path."""

import sys

from intarsia.cli.__main__ import main

if __name__ == "__main__":
    sys.exit(main())
