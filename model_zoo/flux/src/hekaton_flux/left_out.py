"""Files beside the images of a dataset that look like images or captions of it, and are not read: they are
counted and said, by their reason."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePath
from typing import TypeAlias

from hekaton_flux.decoding import SUFFIXES

log = logging.getLogger("hekaton")

OTHER_KINDS = f"images of other kinds than {', '.join(SUFFIXES)}"
NO_IMAGE = "captions without an image"
SECOND_DOT = "images with a second dot in the name (a sample is named by what stands before the first)"
SECOND_IMAGE = "second images of a sample"
LINKS = "links that are not followed"
COMPRESSED = "compressed tar files (unpack them with gunzip, images are compressed already)"
LeftOut: TypeAlias = tuple[str, str]
"""The reason, and the name of a file."""
_OTHER_SUFFIXES = frozenset({
    ".apng", ".avif", ".bmp", ".gif", ".heic", ".heif", ".jfif", ".jp2", ".jpe", ".jxl", ".ppm", ".tga",
    ".tif", ".tiff",
})  # fmt: skip
_SHOWN = 5


def is_of_other_kind(name: str) -> bool:
    """Whether a file has the suffix of an image that is not read."""
    return PurePath(name).suffix.lower() in _OTHER_SUFFIXES


def links_to_folders(folder: Path) -> Iterator[LeftOut]:
    """In which images are not looked for."""
    for root, folders, _ in os.walk(folder):
        links = (Path(root, name) for name in sorted(folders) if Path(root, name).is_symlink())
        yield from ((LINKS, path.relative_to(folder).as_posix()) for path in links)


def say_left_out(files: Iterable[LeftOut], *, what: str) -> None:
    """Log a warning for each reason, with the number of files and the first of them."""
    names: dict[str, list[str]] = {}
    for reason, name in files:
        names.setdefault(reason, []).append("".join(c if c.isprintable() else "?" for c in name))
    for reason, found in names.items():
        more = f" and {len(found) - _SHOWN:,} more" if len(found) > _SHOWN else ""
        shown = ", ".join(found[:_SHOWN])
        log.warning("%s: leaving out %s %s: %s%s", what, f"{len(found):,}", reason, shown, more)
