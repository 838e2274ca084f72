"""The hash of a file's whole content, computed once for each state of the file and kept in a cache."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import re
import shutil
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import xxhash

from hekaton.data.identity import SAMPLE_BYTES, SAMPLES, FileState, fingerprint, sample, settled_state
from hekaton.errors import DataError

log = logging.getLogger("hekaton")

KEPT_DAYS = 30
"""What no run used for so long is removed from a cache."""
_BLOCK = 1 << 22
_WORTH_A_LINE = 1 << 30
"""Bytes: reading so much takes a second or more."""


@dataclass(frozen=True)
class KnownFile:
    """A file, and the hash of its content in a state.

    :param content: XXH3-128, 32 hexadecimal digits.
    """

    path: Path
    state: FileState
    content: str

    def unchanged(self) -> KnownFile:
        """The same file as it is now. A new state alone, after ``chmod`` or of an equal copy, is no change.

        :raises DataError: when it has another content now, or cannot be read.
        """
        try:
            if FileState.of(os.stat(self.path)) == self.state:
                return self
        except OSError as e:
            raise DataError(f"cannot read '{self.path}': {e.strerror}") from e
        now = known_file(self.path)
        if now.content != self.content:
            raise _changed(self.path, "since the run started")
        return now


def known_file(path: Path) -> KnownFile:
    """Hash a file, or find the hash where that was done before.

    Other processes that want the same hash wait for it.

    :raises DataError: when it cannot be read, is no regular file, or changes while it is read.
    """
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # opening a FIFO waits for its writer
            raise DataError(f"'{path}' is no regular file")
        with path.open("rb", buffering=0) as file:
            state = settled_state(file.fileno())
            content = _hash(path, file.fileno(), state)
            if FileState.of(os.fstat(file.fileno())) != state:
                raise _changed(path, "while it was read")
    except OSError as e:
        raise DataError(f"cannot read '{path}': {e.strerror}") from e
    return KnownFile(path, state, content)


def _hash(path: Path, descriptor: int, state: FileState) -> str:
    pieces = sample(descriptor, state.size)
    if state.size <= SAMPLES * SAMPLE_BYTES:
        return xxhash.xxh3_128_hexdigest(pieces)
    kept = cache_folder() / "contents" / fingerprint("1", os.path.realpath(path), state, pieces)
    found = _kept(kept)
    if found:
        return found
    with _locked(kept):
        found = _kept(kept)
        if not found:
            found = _hash_all(path, descriptor, state.size)
            _keep(kept, found)
    return found


def _hash_all(path: Path, descriptor: int, size: int) -> str:
    if size >= _WORTH_A_LINE:
        log.info("reading '%s' for the first time: %.1f GB", path, size / 1e9)
    digest, place = xxhash.xxh3_128(), 0
    while block := os.pread(descriptor, _BLOCK, place):
        digest.update(block)
        place += len(block)
    return digest.hexdigest()


def _kept(kept: Path) -> str:
    """The hash that a file of the cache holds, empty where there is none."""
    try:
        content = kept.read_text(encoding="utf-8")[:33]
        if re.fullmatch("[0-9a-f]{32}", content):
            with contextlib.suppress(OSError):  # a cache that can only be read is nobody's to clear
                os.utime(kept)
            return content
    except (OSError, ValueError):
        pass  # it is computed anew
    return ""


def _keep(kept: Path, content: str) -> None:
    unfinished = kept.with_name(f"{kept.name}.unfinished-{os.getpid()}")
    try:
        unfinished.write_text(content, encoding="utf-8")
        unfinished.replace(kept)
        remove_unused(kept.parent)
    except OSError as e:
        log.warning("cannot keep what was found in '%s', it is read again next time: %s", kept, e.strerror)


@contextlib.contextmanager
def _locked(kept: Path) -> Iterator[None]:
    """Let one process at a time read a file through; without a cache, or locks on it, all do."""
    descriptor = None
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(
            kept.with_name(f"{kept.name}.lock"), os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o644
        )
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    except OSError as e:
        log.debug("no lock in '%s': %s", kept.parent, e.strerror)
    try:
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _changed(path: Path, when: str) -> DataError:
    return DataError(
        f"'{path}' changed {when}",
        hint="the data must not change during a run; start again when it is complete",
    )


def cache_folder() -> Path:
    """``$HEKATON_CACHE``, else ``hekaton`` in the user's folder for caches."""
    own = os.environ.get("HEKATON_CACHE")
    if own:
        return Path(own).expanduser().absolute()
    caches = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(caches).expanduser().absolute() / "hekaton"


def remove_unused(folder: Path) -> None:
    """Remove what no run has used for a long time."""
    oldest = time.time() - KEPT_DAYS * 86400
    for entry in folder.iterdir():
        try:
            if entry.stat().st_mtime > oldest:
                continue
            if entry.is_dir():
                shutil.rmtree(entry)
            else:
                entry.unlink()
        except OSError:
            log.debug("cannot remove '%s', which another run may be removing", entry)
