"""``python -m lit_fed``: the same as ``lit-fed``."""

import sys

from lit_fed.cli import main

if __name__ == "__main__":
    sys.exit(main())
