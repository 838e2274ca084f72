"""A folder of images with captions: ``red.jpg`` beside ``red.txt``, or one ``metadata.jsonl`` for all."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hekaton.data.contents import KnownFile, known_file
from hekaton.data.identity import fingerprint
from hekaton.errors import DataError
from hekaton_flux.decoding import SUFFIXES, check_captions
from hekaton_flux.images import StoredImage
from hekaton_flux.left_out import (
    NO_IMAGE,
    OTHER_KINDS,
    LeftOut,
    is_of_other_kind,
    links_to_folders,
    say_left_out,
)

METADATA = "metadata.jsonl"


class ImageFolder:
    """The images of a folder and the folders in it, in the order of their names."""

    def __init__(self, folder: Path, *, max_bad: int) -> None:
        """:raises DataError: for more images without a caption than ``max_bad``, and captions of images that
        are not there."""
        images, self._captions = listed(folder)
        check_captions(
            [_named(folder, path) for path in images if path not in self._captions], max_bad, what=str(folder)
        )
        say_left_out(_left_out(folder, images), what=str(folder))
        self._folder = folder
        self._images: list[KnownFile] = [known_file(path) for path in images if path in self._captions]
        self.fingerprint = fingerprint(
            "image_folder 1",
            *(
                part
                for file in self._images
                for part in (_named(folder, file.path), file.content, self._captions[file.path])
            ),
        )

    def __len__(self) -> int:
        return len(self._images)

    def files(self) -> Mapping[str, str]:
        return {_named(self._folder, file.path): file.content for file in self._images}

    def fetch(self, indices: Sequence[int]) -> list[StoredImage]:
        return [self._image(index) for index in indices]

    def _image(self, index: int) -> StoredImage:
        file = self._images[index] = self._images[index].unchanged()
        return StoredImage(file.path.read_bytes(), self._captions[file.path], str(file.path))


def listed(folder: Path) -> tuple[list[Path], dict[Path, str]]:
    """The images in a folder, and the captions of those that have one.

    :raises DataError: when there is no image, or a file of captions cannot be read.
    """
    if not folder.is_dir():
        raise DataError(f"dataset_path = '{folder}' is no folder")
    images = sorted(
        path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and not path.is_dir()
    )
    if not images:
        hint = 'training.dataset = "webdataset" reads its .tar files' if any(folder.rglob("*.tar")) else ""
        other = next(_left_out(folder, []), None)
        beside = f": it has {other[0]} ({other[1]})" if other else ""
        raise DataError(f"there is no image ({', '.join(SUFFIXES)}) in '{folder}'{beside}", hint=hint)
    captions: dict[Path, str] = {}
    for path in sorted(folder.rglob(METADATA)):
        _add_captions_in(path, captions)
    if lost := sorted(captions.keys() - set(images)):
        how = f"is none of {', '.join(SUFFIXES)}" if lost[0].is_file() else "is not there"
        raise DataError(f"'{lost[0]}' has a caption in {METADATA}, and {how}")
    for path in images:
        beside = path.with_suffix(".txt")
        if path not in captions and beside.is_file():
            captions[path] = _text(beside).strip()
    return images, captions


def _left_out(folder: Path, images: Sequence[Path]) -> Iterator[LeftOut]:
    """What a folder has beside these images, and could have been meant as one or as a caption."""
    yield from links_to_folders(folder)
    files = sorted(Path(root, name) for root, _, names in os.walk(folder) for name in names)
    others = [path for path in files if is_of_other_kind(path.name)]
    yield from ((OTHER_KINDS, _named(folder, path)) for path in others)
    named = {path.with_suffix(".txt") for path in (*images, *others)}
    yield from (
        (NO_IMAGE, _named(folder, path)) for path in files if path.suffix == ".txt" and path not in named
    )


def _text(path: Path) -> str:
    """:raises DataError: when it cannot be read."""
    try:
        return path.read_text(encoding="utf-8-sig", errors="replace")
    except OSError as e:
        raise DataError(f"cannot read '{path}': {e.strerror}") from e


def _add_captions_in(path: Path, captions: dict[Path, str]) -> None:
    """:raises DataError: for a line that is no object with ``file_name`` and ``text``, or names an image that
    has a caption."""
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
        if path.parent / name in captions:
            raise DataError(f"{path}, line {number}: '{name}' has a caption already")
        captions[path.parent / name] = text.encode("utf-8", "replace").decode().strip()


def _named(folder: Path, path: Path) -> str:
    return path.relative_to(folder).as_posix()


def build(section: Any, path: str | None) -> ImageFolder:
    check(section, path)
    return ImageFolder(Path(str(path)), max_bad=section.max_bad_images)


def check(section: Any, path: str | None, *, here: bool = True) -> None:
    """:raises DataError: without a folder that has images with captions."""
    if not here:
        return
    if path is None:
        raise DataError("dataset 'image_folder' needs dataset_path: the folder of the images")
    images, captions = listed(Path(path))
    missing = [_named(Path(path), image) for image in images if image not in captions]
    if len(missing) > section.max_bad_images:
        check_captions(missing, section.max_bad_images, what=path)
