"""The embedded datasets: the source files of the running interpreter's standard library."""

from __future__ import annotations

import hashlib
import os
import stat
import sysconfig
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hekaton.data.identity import fingerprint
from hekaton.errors import DataError

LEFT_OUT = frozenset({"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"})
VALIDATION_SHARE = 50
"""One file in this many is for validation."""


class SourceFiles:
    """Text files of a folder as documents, decoded as UTF-8 with replacement."""

    def __init__(self, root: Path, names: Sequence[str]) -> None:
        """Reads every file once, for its hash.

        :param names: path of each document relative to ``root``, in order.
        :raises DataError: when a file cannot be read.
        """
        self._root = root
        self._names = names
        self._hashes = [fingerprint(self._read(name)) for name in names]
        self.fingerprint = fingerprint(*self._hashes)

    def __len__(self) -> int:
        return len(self._names)

    def fetch(self, indices: Sequence[int]) -> list[str]:
        """:raises DataError: when a file cannot be read any more, or changed since the start."""
        texts = []
        for index in indices:
            content = self._read(self._names[index])
            if fingerprint(content) != self._hashes[index]:
                raise DataError(f"'{self._root / self._names[index]}' changed since the run started")
            texts.append(content.decode("utf-8", "replace"))
        return texts

    def files(self) -> dict[str, str]:
        """Hash of each file, by its path."""
        return {name: digest[:16] for name, digest in zip(self._names, self._hashes, strict=True)}

    def _read(self, name: str) -> bytes:
        try:
            return (self._root / name).read_bytes()
        except OSError as e:
            raise DataError(f"cannot read '{e.filename}': {e.strerror}") from e


def build(section: Any, path: str | None) -> SourceFiles:
    """``python_stdlib``: every source file that is not for validation."""
    return _standard_library("python_stdlib", path, validation=False)


def build_validation(section: Any, path: str | None) -> SourceFiles:
    """``python_stdlib_validation``: about one file in fifty, chosen by its name."""
    return _standard_library("python_stdlib_validation", path, validation=True)


def check(section: Any, path: str | None, *, here: bool = True) -> None:
    """:raises DataError: when given a path."""
    _takes_no_path("python_stdlib", path)


def check_validation(section: Any, path: str | None, *, here: bool = True) -> None:
    """:raises DataError: when given a path."""
    _takes_no_path("python_stdlib_validation", path)


def _takes_no_path(dataset: str, path: str | None) -> None:
    if path is not None:
        raise DataError(
            f"dataset '{dataset}' takes no dataset_path, but it is set to '{path}'",
            hint="leave out dataset_path, or choose a dataset that reads files",
        )


def _standard_library(dataset: str, path: str | None, *, validation: bool) -> SourceFiles:
    _takes_no_path(dataset, path)
    root = Path(sysconfig.get_path("stdlib"))
    names = [name for name in sorted(_source_files(root)) if _is_for_validation(name) == validation]
    if not names:
        raise DataError(
            f"dataset '{dataset}': no Python source files in '{root}'",
            hint="this interpreter keeps its library elsewhere, perhaps compiled or zipped: "
            "choose another dataset",
        )
    return SourceFiles(root, names)


def _source_files(root: Path) -> Iterator[str]:
    """Path relative to ``root`` of each file with something in it."""
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if name not in LEFT_OUT]
        inside = Path(folder).relative_to(root).as_posix()
        for name in names:
            if name.endswith(".py") and _has_content(os.path.join(folder, name)):
                yield name if inside == "." else f"{inside}/{name}"


def _has_content(file: str) -> bool:
    try:
        found = os.stat(file)
    except OSError:  # a link to nothing
        return False
    return stat.S_ISREG(found.st_mode) and found.st_size > 0


def _is_for_validation(name: str) -> bool:
    digest = hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:8], "big") % VALIDATION_SHARE == 0
