"""Which files a ``dataset_path`` means.

Names are taken literally where there is such a file or folder, so that odd ones need no quoting; patterns are
matched component by component. Links are followed.
"""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

from hekaton.errors import DataError

FORMATS = {".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json", ".txt": "txt", ".parquet": "parquet"}
"""Suffix -> what a file with it holds."""
COMPRESSED = (".gz", ".zst", ".bz2", ".xz")
DESCRIPTIONS = frozenset({"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"})
"""Files of the ``datasets`` library that say what is in a folder."""
_LISTING = ", ".join(FORMATS)
_MAGIC = frozenset("*?[")


@dataclass(frozen=True)
class DataFile:
    """A file to read.

    :param path: absolute, with the links that led to it.
    :param named: whether it was named itself, not found in a folder or by a pattern.
    """

    path: Path
    named: bool = True


@dataclass
class FoundFiles:
    """The files that a ``dataset_path`` means, each once and in a fixed order, and what was left out."""

    files: list[DataFile] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)
    """Reason -> number of files or folders."""


def format_of(file: Path) -> str | None:
    """What a file holds, by its name; ``None`` where we cannot read it."""
    name = file.name.lower()
    for suffix in COMPRESSED:
        name = name.removesuffix(suffix)
    found = FORMATS.get(Path(name).suffix)
    return None if found == "parquet" and name != file.name.lower() else found


def shown(path: Path | str) -> str:
    """A name as it can be printed, whatever bytes it is made of."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def find_files(path: str) -> FoundFiles:
    """The files that ``path`` means: as listed, those of a folder or pattern by name.

    :param path: one or several of file, folder (everything below it that we can read) and glob pattern, split
        by commas; ``{a,b}`` stands for both. Hidden files (those whose name begins with a dot) and folders
        (also those whose name begins with two underscores) are read only where a name or pattern says so.
    :raises DataError: when a part of it matches nothing, or nothing that we can read; or when a link leads
        nowhere, or to a folder that it lies in.
    """
    found = FoundFiles()
    taken: dict[str, Path] = {}
    for part in _parts(path):
        for file in _matches(part, found.skipped):
            first = taken.setdefault(os.path.realpath(file.path), file.path)
            if first is file.path:
                found.files.append(file)
            elif first == file.path:
                found.skipped["file that is named twice"] += 1
            else:
                found.skipped["link to a file that is read already"] += 1
    return found


def _matches(pattern: str, skipped: Counter[str]) -> list[DataFile]:
    exact = Path(os.path.expanduser(pattern))
    named = os.path.lexists(exact)
    paths = [exact] if named else sorted(set(_expanded(exact)), key=lambda path: path.parts)
    files: list[DataFile] = []
    for path in paths:
        if os.path.isdir(path):
            files += [DataFile(file, named=False) for file in _below(path, skipped)]
        else:
            files.append(DataFile(path, named=named))
    if not files:
        raise DataError(f"no files match '{shown(pattern)}'", hint=_where_it_ends(exact))
    readable = [
        DataFile(file.path.absolute(), file.named) for file in files if _is_readable(file, files, skipped)
    ]
    if not readable:
        more = f" and {len(files) - 1} more" if len(files) > 1 else ""
        raise DataError(
            f"cannot read '{shown(files[0].path)}'{more}: not a format that dataset 'text' knows",
            hint=f"it reads {_LISTING}; all but parquet also compressed ({', '.join(COMPRESSED)})",
        )
    return readable


def _is_readable(file: DataFile, files: Sequence[DataFile], skipped: Counter[str]) -> bool:
    """:raises DataError: when it should be, and is not there or could block for ever."""
    if format_of(file.path) is None:
        if not file.named:
            skipped[f"of another format ({file.path.suffix or 'no suffix'})"] += 1
        return False
    if not file.named and file.path.name in DESCRIPTIONS:
        skipped["description of a dataset"] += 1
        return False
    try:
        mode = file.path.stat().st_mode
    except FileNotFoundError as e:
        raise DataError(
            f"'{shown(file.path)}' is a link to '{shown(os.readlink(file.path))}', which is not there",
            hint="restore its target, or remove the link",
        ) from e
    except OSError as e:
        raise DataError(f"cannot read '{shown(file.path)}': {e.strerror}") from e
    if stat.S_ISREG(mode):
        return True
    if file.named:
        raise DataError(f"cannot read '{shown(file.path)}': it is no regular file")
    skipped["special file"] += 1
    return False


def _below(folder: Path, skipped: Counter[str]) -> list[Path]:
    """All files below a folder, through links, by name."""
    files: list[Path] = []
    for entry in _entries(folder):
        if entry.name.startswith(".") or (entry.name.startswith("__") and _is_folder(entry)):
            skipped["hidden"] += 1
        elif _is_folder(entry):
            files += _below(_without_loop(entry), skipped)
        else:
            files.append(Path(entry.path))
    return files


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Or a link to one."""
    return entry.is_dir(follow_symlinks=False) or (entry.is_symlink() and os.path.isdir(entry.path))


def _without_loop(folder: os.DirEntry[str]) -> Path:
    """:raises DataError: when a link leads to a folder that it lies in, below which there would be no end."""
    if folder.is_symlink():
        real = os.path.realpath(folder.path)
        around = Path(folder.path).absolute().parents
        if any(os.path.realpath(parent) == real for parent in around):
            raise DataError(
                f"'{shown(folder.path)}' is a link to '{shown(real)}', a folder that it lies in",
                hint="remove the link, or name the files with a pattern",
            )
    return Path(folder.path)


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as e:
        raise DataError(f"cannot read the folder '{shown(folder)}': {e.strerror}") from e


def _expanded(pattern: Path) -> Iterator[Path]:
    """The files and folders of a glob pattern, in which ``**`` is any number of folders."""
    parts = pattern.parts
    if pattern.is_absolute():
        yield from _matching(Path(parts[0]), parts[1:])
    else:
        yield from _matching(Path(), parts)


def _matching(folder: Path, parts: Sequence[str]) -> Iterator[Path]:
    if not parts:
        yield folder
        return
    part, *rest = parts
    if part == "**":
        if rest:
            yield from _matching(folder, rest)
        for entry in _entries(folder):
            if entry.name.startswith((".", "__")):
                continue
            if _is_folder(entry):
                yield from _matching(_without_loop(entry), parts)
            elif not rest:
                yield Path(entry.path)
    elif os.path.lexists(folder / part):
        if not rest or os.path.isdir(folder / part):
            yield from _matching(folder / part, rest)
    elif _MAGIC & set(part) and os.path.isdir(folder):
        for entry in _entries(folder):
            hidden = entry.name.startswith(".") and not part.startswith(".")
            if fnmatchcase(entry.name, part) and not hidden and (not rest or _is_folder(entry)):
                yield from _matching(Path(entry.path), rest)


def _where_it_ends(pattern: Path) -> str:
    """The first part of a path that is not there."""
    first, *parts = pattern.absolute().parts
    folder = Path(first)
    for part in parts:
        if _MAGIC & set(part) and not os.path.exists(folder / part):
            rest = shown(pattern.absolute().relative_to(folder))
            return f"nothing in '{shown(folder)}' is of the form '{rest}'"
        if not os.path.exists(folder / part):
            return f"there is no '{shown(part)}' in '{shown(folder)}'"
        folder /= part
    is_empty = not (os.path.isdir(folder) and os.listdir(folder))
    return f"'{shown(folder)}' " + ("is an empty folder" if is_empty else "has no files but hidden ones")


def _parts(path: str) -> list[str]:
    """Split at the commas outside braces, and write braces out, the first first. Where something has a name
    with commas or braces, they stand for themselves."""
    words = path.split(",")
    parts: list[str] = []
    start = 0
    while start < len(words):
        for end in range(len(words), start, -1):
            name = ",".join(words[start:end])
            literal = next((name for name in (name, name.strip()) if _means_something(name)), None)
            if literal is not None:
                parts.append(literal)
                break
        else:
            first = _split(",".join(words[start:]))[0]
            end = start + first.count(",") + 1
            parts += _without_braces(first.strip())
        start = end
    return [part for part in parts if part] or [path]


def _means_something(name: str) -> bool:
    path = os.path.expanduser(name)
    if os.path.lexists(path):
        return True
    return bool(_MAGIC & set(path)) and next(_expanded(Path(path)), None) is not None


def _split(text: str) -> list[str]:
    parts, depth = [""], 0
    for character in text:
        depth += (character == "{") - (character == "}")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return parts


def _without_braces(pattern: str) -> list[str]:
    """Braces without a comma in them are part of a name, as in shells."""
    start, depth = pattern.find("{"), 0
    for end in range(max(start, 0), len(pattern)):
        depth += (pattern[end] == "{") - (pattern[end] == "}")
        if start >= 0 and depth == 0:
            inside = _split(pattern[start + 1 : end])
            rests = _without_braces(pattern[end + 1 :])
            if len(inside) == 1:
                return [pattern[:start] + "{" + inside[0] + "}" + rest for rest in rests]
            choices = [full.strip() for part in inside for full in _without_braces(part)]
            return [pattern[:start] + choice + rest for choice in choices for rest in rests]
    return [pattern]
