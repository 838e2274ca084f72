"""Tar shards of images with captions, as webdataset writes them: members with the same name up to its first
dot are one sample, ``000017.jpg`` and ``000017.txt``."""

from __future__ import annotations

import bisect
import contextlib
import itertools
import json
import logging
import os
import posixpath
import tarfile
import zipfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from hekaton.data import Integers
from hekaton.data.contents import KnownFile, cache_folder, known_file, remove_unused
from hekaton.data.identity import fingerprint
from hekaton.errors import DataError
from hekaton_flux.decoding import SUFFIXES, check_captions
from hekaton_flux.images import StoredImage
from hekaton_flux.left_out import (
    COMPRESSED,
    LINKS,
    NO_IMAGE,
    OTHER_KINDS,
    SECOND_DOT,
    SECOND_IMAGE,
    LeftOut,
    is_of_other_kind,
    lines_of,
)
from hekaton_flux.listing import Listing, listing

log = logging.getLogger("hekaton")

_BLOCK = 512
_CAPTIONS = (".txt", ".json")
"""A text, or an object with a ``caption``; the first that a sample has."""


class Shards:
    """The samples of several tar files. Each has an index of where its members lie, which is kept in the
    cache under the hash of the file's content."""

    def __init__(self, folder: Path, *, max_bad: int) -> None:
        """:raises DataError: for a tar file that is cut short or damaged, and for more images without a
        caption than ``max_bad``."""
        self._root = folder if folder.is_dir() else folder.parent
        self._files: list[KnownFile] = [known_file(path) for path in shards_in(folder)]
        self._samples: list[Integers] = []
        missing: list[str] = []
        left_out: list[LeftOut] = []
        for file in self._files:
            members, left = _index(file)
            left_out += [(reason, f"{file.path.name}: {name}") for reason, name in left]
            captioned = members[:, 2] >= 0
            missing += [_name(file.path, int(begin)) for begin in members[~captioned, 0]]
            self._samples.append(members[captioned])
        check_captions(missing, max_bad, what=str(folder))
        if not any(map(len, self._samples)) and not missing:
            beside = f": it has {left_out[0][0]} ({left_out[0][1]})" if left_out else ""
            raise DataError(f"there is no image ({', '.join(SUFFIXES)}) in '{folder}'{beside}")
        for line in lines_of(left_out, what=str(folder)):
            log.warning("%s", line)
        self._ends = list(itertools.accumulate(map(len, self._samples)))
        self.fingerprint = fingerprint("shards 1", *(file.content for file in self._files))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def files(self) -> Mapping[str, str]:
        return {file.path.relative_to(self._root).as_posix(): file.content for file in self._files}

    def fetch(self, indices: Sequence[int]) -> list[StoredImage]:
        return [self._sample(index) for index in indices]

    def _sample(self, index: int) -> StoredImage:
        number = bisect.bisect_right(self._ends, index)
        file = self._files[number] = self._files[number].unchanged()
        at = index - (self._ends[number - 1] if number else 0)
        begin, size, caption, length, is_json = map(int, self._samples[number][at])
        where = f"{file.path}: {_name(file.path, begin)}"
        with file.path.open("rb") as opened:
            data = os.pread(opened.fileno(), size, begin)
            text = os.pread(opened.fileno(), length, caption).decode("utf-8-sig", "replace")
        return StoredImage(data, str(_caption_in_json(text)) if is_json else text.strip(), where)


def _caption_in_json(text: str) -> str | None:
    """``None`` for what is no object with a text as ``caption``."""
    try:
        caption = json.loads(text)["caption"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return caption.encode("utf-8", "replace").decode().strip() if isinstance(caption, str) else None


@dataclass(frozen=True)
class Beside:
    """:param notices: of what is beside the tar files of a folder, and could have been meant as such."""

    notices: list[str]


def shards_in(path: Path) -> list[Path]:
    """The tar files of a folder, in the order of their names, or the one that is named.

    :raises DataError: when there are none.
    """
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise DataError(f"dataset_path = '{path}' is no folder and no file")
    return _tars_among(path, listing(path))


def _tars_among(path: Path, inside: Listing) -> list[Path]:
    found = [path / name for name in inside.files if name.endswith(".tar")]
    if not found:
        raise DataError(f"there is no .tar file in '{path}'", hint=_other_kind(inside))
    return found


def _other_kind(inside: Listing) -> str:
    if any(map(_is_compressed, inside.files)):
        return "compressed tar files are not read: unpack them with gunzip, images are compressed already"
    if any(os.path.splitext(name)[1].lower() in SUFFIXES for name in inside.files):
        return 'it has images: training.dataset = "image_folder" reads them'
    return ""


def _is_compressed(name: str) -> bool:
    return ".tar." in name.rpartition("/")[2]


def _index(file: KnownFile) -> tuple[Integers, list[LeftOut]]:
    """The samples of a tar file: (n, 5), where the image begins and its bytes, where the caption begins, -1
    without one, its bytes, and whether it is in a JSON object. Beside them the members that are left out."""
    kept = cache_folder() / "shards" / f"{file.content}-3.npz"
    with (
        contextlib.suppress(OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile),
        np.load(kept, allow_pickle=False) as found,
    ):
        samples: Integers = found["samples"]
        left = found["left_out"]
        if samples.dtype == np.int64 and samples.shape[1:] == (5,) and left.shape[1:] == (2,):
            return samples, [(str(reason), str(name)) for reason, name in left]
    samples, left_out = _scan(file.path)
    with contextlib.suppress(OSError):  # it is made anew next time
        kept.parent.mkdir(parents=True, exist_ok=True)
        unfinished = kept.with_name(f"{kept.name}.unfinished-{os.getpid()}")
        with unfinished.open("wb") as opened:
            np.savez(opened, samples=samples, left_out=np.array(left_out, np.str_).reshape(-1, 2))
        unfinished.replace(kept)
        remove_unused(kept.parent)
    return samples, left_out


def _scan(path: Path) -> tuple[Integers, list[LeftOut]]:
    """:raises DataError: for a file that is no tar file, cut short or damaged."""
    samples: dict[tuple[str, str], dict[str, tuple[int, int]]] = {}
    places: dict[str, tuple[int, int]] = {}
    left_out: list[LeftOut] = []
    end = 0
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                tar.members = []  # or it would keep every header
                whole = posixpath.normpath(member.name)
                end = member.offset_data
                if member.issparse():
                    raise DataError(
                        f"'{path}' has '{member.name}' with holes, which is not read",
                        hint="pack it again without --sparse",
                    )
                if member.isfile():
                    end += -(-member.size // _BLOCK) * _BLOCK
                    place = member.offset_data, member.size
                    places[whole] = place
                elif member.islnk() and posixpath.normpath(member.linkname) in places:
                    place = places[posixpath.normpath(member.linkname)]
                else:
                    if not member.isdir():
                        left_out.append((LINKS, member.name))
                    continue
                folder, _, name = whole.rpartition("/")
                stem, dot, suffix = name.partition(".")
                parts, kind = samples.setdefault((folder, stem), {}), f"{dot}{suffix}"
                if kind.lower() in (*SUFFIXES, *_CAPTIONS):
                    kind = kind.lower()
                    if kind in parts:
                        raise DataError(
                            f"'{path}' has '{member.name}' twice",
                            hint="pack it again, each file with its own name",
                        )
                parts[kind] = place
    except (tarfile.TarError, OSError, ValueError) as e:
        raise DataError(f"'{path}' is no whole tar file: {e}", hint=_again) from e
    with path.open("rb") as opened:
        _check_end(path, opened, end)
        lines = [line for parts in samples.values() if (line := _line(parts, opened)) is not None]
    for (folder, stem), parts in samples.items():
        left_out += [(reason, posixpath.join(folder, stem + kind)) for reason, kind in _left_out(parts)]
    return np.array(lines, np.int64).reshape(-1, 5), left_out


def _left_out(kinds: Collection[str]) -> Iterator[tuple[str, str]]:
    """What a sample has and is not read, and could have been meant as an image or its caption."""
    images = [kind for kind in SUFFIXES if kind in kinds]
    others = [
        (OTHER_KINDS if is_of_other_kind(f"x{kind}") else SECOND_DOT, kind)
        for kind in kinds
        if is_of_other_kind(f"x{kind}") or (kind not in SUFFIXES and kind.lower().endswith(SUFFIXES))
    ]
    yield from others
    yield from ((SECOND_IMAGE, kind) for kind in images[1:])
    if not images and not others:
        yield from ((NO_IMAGE, kind) for kind in _CAPTIONS if kind in kinds)


_again = "copy or download it again"


def _check_end(path: Path, opened: BinaryIO, end: int) -> None:
    """:raises DataError: unless there are zeros from ``end`` on: readers of tar files stop at the first block
    of them, and what stands after it would be lost."""
    opened.seek(end)
    mark = opened.read(_BLOCK)
    if mark != bytes(_BLOCK):
        how = "is cut short" if len(mark) < _BLOCK else "is damaged"
        raise DataError(f"'{path}' {how}: it does not end after its member at byte {end:,}", hint=_again)
    while rest := opened.read(1 << 20):
        if rest.count(0) < len(rest):
            raise DataError(
                f"'{path}' goes on after its end at byte {end:,}: it is damaged, or tar files were joined",
                hint=f"{_again}; joined ones are read as files of their own",
            )


def _line(parts: Mapping[str, tuple[int, int]], opened: BinaryIO) -> tuple[int, ...] | None:
    """A line of the index; ``None`` for a sample without an image."""
    image = next((parts[suffix] for suffix in SUFFIXES if suffix in parts), None)
    if image is None:
        return None
    kind = next((kind for kind in _CAPTIONS if kind in parts), None)
    if kind == ".json":
        begin, length = parts[kind]
        text = os.pread(opened.fileno(), length, begin).decode("utf-8-sig", "replace")
        kind = None if _caption_in_json(text) is None else kind
    return (*image, *(parts[kind] if kind else (-1, 0)), int(kind == ".json"))


def _name(path: Path, begin: int) -> str:
    """The name of a member, from the header before its content."""
    with path.open("rb") as opened:
        header = os.pread(opened.fileno(), 100, begin - _BLOCK)
    return header.partition(b"\0")[0].decode("utf-8", "replace")


def build(section: Any, path: str | None) -> Shards:
    return Shards(_path(path), max_bad=section.max_bad_images)


def check(section: Any, path: str | None, *, here: bool = True) -> Beside | None:
    """:raises DataError: where there are no tar files."""
    if not here:
        return None
    folder = _path(path)
    if not folder.is_dir():
        shards_in(folder)
        return None
    inside = listing(folder)
    _tars_among(folder, inside)
    left_out = [(LINKS, name) for name in inside.links]
    left_out += [(COMPRESSED, name) for name in inside.files if _is_compressed(name)]
    return Beside(lines_of(left_out, what=str(path)))


def _path(path: str | None) -> Path:
    if path is None:
        raise DataError(
            "a dataset of tar shards needs dataset_path: the folder of the .tar files",
            hint="hf download pixparse/cc12m-wds --repo-type dataset --local-dir FOLDER gives those of CC12M",
        )
    return Path(path)
