"""Reading pieces of many files, each of which must stay what it was."""

from __future__ import annotations

import os
import resource
import weakref
from collections import OrderedDict
from pathlib import Path

import xxhash

from hekaton.data.identity import FileState
from hekaton.errors import DataError
from hekaton_hf.decoding import BLOCK
from hekaton_hf.files import shown
from hekaton_hf.index import changed

_SHARE_OF_LIMIT = 4
"""A quarter of the files that a process may have open."""
_MOST_AT_ONCE = 1 << 30
"""Systems read less than 2 GiB at once."""


class OpenFiles:
    """Keeps the files open that were read last. May be used on both sides of a fork."""

    def __init__(self) -> None:
        self._open: OrderedDict[Path, int] = OrderedDict()
        limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._most = min(limit, 1 << 16) // _SHARE_OF_LIMIT
        self._states: dict[Path, FileState] = {}
        """Of files that changed their state, but not their content."""
        weakref.finalize(self, _close, self._open)

    def read(
        self, path: Path, start: int, length: int, *, known: tuple[FileState, str] | None = None
    ) -> bytes:
        """``length`` bytes of a file from ``start`` on.

        :param known: the state of the file and the hash of its content when it was indexed.
        :raises DataError: when it has another content now, or cannot be read.
        """
        try:
            descriptor = self._descriptor(path)
            if known is not None:
                self._check(path, descriptor, *known)
            parts = []
            while length > 0:
                part = os.pread(descriptor, min(length, _MOST_AT_ONCE), start)
                if not part:
                    raise changed(path, "while the run was reading it")
                parts.append(part)
                start += len(part)
                length -= len(part)
        except OSError as e:
            raise DataError(f"cannot read '{shown(path)}': {e.strerror}") from e
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _descriptor(self, path: Path) -> int:
        descriptor = self._open.get(path)
        if descriptor is None:
            while len(self._open) >= self._most:
                os.close(self._open.popitem(last=False)[1])
            descriptor = self._open[path] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        else:
            self._open.move_to_end(path)
        return descriptor

    def _check(self, path: Path, descriptor: int, state: FileState, content: str) -> None:
        """A new state alone (after ``chmod``, or of an equal copy) does not end a run: then all is hashed."""
        now = FileState.of(os.fstat(descriptor))
        if now in (state, self._states.get(path)):
            return
        if now.size != state.size or _hash(descriptor) != content:
            raise changed(path, "since the run started")
        self._states[path] = now


def _hash(descriptor: int) -> str:
    digest, place = xxhash.xxh3_128(), 0
    while block := os.pread(descriptor, BLOCK, place):
        digest.update(block)
        place += len(block)
    return digest.hexdigest()


def _close(descriptors: OrderedDict[Path, int]) -> None:
    while descriptors:
        os.close(descriptors.popitem()[1])
