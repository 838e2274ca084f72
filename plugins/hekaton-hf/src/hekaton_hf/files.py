"""Which files a ``dataset_path`` means."""

from __future__ import annotations

import glob
from pathlib import Path

from hekaton.errors import DataError

READERS = {".jsonl": "json", ".json": "json", ".txt": "text", ".parquet": "parquet"}
"""Suffix -> the builder of ``datasets`` that reads it."""
COMPRESSED = (".gz", ".zst", ".bz2", ".xz")
_LISTING = ", ".join(READERS)


def reader_of(file: Path) -> str | None:
    """The builder that reads a file, by its suffix; ``None`` where none does."""
    name = file.name.lower()
    for suffix in COMPRESSED:
        name = name.removesuffix(suffix)
    reader = READERS.get(Path(name).suffix)
    return None if reader == "parquet" and name != file.name.lower() else reader


def find_files(path: str) -> list[Path]:
    """The files that ``path`` means, each once, in a fixed order: as listed, those of a pattern by name.

    :param path: one or several of file, folder (everything below it that we can read) and glob pattern, split
        by commas; ``{a,b}`` stands for both.
    :raises DataError: when a part of it matches nothing, or nothing that we can read.
    """
    found: dict[Path, None] = {}
    for part in [path] if Path(path).exists() else _parts(path):
        for file in _matches(part):
            found.setdefault(file)
    return list(found)


def _matches(pattern: str) -> list[Path]:
    exact = Path(pattern).expanduser()
    if exact.is_dir():
        files = sorted(file for file in exact.rglob("*") if file.is_file())
    elif exact.exists():
        files = [exact]
    else:
        names = sorted(glob.glob(str(exact), recursive=True))
        files = [Path(name) for name in names if Path(name).is_file()]
    if not files:
        raise DataError(f"no files match '{pattern}'", hint=_where_it_ends(exact))
    readable = [file.absolute() for file in files if reader_of(file)]
    if not readable:
        more = f" and {len(files) - 1} more" if len(files) > 1 else ""
        raise DataError(
            f"cannot read '{files[0]}'{more}: not a format that dataset 'text' knows",
            hint=f"it reads {_LISTING}; all but parquet also compressed ({', '.join(COMPRESSED)})",
        )
    return readable


def _where_it_ends(pattern: Path) -> str:
    """The first part of a path that is not there."""
    first, *parts = pattern.absolute().parts
    folder = Path(first)
    for part in parts:
        if glob.has_magic(part) and not (folder / part).exists():
            return f"nothing in '{folder}' is of the form '{pattern.absolute().relative_to(folder)}'"
        if not (folder / part).exists():
            return f"there is no '{part}' in '{folder}'"
        folder /= part
    return f"'{folder}' is an empty folder"


def _parts(path: str) -> list[str]:
    """Split at the commas outside braces, and write braces out, the first first."""
    return [full for part in _split(path) for full in _without_braces(part)] or [path]


def _split(text: str) -> list[str]:
    parts, depth = [""], 0
    for character in text:
        depth += (character == "{") - (character == "}")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts if part.strip()]


def _without_braces(pattern: str) -> list[str]:
    start, depth = pattern.find("{"), 0
    for end in range(max(start, 0), len(pattern)):
        depth += (pattern[end] == "{") - (pattern[end] == "}")
        if start >= 0 and depth == 0:
            choices = [full for part in _split(pattern[start + 1 : end]) for full in _without_braces(part)]
            rests = _without_braces(pattern[end + 1 :])
            return [pattern[:start] + choice + rest for choice in choices for rest in rests]
    return [pattern]
