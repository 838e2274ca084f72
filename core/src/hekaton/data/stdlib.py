"""The embedded datasets: the source files of the running interpreter's standard library."""

from __future__ import annotations

import hashlib
import os
import sysconfig
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hekaton.errors import DataError

LEFT_OUT = frozenset({"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"})
VALIDATION_SHARE = 50
"""One file in this many is for validation."""


class SourceFiles:
    """Text files of a folder as documents, decoded as UTF-8 with replacement."""

    def __init__(self, root: Path, files: Sequence[tuple[str, int]]) -> None:
        """:param files: (path relative to ``root``, size in bytes) of each document, in order."""
        self._root = root
        self._names = [name for name, _ in files]
        listing = "".join(f"{name}\0{size}\n" for name, size in files)
        self.fingerprint = hashlib.sha256(listing.encode("utf-8", "surrogateescape")).hexdigest()[:32]

    def __len__(self) -> int:
        return len(self._names)

    def fetch(self, indices: Sequence[int]) -> list[str]:
        """:raises DataError: when a file has become unreadable since it was listed."""
        try:
            return [
                (self._root / self._names[index]).read_bytes().decode("utf-8", "replace") for index in indices
            ]
        except OSError as e:
            raise DataError(f"cannot read '{e.filename}': {e.strerror}") from e


def build(section: Any, path: str | None) -> SourceFiles:
    """``python_stdlib``: every source file that is not for validation."""
    return _standard_library("python_stdlib", path, validation=False)


def build_validation(section: Any, path: str | None) -> SourceFiles:
    """``python_stdlib_validation``: about one file in fifty, chosen by its name."""
    return _standard_library("python_stdlib_validation", path, validation=True)


def _standard_library(dataset: str, path: str | None, *, validation: bool) -> SourceFiles:
    if path is not None:
        raise DataError(
            f"dataset '{dataset}' takes no dataset_path, but it is set to '{path}'",
            hint="leave out dataset_path, or choose a dataset that reads files",
        )
    root = Path(sysconfig.get_path("stdlib"))
    files = [file for file in sorted(_source_files(root)) if _is_for_validation(file[0]) == validation]
    if not files:
        raise DataError(
            f"dataset '{dataset}': no Python source files in '{root}'",
            hint="this interpreter keeps its library elsewhere, perhaps compiled or zipped: "
            "choose another dataset",
        )
    return SourceFiles(root, files)


def _source_files(root: Path) -> Iterator[tuple[str, int]]:
    """(path relative to ``root``, size) of each file with something in it."""
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if name not in LEFT_OUT]
        for name in names:
            if name.endswith(".py"):
                file = Path(folder, name)
                size = file.stat().st_size if file.is_file() else 0
                if size:
                    yield file.relative_to(root).as_posix(), size


def _is_for_validation(name: str) -> bool:
    digest = hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:8], "big") % VALIDATION_SHARE == 0
