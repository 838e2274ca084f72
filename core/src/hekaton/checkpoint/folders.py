"""What checkpoints need of a folder, and each kind of storage does in its own way.

A path on the disk has atomic renames, and ``fsync`` to outlive a loss of power. Behind a URL a file appears
when it is whole, and no folder can be renamed: a move copies, the file that makes the folder count last.
"""

from __future__ import annotations

import os
import secrets
import shutil
from pathlib import Path
from typing import TypeAlias

from hekaton.urls import UrlPath, is_url

Folder: TypeAlias = Path | UrlPath
"""A folder, or a file in one."""


def folder_at(location: str, *, within: str = "") -> Folder:
    """The folder at a URL, or at a path relative to ``within``."""
    return UrlPath(location) if is_url(location) else Path(within, location)


def write_whole(file: Folder, data: bytes) -> None:
    """Write a file so that it has all of its content or is not there; it is safe when this returns."""
    if isinstance(file, UrlPath):
        file.write_whole(data)
        return
    temporary = file.with_name(f"{file.name}.{secrets.token_hex(4)}.tmp")  # two runs may write the same file
    with temporary.open("wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.rename(file)
    sync(file.parent)


def size_of(file: Folder) -> int:
    return file.size() if isinstance(file, UrlPath) else file.stat().st_size


def files_in(folder: Folder) -> dict[str, int]:
    """The files of a folder, and their sizes in bytes."""
    if isinstance(folder, UrlPath):
        return folder.files()
    return {entry.name: entry.stat().st_size for entry in folder.iterdir() if entry.is_file()}


def is_there(path: Folder) -> bool:
    """:raises OSError: when it cannot be told. What is taken for absent may be removed."""
    try:
        size_of(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def move(folder: Folder, target: Folder, *, key: str) -> None:
    """Move a folder to where there is none.

    :param key: the file without which the folder counts for nothing. Cut short, this leaves it in one of the
        two folders, with everything else there, or in both.
    """
    if isinstance(folder, UrlPath):
        assert isinstance(target, UrlPath)
        folder.copy_files(target, last=key)
        remove(folder, key=key)
    else:
        assert isinstance(target, Path)
        folder.rename(target)
        sync(target.parent)


def remove(folder: Folder, *, key: str) -> None:
    """Remove a folder, ``key`` first: cut short, it counts for nothing."""
    if not is_there(folder):
        return
    (folder / key).unlink(missing_ok=True)
    if isinstance(folder, UrlPath):
        folder.remove_tree()
    else:
        sync(folder)
        shutil.rmtree(folder)


def sync(folder: Folder) -> None:
    """Bring the names in a folder to the disk, so that renames in it outlive a loss of power."""
    if isinstance(folder, UrlPath):
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def words_of(error: OSError) -> str:
    """What the disk or the store said: those behind a URL often leave ``strerror`` empty."""
    return error.strerror or str(error) or type(error).__name__
