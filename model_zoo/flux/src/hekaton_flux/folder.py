"""A folder of images with captions: ``red.jpg`` beside ``red.txt``, or one ``metadata.jsonl`` for all."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from hekaton.data.contents import KnownFile, known_file
from hekaton.data.identity import fingerprint
from hekaton.errors import DataError
from hekaton_flux.decoding import SUFFIXES, check_captions
from hekaton_flux.images import StoredImage
from hekaton_flux.left_out import LINKS, NO_IMAGE, OTHER_KINDS, LeftOut, is_of_other_kind, lines_of
from hekaton_flux.listing import Listing, listing

METADATA = "metadata.jsonl"


@dataclass(frozen=True)
class Found:
    """What a folder has; files have their names below it.

    :param images: in the order of their names.
    :param in_metadata: captions by image.
    :param beside: files of captions by image, of those that have no other.
    :param notices: what is left out.
    """

    images: list[str]
    in_metadata: dict[str, str]
    beside: dict[str, str]
    notices: list[str]

    def captioned(self) -> list[str]:
        """:returns: the images that have a caption."""
        return [image for image in self.images if image in self.in_metadata or image in self.beside]

    def without_caption(self) -> list[str]:
        return [image for image in self.images if image not in self.in_metadata and image not in self.beside]


class ImageFolder:
    """The images of a folder and the folders in it, in the order of their names."""

    def __init__(self, folder: Path, *, max_bad: int) -> None:
        """:raises DataError: for more images without a caption than ``max_bad``, and captions of images that
        are not there."""
        found = found_in(folder)
        check_captions(found.without_caption(), max_bad, what=str(folder))
        names = found.captioned()
        self._folder = folder
        self._captions = [
            found.in_metadata[name]
            if name in found.in_metadata
            else _text(folder / found.beside[name]).strip()
            for name in names
        ]
        self._images: list[KnownFile] = [known_file(folder / name) for name in names]
        described = zip(names, (file.content for file in self._images), self._captions, strict=True)
        self.fingerprint = fingerprint("image_folder 1", *(part for one in described for part in one))

    def __len__(self) -> int:
        return len(self._images)

    def files(self) -> Mapping[str, str]:
        return {file.path.relative_to(self._folder).as_posix(): file.content for file in self._images}

    def fetch(self, indices: Sequence[int]) -> list[StoredImage]:
        return [self._image(index) for index in indices]

    def _image(self, index: int) -> StoredImage:
        file = self._images[index] = self._images[index].unchanged()
        return StoredImage(file.path.read_bytes(), self._captions[index], str(file.path))


def found_in(folder: Path) -> Found:
    """The images in a folder, and where the captions are of those that have one.

    :raises DataError: when there is no image, or a ``metadata.jsonl`` cannot be read.
    """
    if not folder.is_dir():
        raise DataError(f"dataset_path = '{folder}' is no folder")
    inside = listing(folder)
    images = [name for name in inside.files if os.path.splitext(name)[1].lower() in SUFFIXES]
    left_out = list(_left_out(inside, images))
    if not images:
        tars = any(name.endswith(".tar") for name in inside.files)
        hint = 'training.dataset = "webdataset" reads its .tar files' if tars else ""
        beside = f": it has {left_out[0][0]} ({left_out[0][1]})" if left_out else ""
        raise DataError(f"there is no image ({', '.join(SUFFIXES)}) in '{folder}'{beside}", hint=hint)
    captions: dict[str, str] = {}
    for name in inside.files:
        if PurePosixPath(name).name == METADATA:
            _add_captions_in(folder, name, captions)
    if lost := sorted(captions.keys() - set(images)):
        where = folder / lost[0]
        how = f"is none of {', '.join(SUFFIXES)}" if where.is_file() else "is not there"
        raise DataError(f"'{where}' has a caption in {METADATA}, and {how}")
    files = set(inside.files)
    texts = {image: text for image in images if image not in captions and (text := _text_of(image)) in files}
    return Found(images, captions, texts, lines_of(left_out, what=str(folder)))


def _text_of(image: str) -> str:
    return f"{os.path.splitext(image)[0]}.txt"


def _left_out(inside: Listing, images: Sequence[str]) -> Iterator[LeftOut]:
    """What a folder has beside these images, and could have been meant as one or as a caption."""
    yield from ((LINKS, name) for name in inside.links)
    others = [name for name in inside.files if is_of_other_kind(name)]
    yield from ((OTHER_KINDS, name) for name in others)
    named = {_text_of(name) for name in (*images, *others)}
    yield from ((NO_IMAGE, name) for name in inside.files if name.endswith(".txt") and name not in named)


def _text(path: Path) -> str:
    """:raises DataError: when it cannot be read."""
    try:
        if not path.is_file():  # opening a FIFO waits for its writer
            raise DataError(f"cannot read '{path}': it is no regular file")
        return path.read_text(encoding="utf-8-sig", errors="replace")
    except OSError as e:
        raise DataError(f"cannot read '{path}': {e.strerror}") from e


def _add_captions_in(folder: Path, metadata: str, captions: dict[str, str]) -> None:
    """:raises DataError: for a line that is no object with ``file_name`` and ``text``, or names an image that
    has a caption."""
    path, inside = folder / metadata, PurePosixPath(metadata).parent
    for number, line in enumerate(_text(path).split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            name, text = row["file_name"], row["text"]
        except (ValueError, KeyError, TypeError, RecursionError) as e:
            raise DataError(f"{path}, line {number}: an object with file_name and text was expected") from e
        if not isinstance(name, str) or not isinstance(text, str):
            raise DataError(f"{path}, line {number}: file_name and text are no texts")
        image = (inside / name).as_posix()
        if image in captions:
            raise DataError(f"{path}, line {number}: '{name}' has a caption already")
        captions[image] = text.encode("utf-8", "replace").decode().strip()


def build(section: Any, path: str | None) -> ImageFolder:
    return ImageFolder(_folder(path), max_bad=section.max_bad_images)


def check(section: Any, path: str | None, *, here: bool = True) -> Found | None:
    """:raises DataError: without a folder that has images with captions."""
    if not here:
        return None
    found = found_in(_folder(path))
    missing = found.without_caption()
    if len(missing) > section.max_bad_images:
        check_captions(missing, section.max_bad_images, what=str(path))
    return found


def _folder(path: str | None) -> Path:
    if path is None:
        raise DataError("dataset 'image_folder' needs dataset_path: the folder of the images")
    return Path(path)
