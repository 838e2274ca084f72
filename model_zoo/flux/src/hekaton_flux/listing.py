"""The files of a folder and of the folders in it, found in one pass: there may be millions of them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from hekaton.errors import DataError


@dataclass(frozen=True)
class Listing:
    """Names below the folder, with ``/`` between their parts and in the order of their parts.

    :param files: with links to files, and links that lead nowhere.
    :param links: to folders, in which files are not looked for.
    """

    files: list[str]
    links: list[str]


def listing(folder: Path) -> Listing:
    """:raises DataError: for what is no folder, and a folder that cannot be read."""
    files: list[str] = []
    links: list[str] = []
    waiting = [""]
    while waiting:
        inside = waiting.pop()
        try:
            with os.scandir(folder / inside) as entries:
                for entry in entries:
                    name = f"{inside}{entry.name}"
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(f"{name}/")
                    elif entry.is_symlink() and (folder / name).is_dir():
                        links.append(name)
                    else:
                        files.append(name)
        except OSError as e:
            raise DataError(f"cannot read the folder '{folder / inside}': {e.strerror}") from e
    return Listing(sorted(files, key=_parts), sorted(links, key=_parts))


def _parts(name: str) -> list[str]:
    return name.split("/")
