"""Files beside the images of a dataset that look like images or captions of it, and are not read: they are
counted and said, by their reason."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import TypeAlias

from hekaton_flux.decoding import SUFFIXES

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
    return os.path.splitext(name)[1].lower() in _OTHER_SUFFIXES


def lines_of(files: Iterable[LeftOut], *, what: str) -> list[str]:
    """A line for each reason, with the number of files and the first of them."""
    names: dict[str, list[str]] = {}
    for reason, name in files:
        names.setdefault(reason, []).append("".join(c if c.isprintable() else "?" for c in name))
    return [
        f"{what}: leaving out {len(found):,} {reason}: {', '.join(found[:_SHOWN])}"
        + (f" and {len(found) - _SHOWN:,} more" if len(found) > _SHOWN else "")
        for reason, found in names.items()
    ]
