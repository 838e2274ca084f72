"""Files behind URLs: which there are, and reading them through failures."""

from __future__ import annotations

import io
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar
from urllib.parse import urlsplit

import fsspec
from fsspec.implementations.local import LocalFileSystem

from hekaton.data.identity import fingerprint, sample
from hekaton.errors import DataError
from hekaton_hf.decoding import BLOCK, UnreadableError
from hekaton_hf.files import format_of

log = logging.getLogger("hekaton")

Result = TypeVar("Result")

FIRST_WAIT = 0.5
"""Seconds to the second attempt; each later one waits twice as long, up to ``LONGEST_WAIT``."""
LONGEST_WAIT = 60.0
_NOT_AGAIN = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)
_STATES = (
    "ETag", "etag", "md5Hash", "md5", "sha256", "Content-MD5", "Digest", "blob_id", "LastModified",
    "last_modified", "Last-Modified", "mtime", "created",
)  # fmt: skip
"""What file systems say of a file that changes with it; the first that there is."""
_from_the_beginning: set[str] = set()
"""URLs of files that can be read in one go only; each was named in the log."""


@dataclass(frozen=True)
class StreamFile:
    """A file behind a URL.

    :param state: size, and what else the file system says that changes with the content.
    :param alone: what is said of the file when it is asked for alone, once it was: a list of a folder may say
        the same in another way.
    """

    url: str
    state: str
    alone: list[str] = field(default_factory=list, compare=False)

    @property
    def path(self) -> PurePosixPath:
        return PurePosixPath(urlsplit(self.url).path or self.url)


@dataclass(frozen=True)
class Patience:
    """How long failures are borne.

    :param attempts: of each reading.
    :param stalled: seconds after which a reading that goes on is named in the log.
    :param section: that has both.
    """

    attempts: int
    stalled: float
    section: str = "stream_dataset"


def find_remote(urls: str, patience: Patience) -> list[StreamFile]:
    """The files that URLs mean, split by commas: each a file, or a pattern where there are folders to list.

    :raises DataError: when one matches nothing, cannot be reached, or is of a format that cannot be read.
    """
    found: dict[str, StreamFile] = {}
    for url in urls_in(urls):
        for file in _matching(url, patience):
            _check_format(file)
            found.setdefault(file.url, file)
    return list(found.values())


def find_named(urls: str) -> list[StreamFile] | None:
    """The files that URLs mean, as far as that can be told without a network; ``None`` where it takes one.

    :raises DataError: as :func:`find_remote`.
    """
    each = urls_in(urls)
    if all(_is_local(url) for url in each):
        return find_remote(urls, Patience(attempts=1, stalled=60.0))
    if any(_is_pattern(url) for url in each):
        return None
    named = {url: StreamFile(url, "") for url in each}
    for file in named.values():
        _check_format(file)
    return list(named.values())


def urls_in(text: str) -> list[str]:
    """URLs that commas are between.

    :raises DataError: when there are none.
    """
    found = [url for url in (part.strip() for part in text.split(",")) if url]
    if not found:
        raise DataError(
            "dataset 'stream' needs files to read",
            hint='set dataset_path, for example dataset_path = "s3://bucket/data/*.jsonl.zst"',
        )
    return found


def _is_local(url: str) -> bool:
    """:raises DataError: for a file system that is not known, or whose package is not installed."""
    try:
        return isinstance(fsspec.core.url_to_fs(url)[0], LocalFileSystem)
    except (ValueError, ImportError) as e:
        raise DataError(f"cannot read '{url}': {e}") from e
    except Exception as e:  # what clients of stores raise has no bounds: here it is left to the run
        log.debug("opening the file system of '%s' failed: %s", url, e)
        return False


def _is_pattern(url: str) -> bool:
    return any(magic in url for magic in "*[") or ("?" in url and not url.startswith("http"))


def _check_format(file: StreamFile) -> None:
    if format_of(file.path) not in ("jsonl", "parquet"):  # type: ignore[arg-type]
        raise DataError(
            f"cannot read '{file.url}': not a format that streams have",
            hint="they are .jsonl (.ndjson), compressed or not, and .parquet",
        )


def _matching(url: str, patience: Patience) -> Iterator[StreamFile]:
    def listed() -> list[tuple[str, dict[str, Any]]]:
        system, path = fsspec.core.url_to_fs(url)
        if _is_pattern(url):
            infos = system.glob(path, detail=True)
            # Lists of a web server's folders say nothing of its files.
            return [
                (system.unstrip_protocol(name), info if _is_whole(info) else system.info(name))
                for name, info in sorted(infos.items())
            ]
        return [(url, system.info(path))]

    try:
        names = tried(listed, url, patience)
    except (ValueError, ImportError) as e:
        raise DataError(f"cannot read '{url}': {e}") from e
    if not names:
        raise DataError(f"no files match '{url}'")
    for name, info in names:
        if info.get("type") == "directory":
            raise DataError(f"'{name}' is a folder", hint="name its files by a pattern: .../*.jsonl.gz")
        if info.get("size") is None:
            raise DataError(
                f"cannot read '{name}': its size is not known, so that an end too soon would not be noticed",
                hint="the server names no Content-Length; download the file",
            )
        state = _state(name, info)
        yield StreamFile(name, state, [] if _is_pattern(url) else [state])


def _is_whole(info: Mapping[str, Any]) -> bool:
    return info.get("type") == "directory" or info.get("size") is not None


def _state(url: str, info: Mapping[str, Any]) -> str:
    """What changes with the content of a file.

    :param info: what its file system says of it.
    :raises DataError: for a file of a disk that cannot be read.
    """
    state = next((str(info[key]) for key in _STATES if info.get(key) is not None), "")
    if _is_local(url):
        path = Path(LocalFileSystem._strip_protocol(url))
        if not path.is_file():
            raise DataError(f"cannot read '{url}': it is not a regular file")
        state += f", {_sampled(path)}"
    return f"{info.get('size')} bytes, {state}"


def _size_in(state: str) -> str:
    return state.partition(",")[0]


def _sampled(path: Path) -> str:
    """What tells files of a disk apart that other programs gave the same size and times.

    :raises DataError: for one that cannot be read.
    """
    try:
        with path.open("rb", buffering=0) as file:
            return fingerprint(sample(file.fileno(), os.fstat(file.fileno()).st_size))[:16]
    except OSError as e:
        raise DataError(f"cannot read '{path}': {e.strerror}") from e


def tried(call: Callable[[], Result], url: str, patience: Patience) -> Result:
    """What a call returns, which may fail some times.

    :raises DataError: when it failed as often as it may, or with what another attempt does not mend.
    """
    began, wait = time.monotonic(), FIRST_WAIT
    for attempt in range(1, patience.attempts + 1):
        try:
            with _stall_named(url, patience.stalled):
                return call()
        except _NOT_AGAIN as e:
            if not _is_of_the_way(e):
                raise DataError(f"cannot read '{url}': {_said(e)}") from e
            error = OSError(_said(e.__cause__ or e))
        except (OSError, EOFError, TimeoutError) as e:
            error = e
        except (ValueError, ImportError, DataError):
            raise
        except Exception as e:  # clients of stores raise what they like
            error = OSError(_said(e))
        if attempt < patience.attempts:
            log.warning(
                "reading '%s' failed: %s; attempt %d of %d follows in %.1f s",
                url, _said(error), attempt + 1, patience.attempts, wait,
            )  # fmt: skip
            time.sleep(wait)
            wait = min(2 * wait, LONGEST_WAIT)
    seconds = time.monotonic() - began
    raise DataError(
        f"cannot read '{url}': {patience.attempts} attempts failed in {seconds:.0f} s, the last with: "
        f"{_said(error)}",
        hint=f"see whether the store can be reached, or set {patience.section}.attempts higher",
    )


def _is_of_the_way(error: BaseException) -> bool:
    """Whether a file is said to be missing only since the way to it failed: the client of ``https`` does so.

    What a server answered is final, but for those answers that ask for patience.
    """
    cause = error.__cause__
    if cause is None or isinstance(cause, _NOT_AGAIN):
        return False
    status = getattr(cause, "status", None)
    return not isinstance(status, int) or status >= 500 or status in (408, 429)


def _said(error: BaseException) -> str:
    text = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


@contextmanager
def _stall_named(url: str, seconds: float) -> Iterator[None]:
    began = time.monotonic()

    def say() -> None:
        log.warning("reading '%s' has been waiting for %.0f s", url, time.monotonic() - began)

    timer = threading.Timer(seconds, say)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


class PatientFile(io.RawIOBase):
    """A file behind a URL that is opened again where it was when reading it fails."""

    def __init__(self, file: StreamFile, patience: Patience) -> None:
        """:raises DataError: when it cannot be opened, or is not what it was when the run started."""
        self._file, self._url, self._patience = file, file.url, patience
        self._place = 0
        self._stream: Any = None
        self._size = tried(self._open, self._url, patience)

    def _open(self) -> int:
        size = self.check()
        system, path = fsspec.core.url_to_fs(self._url)
        in_one_go = {"block_size": 0} if self._url in _from_the_beginning else {}
        self._stream = system.open(path, "rb", **in_one_go)
        return size

    def check(self) -> int:
        """:returns: the bytes of the file.
        :raises DataError: when it is not what it was when the run started.
        """
        system, path = fsspec.core.url_to_fs(self._url)
        system.invalidate_cache(path)
        info = system.info(path)
        now, before = _state(self._url, info), self._file.state
        if _size_in(now) == _size_in(before):
            if not self._file.alone:
                self._file.alone.append(now)
            before = self._file.alone[0]
        if now != before:
            raise DataError(
                f"'{self._url}' changed since the run started: it was {before}, and is {now}",
                hint="put the file back, or start the data over: "
                'checkpoint.exclude_from_loading = ["data_loader"]',
            )
        return int(info["size"])

    def check_at_end(self) -> None:
        """As :meth:`check`, through failures."""
        tried(self.check, self._url, self._patience)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._place = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._size}[whence]
        return self._place

    def read(self, size: int = -1) -> bytes:
        """``size`` bytes, or as many as there are: readers of parquet files take fewer for the end."""
        wanted = self._size - self._place if size < 0 else min(size, self._size - self._place)
        pieces = []
        while wanted > 0:
            pieces.append(self._piece(wanted))
            wanted -= len(pieces[-1])
        return b"".join(pieces)

    def _piece(self, wanted: int) -> bytes:
        def once() -> bytes:
            try:
                if self._stream is None:
                    self._open()
                if self._stream.tell() != self._place:
                    self._seek()
                content: bytes = self._stream.read(wanted)
                if not content:
                    raise EOFError(f"it ends at byte {self._place:,} of {self._size:,}")
                return content
            except BaseException:
                self._close()
                raise

        try:
            content = tried(once, self._url, self._patience)
        except ValueError as e:  # what the client of http raises where a server does not give parts of files
            if self._url in _from_the_beginning:
                raise UnreadableError(str(e), hint="download the file") from e
            _from_the_beginning.add(self._url)
            log.warning("'%s' is read from its beginning after each failure: %s", self._url, e)
            return self._piece(wanted)
        self._place += len(content)
        return content

    def _seek(self) -> None:
        """Of a file that is read in one go, by reading."""
        if self._url not in _from_the_beginning:
            self._stream.seek(self._place)
            return
        if self._stream.tell() > self._place:
            self._close()
            self._open()
        while (left := self._place - self._stream.tell()) > 0:
            if not self._stream.read(min(left, BLOCK)):
                raise EOFError(f"it ends at byte {self._stream.tell():,} of {self._size:,}")

    def readinto(self, buffer: Any) -> int:
        content = self.read(len(buffer))
        buffer[: len(content)] = content
        return len(content)

    def close(self) -> None:
        self._close()
        super().close()

    def _close(self) -> None:
        self._stream, stream = None, self._stream
        with _ignored():
            if stream is not None:
                stream.close()


@contextmanager
def _ignored() -> Iterator[None]:
    """Closing what failed may fail as well."""
    try:
        yield
    except Exception as e:
        log.debug("closing failed: %s", e)
