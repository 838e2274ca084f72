"""Large files written past the page cache.

The cache takes processor time for every page, several times what the disk needs, and drops what others read.
Without it a writer waits for the disk, so a thread does, while the next buffer is filled.
"""

from __future__ import annotations

import errno
import fcntl
import io
import mmap
import os
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

_BUFFER = 1 << 23
"""Bytes that are written at once; a multiple of what any disk asks for."""
_DIRECT = getattr(os, "O_DIRECT", 0)  # Linux


class DirectFile(io.RawIOBase):
    """A new file that is written from start to end, and is on the disk when it is closed without an error.

    Where the file system knows no direct writing, the page cache is used.

    :raises OSError: (all methods) when the disk refuses, or refused what was written before.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._descriptor, self._direct = _opened(path)
        # They begin at a page, as the disk asks for.
        self._buffer, self._other = mmap.mmap(-1, _BUFFER), mmap.mmap(-1, _BUFFER)
        self._filled = 0
        self._written = 0
        self._writer = ThreadPoolExecutor(max_workers=1)
        self._pending: Future[None] | None = None

    def write(self, data: Any) -> int:
        rest = whole = memoryview(data).cast("B")
        while rest:
            piece = rest[: _BUFFER - self._filled]
            self._buffer[self._filled : self._filled + len(piece)] = piece
            self._filled += len(piece)
            rest = rest[len(piece) :]
            if self._filled == _BUFFER:
                self._put()
        return len(whole)

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._written + self._filled

    def close(self) -> None:
        if self.closed:
            return
        try:
            self._settle()
            self._use_cache()  # the rest is no multiple of a block
            self._put()
            self._settle()
            os.fsync(self._descriptor)
        finally:
            self._writer.shutdown()
            os.close(self._descriptor)
            self._buffer.close()
            self._other.close()
            super().close()

    def _put(self) -> None:
        self._settle()
        self._pending = self._writer.submit(self._write_all, self._buffer, self._filled)
        self._buffer, self._other = self._other, self._buffer
        self._written += self._filled
        self._filled = 0

    def _settle(self) -> None:
        """Wait for the write under way; one that failed is re-raised, every time."""
        if self._pending is not None:
            self._pending.result()

    def _write_all(self, filled: mmap.mmap, size: int) -> None:
        with memoryview(filled) as buffer:
            start = 0
            while start < size:
                with buffer[start:size] as rest:
                    start += self._write_some(rest)

    def _write_some(self, rest: memoryview) -> int:
        try:
            return os.write(self._descriptor, rest)
        except OSError as error:
            if error.errno != errno.EINVAL or not self._direct:
                raise
        self._use_cache()
        return os.write(self._descriptor, rest)

    def _use_cache(self) -> None:
        if self._direct:
            flags = fcntl.fcntl(self._descriptor, fcntl.F_GETFL)
            fcntl.fcntl(self._descriptor, fcntl.F_SETFL, flags & ~_DIRECT)
            self._direct = False


def _opened(path: Path) -> tuple[int, bool]:
    """The descriptor of a new file, and whether it is written directly."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
    try:
        return os.open(path, flags | _DIRECT, 0o666), bool(_DIRECT)
    except OSError as error:
        if error.errno != errno.EINVAL or not _DIRECT:
            raise
        return os.open(path, flags, 0o666), False
