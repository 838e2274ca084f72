"""``hekaton`` and ``python -m hekaton``."""

import sys

from hekaton.cli import main
from hekaton.cli.ending import end_with_this_status
from hekaton.streams import open_closed_streams, show_any_text

__all__ = ["main", "run"]


def run() -> int:
    """The ``hekaton`` command as the whole of a process."""
    open_closed_streams()
    show_any_text(sys.stdout)
    with end_with_this_status() as ending:
        ending.status = main()
    return ending.status


if __name__ == "__main__":
    sys.exit(run())
