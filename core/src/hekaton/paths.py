"""Paths as users write them."""

from __future__ import annotations

import os

MAX_NAME = 255
"""Bytes of a name of a file or folder, on the file systems in use."""


def expanded(text: str) -> str:
    """A path with ``~`` or ``~user`` at its start replaced by the home folder, as a shell does.

    :raises ValueError: for a home folder that is not known, and for what no file system takes as a path.
    """
    if "\0" in text:
        raise ValueError("a path cannot contain the character NUL")
    if any(len(os.fsencode(name)) > MAX_NAME for name in text.split("/")):
        raise ValueError(f"a name in a path has at most {MAX_NAME} bytes")
    path = os.path.expanduser(text)
    if path.startswith("~"):
        home = text.split("/")[0]
        raise ValueError(f"the home folder of '{home}' is not known; for a name, write ./{home}")
    return path
