"""``hekaton`` and ``python -m hekaton``."""

import io
import sys
from typing import TextIO

from hekaton.cli import main
from hekaton.cli.ending import end_with_this_status

__all__ = ["main", "run"]


def run() -> int:
    """The ``hekaton`` command as the whole of a process."""
    show_any_text(sys.stdout)
    with end_with_this_status() as ending:
        ending.status = main()
    return ending.status


def show_any_text(stream: TextIO) -> None:
    """Escape what the encoding of a stream lacks, in place of raising: texts of models and names of files
    have any characters, and a terminal may be of ASCII."""
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="backslashreplace")


if __name__ == "__main__":
    sys.exit(run())
