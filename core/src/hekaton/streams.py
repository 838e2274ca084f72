"""The standard streams of a process: there, and able to take any text."""

from __future__ import annotations

import io
import os
import sys
from typing import TextIO


def open_closed_streams() -> None:
    """Open what a process was started without (``>&-``): else the first files and connections would take its
    place, and get what libraries write there."""
    for descriptor, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(descriptor)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest that is free: this one
        if getattr(sys, name) is None:
            mode = "w" if descriptor else "r"
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_RDWR), mode, encoding="utf-8"))


def show_any_text(stream: TextIO) -> None:
    """Escape what the encoding of a stream lacks, in place of raising: texts of models and names of files
    have any characters, and a terminal may be of ASCII."""
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="backslashreplace")
