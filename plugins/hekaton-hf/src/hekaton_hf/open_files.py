"""Reading pieces of many files, each of which must stay what it was."""

from __future__ import annotations

import os
import resource
import weakref
from collections import OrderedDict

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
        self._open: OrderedDict[str, int] = OrderedDict()
        limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._most = min(limit, 1 << 16) // _SHARE_OF_LIMIT
        self._states: dict[str, FileState] = {}
        """Of files that changed their state, but not their content."""
        weakref.finalize(self, _close, self._open)

    def read(
        self, path: str, start: int, length: int, *, known: tuple[FileState, str] | None = None
    ) -> bytes | bytearray:
        """``length`` bytes of a file from ``start`` on.

        :param known: the state of the file and the hash of its content when it was indexed.
        :raises DataError: when it has another content now, or cannot be read.
        """
        try:
            descriptor = self._descriptor(path)
            if known is not None:
                self._check(path, descriptor, *known)
            content: bytes | bytearray = os.pread(descriptor, min(length, _MOST_AT_ONCE), start)
            if len(content) < length:
                content = _read_on(descriptor, start, length, content)
            if len(content) < length:
                raise changed(path, "while the run was reading it")
            return content
        except OSError as e:
            raise DataError(f"cannot read '{shown(path)}': {e.strerror}") from e

    def _descriptor(self, path: str) -> int:
        descriptor = self._open.get(path)
        if descriptor is None:
            while len(self._open) >= self._most:
                os.close(self._open.popitem(last=False)[1])
            descriptor = self._open[path] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        else:
            self._open.move_to_end(path)
        return descriptor

    def _check(self, path: str, descriptor: int, state: FileState, content: str) -> None:
        """A new state alone (after ``chmod``, or of an equal copy) does not end a run: then all is hashed."""
        now = FileState.of(os.fstat(descriptor))
        if now in (state, self._states.get(path)):
            return
        if now.size != state.size or _hash(descriptor) != content:
            raise changed(path, "since the run started")
        self._states[path] = now


def _read_on(descriptor: int, start: int, length: int, content: bytes | bytearray) -> bytearray:
    """The rest as well, as far as there is one, in memory that is needed once."""
    whole = bytearray(length)
    done = len(content)
    whole[:done] = content
    view = memoryview(whole)
    while done < length:
        count = os.preadv(descriptor, [view[done : done + _MOST_AT_ONCE]], start + done)
        if not count:
            break
        done += count
    view.release()
    return whole if done == length else whole[:done]


def _hash(descriptor: int) -> str:
    digest, place = xxhash.xxh3_128(), 0
    while block := os.pread(descriptor, BLOCK, place):
        digest.update(block)
        place += len(block)
    return digest.hexdigest()


def _close(descriptors: OrderedDict[str, int]) -> None:
    while descriptors:
        os.close(descriptors.popitem()[1])
