"""``hekaton`` and ``python -m hekaton``."""

import sys

from hekaton.cli import main

__all__ = ["main"]

if __name__ == "__main__":
    sys.exit(main())
