"""What checkpoints need of a folder, and each kind of storage does in its own way.

A path on the disk has atomic renames, and ``fsync`` to outlive a loss of power. Behind a URL a file appears
when it is whole, and no folder can be renamed: a move copies, the file that makes the folder count last.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TypeAlias

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
    with replacing(file) as stream:
        stream.write(data)


@contextlib.contextmanager
def replacing(file: Path) -> Iterator[IO[bytes]]:
    """A stream whose content takes the place of a file when the context ends without an error, and is removed
    otherwise; the file is safe then."""
    temporary = file.with_name(f"{file.name}.{secrets.token_hex(4)}.tmp")  # two runs may write the same file
    try:
        with temporary.open("wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        temporary.rename(file)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync(file.parent)


def size_of(file: Folder) -> int:
    """The size of a regular file in bytes.

    :raises OSError: when it is not there, or something else: a folder, a FIFO, a device, a socket.
    """
    if isinstance(file, UrlPath):
        return file.file_size()
    return _size_of_regular(file, file.stat())


def open_file(file: Folder) -> IO[bytes]:
    """Open a regular file for reading, without a buffer where it is on a disk.

    Whatever else carries its name is not opened: a FIFO would wait for a writer, a device would do what
    devices do when they are opened.

    :raises OSError: as :func:`size_of`.
    """
    size_of(file)
    if isinstance(file, UrlPath):
        return file.open("rb")
    # Another process may have put something else there since: that must not wait either.
    descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    try:
        _size_of_regular(file, os.fstat(descriptor))
        return open(descriptor, "rb", buffering=0)
    except BaseException:
        os.close(descriptor)
        raise


def read_file(file: Folder, *, limit: int) -> bytes:
    """Read a regular file of at most ``limit`` bytes.

    :raises OSError: when it is larger, and as :func:`size_of`.
    """
    if (size := size_of(file)) > limit:
        raise OSError(errno.EFBIG, f"it has {size:,} bytes, more than {limit:,}", str(file))
    with open_file(file) as stream:
        pieces, left = [], limit + 1
        while left and (piece := stream.read(left)):
            pieces.append(piece)
            left -= len(piece)
    if not left:
        raise OSError(errno.EFBIG, f"it grew beyond {limit:,} bytes", str(file))
    return b"".join(pieces)


def _size_of_regular(file: Path, status: os.stat_result) -> int:
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "it is not a regular file", str(file))
    return status.st_size


def files_in(folder: Folder) -> dict[str, int]:
    """The regular files of a folder, and their sizes in bytes."""
    if isinstance(folder, UrlPath):
        return folder.files()
    return {entry.name: entry.stat().st_size for entry in folder.iterdir() if entry.is_file()}


def is_there(path: Folder) -> bool:
    """Whether there is a file, folder or anything else of this name; a link that leads nowhere is not.

    :raises OSError: when it cannot be determined. What is taken for absent may be removed.
    """
    try:
        if isinstance(path, UrlPath):
            path.size()
        else:
            path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def check_subfolder(folder: Folder) -> None:
    """Check that a name in a checkpoint folder is a folder, or a link to one, or free.

    :raises OSError: naming what stands in the way.
    """
    if isinstance(folder, UrlPath):
        if is_there(folder) and not folder.is_dir():
            raise OSError(errno.ENOTDIR, f"'{folder.name}' is not a folder", str(folder))
        return
    try:
        mode = folder.stat().st_mode
    except FileNotFoundError:
        if folder.is_symlink():
            why = f"'{folder.name}' is a link that leads nowhere"
            raise OSError(errno.ENOENT, why, str(folder)) from None
        return
    except OSError as error:
        raise OSError(error.errno, f"'{folder.name}': {reason_of(error)}", str(folder)) from error
    if not stat.S_ISDIR(mode):
        raise OSError(errno.ENOTDIR, f"'{folder.name}' is not a folder", str(folder))


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
        if folder.is_symlink() and folder.parent != target.parent:
            target.symlink_to(folder.resolve())  # a relative one would lead elsewhere from there
            folder.unlink()
        else:
            folder.rename(target)
        sync(target.parent)


def remove(folder: Folder, *, key: str) -> None:
    """Remove a folder, ``key`` first: cut short, it counts for nothing. Of a link, the link alone."""
    if not (is_there(folder) or (isinstance(folder, Path) and folder.is_symlink())):
        return
    if folder.is_symlink():
        folder.unlink()
        sync(folder.parent)
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


def reason_of(error: OSError) -> str:
    """What the disk or the store said: those behind a URL often leave ``strerror`` empty."""
    return error.strerror or str(error) or type(error).__name__
