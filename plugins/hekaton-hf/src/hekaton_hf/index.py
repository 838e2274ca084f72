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
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from hekaton.data.contents import cache_folder, remove_unused
from hekaton.data.identity import FileState, fingerprint, sample, settled_state
from hekaton.errors import DataError
from hekaton_hf.decoding import DocumentColumns, TextColumn
from hekaton_hf.files import COMPRESSED, DataFile, format_of, shown
from hekaton_hf.readers.files import HashingFile, read_file
from hekaton_hf.recorder import RECORD, FileReport, Odd, Recorder, unwritable

log = logging.getLogger("hekaton")

VERSION = "1"
"""Another one when files are read differently: indices of earlier versions are then made anew."""
GROUP_BYTES = 64 << 20
"""Small files are indexed together up to this size."""


@dataclass(frozen=True)
class Settings:
    """What documents are. ``txt_documents`` as in the section ``text_dataset``.

    :param reader: of rows; ``None`` for the text in ``column``.
    """

    column: str
    txt_documents: str
    reader: DocumentColumns | None = None

    @property
    def rows(self) -> DocumentColumns:
        return self.reader or TextColumn(self.column)

    @property
    def parts(self) -> list[str]:
        """What an index depends on."""
        return [self.column, self.txt_documents, *([repr(self.reader)] if self.reader else [])]


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


def index_files(files: Sequence[DataFile], settings: Settings) -> list[Index]:
    """The index of all files, in their order.

    :raises DataError: when a file cannot be read, or the cache not be written.
    """
    folder = cache_folder() / "text"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise unwritable(folder, e) from e
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
        remove_unused(folder)
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
        parts: list[str | bytes | FileState] = [VERSION, *settings.parts]
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
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
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
            raise unwritable(self.place.parent, e) from e
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
            raise unwritable(folder, e) from e

    def _read(self, number: int, recorder: Recorder, progress: Progress) -> FileReport:
        path, settings = self.files[number].path, self.settings
        report = FileReport(has_column=format_of(path) == "txt")
        recorder.begin(number, report)
        with _reading(path):
            file = HashingFile(path, progress)
        with file:
            if self.states[number].size or path.suffix.lower() in COMPRESSED:
                read_file(file, path, recorder, reader=settings.rows, txt_documents=settings.txt_documents)
            report.content = file.finish()
            if format_of(path) == "json" and not self.files[number].named:
                recorder.drop_description()
            report.size = self.states[number].size
            if FileState.of(os.fstat(file.fileno())) != self.states[number]:
                raise changed(path, "while it was read")
        return report


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


def _write(path: Path, content: bytes) -> None:
    with path.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
