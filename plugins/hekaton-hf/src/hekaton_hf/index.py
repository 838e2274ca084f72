"""Where every document lies: found once by reading the files through, and kept in a cache.

Files are indexed in groups. The index of a group is a folder with

- ``documents``: a record for each document;
- ``texts``: the texts of documents that no place in a file has as they are, because the file is compressed,
  is a parquet file or is in another encoding than UTF-8;
- ``files.json``: what was found in each file: the hash of all its bytes, numbers of documents, rows that are
  odd.

It is named after everything that it depends on: the settings, and of every file the name, the state and a
sample of the content. So a file that changed has no index. Processes that start together share the work.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
from filelock import FileLock, Timeout

from hekaton.data.identity import FileState, fingerprint, sample, settled_state
from hekaton.errors import DataError
from hekaton_hf.files import DataFile, format_of, shown
from hekaton_hf.readers import Places
from hekaton_hf.readers.files import HashingFile, read_file

log = logging.getLogger("hekaton")

VERSION = "1"
"""Another one when files are read differently: indices of earlier versions are then made anew."""
RECORD = np.dtype([("file", "<i4"), ("start", "<i8"), ("length", "<i8")])
"""Number of the file in its group, or ``TEXTS``; place and number of bytes."""
TEXTS = -1
GROUP_BYTES = 64 << 20
"""Small files are indexed together up to this size."""
KEPT_DAYS = 30
"""An index that no run used for so long is removed."""
_EXAMPLES = 3
_BUFFERED = 1 << 16


@dataclass(frozen=True)
class Settings:
    """What documents are. ``txt_documents`` as in the section ``text_dataset``."""

    column: str
    txt_documents: str


@dataclass
class Odd:
    """How many rows are odd in some way, and the first of them."""

    count: int = 0
    examples: list[str] = field(default_factory=list)

    def add(self, example: str) -> None:
        self.count += 1
        if len(self.examples) < _EXAMPLES:
            self.examples.append(example)


@dataclass
class FileReport:
    """What was found in a file.

    :ivar content: hash of all its bytes.
    :ivar rows: rows that have or should have a document.
    :ivar documents: of them, those that have one; it may be empty.
    :ivar keys: names of what the first rows have, in JSON and parquet files.
    :ivar has_column: whether any row had the column, or the format has none.
    :ivar is_description: whether it describes other files: one JSON object without text, found beside them.
        Its row is no document.
    """

    content: str = ""
    size: int = 0
    rows: int = 0
    documents: int = 0
    empty: int = 0
    keys: list[str] = field(default_factory=list)
    has_column: bool = True
    is_description: bool = False
    replaced: Odd = field(default_factory=Odd)
    bad: Odd = field(default_factory=Odd)


@dataclass(frozen=True)
class Index:
    """The index of a group of files."""

    files: tuple[DataFile, ...]
    states: tuple[FileState, ...]
    reports: tuple[FileReport, ...]
    folder: Path

    @property
    def records(self) -> Path:
        """The file of ``RECORD``, one for each document."""
        return self.folder / "documents"

    @property
    def texts(self) -> Path:
        return self.folder / "texts"

    def __len__(self) -> int:
        return sum(report.documents for report in self.reports)

    def mark_used(self) -> None:
        """Keep the index in the cache for another ``KEPT_DAYS``."""
        with contextlib.suppress(OSError):  # a cache that can only be read is nobody's to clear
            os.utime(self.folder)


def cache_folder() -> Path:
    """``$HEKATON_CACHE``, else ``hekaton`` in the user's folder for caches."""
    own = os.environ.get("HEKATON_CACHE")
    if own:
        return Path(own).expanduser().absolute()
    caches = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(caches).expanduser().absolute() / "hekaton"


def index_files(files: Sequence[DataFile], settings: Settings) -> list[Index]:
    """The index of all files, in their order.

    :raises DataError: when a file cannot be read, or the cache not be written.
    """
    folder = cache_folder() / "text"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise _unwritable(folder, e) from e
    groups = [_Group.of(group, settings, folder) for group in _grouped(files)]
    progress = Progress(sum(state.size for group in groups for state in group.states))
    found = {number: group.load() for number, group in enumerate(groups)}
    # First what nobody else is at, then what others have made in the meantime.
    for wait in (False, True):
        if wait and None in found.values():
            log.info("waiting for other processes that are reading the data")
        for number, group in enumerate(groups):
            if found[number] is None:
                found[number] = group.load_or_build(progress, wait=wait)
    if progress.done:
        _remove_unused(folder)
    return [index for index in found.values() if index is not None]


def _grouped(files: Iterable[DataFile]) -> Iterator[list[DataFile]]:
    group: list[DataFile] = []
    size = 0
    for file in files:
        with _reading(file.path):
            bytes_of_file = file.path.stat().st_size
        if group and size + bytes_of_file > GROUP_BYTES:
            yield group
            group, size = [], 0
        group.append(file)
        size += bytes_of_file
    if group:
        yield group


class Progress:
    """Says from time to time how much was read."""

    SECONDS = 10.0

    def __init__(self, size: int) -> None:
        self.done = 0
        self._size = size
        self._next = time.monotonic() + self.SECONDS

    def __call__(self, count: int) -> None:
        self.done += count
        if time.monotonic() > self._next:
            self._next = time.monotonic() + self.SECONDS
            log.info(
                "reading the data for the first time: %.1f of %.1f GB", self.done / 1e9, self._size / 1e9
            )


class _Group:
    """Files that are indexed together, and the place of their index in the cache."""

    def __init__(
        self, files: Sequence[DataFile], states: Sequence[FileState], settings: Settings, place: Path
    ) -> None:
        self.files = tuple(files)
        self.states = tuple(states)
        self.settings = settings
        self.place = place

    @classmethod
    def of(cls, files: Sequence[DataFile], settings: Settings, folder: Path) -> _Group:
        states = []
        parts: list[str | bytes | FileState] = [VERSION, settings.column, settings.txt_documents]
        for file in files:
            with _reading(file.path), file.path.open("rb", buffering=0) as stream:
                state = settled_state(stream.fileno())
                # The format is that of the name by which the file was found, and not of what it links to.
                names = (os.path.realpath(file.path), "".join(file.path.suffixes[-2:]).lower())
                parts += [*names, str(file.named), state, sample(stream.fileno(), state.size)]
            states.append(state)
        return cls(files, states, settings, folder / fingerprint(*parts))

    def load(self) -> Index | None:
        """The index, if there is a whole one."""
        try:
            content = json.loads((self.place / "files.json").read_bytes())
            reports = tuple(_report(report) for report in content["files"])
            sizes = {name: (self.place / name).stat().st_size for name in ("documents", "texts")}
            if sizes != content["sizes"] or len(reports) != len(self.files):
                return None
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None  # none, or of which nothing can be believed: it is made anew
        index = Index(self.files, self.states, reports, self.place)
        if len(index) * RECORD.itemsize != sizes["documents"]:
            return None
        index.mark_used()
        return index

    def load_or_build(self, progress: Progress, *, wait: bool) -> Index | None:
        """The index; ``None`` when another process is making it and we do not wait."""
        lock = FileLock(f"{self.place}.lock")
        try:
            lock.acquire(timeout=-1 if wait else 0)
        except Timeout:
            return None
        except OSError as e:
            raise _unwritable(self.place.parent, e) from e
        try:
            index = self.load()
            if index is None:
                self._build(progress)
                index = self.load()
            assert index is not None
            return index
        finally:
            lock.release()

    def _build(self, progress: Progress) -> None:
        """Write the index beside its place, and move it there when it is whole."""
        folder, name = self.place.parent, self.place.name
        try:
            for left in folder.glob(f"{name}.unfinished-*"):  # we hold the lock: nobody is writing there
                shutil.rmtree(left)
            unfinished = Path(tempfile.mkdtemp(prefix=f"{name}.unfinished-", dir=folder))
            try:
                with Recorder(unfinished) as recorder:
                    reports = [self._read(number, recorder, progress) for number in range(len(self.files))]
                content = {"files": [asdict(report) for report in reports], "sizes": recorder.sizes()}
                _write(unfinished / "files.json", json.dumps(content).encode())
                shutil.rmtree(self.place, ignore_errors=True)
                unfinished.rename(self.place)
            except BaseException:
                shutil.rmtree(unfinished, ignore_errors=True)
                raise
        except OSError as e:
            raise _unwritable(folder, e) from e

    def _read(self, number: int, recorder: Recorder, progress: Progress) -> FileReport:
        path, settings = self.files[number].path, self.settings
        report = FileReport(has_column=format_of(path) == "txt")
        recorder.begin(number, report)
        with _reading(path):
            file = HashingFile(path, progress)
        with file:
            if self.states[number].size:
                read_file(file, path, recorder, column=settings.column, txt_documents=settings.txt_documents)
            report.content = file.finish()
            if format_of(path) == "json" and not self.files[number].named:
                recorder.drop_description()
            report.size = self.states[number].size
            if FileState.of(os.fstat(file.fileno())) != self.states[number]:
                raise changed(path, "while it was read")
        return report


class Recorder:
    """Writes the records and texts of a group; see :class:`hekaton_hf.readers.Rows`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._records = (folder / "documents").open("wb")
        self._texts = (folder / "texts").open("wb")
        self._buffered: list[tuple[int, int, int]] = []
        self._file = 0
        self._is_direct = True
        self._end = self._first_record = 0
        self._report = FileReport()

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, *error: object) -> None:
        try:
            if error[0] is None:
                self._flush()
                for stream in (self._records, self._texts):
                    stream.flush()
                    os.fsync(stream.fileno())
        finally:
            self._records.close()
            self._texts.close()

    def sizes(self) -> dict[str, int]:
        return {name: (self._folder / name).stat().st_size for name in ("documents", "texts")}

    def begin(self, number: int, report: FileReport) -> None:
        """What comes next is of this file."""
        self._flush()
        self._first_record = self._records.tell()
        self._file, self._report = number, report
        self._is_direct = True

    def recoded(self) -> None:
        self._is_direct = False

    def text(self, text: str, start: int, length: int) -> None:
        self._report.rows += 1
        self._report.documents += 1
        self._report.empty += not text
        if self._is_direct:
            self._buffered.append((self._file, start, length))
        else:
            self._append(text.encode())
        if len(self._buffered) >= _BUFFERED:
            self._flush()

    def spans(self, content: bytes, start: int, places: Places, lengths: Places) -> None:
        self._report.rows += len(places)
        self._report.documents += len(places)
        self._flush()
        records = np.empty(len(places), RECORD)
        records["length"] = lengths
        if self._is_direct:
            records["file"], records["start"] = self._file, start + places
        else:
            records["file"], records["start"] = TEXTS, self._end + places
            self._write_texts(content)
        self._write(self._records, records.tobytes())

    def part(self, content: bytes) -> None:
        if not self._is_direct:
            self._write_texts(content)

    def end(self, start: int, length: int) -> None:
        self._report.rows += 1
        self._report.documents += 1
        self._buffered.append(
            (self._file, start, length) if self._is_direct else (TEXTS, self._end - length, length)
        )

    def replaced(self, where: str) -> None:
        self._report.replaced.add(where)

    def bad(self, where: str, reason: str) -> None:
        self._report.rows += 1
        self._report.bad.add(f"{where}: {reason}")

    def keys(self, names: Iterable[str], has_text: bool) -> None:
        self._report.has_column |= has_text
        if self._report.rows < _EXAMPLES:
            self._report.keys = list(dict.fromkeys([*self._report.keys, *names]))[:50]

    def _append(self, raw: bytes) -> None:
        self._buffered.append((TEXTS, self._end, len(raw)))
        self._write_texts(raw)

    def drop_description(self) -> None:
        """Take the file's rows back if it is a single object without text."""
        report = self._report
        if report.rows == 1 and report.keys and (report.bad.count or not report.has_column):
            report.is_description = True
            report.rows = report.documents = report.empty = 0
            report.bad = Odd()
            self._flush()
            self._records.seek(self._first_record)
            self._records.truncate()

    def _write_texts(self, raw: bytes) -> None:
        self._write(self._texts, raw)
        self._end += len(raw)

    def _flush(self) -> None:
        self._write(self._records, np.array(self._buffered, RECORD).tobytes())
        self._buffered.clear()

    def _write(self, stream: IO[bytes], raw: bytes) -> None:
        try:
            stream.write(raw)
        except OSError as e:  # while a file is read, of which it is no error
            raise _unwritable(self._folder.parent, e) from e


def changed(path: Path | str, when: str) -> DataError:
    return DataError(
        f"'{shown(path)}' changed {when}",
        hint="the data must not change during a run; start again when it is complete",
    )


def _report(content: dict[str, Any]) -> FileReport:
    odd = {name: Odd(**content[name]) for name in ("replaced", "bad")}
    return FileReport(**(content | odd))


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Say which file cannot be opened."""
    try:
        yield
    except OSError as e:
        raise DataError(f"cannot read '{shown(path)}': {e.strerror}") from e


def _unwritable(folder: Path, error: OSError) -> DataError:
    return DataError(
        f"cannot write the index of the data in '{shown(folder)}': {error.strerror}",
        hint="set the environment variable HEKATON_CACHE to a folder with room that can be written to",
    )


def _write(path: Path, content: bytes) -> None:
    with path.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())


def _remove_unused(folder: Path) -> None:
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
