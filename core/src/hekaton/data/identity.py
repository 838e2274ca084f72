"""What a file's content is, and how a change of it is noticed.

Which documents a run was given is known by a hash over every byte of their files. Reading everything again
only to hash it would cost as much as the first reading, so what was learned from a file may be kept beside
its :class:`FileState` and :func:`sample`. Of these the change time is what tells: copying, unpacking and
synchronising programs set the modification time back, but no program can set the change time, and a file that
another one replaces has another inode. The sample is for file systems that keep neither.
"""

from __future__ import annotations

import os
import time
from dataclasses import astuple, dataclass

import xxhash

SAMPLES = 16
SAMPLE_BYTES = 4096
"""A file of up to 64 KiB is sampled whole."""

_RESOLUTION = 0.02
_COARSE_RESOLUTION = 2.0
"""Seconds between two changes that some file system gives the same time: ticks of the kernel, and FAT."""


@dataclass(frozen=True)
class FileState:
    """Equal as long as nobody wrote to a file or put another in its place. Times in nanoseconds."""

    inode: int
    size: int
    modified: int
    changed: int

    @classmethod
    def of(cls, stat: os.stat_result) -> FileState:
        return cls(stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)


def settled_state(descriptor: int) -> FileState:
    """The state of an open file, from a moment on at which any later change gives another one.

    A file that was changed a moment ago could be changed again within the same tick of the file system's
    clock: then this waits for the tick to end, two seconds at most.
    """
    state = FileState.of(os.fstat(descriptor))
    whole_seconds = state.changed % 1_000_000_000 == 0
    resolution = _COARSE_RESOLUTION if whole_seconds else _RESOLUTION
    age = time.time() - state.changed / 1e9
    if age >= resolution:
        return state
    time.sleep(min(resolution - age, resolution))  # a clock ahead of ours gives a negative age
    return FileState.of(os.fstat(descriptor))


def sample(descriptor: int, size: int) -> bytes:
    """Pieces from all over an open file of ``size`` bytes; all of it where it is small."""
    if size <= SAMPLES * SAMPLE_BYTES:
        return os.pread(descriptor, SAMPLES * SAMPLE_BYTES, 0)
    last = size - SAMPLE_BYTES
    return b"".join(
        os.pread(descriptor, SAMPLE_BYTES, last * number // (SAMPLES - 1)) for number in range(SAMPLES)
    )


def fingerprint(*parts: str | bytes | FileState) -> str:
    """32 hexadecimal digits that differ where any part differs."""
    digest = xxhash.xxh3_128()
    for part in parts:
        if isinstance(part, FileState):
            part = repr(astuple(part))
        raw = part.encode("utf-8", "surrogateescape") if isinstance(part, str) else part
        digest.update(b"%d:" % len(raw))
        digest.update(raw)
    return digest.hexdigest()
